//! `stillpoint up` killed in the middle of a restore's swap, with and without all that it runs.
//!
//! Nothing that is left holds anything: either the task finishes the swap, or the watchdog or the
//! next `up` puts everything back; no request is let into data that is half the one, half the other.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use std::fs;
use support::Environment;
use support::service::{Service, await_that, children_of, is_alive, kill};

/// A restore that waits in its swap, since somebody writes to the database, and `up` just killed.
struct Killed {
    environment: Environment,
    writer: rusqlite::Connection,
    task: i32,
    watchdog: i32,
    all: Vec<i32>,
}

impl Killed {
    fn in_the_swap() -> Self {
        let service = Service::start();
        service.succeed(&["backup:create"]);
        fs::write(service.environment.path("uploads/a.txt"), "changed").unwrap();
        let writer = rusqlite::Connection::open(service.environment.path("app.db")).unwrap();
        writer.execute_batch("INSERT INTO t (v) VALUES ('changed'); BEGIN IMMEDIATE").unwrap();
        service.succeed(&["backup:restore", "--yes", "--no-wait", "--no-safety-backup"]);
        let journal = journal(&service.environment);
        await_that("the swap has begun", || {
            fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"swapping\""))
        });
        let tasks = children_of(service.child("agent"));
        let task = tasks.iter().find(|(_, line)| line.contains(" task ")).unwrap().0;
        let watchdog = service.child("watchdog");
        let (environment, mut all) = service.kill_up();
        all.push(task);
        Self { environment, writer, task, watchdog, all }
    }

    /// Nobody keeps the database locked any more.
    fn let_go(&self) {
        self.writer.execute_batch("ROLLBACK").unwrap();
    }

    /// All that `up` had started ends by itself.
    fn await_the_end(&self) {
        await_that("everything ends", || self.all.iter().all(|pid| !is_alive(*pid)));
    }

    fn again(self) -> Service {
        drop(self.writer);
        let service = Service::again(self.environment);
        service.await_json(&["activity:list"], |all| {
            let Some(all) = all.as_array() else { return false };
            !all.is_empty() && all.iter().all(|activity| !activity["result"].is_null())
        });
        service
    }
}

fn journal(environment: &Environment) -> std::path::PathBuf {
    environment.path("data/journal/test.main.json")
}

/// Both parts of the environment have the same data, the restored or that from before, and nothing
/// else is left; requests flow, and the next restore and backup do what they should.
fn assert_whole(service: &Service, is_restored: bool) {
    let environment = &service.environment;
    assert!(!journal(environment).exists());
    let uploads = environment.path("uploads");
    let found = fs::read(uploads.join("a.txt")).unwrap();
    let rows = || -> i64 {
        let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
        database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    };
    let expected = if is_restored { (&b"first"[..], 2) } else { (&b"changed"[..], 3) };
    assert_eq!((found.as_slice(), rows()), expected);
    for directory in [uploads, environment.directory.path().to_owned()] {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> =
            names.filter(|name| name.to_string_lossy().contains("stillpoint-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(support::get(service.gateway, "/").unwrap().contains(" 200 "));
    service.succeed(&["backup:restore", "--yes", "--no-safety-backup"]);
    assert_eq!(rows(), 2);
    service.succeed(&["backup:create"]);
    environment.assert_restic_is_content();
}

#[test]
fn a_swap_that_lost_up_is_finished_by_its_task() {
    let killed = Killed::in_the_swap();
    killed.let_go();
    killed.await_the_end();
    assert!(!journal(&killed.environment).exists());
    assert_whole(&killed.again(), true);
}

#[test]
fn a_swap_that_lost_up_and_its_task_is_undone_by_the_watchdog_before_it_goes() {
    let killed = Killed::in_the_swap();
    kill(killed.task);
    killed.let_go();
    killed.await_the_end();
    assert!(!journal(&killed.environment).exists());
    assert_whole(&killed.again(), false);
}

#[test]
fn a_swap_that_lost_everything_is_undone_by_the_next_up_before_it_is_ready() {
    let killed = Killed::in_the_swap();
    // First who would act in the others' stead.
    kill(killed.watchdog);
    for pid in killed.all.iter().filter(|pid| is_alive(**pid)) {
        kill(*pid);
    }
    killed.await_the_end();
    killed.let_go();
    assert!(journal(&killed.environment).exists());
    assert_whole(&killed.again(), false);
}
