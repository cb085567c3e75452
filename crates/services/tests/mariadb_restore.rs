//! The MariaDB driver: a restore that is cut off, in the way of others, or wrong from the start
//! leaves the old data or the new, whole.

mod common;
#[path = "common/mariadb.rs"]
mod mariadb_server;

use std::path::Path;
use std::time::Duration;

use common::{Memory, capture, loaded, restore, step, told};
use mariadb_server::{Server, captured, options_at, until};
use mysql::prelude::Queryable;
use stillpoint_services::Driver;
use stillpoint_services::mariadb::Mariadb;

/// Tables that hold 1, with all that hangs on them.
fn fill(server: &Server) {
    server.sql("GRANT SET USER ON *.* TO keeper@localhost; CREATE TABLE shop.log (n INT)");
    for n in 0..20 {
        server.sql(&format!(
            "CREATE TABLE shop.t{n} (n INT); INSERT INTO shop.t{n} VALUES (1); \
             CREATE TRIGGER shop.g{n} AFTER UPDATE ON shop.t{n} FOR EACH ROW INSERT INTO shop.log VALUES (NEW.n); \
             CREATE VIEW shop.v{n} AS SELECT n FROM shop.t{n}"
        ));
    }
    server.sql(
        "CREATE PROCEDURE shop.r () SELECT 1; \
        CREATE EVENT shop.e ON SCHEDULE EVERY 1 YEAR DISABLE DO SELECT 1",
    );
}

/// Makes all of it 2, and other definitions with it.
fn change(server: &Server) {
    for n in 0..20 {
        server.sql(&format!(
            "UPDATE shop.t{n} SET n = 2; CREATE OR REPLACE VIEW shop.v{n} AS SELECT n * 10 AS n FROM shop.t{n}"
        ));
    }
    server.sql("DROP TRIGGER shop.g3; CREATE OR REPLACE PROCEDURE shop.r () SELECT 2; DROP EVENT shop.e; \
        CREATE TABLE shop.later (n INT); CREATE EVENT shop.f ON SCHEDULE EVERY 1 YEAR DISABLE DO SELECT 2");
}

/// All of it in one line: rows, views, numbers of things.
fn state(server: &Server) -> String {
    let sum = |letter: &str| {
        let parts: Vec<String> =
            (0..20).map(|n| format!("(SELECT SUM(n) FROM shop.{letter}{n})")).collect();
        parts.join(" + ")
    };
    let count = |what: &str, column: &str| {
        format!("(SELECT COUNT(*) FROM information_schema.{what} WHERE {column} = 'shop')")
    };
    server.ask(&format!(
        "SELECT CONCAT_WS(' ', {}, {}, {}, {}, (SELECT GROUP_CONCAT(routine_definition) FROM information_schema.routines \
         WHERE routine_schema = 'shop'), (SELECT GROUP_CONCAT(event_name) FROM information_schema.events \
         WHERE event_schema = 'shop'), (SELECT COUNT(*) FROM shop.log))",
        sum("t"),
        sum("v"),
        count("tables", "table_schema"),
        count("triggers", "trigger_schema"),
    ))
}

const OLD: &str = "20 20 41 20 SELECT 1 e 0";
const NEW: &str = "40 400 42 19 SELECT 2 f 20";

fn prepared_swap(server: &Server) -> Memory {
    fill(server);
    assert_eq!(state(server), OLD);
    let memory = capture(&server.driver(), || ());
    change(server);
    assert_eq!(state(server), NEW);
    memory
}

#[test]
fn a_swap_killed_at_any_moment_is_undone_or_finished_by_another_process() {
    let server = Server::start();
    let memory = prepared_swap(&server);
    let fresh = || server.driver().restore();
    let aside = loaded(fresh().as_mut(), &memory);
    let socket = server.socket();
    let place = [socket.to_str().unwrap()];
    for moment in 0..16 {
        let after = Duration::from_millis(moment * 12);
        common::killed_in_swap("part_of_a_killed_swapper", &aside, &place, after);
        step("swap back", fresh().swap_back(&aside));
        assert_eq!(state(&server), NEW, "{moment}");
    }
    // Undone for good, and done again from the start.
    common::killed_in_swap("part_of_a_killed_swapper", &aside, &place, Duration::from_millis(60));
    step("swap back", fresh().swap_back(&aside));
    step("discard", fresh().discard(&aside));
    assert_eq!((state(&server).as_str(), server.left().as_str()), (NEW, "0"));
    let aside = loaded(fresh().as_mut(), &memory);
    for moment in 0..8 {
        let after = Duration::from_millis(moment * 25);
        common::killed_in_swap("part_of_a_killed_swapper", &aside, &place, after);
    }
    step("swap", fresh().swap(&aside));
    assert_eq!(state(&server), OLD);
    step("finish", fresh().finish(&aside));
    step("finish", fresh().finish(&aside));
    assert_eq!((state(&server).as_str(), server.left().as_str()), (OLD, "0"));
}

#[test]
fn part_of_a_killed_swapper() {
    common::swap_if_told(|service| {
        Box::new(Mariadb::new(options_at(Path::new(&service[0]))).unwrap())
    });
}

#[test]
fn a_statement_of_a_killed_process_is_waited_for_before_anything_is_undone() {
    let server = Server::start();
    let memory = prepared_swap(&server);
    let mut steps = server.driver().restore();
    let aside = loaded(steps.as_mut(), &memory);
    // What a killed process leaves: a session that still has the lock of the restore.
    let mut left = server.root();
    let lock: Option<i64> =
        left.query_first("SELECT GET_LOCK('stillpoint_t0ken_0_new.step', 30)").unwrap();
    assert_eq!(lock, Some(1));
    std::thread::scope(|scope| {
        let back = scope.spawn(|| server.driver().restore().swap_back(&aside));
        let waits = "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User lock'";
        until("it waits", || server.ask(waits) == "1");
        assert!(!back.is_finished());
        drop(left);
        step("swap back", back.join().unwrap());
    });
    assert_eq!(state(&server), NEW);
}

#[test]
fn a_load_that_was_cut_off_is_begun_anew_or_removed() {
    let server = Server::start();
    let memory = prepared_swap(&server);
    let whole = memory.text("shop.sql");
    let mut steps = server.driver().restore();
    let aside = steps.plan("t0ken", &memory).unwrap();
    for cut in [whole.len() / 3, whole.len() / 2, whole.len() - 400] {
        // Ends inside a statement or between two.
        memory.replace("shop.sql", whole.as_bytes()[..cut].to_vec());
        let outcome = steps.load(&aside, &memory).and_then(|()| steps.verify(&aside, &memory));
        assert!(outcome.is_err(), "cut off at {cut} of {}", whole.len());
        step("discard", steps.discard(&aside));
        assert_eq!((state(&server).as_str(), server.left().as_str()), (NEW, "0"));
    }
    memory.replace("shop.sql", [whole.as_bytes(), b"\nno statement;\n"].concat());
    let said = told(&steps.load(&aside, &memory).unwrap_err());
    assert!(said.contains("no statement"), "{said}");
    memory.replace("shop.sql", whole.into_bytes());
    step("load", steps.load(&aside, &memory));
    step("load", steps.load(&aside, &memory));
    step("verify", steps.verify(&aside, &memory));
    step("swap", steps.swap(&aside));
    step("finish", steps.finish(&aside));
    assert_eq!((state(&server).as_str(), server.left().as_str()), (OLD, "0"));
}

#[test]
fn a_table_that_differs_from_what_was_captured_is_named_by_the_verification() {
    let server = Server::start();
    let memory = prepared_swap(&server);
    let mut steps = server.driver().restore();
    let aside = loaded(steps.as_mut(), &memory);
    for (damage, repair, expected) in [
        ("UPDATE t5 SET n = 7", "UPDATE t5 SET n = 1", "the loaded table t5 has other rows"),
        (
            "INSERT INTO t5 VALUES (7)",
            "DELETE FROM t5 WHERE n = 7",
            "t5 has another number of rows",
        ),
        ("ALTER TABLE t5 ADD KEY (n)", "ALTER TABLE t5 DROP KEY n", "t5 is defined in another way"),
        ("RENAME TABLE t5 TO x5", "RENAME TABLE x5 TO t5", "the loaded tables are others"),
        ("ALTER TABLE t5 ENGINE=Aria", "", "t5 has another engine"),
    ] {
        server.sql(&format!("USE stillpoint_t0ken_0_new; {damage}"));
        let said = told(&steps.verify(&aside, &memory).unwrap_err());
        assert!(said.contains(expected), "{damage}: {said}");
        server.sql(&format!(
            "USE stillpoint_t0ken_0_new; {}",
            if repair.is_empty() { "DO 0" } else { repair }
        ));
        if !repair.is_empty() {
            step("verify", steps.verify(&aside, &memory));
        }
    }
    step("discard", steps.discard(&aside));
    assert_eq!(state(&server), NEW);
}

#[test]
fn a_swap_that_is_held_up_gives_up_names_who_and_changes_nothing() {
    let server = Server::start();
    let memory = prepared_swap(&server);
    let mut steps = server.driver().restore();
    let aside = loaded(steps.as_mut(), &memory);
    let mut session = server.root();
    let id: u64 = session.query_first("SELECT CONNECTION_ID()").unwrap().unwrap();
    session.query_drop("BEGIN").unwrap();
    session.query_drop("SELECT * FROM shop.t7").unwrap();
    let said = told(&steps.swap(&aside).unwrap_err());
    assert!(
        said.contains(&format!("connection {id} (root@localhost, idle in a transaction")),
        "{said}"
    );
    assert_eq!(state(&server), NEW);
    // An idle connection with nothing open is in nobody's way, and sees the restored data.
    session.query_drop("COMMIT").unwrap();
    step("swap", steps.swap(&aside));
    assert_eq!(session.query_first::<u64, _>("SELECT SUM(n) FROM shop.t7").unwrap(), Some(1));
    // The way back is held up as well, and can be taken again.
    session.query_drop("BEGIN").unwrap();
    session.query_drop("SELECT * FROM shop.t7").unwrap();
    assert!(steps.swap_back(&aside).is_err());
    session.query_drop("COMMIT").unwrap();
    step("swap back", steps.swap_back(&aside));
    assert_eq!(state(&server), NEW);
}

#[test]
fn what_was_changed_since_the_plan_is_neither_swapped_away_nor_undone() {
    let server = Server::start();
    let memory = prepared_swap(&server);
    let mut steps = server.driver().restore();
    let aside = loaded(steps.as_mut(), &memory);
    let things = || {
        server.ask(
            "SELECT CONCAT_WS(' ', \
             (SELECT GROUP_CONCAT(routine_definition ORDER BY routine_name) \
              FROM information_schema.routines WHERE routine_schema = 'shop'), \
             (SELECT GROUP_CONCAT(trigger_name ORDER BY trigger_name) \
              FROM information_schema.triggers WHERE trigger_schema = 'shop'), \
             (SELECT SUM(n) FROM shop.v7))",
        )
    };
    for (change, named) in [
        ("CREATE PROCEDURE shop.fresh () SELECT 3", "PROCEDURE fresh"),
        ("CREATE OR REPLACE PROCEDURE shop.r () SELECT 4", "PROCEDURE"),
        ("CREATE TRIGGER shop.more AFTER DELETE ON shop.t1 FOR EACH ROW SET @x = 1", "was changed"),
        ("CREATE OR REPLACE VIEW shop.v7 AS SELECT 77 AS n", "was changed"),
    ] {
        server.sql(change);
        let before = things();
        let said = told(&steps.swap(&aside).unwrap_err());
        assert!(said.contains(named) && said.contains("was changed since the plan"), "{said}");
        step("swap back", steps.swap_back(&aside));
        assert_eq!(things(), before, "{change}");
    }
    assert_eq!(server.ask("SELECT SUM(n) FROM shop.t7"), "2");
}

#[test]
fn old_tables_that_stand_aside_are_never_discarded() {
    let server = Server::start();
    let memory = prepared_swap(&server);
    let mut steps = server.driver().restore();
    let aside = loaded(steps.as_mut(), &memory);
    server.sql(
        "CREATE DATABASE stillpoint_t0ken_0_old; \
        CREATE TABLE stillpoint_t0ken_0_old.precious (n INT)",
    );
    let said = told(&steps.discard(&aside).unwrap_err());
    assert!(said.contains("still holds the table precious"), "{said}");
    server.sql("DROP TABLE stillpoint_t0ken_0_old.precious");
    step("discard", steps.discard(&aside));
    assert_eq!(server.left(), "0");
    assert!(steps.finish(&aside).is_ok(), "there is nothing left to finish");
    assert_eq!(state(&server), NEW);
}

#[test]
fn a_database_that_was_missing_is_missing_again_after_an_undo() {
    let server = Server::start();
    let memory = prepared_swap(&server);
    server.sql("DROP DATABASE shop");
    let mut steps = server.driver().restore();
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    assert_eq!(state(&server), OLD);
    step("swap back", steps.swap_back(&aside));
    step("swap back", steps.swap_back(&aside));
    step("discard", steps.discard(&aside));
    let there = "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = 'shop'";
    assert_eq!((server.ask(there).as_str(), server.left().as_str()), ("0", "0"));
    restore(&server.driver(), &memory);
    assert_eq!(state(&server), OLD);
}

#[test]
fn what_another_family_of_servers_wrote_is_refused() {
    let server = Server::start();
    let (memory, _) = captured(&server.driver());
    let catalog = memory.text("catalog.json");
    let version = server.ask("SELECT VERSION()");
    memory.replace("catalog.json", catalog.replace(&version, "8.0.36").into_bytes());
    let said = told(&server.driver().restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("captured from 8.0.36") && said.contains("by hand"), "{said}");
}
