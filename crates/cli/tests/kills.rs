//! Each process of `stillpoint up`, killed at each step of a backup.
//!
//! Whatever is killed whenever: requests flow on, only the gateway's own death fails some, the
//! activity says what became of it, nothing half-done remains, and the next backup succeeds.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use serde_json::Value;
use std::fs;
use stillpoint_gateway::control::StateName as State;
use support::Customers;
use support::service::{Service, await_that, children_of, kill};
use support::steps::{Step, Waiting};

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Server,
    Agent,
    Gateway,
    Watchdog,
    Task,
}

/// What becomes of the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// With these words in the reason.
    Failed(&'static str),
}

impl Process {
    fn kill(self, service: &Service) {
        match self {
            Self::Server => service.kill("server"),
            Self::Agent => service.kill("agent"),
            Self::Gateway => service.kill("gateway"),
            Self::Watchdog => service.kill("watchdog"),
            Self::Task => {
                let tasks = children_of(service.child("agent"));
                let task = tasks.iter().find(|(_, line)| line.contains(" task ")).unwrap();
                kill(task.0);
            }
        }
    }
}

fn killed(process: Process, step: Step, outcome: Outcome) {
    let mut waiting = Waiting::at(step);
    let customers = Customers::start(waiting.service.gateway, 2);
    process.kill(&waiting.service);
    if process == Process::Watchdog {
        // Nobody but the watchdog itself is missed by anybody, so nothing ends for it.
        waiting.let_go();
        customers.await_answers(10);
    } else {
        customers.await_answers(10);
        waiting.let_go();
    }
    assert_ended(&waiting, outcome);
    assert_nothing_is_left(&waiting.service);
    waiting.await_no_sessions();
    waiting.service.succeed(&["backup:create"]);
    customers.await_answers(10);
    if process == Process::Gateway {
        customers.end();
    } else {
        customers.end_without_failures();
    }
    assert_nothing_is_left(&waiting.service);
    waiting.service.environment.assert_restic_is_content();
}

/// The backup's activity ended as it should, and so did whatever cleans up after it.
fn assert_ended(waiting: &Waiting, outcome: Outcome) {
    let service = &waiting.service;
    let all = service.await_json(&["activity:list"], |all| {
        let Some(all) = all.as_array() else { return false };
        !all.is_empty() && all.iter().all(|activity| !activity["result"].is_null())
    });
    let all = all.as_array().unwrap();
    let of_it = all.iter().find(|a| a["payload"]["backup_name"] == waiting.backup.as_str());
    let of_it = of_it.unwrap();
    let reason = of_it["failure_reason"].as_str();
    match outcome {
        Outcome::Done => assert_eq!(of_it["result"], "success", "{of_it:#}"),
        Outcome::Failed(why) => {
            assert_eq!(of_it["result"], "failure", "{of_it:#}");
            assert!(reason.is_some_and(|reason| reason.contains(why)), "{of_it:#}");
        }
    }
    let others: Vec<&Value> = all.iter().filter(|a| !std::ptr::eq(*a, of_it)).collect();
    assert!(others.iter().all(|a| a["result"] == "success"), "{others:#?}");
    let listed = service.json(&["backups"]);
    let listed = listed.as_array().unwrap().iter().any(|b| b["id"] == waiting.backup.as_str());
    assert_eq!(listed, outcome == Outcome::Done);
}

/// No lock, no snapshot that no backup stands for, no journal, no hold, no copy of a database.
fn assert_nothing_is_left(service: &Service) {
    let environment = &service.environment;
    let count = |path: &str| fs::read_dir(environment.path(path)).unwrap().count();
    await_that("the repository's locks go", || count("store/test/production/locks") == 0);
    let backups = service.json(&["backups"]).as_array().unwrap().len();
    assert_eq!(count("store/test/production/snapshots"), backups);
    assert!(!environment.path("data/journal/test.main.json").exists());
    assert_eq!(environment.status().state, State::Passing);
    assert_eq!(children_of(service.child("agent")), []);
}

macro_rules! table {
    ($($name:ident: $process:ident, $step:ident, $outcome:expr;)*) => {
        $(
            #[test]
            fn $name() {
                killed(Process::$process, Step::$step, $outcome);
            }
        )*
    };
}

use Outcome::{Done, Failed};

/// Either the database is given up first, or the gateway is missed first.
const WHICHEVER: &str = "";

table! {
    a_server_killed_in_prepare_fails_the_backup: Server, Prepare, Failed("the server was restarted");
    a_server_killed_in_the_drain_fails_the_backup: Server, Drain, Failed("the server was restarted");
    a_server_killed_in_the_mark_fails_the_backup: Server, Mark, Failed("the server was restarted");
    a_server_killed_in_the_capture_fails_the_backup: Server, Capture, Failed("the server was restarted");
    a_server_killed_in_publish_fails_the_backup_and_deletes_it: Server, Publish, Failed("the server was restarted");

    an_agent_killed_in_prepare_fails_the_backup: Agent, Prepare, Failed("the agent was lost");
    an_agent_killed_in_the_drain_fails_the_backup: Agent, Drain, Failed("the agent was lost");
    an_agent_killed_in_the_mark_fails_the_backup: Agent, Mark, Failed("the agent was lost");
    an_agent_killed_in_the_capture_fails_the_backup: Agent, Capture, Failed("the agent was lost");
    an_agent_killed_in_publish_fails_the_backup_and_deletes_it: Agent, Publish, Failed("the agent was lost");

    a_gateway_killed_in_prepare_fails_the_backup: Gateway, Prepare, Failed("gateway `web`");
    a_gateway_killed_in_the_drain_fails_the_backup: Gateway, Drain, Failed("gateway `web`");
    a_gateway_killed_in_the_mark_fails_the_backup: Gateway, Mark, Failed(WHICHEVER);
    a_gateway_killed_in_the_capture_is_not_missed: Gateway, Capture, Done;
    a_gateway_killed_in_publish_is_not_missed: Gateway, Publish, Done;

    a_watchdog_killed_in_prepare_fails_the_backup: Watchdog, Prepare, Failed("watchdog");
    a_watchdog_killed_in_the_drain_fails_the_backup: Watchdog, Drain, Failed("watchdog");
    a_watchdog_killed_in_the_mark_fails_the_backup: Watchdog, Mark, Failed("watchdog");
    a_watchdog_killed_in_the_capture_is_not_missed: Watchdog, Capture, Done;
    a_watchdog_killed_in_publish_is_not_missed: Watchdog, Publish, Done;

    a_task_killed_in_prepare_fails_the_backup: Task, Prepare, Failed("killed by signal 9");
    a_task_killed_in_the_drain_fails_the_backup: Task, Drain, Failed("killed by signal 9");
    a_task_killed_in_the_mark_fails_the_backup: Task, Mark, Failed("killed by signal 9");
    a_task_killed_in_the_capture_fails_the_backup: Task, Capture, Failed("killed by signal 9");
    a_task_killed_in_publish_fails_the_backup: Task, Publish, Failed("killed by signal 9");
}
