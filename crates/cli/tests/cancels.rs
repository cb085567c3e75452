//! A cancel at each step of a backup and of a restore: the activity ends `cancelled` without
//! anybody's help, everything is let go, nothing of it remains, and no snapshot is to be seen.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use std::fs;
use stillpoint_gateway::control::StateName as State;
use support::service::{PASSWORD, Service, await_that};
use support::steps::{Step, Waiting, postgresql};
use support::{Customers, Environment};

/// Cancels the newest activity, and waits until it has ended by that.
fn cancel(service: &Service) {
    service.succeed(&["activity:cancel"]);
    let all = service.await_json(&["activity:list"], |all| !all[0]["result"].is_null());
    assert_eq!(all[0]["state"], "cancelled", "{all:#}");
}

/// The newest activity's log.
fn log(service: &Service) -> String {
    let all = service.json(&["activity:list"]);
    service.succeed(&["activity:log", all[0]["id"].as_str().unwrap()])
}

/// Neither a lock nor a snapshot, but for those of the one backup there is.
fn assert_only_the_first_backup(service: &Service) {
    let environment = &service.environment;
    let count = |path: &str| fs::read_dir(environment.path(path)).unwrap().count();
    assert_eq!(count("store/test/production/locks"), 0);
    assert_eq!(count("store/test/production/snapshots"), 1);
    assert_eq!(service.json(&["backups"]).as_array().unwrap().len(), 1);
    assert_eq!(environment.status().state, State::Passing);
}

fn a_backup_cancelled_at(step: Step) {
    let mut waiting = Waiting::at(step);
    let customers = Customers::start(waiting.service.gateway, 2);
    // Nothing is let go: it ends because it was cancelled.
    cancel(&waiting.service);
    customers.await_answers(10);
    assert_only_the_first_backup(&waiting.service);
    waiting.let_go();
    waiting.service.succeed(&["backup:create"]);
    customers.end_without_failures();
    waiting.service.environment.assert_restic_is_content();
}

#[test]
fn a_backup_is_cancelled_in_prepare_within_one_endless_file() {
    a_backup_cancelled_at(Step::Prepare);
}

#[test]
fn a_backup_is_cancelled_in_the_drain_before_the_request_in_flight_has_ended() {
    a_backup_cancelled_at(Step::Drain);
}

#[test]
fn a_backup_that_is_cancelled_in_publish_is_no_backup_or_a_whole_one() {
    let mut waiting = Waiting::at(Step::Publish);
    waiting.service.succeed(&["activity:cancel"]);
    waiting.let_go();
    let service = &waiting.service;
    let all = service.await_json(&["activity:list"], |all| !all[0]["result"].is_null());
    // It was too late: what has been published is told of.
    assert_eq!((&all[0]["state"], &all[0]["result"]), (&"complete".into(), &"success".into()));
    assert_eq!(service.json(&["backups"])[0]["id"], waiting.backup.as_str());
    service.environment.assert_restic_is_content();
}

/// A service with a table of some gigabytes of rows, which take little room in the database.
fn with_a_large_table() -> (Service, stillpoint_testkit::Postgres) {
    let server = stillpoint_testkit::postgres_with(&stillpoint_testkit::ScratchOptions {
        password: Some(PASSWORD.to_owned()),
        ..stillpoint_testkit::ScratchOptions::default()
    });
    server
        .client()
        .batch_execute(
            "CREATE TABLE large (v text); INSERT INTO large SELECT repeat('x', 1000000); \
             INSERT INTO large SELECT v FROM large, generate_series(1, 4000)",
        )
        .unwrap();
    (Service::of(Environment::unstarted("", &postgresql(&server))), server)
}

#[test]
fn a_backup_is_cancelled_in_the_capture_within_one_large_table() {
    let (service, server) = with_a_large_table();
    service.succeed(&["backup:create", "--no-wait"]);
    let mut client = server.superuser_in("postgres");
    await_that("the table is copied", || {
        let copying =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY \"public\".\"large\"%'";
        client.query_one(copying, &[]).unwrap().get::<_, i64>(0) > 0
    });
    cancel(&service);
    let log = log(&service);
    assert!(!log.contains("publish"), "{log}");
    assert_eq!(service.json(&["backups"]), serde_json::json!([]));
    let count = |path: &str| fs::read_dir(service.environment.path(path)).unwrap().count();
    assert_eq!(count("store/test/production/locks"), 0);
    assert_eq!(count("store/test/production/snapshots"), 0);
    await_that("our sessions end", || {
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stillpoint'";
        client.query_one(ours, &[]).unwrap().get::<_, i64>(0) == 0
    });
    server.client().batch_execute("DROP TABLE large").unwrap();
    service.succeed(&["backup:create"]);
    service.environment.assert_restic_is_content();
}

/// The mount is as it was changed after the backup, without anything beside it.
fn assert_not_restored(service: &Service) {
    let uploads = service.environment.path("uploads");
    assert!(!service.environment.path("data/journal/test.main.json").exists());
    assert_eq!(fs::read(uploads.join("a.txt")).unwrap(), b"changed");
    let left: Vec<_> =
        fs::read_dir(&uploads).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("stillpoint")), "{left:?}");
}

#[test]
fn a_restore_is_cancelled_in_its_load_within_one_large_file() {
    let service = Service::start();
    let large = fs::File::create(service.environment.path("uploads/large")).unwrap();
    // One file, nearly all of it a hole: it is stored in no time, and still read whole.
    large.set_len(768 << 20).unwrap();
    service.succeed(&["backup:create"]);
    fs::write(service.environment.path("uploads/a.txt"), "changed").unwrap();
    let customers = Customers::start(service.gateway, 2);
    service.succeed(&["backup:restore", "--yes", "--no-wait", "--no-safety-backup"]);
    service.await_json(&["activity:list"], |all| all[0]["phase"] == "load uploads");
    cancel(&service);
    let log = log(&service);
    assert!(!log.contains("hold and swap"), "{log}");
    assert_not_restored(&service);
    customers.await_answers(10);
    customers.end_without_failures();
    assert_only_the_first_backup(&service);
}

#[test]
fn a_restore_is_cancelled_in_its_hold_before_the_request_in_flight_has_ended() {
    let service = Service::start();
    service.succeed(&["backup:create"]);
    fs::write(service.environment.path("uploads/a.txt"), "changed").unwrap();
    let gateway = service.gateway;
    let hanging = std::thread::spawn(move || support::get(gateway, "/hang").unwrap());
    service.environment.application.await_hanging(1);
    service.succeed(&["backup:restore", "--yes", "--no-wait", "--no-safety-backup"]);
    await_that("the restore holds", || service.environment.status().state == State::Draining);
    let customers = Customers::start(gateway, 2);
    cancel(&service);
    customers.await_answers(10);
    assert_not_restored(&service);
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    service.succeed(&["backup:restore", "--yes", "--no-safety-backup"]);
    assert_eq!(fs::read(service.environment.path("uploads/a.txt")).unwrap(), b"first");
    customers.end_without_failures();
    assert_only_the_first_backup(&service);
}
