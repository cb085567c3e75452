//! The SQLite driver on real files, with writers beside it.
#![allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Memory, capture, capture_prepared, loaded, restore, step, told};
use rusqlite::Connection;
use stillpoint_services::sqlite::{Sqlite, SqliteOptions};
use stillpoint_services::{Aside, Driver};
use stillpoint_testkit as testkit;

fn driver(path: &Path) -> Sqlite {
    Sqlite::new(SqliteOptions { path: path.to_owned() }).unwrap()
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    // Short steps: SQLite's own, ever longer ones can miss a busy writer's gaps for long.
    connection
        .busy_handler(Some(|tries| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            tries < 60_000
        }))
        .unwrap();
    connection
}

/// A database with `count` orders in it, and one connection that stays open.
fn orders(path: &Path, mode: &str, count: i64) -> Connection {
    let connection = open(path);
    let _: String = connection
        .query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0))
        .unwrap();
    connection
        .execute_batch(&format!(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, what TEXT); CREATE TABLE paid (id INTEGER); \
             WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count}) \
             INSERT INTO orders SELECT n, 'order ' || n || hex(zeroblob(500)) FROM n; \
             INSERT INTO paid SELECT id FROM orders"
        ))
        .unwrap();
    connection
}

fn number(connection: &Connection, query: &str) -> i64 {
    connection.query_row(query, [], |row| row.get(0)).unwrap()
}

fn count(path: &Path) -> i64 {
    number(&open(path), "SELECT count(*) FROM orders")
}

/// Files beside the database that a restore has left.
fn leftovers(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path.parent().unwrap()).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("stillpoint"))
        .collect()
}

const MODES: [&str; 2] = ["wal", "delete"];

/// This test program, started again to play another process's part.
fn another_process(part: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", part, "--nocapture"])
        .env("STILLPOINT_TEST_DATABASE", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Plays the application in another process: each transaction writes to both tables.
#[test]
fn part_of_a_writer() {
    let Some(path) = std::env::var_os("STILLPOINT_TEST_DATABASE") else { return };
    let mut connection = open(Path::new(&path));
    for round in 0.. {
        let transaction = connection.transaction().unwrap();
        transaction
            .execute_batch(
                "INSERT INTO orders (what) VALUES ('another'); \
                 INSERT INTO paid SELECT max(id) FROM orders",
            )
            .unwrap();
        transaction.commit().unwrap();
        // An application computes, too; without a gap nobody else would get the lock.
        std::thread::sleep(std::time::Duration::from_millis(2));
        // A closed pipe is the order to end.
        if writeln!(std::io::stdout(), "written {round}").is_err() {
            return;
        }
    }
}

/// Reads what a writer says until it has written `more` times.
fn await_writes(lines: &mut dyn BufRead, more: usize) {
    let mut line = String::new();
    let mut seen = 0;
    while seen < more {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the writer ended");
        seen += usize::from(line.starts_with("written"));
    }
}

#[test]
fn rows_written_after_the_mark_are_not_captured() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let writer = orders(&path, mode, 200);
        let memory = capture(&driver(&path), || {
            // No waiting: the mark must not keep a writer out.
            writer.busy_timeout(std::time::Duration::ZERO).unwrap();
            writer
                .execute_batch(
                    "DELETE FROM orders WHERE id < 100; INSERT INTO orders (what) VALUES ('late')",
                )
                .unwrap();
        });
        assert_eq!(count(&path), 102, "{mode}");
        restore(&driver(&path), &memory);
        assert_eq!(count(&path), 200, "{mode}");
        assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_capture_is_one_instant_while_another_process_writes() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        drop(orders(&path, mode, 300));
        let mut writer = another_process("part_of_a_writer", &path);
        let mut lines = BufReader::new(writer.stdout.take().unwrap());
        await_writes(&mut lines, 5);
        let driver = driver(&path);
        let mut prepared = driver.prepare().unwrap();
        let mut at_mark = 0;
        let memory = capture_prepared(prepared.as_mut(), || {
            at_mark = count(&path);
            while count(&path) < at_mark + 5 {
                await_writes(&mut lines, 1);
            }
        });
        drop(prepared);
        // The writer goes on while the restore is loaded, and is gone before the swap.
        let mut steps = driver.restore();
        let aside = loaded(steps.as_mut(), &memory);
        drop(lines);
        writer.wait().unwrap();
        step("swap", steps.swap(&aside));
        step("finish", steps.finish(&aside));
        let restored = open(&path);
        let orders = number(&restored, "SELECT count(*) FROM orders");
        assert_eq!(orders, number(&restored, "SELECT count(*) FROM paid"), "{mode}");
        assert!(orders >= 305 && orders <= at_mark, "{mode}: {orders}, {at_mark} at the mark");
    }
}

#[test]
fn a_second_mark_counts_and_the_first_does_not() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let writer = orders(&path, mode, 10);
        let driver = driver(&path);
        let mut prepared = driver.prepare().unwrap();
        assert_eq!(prepared.mark_blocks_writers(), mode == "delete");
        prepared.mark().unwrap();
        writer.execute_batch("INSERT INTO orders (what) VALUES ('between')").unwrap();
        let memory = capture_prepared(prepared.as_mut(), || {
            writer.execute_batch("INSERT INTO orders (what) VALUES ('late')").unwrap();
        });
        drop(prepared);
        restore(&driver, &memory);
        assert_eq!(count(&path), 11, "{mode}");
    }
}

#[test]
fn the_counter_stands_still_until_something_is_written() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let writer = orders(&path, mode, 10);
        let mut prepared = driver(&path).prepare().unwrap();
        let before = prepared.counter().unwrap();
        number(&writer, "SELECT count(*) FROM orders");
        assert_eq!(before, prepared.counter().unwrap());
        writer.execute_batch("INSERT INTO orders (what) VALUES ('x')").unwrap();
        let written = prepared.counter().unwrap();
        assert_ne!(before, written);
        writer.execute_batch("CREATE TABLE more (a)").unwrap();
        assert_ne!(written, prepared.counter().unwrap());
    }
}

#[test]
fn open_connections_see_the_restored_data_and_the_file_stays_the_same() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let application = orders(&path, mode, 50);
        let memory = capture(&driver(&path), || ());
        application.execute_batch("DELETE FROM orders; CREATE TABLE later (a)").unwrap();
        assert_eq!(path.with_file_name("app.db-wal").exists(), mode == "wal");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(&path).unwrap();
        restore(&driver(&path), &memory);
        assert_eq!(number(&application, "SELECT count(*) FROM orders"), 50, "{mode}");
        assert!(application.prepare("SELECT * FROM later").is_err());
        application.execute_batch("INSERT INTO orders (what) VALUES ('on')").unwrap();
        assert_eq!(count(&path), 51);
        let after = fs::metadata(&path).unwrap();
        assert_eq!((before.ino(), before.mode()), (after.ino(), after.mode()));
    }
}

#[test]
fn a_database_changes_its_journal_mode_between_capture_and_restore() {
    for (captured, live) in [("wal", "delete"), ("delete", "wal")] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let application = orders(&path, captured, 50);
        let memory = capture(&driver(&path), || ());
        let _: String = application
            .query_row(&format!("PRAGMA journal_mode = {live}"), [], |row| row.get(0))
            .unwrap();
        application.execute_batch("DELETE FROM orders").unwrap();
        restore(&driver(&path), &memory);
        assert_eq!(number(&application, "SELECT count(*) FROM orders"), 50, "{captured}");
        drop(application);
        assert_eq!(count(&path), 50);
        assert_eq!(number(&open(&path), "SELECT count(*) FROM pragma_integrity_check"), 1);
    }
}

#[test]
fn every_step_may_be_repeated_by_another_process() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let application = orders(&path, mode, 5);
        let memory = capture(&driver(&path), || ());
        application.execute_batch("DELETE FROM orders WHERE id > 2").unwrap();
        let fresh = || driver(&path).restore();
        let journal = serde_json::to_string(&fresh().plan("t0ken", &memory).unwrap()).unwrap();
        let aside: Aside = serde_json::from_str(&journal).unwrap();
        for _ in 0..2 {
            step("load", fresh().load(&aside, &memory));
            step("verify", fresh().verify(&aside, &memory));
        }
        step("swap back", fresh().swap_back(&aside));
        assert_eq!(count(&path), 2);
        for _ in 0..2 {
            step("swap", fresh().swap(&aside));
            step("swap", fresh().swap(&aside));
            assert_eq!(count(&path), 5);
            step("swap back", fresh().swap_back(&aside));
            // The application goes on: undoing again must not undo that.
            application.execute_batch("UPDATE orders SET what = 'kept' WHERE id = 1").unwrap();
            step("swap back", fresh().swap_back(&aside));
            assert_eq!(count(&path), 2);
            assert_eq!(number(&application, "SELECT count(*) FROM orders WHERE what = 'kept'"), 1);
        }
        step("swap", fresh().swap(&aside));
        assert!(fresh().discard(&aside).is_err(), "what is swapped in is not discarded");
        step("finish", fresh().finish(&aside));
        step("finish", fresh().finish(&aside));
        assert_eq!(count(&path), 5);
        assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
    }
}

type Leave = fn(&Path);

#[test]
fn part_of_a_killed_swapper() {
    common::swap_if_told(|service| Box::new(driver(Path::new(&service[0]))));
}

#[test]
fn a_swap_killed_at_any_moment_is_undone_or_finished() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let application = orders(&path, mode, 3000);
        let memory = capture(&driver(&path), || ());
        application.execute_batch("DELETE FROM orders WHERE id > 2").unwrap();
        let fresh = || driver(&path).restore();
        let aside = loaded(fresh().as_mut(), &memory);
        for moment in 0..12 {
            let after = std::time::Duration::from_millis(moment * 2);
            let service = [path.to_str().unwrap()];
            common::killed_in_swap("part_of_a_killed_swapper", &aside, &service, after);
            step("swap back", fresh().swap_back(&aside));
            assert_eq!(number(&application, "SELECT count(*) FROM orders"), 2, "{mode} {moment}");
        }
        common::killed_in_swap(
            "part_of_a_killed_swapper",
            &aside,
            &[path.to_str().unwrap()],
            std::time::Duration::from_millis(5),
        );
        step("swap", fresh().swap(&aside));
        step("finish", fresh().finish(&aside));
        assert_eq!(number(&application, "SELECT count(*) FROM orders"), 3000);
        assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
    }
}

/// Puts the files of a restore as a killed process would have left them, then undoes it.
#[test]
fn a_swap_cut_off_anywhere_is_undone() {
    let cut_off: [(&str, Leave); 3] = [
        ("while the old one was saved", |path| {
            fs::write(named(path, "part"), "half").unwrap();
        }),
        ("before the new one was copied in", |path| {
            fs::copy(path, named(path, "old")).unwrap();
        }),
        ("before it was noted as done", |path| {
            fs::copy(path, named(path, "old")).unwrap();
            let live = open(path);
            live.execute_batch("DELETE FROM orders WHERE id = 1").unwrap();
        }),
    ];
    for (when, leave) in cut_off {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let application = orders(&path, "delete", 5);
        let memory = capture(&driver(&path), || ());
        application.execute_batch("DELETE FROM orders WHERE id > 2").unwrap();
        let mut steps = driver(&path).restore();
        let aside = loaded(steps.as_mut(), &memory);
        leave(&path);
        step("swap back", steps.swap_back(&aside));
        assert_eq!(count(&path), 2, "{when}");
        step("discard", steps.discard(&aside));
        step("discard", steps.discard(&aside));
        assert_eq!(leftovers(&path), Vec::<PathBuf>::new(), "{when}");
    }
}

fn named(path: &Path, word: &str) -> PathBuf {
    path.with_file_name(format!("app.db.stillpoint-t0ken-{word}"))
}

#[test]
fn a_missing_or_damaged_database_is_restored_and_set_aside_until_the_end() {
    for damaged in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        // Open until after the capture, so that a log lies beside the database.
        let application = orders(&path, "wal", 5);
        let memory = capture(&driver(&path), || ());
        let wal = fs::read(path.with_file_name("app.db-wal")).unwrap();
        drop(application);
        if damaged {
            fs::write(&path, "no database at all, but longer than a header would be".repeat(99))
                .unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        // A log of another life: SQLite would replay it into any file of that name.
        fs::write(path.with_file_name("app.db-wal"), &wal).unwrap();
        let before = fs::read(&path).ok();

        let mut steps = driver(&path).restore();
        let aside = loaded(steps.as_mut(), &memory);
        for _ in 0..2 {
            step("swap", steps.swap(&aside));
            step("swap", steps.swap(&aside));
            assert_eq!(count(&path), 5);
            step("swap back", steps.swap_back(&aside));
            step("swap back", steps.swap_back(&aside));
            assert!(fs::read(&path).ok() == before);
            assert!(fs::read(path.with_file_name("app.db-wal")).unwrap() == wal);
        }
        step("swap", steps.swap(&aside));
        step("finish", steps.finish(&aside));
        step("finish", steps.finish(&aside));
        assert_eq!(count(&path), 5);
        assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_symbolic_link_stays_one() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real.db");
    let path = dir.path().join("app.db");
    std::os::unix::fs::symlink(&real, &path).unwrap();
    let application = orders(&real, "wal", 5);
    let memory = capture(&driver(&path), || ());
    application.execute_batch("DELETE FROM orders").unwrap();
    restore(&driver(&path), &memory);
    assert_eq!(number(&application, "SELECT count(*) FROM orders"), 5);
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
}

#[test]
fn what_is_no_whole_database_is_refused_in_prepare() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.db");
    let said = told(&driver(&missing).prepare().err().unwrap());
    assert!(said.contains("missing.db"), "{said}");
    assert!(!missing.exists(), "nothing is created");

    let garbage = dir.path().join("garbage.db");
    fs::write(&garbage, "not a database".repeat(1000)).unwrap();
    let said = told(&driver(&garbage).prepare().err().unwrap());
    assert!(said.contains("is no SQLite database"), "{said}");

    let cut = dir.path().join("cut.db");
    drop(orders(&cut, "delete", 500));
    let whole = fs::metadata(&cut).unwrap().len();
    fs::File::options().write(true).open(&cut).unwrap().set_len(whole / 2).unwrap();
    let said = told(&driver(&cut).prepare().err().unwrap());
    assert!(said.contains("cut.db"), "{said}");
}

#[test]
fn damage_inside_is_captured_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(orders(&path, "delete", 500));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xee);
    fs::write(&path, &bytes).unwrap();
    let mut prepared = driver(&path).prepare().unwrap();
    prepared.mark().unwrap();
    let captured = prepared.capture(&Memory::default()).unwrap();
    assert_eq!(captured.gaps.len(), 1);
    assert!(captured.gaps[0].1.contains("damaged"), "{:?}", captured.gaps);
}

#[test]
fn a_damaged_capture_does_not_pass_verification() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(orders(&path, "wal", 50));
    let memory = capture(&driver(&path), || ());
    memory.replace("database.sqlite", b"SQLite format 3\0".to_vec());
    let mut steps = driver(&path).restore();
    let aside = steps.plan("t0ken", &memory).unwrap();
    step("load", steps.load(&aside, &memory));
    let said = told(&steps.verify(&aside, &memory).unwrap_err());
    assert!(said.contains("not what was captured"), "{said}");
    step("discard", steps.discard(&aside));
    assert_eq!(count(&path), 50);
}

#[test]
fn a_swap_that_cannot_get_the_lock_says_so_and_the_old_data_stands() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let application = orders(&path, "wal", 5);
    let memory = capture(&driver(&path), || ());
    application.execute_batch("DELETE FROM orders WHERE id > 2").unwrap();
    let mut steps = driver(&path).restore();
    let aside = loaded(steps.as_mut(), &memory);
    application.execute_batch("BEGIN IMMEDIATE").unwrap();
    let said = told(&steps.swap(&aside).unwrap_err());
    assert!(said.contains("lock"), "{said}");
    application.execute_batch("ROLLBACK").unwrap();
    step("swap back", steps.swap_back(&aside));
    assert_eq!(count(&path), 2);
}

/// Plays an agent without rights: says what the plan of a restore answers.
#[test]
fn part_of_a_planner_without_rights() {
    let Some(path) = std::env::var_os("STILLPOINT_TEST_READ_ONLY") else { return };
    let memory = Memory::default();
    let facts = r#"{"version":1,"bytes":1,"sha256":"","page_size":4096,"journal_mode":"wal"}"#;
    stillpoint_services::Sink::write(&memory, "facts.json", &mut facts.as_bytes()).unwrap();
    let answer = driver(Path::new(&path)).restore().plan("t0ken", &memory);
    println!("answer: {}", answer.map_or_else(|e| told(&e), |_| "planned".to_owned()));
}

#[test]
fn a_directory_that_may_not_be_written_is_refused_in_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(orders(&path, "delete", 5));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let (mut command, _copy) = testkit::run_as_unprivileged(&std::env::current_exe().unwrap());
    let output = command
        .args(["--exact", "part_of_a_planner_without_rights", "--nocapture"])
        .env("STILLPOINT_TEST_READ_ONLY", &path)
        .output()
        .unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("answer: write into the directory"), "{said}");
    assert_eq!(count(&path), 5);
    assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
}

/// Plays a backup in another process that stops between mark and capture until its input ends.
#[test]
fn part_of_a_backup() {
    let Some(path) = std::env::var_os("STILLPOINT_TEST_DATABASE") else { return };
    let mut prepared = driver(Path::new(&path)).prepare().unwrap();
    prepared.mark().unwrap();
    println!("written: a copy");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_copy_that_a_killed_process_left_is_removed_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(orders(&path, "delete", 50));
    let spools = dir.path().join("spools");
    fs::create_dir(&spools).unwrap();
    let start = || {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "part_of_a_backup", "--nocapture"])
            .env("STILLPOINT_TEST_DATABASE", &path)
            .env("TMPDIR", &spools)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        await_writes(&mut lines, 1);
        (child, lines)
    };
    let names = || -> std::collections::BTreeSet<PathBuf> {
        fs::read_dir(&spools).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let (mut living, _lines) = start();
    let of_the_living = names();
    let (mut killed, _) = start();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(names().len(), 2, "the killed one has left its copy");
    let (mut next, _more_lines) = start();
    let after = names();
    for child in [&mut living, &mut next] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    assert_eq!(after.len(), 2, "those of the living one and of the next: {after:?}");
    assert!(after.is_superset(&of_the_living));
}

#[test]
fn a_link_that_is_changed_after_prepare_changes_nothing() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        drop(orders(&dir.path().join("a.db"), mode, 5));
        drop(orders(&dir.path().join("b.db"), mode, 7));
        std::os::unix::fs::symlink("a.db", &path).unwrap();
        let mut prepared = driver(&path).prepare().unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("b.db", &path).unwrap();
        let memory = capture_prepared(prepared.as_mut(), || ());
        drop(prepared);
        restore(&driver(&path), &memory);
        assert_eq!(count(&path), 5, "{mode}");
    }
}

#[test]
fn a_capture_whose_locks_were_dropped_fails() {
    for file in ["app.db", "app.db-shm"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        drop(orders(&path, "wal", 50));
        let mut prepared = driver(&path).prepare().unwrap();
        prepared.mark().unwrap();
        // As POSIX has it: to close any handle of a file drops all locks of the process on it.
        drop(fs::File::open(dir.path().join(file)).unwrap());
        let said = told(&prepared.capture(&Memory::default()).unwrap_err());
        assert!(said.contains("locks") && said.contains("were dropped"), "{file}: {said}");
    }
}
