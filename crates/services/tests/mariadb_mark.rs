//! The MariaDB driver: the mark is one instant, is short, and can be repeated; what holds it up is
//! named; and no setting of the server's cuts it off.

mod common;
#[path = "common/mariadb.rs"]
mod mariadb_server;

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{Memory, capture, capture_prepared, restore, told};
use mariadb_server::{Server, until};
use mysql::prelude::Queryable;
use stillpoint_services::mariadb::{Mariadb, MariadbOptions};
use stillpoint_services::{Driver, Sink};

/// Rows that an UPDATE works at for a long while: each takes a hundredth of a second.
const SLOW: &str = "USE shop; CREATE TABLE slow (id INT PRIMARY KEY, n INT); \
    INSERT INTO slow SELECT seq, 0 FROM seq_1_to_6000; CREATE TABLE t (n INT)";
const LONG_UPDATE: &str = "UPDATE shop.slow SET n = n + 1 + SLEEP(0.01)";

/// Runs `during` while the long UPDATE is at work, then ends that.
fn while_updating<T>(server: &Server, during: impl FnOnce() -> T) -> T {
    const RUNS: &str = "SELECT MAX(id) FROM information_schema.processlist \
        WHERE info LIKE 'UPDATE shop.slow%'";
    let mut session = server.root();
    thread::scope(|scope| {
        let running = scope.spawn(move || session.query_drop(LONG_UPDATE));
        until("the update runs", || server.asked(RUNS).is_some());
        let outcome = during();
        let id = server.ask(RUNS);
        server.sql(&format!("KILL {id}"));
        assert!(running.join().unwrap().is_err(), "it was still at work");
        outcome
    })
}

#[test]
fn a_long_update_does_not_hold_up_the_mark_nor_writers() {
    let server = Server::start();
    server.sql(SLOW);
    let mut prepared = server.prepared();
    while_updating(&server, || {
        prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
        server.sql("INSERT INTO shop.t VALUES (1)");
        let memory = Memory::default();
        prepared.capture(&memory).unwrap_or_else(|e| panic!("{}", told(&e)));
        assert!(memory.text("shop.sql").contains("(6000,0)"), "nothing of it is captured");
    });
}

#[test]
fn an_open_transaction_with_row_locks_holds_up_neither_lock() {
    let server = Server::start();
    server.sql(SLOW);
    let mut session = server.root();
    session.query_drop("BEGIN").unwrap();
    session.query_drop("UPDATE shop.slow SET n = 9").unwrap();
    for driver in [server.driver(), server.driver().with_table_lock()] {
        let memory = capture(&driver, || ());
        assert!(memory.text("shop.sql").contains("(6000,0)"));
    }
    session.query_drop("COMMIT").unwrap();
    assert!(capture(&server.driver(), || ()).text("shop.sql").contains("(6000,9)"));
}

#[test]
fn the_older_lock_gives_up_soon_names_the_statement_and_lets_writers_go_on() {
    let server = Server::start();
    server.sql(SLOW);
    let mut prepared = server.driver().with_table_lock().prepare().unwrap();
    while_updating(&server, || {
        let said = told(&prepared.mark().expect_err("it gives up"));
        assert!(said.contains(LONG_UPDATE) && said.contains("root"), "{said}");
        // Writers go on although the update still runs.
        server.sql("INSERT INTO shop.t VALUES (1)");
    });
    capture_prepared(prepared.as_mut(), || server.sql("INSERT INTO shop.t VALUES (4711)"));
}

#[test]
fn another_backup_at_the_server_is_refused_in_prepare_and_fails_a_mark() {
    let server = Server::start();
    let mut prepared = server.prepared();
    let mut other = server.root();
    other.query_drop("BACKUP STAGE START").unwrap();
    let said = server.refusal();
    assert!(said.contains("another backup may be running"), "{said}");
    assert!(prepared.mark().is_err());
    other.query_drop("BACKUP STAGE END").unwrap();
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
}

/// Writes a row into each of the databases in one transaction, again and again.
fn write_everywhere(server: &Server, stop: &AtomicBool, written: &AtomicU64) {
    let mut session = server.root();
    while !stop.load(Ordering::SeqCst) {
        session.query_drop("BEGIN").unwrap();
        for name in SEVERAL {
            session.query_drop(format!("INSERT INTO {name}.t VALUES (1)")).unwrap();
        }
        session.query_drop("COMMIT").unwrap();
        written.fetch_add(1, Ordering::SeqCst);
    }
}

const SEVERAL: [&str; 4] = ["shop", "stock", "forum", "mail"];

#[test]
fn all_dumps_of_a_server_see_one_instant_under_writers_and_so_does_each_later_mark() {
    let server = Server::start_with(&["--skip-networking", "--innodb-flush-log-at-trx-commit=0"]);
    for name in &SEVERAL[1..] {
        server.sql(&format!(
            "CREATE DATABASE {name}; \
             GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON {name}.* TO keeper@localhost"
        ));
    }
    let databases = SEVERAL.map(str::to_owned).into();
    let options = MariadbOptions { databases, ..server.options() };
    for round in 0..16 {
        for name in SEVERAL {
            server.sql(&format!("CREATE OR REPLACE TABLE {name}.t (n INT)"));
        }
        let driver = Mariadb::new(options.clone()).unwrap();
        let driver = if round % 2 == 0 { driver } else { driver.with_table_lock() };
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        let memory = Memory::default();
        let mut at_least = 0;
        let outcome = thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| write_everywhere(&server, &stop, &written));
            }
            let outcome = driver.prepare().and_then(|mut prepared| {
                for _ in 0..2 {
                    at_least = written.load(Ordering::SeqCst);
                    until("somebody writes", || written.load(Ordering::SeqCst) > at_least + 20);
                    prepared.mark()?;
                }
                prepared.capture(&memory)
            });
            stop.store(true, Ordering::SeqCst);
            outcome
        });
        outcome.unwrap_or_else(|e| panic!("{}", told(&e)));
        let rows = SEVERAL.map(|name| memory.text(&format!("{name}.sql")).matches("(1)").count());
        assert!(rows.iter().all(|found| *found == rows[0]), "round {round}: {rows:?}");
        assert!(rows[0] as u64 > at_least, "it is the last mark that counts");
    }
}

#[test]
fn a_second_mark_needs_no_new_dumps_and_counts() {
    let server = Server::start();
    server.sql("CREATE TABLE shop.t (said TEXT)");
    let mut prepared = server.prepared();
    let sessions = "SELECT GROUP_CONCAT(id ORDER BY id) FROM information_schema.processlist \
        WHERE user = 'keeper'";
    let before = server.ask(sessions);
    prepared.mark().unwrap();
    server.sql("INSERT INTO shop.t VALUES ('between marks')");
    prepared.mark().unwrap();
    assert_eq!(server.ask(sessions), before, "the same sessions");
    let memory = capture_prepared(prepared.as_mut(), || {
        server.sql("INSERT INTO shop.t VALUES ('after the marks')");
    });
    assert!(memory.text("shop.sql").contains("between marks"));
    assert!(!memory.text("shop.sql").contains("after the marks"));
    assert!(prepared.capture(&Memory::default()).is_err(), "it is captured once");
}

#[test]
fn the_counter_moves_with_every_write_and_with_nothing_of_ours() {
    let server = Server::start();
    server.sql(
        "CREATE TABLE shop.t (n INT); INSERT INTO shop.t VALUES (1); \
         CREATE TABLE shop.m (n INT) ENGINE=MyISAM; CREATE VIEW shop.v AS SELECT n FROM shop.t",
    );
    let mut prepared = server.prepared();
    let still = prepared.counter().unwrap();
    assert_eq!(prepared.counter().unwrap(), still);
    prepared.mark().unwrap();
    prepared.mark().unwrap();
    assert_eq!(prepared.counter().unwrap(), still, "marks are no writes");
    prepared.capture(&Memory::default()).unwrap();
    assert_eq!(prepared.counter().unwrap(), still, "captures are no writes");
    drop(server.prepared());
    // Other readers, also with temporary tables of the server's own.
    server.sql(
        "SELECT n, COUNT(*) FROM shop.t GROUP BY n + 1; SELECT * FROM information_schema.columns; \
         CHECKSUM TABLE shop.t EXTENDED",
    );
    assert_eq!(prepared.counter().unwrap(), still, "reading is no write");
    let mut last = still;
    for write in [
        "INSERT INTO shop.t VALUES (2)",
        "UPDATE shop.t SET n = 5",
        "DELETE FROM shop.t WHERE n = 5",
        "INSERT INTO shop.m VALUES (1)",
        "TRUNCATE TABLE shop.t",
    ] {
        server.sql(write);
        let now = prepared.counter().unwrap();
        assert_ne!(now, last, "{write}");
        last = now;
    }
    let mut open = server.root();
    open.query_drop("BEGIN").unwrap();
    open.query_drop("INSERT INTO shop.t VALUES (3)").unwrap();
    assert_ne!(prepared.counter().unwrap(), last, "also before the commit");
}

#[test]
fn tables_without_snapshots_are_named_also_those_made_after_prepare() {
    let server = Server::start();
    server.sql("CREATE TABLE shop.old (a INT) ENGINE=MyISAM; CREATE TABLE shop.t (a INT)");
    let mut prepared = server.prepared();
    server.sql(
        "CREATE TABLE shop.late (a INT) ENGINE=Aria; CREATE TABLE shop.mem (a INT) ENGINE=MEMORY",
    );
    prepared.mark().unwrap();
    prepared.capture(&Memory::default()).unwrap();
    let doubts = prepared.doubts();
    assert_eq!(doubts.len(), 3, "{doubts:?}");
    for named in [
        "shop.late has the engine Aria",
        "shop.mem has the engine MEMORY",
        "shop.old has the engine MyISAM",
    ] {
        assert!(doubts.iter().any(|doubt| doubt.contains(named)), "{doubts:?}");
    }
}

struct Busy<'a>(&'a Server, Memory);

impl Sink for Busy<'_> {
    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<u64> {
        let written = self.1.write(path, content);
        self.0.sql("INSERT INTO shop.busy VALUES (2)");
        written
    }
}

#[test]
fn a_table_without_snapshots_that_is_written_to_meanwhile_can_still_be_restored() {
    let server = Server::start();
    server.sql(
        "CREATE TABLE shop.still (a INT) ENGINE=MyISAM; INSERT INTO shop.still VALUES (1); \
        CREATE TABLE shop.busy (a INT) ENGINE=MyISAM; INSERT INTO shop.busy VALUES (1)",
    );
    let mut prepared = server.prepared();
    prepared.mark().unwrap();
    let busy = Busy(&server, Memory::default());
    prepared.capture(&busy).unwrap_or_else(|e| panic!("{}", told(&e)));
    restore(&server.driver(), &busy.1);
    assert_eq!(server.ask("SELECT COUNT(*) FROM shop.busy"), "1");
    assert_eq!(server.ask("SELECT COUNT(*) FROM shop.still"), "1");
}

/// Whatever an administrator may have set.
const HASTY: [&str; 9] = [
    "--skip-networking",
    "--max-statement-time=1",
    "--idle-transaction-timeout=1",
    "--idle-readonly-transaction-timeout=1",
    "--wait-timeout=1",
    "--net-write-timeout=1",
    "--net-read-timeout=1",
    "--transaction-isolation=READ-COMMITTED",
    "--autocommit=0",
];

/// Stops reading for longer than the server waits.
struct Slow(Memory);

impl Sink for Slow {
    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<u64> {
        let mut first = Vec::new();
        (&mut *content).take(2000).read_to_end(&mut first)?;
        thread::sleep(std::time::Duration::from_secs(4));
        self.0.write(path, &mut first.as_slice().chain(content))
    }
}

#[test]
fn a_server_of_short_patience_cuts_nothing_off_however_slow_the_store() {
    let server = Server::start_with(&HASTY);
    server.sql(
        "USE shop; CREATE TABLE large (id INT PRIMARY KEY, filler CHAR(250)); \
        INSERT INTO large SELECT seq, REPEAT('x', 250) FROM seq_1_to_60000; \
        CREATE TABLE last (a INT)",
    );
    let mut prepared = server.prepared();
    thread::sleep(std::time::Duration::from_secs(2));
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
    server.sql("INSERT INTO shop.last VALUES (4711)");
    let slow = Slow(Memory::default());
    prepared.capture(&slow).unwrap_or_else(|e| panic!("{}", told(&e)));
    // The reader that counts saw the same instant, whatever level of isolation is the server's.
    restore(&server.driver(), &slow.0);
    assert_eq!(server.ask("SELECT COUNT(*) FROM shop.large"), "60000");
    assert_eq!(server.ask("SELECT COUNT(*) FROM shop.last"), "0");
}
