//! Workers and crons of a whole environment: what works by itself stands still while the marks are
//! taken, and goes on whatever becomes of whoever froze it.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use rustix::process::Signal;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use stillpoint_gateway::control::StateName as State;
use support::service::{Service, await_that, is_alive, kill};
use support::{Customers, Environment, Followed};

/// A process that works by itself, in a group of its own, with a pid file in the environment.
struct Worker {
    child: Child,
    written: std::path::PathBuf,
}

impl Worker {
    /// One that writes without end.
    fn start(environment: &Environment) -> Self {
        let written = environment.path("written");
        let program = format!("while :; do printf x >> {}; done", written.display());
        let worker = Self::run(environment, Command::new("/bin/sh").args(["-c", &program]));
        worker.await_progress();
        worker
    }

    fn run(environment: &Environment, command: &mut Command) -> Self {
        let child = command.process_group(0).stdin(Stdio::null()).spawn().unwrap();
        fs::write(environment.path("worker.pid"), child.id().to_string()).unwrap();
        Self { child, written: environment.path("written") }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    }

    fn await_progress(&self) {
        let length = || fs::metadata(&self.written).map_or(0, |found| found.len());
        let before = length();
        await_that("the worker goes on", || length() > before);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An environment with the worker that the pid file names, and these options of it.
fn with_worker(options: &str) -> Environment {
    let workers = format!("\x20   workers:\n\x20     mailer: {{ pidfile: worker.pid{options} }}\n");
    Environment::with("", &workers)
}

/// A backup whose mark waits for the database, while the worker stands still.
fn in_the_mark(environment: &Environment, worker: &Worker) -> (Followed, rusqlite::Connection) {
    let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
    database.pragma_update(None, "journal_mode", "DELETE").unwrap();
    let gateway = environment.gateway();
    let hanging = std::thread::spawn(move || support::get(gateway, "/hang"));
    environment.application.await_hanging(1);
    let coordinator = Followed::start(&mut environment.stillpoint(&["backup:create"]));
    await_that("it drains", || environment.status().state == State::Draining);
    assert!(!worker.is_stopped(), "a request in flight may wait for it");
    database.execute_batch("BEGIN EXCLUSIVE").unwrap();
    environment.application.let_go();
    hanging.join().unwrap().unwrap();
    await_that("the worker stands still", || worker.is_stopped());
    (coordinator, database)
}

#[test]
fn a_worker_stands_still_while_the_marks_are_taken_and_the_manifest_says_so() {
    let environment = with_worker("");
    let worker = Worker::start(&environment);
    let manifest = |id: &str| -> serde_json::Value {
        let text = environment.succeed(&["backup:get", id, "--format", "json"]);
        serde_json::from_str(&text).unwrap()
    };
    let backup = manifest(&environment.succeed(&["backup:create"]));
    let evidence = &backup["evidence"]["workers"][0];
    assert_eq!(evidence["worker"], "mailer", "{backup:#}");
    assert_eq!(evidence["by"], format!("process group {}", worker.pid()));
    assert_eq!(backup["attributes"]["consistency"], "crash-consistent");
    assert!(backup["doubts"][0].as_str().unwrap().starts_with("mailer: it was frozen"));
    worker.await_progress();
    let atomic = environment.config.replace("worker.pid", "worker.pid, atomic: true");
    environment.configure(&atomic);
    let backup = manifest(&environment.succeed(&["backup:create"]));
    assert_eq!(backup["attributes"]["consistency"], "consistent", "{backup:#}");
    worker.await_progress();
}

#[test]
fn a_worker_goes_on_when_the_backup_is_killed_or_stopped() {
    for signal in [Signal::KILL, Signal::STOP] {
        let environment = with_worker("");
        let worker = Worker::start(&environment);
        let customers = Customers::start(environment.gateway(), 2);
        let (mut coordinator, database) = in_the_mark(&environment, &worker);
        coordinator.signal(signal);
        worker.await_progress();
        assert!(!worker.is_stopped());
        customers.await_answers(10);
        customers.end_without_failures();
        drop(database);
        coordinator.signal(Signal::KILL);
        coordinator.child.wait().unwrap();
        assert_eq!(environment.backups(), 0);
        environment.succeed(&["backup:create"]);
        worker.await_progress();
    }
}

#[test]
fn a_worker_goes_on_when_its_gateway_is_gone() {
    let mut environment = with_worker("");
    let worker = Worker::start(&environment);
    let (coordinator, database) = in_the_mark(&environment, &worker);
    environment.stop_gateway();
    drop(database);
    let (status, _, said) = coordinator.end();
    assert!(!status.success(), "{said}");
    worker.await_progress();
    environment.start_gateway();
    environment.succeed(&["backup:create"]);
}

/// Takes the database's lock, and gives it back once it has been stopped and continued.
const LOCKER: &str = "
import os, signal, sqlite3, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute('BEGIN EXCLUSIVE')
open(sys.argv[2], 'w').write('x')
signal.sigwait([signal.SIGCONT])
database.execute('COMMIT')
open(sys.argv[2], 'a').write('x')
signal.pause()
";

#[test]
fn a_worker_that_holds_a_lock_which_the_mark_needs_is_thawed_until_it_lets_go() {
    let environment = with_worker(", atomic: true");
    let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
    database.pragma_update(None, "journal_mode", "DELETE").unwrap();
    drop(database);
    let gateway = environment.gateway();
    let hanging = std::thread::spawn(move || support::get(gateway, "/hang"));
    environment.application.await_hanging(1);
    let mut command = Command::new("python3");
    command.args(["-c", LOCKER]).arg(environment.path("app.db")).arg(environment.path("written"));
    fs::write(environment.path("worker.pid"), "").unwrap();
    fs::remove_file(environment.path("worker.pid")).unwrap();
    let coordinator = Followed::start(&mut environment.stillpoint(&["backup:create"]));
    await_that("it drains", || environment.status().state == State::Draining);
    // It takes the lock after prepare, which needs the database as well.
    let worker = Worker::run(&environment, &mut command);
    await_that("the worker has the lock", || worker.written.exists());
    environment.application.let_go();
    hanging.join().unwrap().unwrap();
    let (status, id, said) = coordinator.end();
    assert!(status.success(), "{said}");
    assert_eq!(fs::read_to_string(&worker.written).unwrap(), "xx", "it was thawed in between");
    let text = environment.succeed(&["backup:get", id.trim(), "--format", "json"]);
    let backup: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(backup["attributes"]["consistency"], "consistent", "{backup:#}");
}

#[test]
fn doctor_says_of_a_worker_whether_it_can_be_frozen() {
    let environment = with_worker("");
    let told = |environment: &Environment| {
        let output = environment.run(&["doctor", "--format", "json"]);
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = all.as_array().unwrap().clone();
        all.into_iter().find(|finding| finding["part"] == "main/mailer").unwrap()
    };
    assert_eq!(told(&environment)["what"], "the worker, which does not run");
    let worker = Worker::start(&environment);
    let finding = told(&environment);
    assert_eq!(finding["what"], format!("freezing process group {}", worker.pid()));
    assert_eq!(finding["ok"], true);
    fs::write(environment.path("worker.pid"), "soon").unwrap();
    let finding = told(&environment);
    assert_eq!(finding["ok"], false);
    let problem = finding["problem"].as_str().unwrap();
    assert!(problem.contains("does not hold the number of a process"), "{finding}");
}

#[test]
fn a_restore_swaps_while_workers_stand_still() {
    let environment = with_worker(", atomic: true");
    let worker = Worker::start(&environment);
    environment.succeed(&["backup:create"]);
    fs::write(environment.path("uploads/a.txt"), "newer").unwrap();
    let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
    database.pragma_update(None, "journal_mode", "DELETE").unwrap();
    let mut restore = Followed::start(&mut environment.stillpoint(&["backup:restore", "--yes"]));
    restore.await_line("hold and swap");
    let (status, _, said) = restore.end();
    assert!(status.success(), "{said}");
    assert_eq!(fs::read_to_string(environment.path("uploads/a.txt")).unwrap(), "first");
    worker.await_progress();
}

/// How long what crons do may take: they begin on the minute.
const MINUTES: Duration = Duration::from_secs(180);

fn await_minutes(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + MINUTES;
    while !is_so() {
        assert!(Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_cron_waits_for_the_backup_that_it_asks_for_and_others_stand_still_meanwhile() {
    let outside = tempfile::tempdir().unwrap();
    let out = |name: &str| outside.path().join(name);
    let crons = format!(
        r#"    crons:
      ticker:
        spec: "* * * * *"
        commands:
          start: |
            trap 'printf terminated > {out}/end; exit' TERM
            echo $$ > {out}/ticker
            while :; do printf x >> {out}/ticks; sleep 0.01; done
      asking:
        spec: "* * * * *"
        commands:
          start: |
            echo "begins as $STILLPOINT_CRON"
            while [ ! -s {out}/ticks ]; do sleep 0.05; done
            test -e {out}/asked && exit
            touch {out}/asked
            env > {out}/env
            echo $$ > {out}/asking
            stillpoint backup:create --yes > {out}/id 2> {out}/said
            echo $? > {out}/status.new
            mv {out}/status.new {out}/status
"#,
        out = outside.path().display()
    );
    let service = Service::of(Environment::unstarted("", &crons));
    let customers = Customers::start(service.gateway, 2);
    await_minutes("the cron's backup ends", || out("status").exists());
    let read = |name: &str| fs::read_to_string(out(name)).unwrap().trim().to_owned();
    assert_eq!(read("status"), "0", "{}", read("said"));
    customers.end_without_failures();
    let backup = service.json(&["backup:get", &read("id")]);
    assert_eq!(backup["attributes"]["consistency"], "consistent", "{backup:#}");
    let workers = backup["evidence"]["workers"].as_array().unwrap();
    let frozen: Vec<(&str, &str)> = workers
        .iter()
        .map(|one| (one["worker"].as_str().unwrap(), one["by"].as_str().unwrap()))
        .collect();
    assert_eq!(frozen, [("ticker", &*format!("process group {}", read("ticker")))]);
    let environment = read("env");
    for line in [
        "PLATFORM_APPLICATION_NAME=test",
        "PLATFORM_BRANCH=main",
        "PLATFORM_ENVIRONMENT=main",
        "PLATFORM_ENVIRONMENT_TYPE=production",
        "PLATFORM_PROJECT=test",
        "STILLPOINT_CRON=asking",
        "STILLPOINT_ENVIRONMENT_TYPE=production",
    ] {
        assert!(environment.lines().any(|other| other == line), "{line} is not in {environment}");
    }
    service.await_words("main/asking: begins as asking");
    let ticker = read("ticker").parse().unwrap();
    assert!(is_alive(ticker));
    drop(service);
    assert!(!is_alive(ticker));
    assert_eq!(read("end"), "terminated");
}

#[test]
fn a_run_whose_agent_was_killed_is_neither_forgotten_nor_doubled() {
    let outside = tempfile::tempdir().unwrap();
    let begun = outside.path().join("begun");
    let crons = format!(
        "\x20   crons:\n\x20     long:\n\x20       spec: \"* * * * *\"\n\x20       commands:\n\
         \x20         start: echo $$ >> {begun}; exec sleep 600\n",
        begun = begun.display()
    );
    let service = Service::of(Environment::unstarted("", &crons));
    await_minutes("it begins", || read_pid(&begun).is_some());
    let pid = read_pid(&begun).unwrap();
    service.kill("agent");
    let backup = service.succeed(&["backup:create"]);
    let backup = service.json(&["backup:get", &backup]);
    assert_eq!(backup["evidence"]["workers"][0]["by"], format!("process group {pid}"));
    let line = service.await_words_within("the last run goes on", MINUTES);
    assert!(line.contains("main/long"), "{line}");
    assert_eq!(fs::read_to_string(&begun).unwrap().lines().count(), 1);
    assert!(is_alive(pid));
    kill(pid);
}

fn read_pid(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
