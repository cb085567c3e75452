//! The MariaDB driver: a dump that does not come to its end, and definitions that change meanwhile,
//! fail the capture. Nothing is lost in silence.

mod common;
#[path = "common/mariadb.rs"]
mod mariadb_server;

use std::io::{self, Read};

use common::{Memory, capture_prepared, restore, told};
use mariadb_server::{Interrupted, LARGE, Server, dump_program, failed_capture, marked, until};
use stillpoint_services::mariadb::{Mariadb, MariadbOptions};
use stillpoint_services::{Driver, Sink};

#[test]
fn a_dump_whose_session_the_server_ends_fails_the_capture() {
    const DUMPS: &str = "SELECT id FROM information_schema.processlist WHERE user = 'keeper' \
        AND db = 'shop' AND info LIKE 'SELECT /*!%' LIMIT 1";
    let server = Server::start();
    server.sql(LARGE);
    let mut prepared = marked(&server);
    let kill = || server.sql(&format!("KILL {}", server.ask(DUMPS)));
    let said = failed_capture(prepared.as_mut(), &Interrupted(kill));
    assert!(said.contains("Lost connection"), "{said}");

    // While it stands at its gate, the mark fails.
    let mut prepared = server.prepared();
    let idle = "SELECT GROUP_CONCAT(id) FROM information_schema.processlist WHERE \
        user = 'keeper' AND id = (SELECT MAX(id) FROM information_schema.processlist \
        WHERE user = 'keeper')";
    server.sql(&format!("KILL {}", server.ask(idle)));
    until("the gate notices", || prepared.mark().is_err());
    let said = told(&prepared.mark().unwrap_err());
    assert!(said.contains("the server ended the session"), "{said}");
    // The lock did not stay behind.
    server.sql("INSERT INTO shop.large VALUES (0, '')");
}

fn with_program(server: &Server, dir: &tempfile::TempDir) -> Mariadb {
    let tool_dirs = vec![dir.path().to_owned()];
    Mariadb::new(MariadbOptions { tool_dirs, ..server.options() }).unwrap()
}

#[test]
fn a_dump_that_warns_or_lacks_its_last_line_fails_the_capture() {
    let server = Server::start();
    server.sql("CREATE TABLE shop.t (a INT)");
    let cases = [
        ("$real \"$@\" && echo 'Warning: odd \\377 bytes' >&2", "Warning: odd"),
        ("$real \"$@\" | sed '$d'", "before its last line"),
        ("$real \"$@\" && exit 3", "exit status: 3"),
        ("$real \"$@\" | sed 's/^CREATE TABLE/-- &/'", "the dump holds no table t"),
    ];
    for (script, expected) in cases {
        let dir = dump_program(script);
        let mut prepared = with_program(&server, &dir).prepare().unwrap();
        prepared.mark().unwrap();
        let said = failed_capture(prepared.as_mut(), &Memory::default());
        assert!(said.contains(expected), "{script}: {said}");
    }
}

#[test]
fn a_dump_that_never_comes_to_its_gate_is_refused_in_prepare_with_its_own_words() {
    let server = Server::start();
    let dir = dump_program("echo 'unknown option' >&2; exit 7");
    let said = told(&with_program(&server, &dir).prepare().err().unwrap());
    assert!(said.contains("start the dump of the database shop"), "{said}");
    assert!(said.contains("unknown option"), "{said}");
}

/// Tables on which each change of definitions below can be tried.
const TABLES: &str = "USE shop; \
    CREATE TABLE a (x INT); INSERT INTO a VALUES (1), (2); \
    CREATE TABLE b (x INT); INSERT INTO b VALUES (3); \
    CREATE TABLE p (x INT) PARTITION BY RANGE (x) \
      (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20)); \
    INSERT INTO p VALUES (1), (11); \
    CREATE VIEW v AS SELECT x FROM a; \
    CREATE TRIGGER t AFTER INSERT ON a FOR EACH ROW SET @x = 1; \
    CREATE PROCEDURE r () SELECT 1; \
    CREATE EVENT e ON SCHEDULE EVERY 1 YEAR DISABLE DO SELECT 1";

const CHANGES: [&str; 16] = [
    "RENAME TABLE shop.a TO shop.c, shop.b TO shop.a, shop.c TO shop.b",
    "ALTER TABLE shop.p DROP PARTITION p1",
    "TRUNCATE TABLE shop.a",
    "ALTER TABLE shop.a ADD COLUMN y INT DEFAULT 7",
    "ALTER TABLE shop.a MODIFY x BIGINT",
    "ALTER TABLE shop.a FORCE",
    "CREATE TABLE shop.c (x INT)",
    "CREATE TABLE shop.c ENGINE=MyISAM SELECT 1 AS x",
    "DROP TABLE shop.b",
    "CREATE OR REPLACE VIEW shop.v AS SELECT x + 1 AS x FROM shop.a",
    "CREATE OR REPLACE TRIGGER shop.t AFTER INSERT ON shop.a FOR EACH ROW SET @x = 2",
    "DROP TRIGGER shop.t",
    "CREATE OR REPLACE PROCEDURE shop.r () SELECT 2",
    "DROP PROCEDURE shop.r",
    "ALTER EVENT shop.e ON SCHEDULE EVERY 2 YEAR",
    "DROP EVENT shop.e",
];

#[test]
fn definitions_that_change_after_the_mark_fail_the_capture() {
    let server = Server::start();
    for change in CHANGES {
        server.sql("DROP DATABASE shop; CREATE DATABASE shop");
        server.sql(TABLES);
        let mut prepared = marked(&server);
        server.sql(change);
        let outcome = prepared.capture(&Memory::default());
        let said = told(&outcome.err().unwrap_or_else(|| panic!("{change} goes unnoticed")));
        let named = ["was changed while the backup ran", "Table definition has changed"];
        assert!(named.iter().any(|words| said.contains(words)), "{change}: {said}");
    }
}

struct Late<'a>(&'a Server);

impl Sink for Late<'_> {
    fn write(&self, _: &str, content: &mut dyn Read) -> io::Result<u64> {
        let bytes = io::copy(content, &mut io::sink())?;
        self.0.sql("DROP TABLE IF EXISTS shop.middle");
        Ok(bytes)
    }
}

#[test]
fn a_table_that_was_there_only_while_the_dump_ran_fails_the_capture() {
    let server = Server::start();
    server.sql("CREATE TABLE shop.a (x INT); CREATE TABLE shop.z (x INT)");
    let mut prepared = marked(&server);
    server.sql("CREATE TABLE shop.middle (x INT) ENGINE=MyISAM");
    // Gone when the dump has written all of itself, before anybody looks.
    let said = failed_capture(prepared.as_mut(), &Late(&server));
    assert!(said.contains("the table middle was changed while the backup ran"), "{said}");
}

#[test]
fn definitions_that_change_between_prepare_and_mark_are_captured_as_they_are_at_the_mark() {
    let server = Server::start();
    for change in CHANGES {
        server.sql("DROP DATABASE shop; CREATE DATABASE shop");
        server.sql(TABLES);
        let mut prepared = server.prepared();
        server.sql(change);
        let memory = capture_prepared(prepared.as_mut(), || ());
        let state = || {
            let tables = "SELECT GROUP_CONCAT(table_name, table_type \
                ORDER BY table_name) FROM information_schema.tables WHERE table_schema = 'shop'";
            let objects = "SELECT CONCAT_WS(';', \
                (SELECT GROUP_CONCAT(action_statement) FROM information_schema.triggers \
                 WHERE trigger_schema = 'shop'), \
                (SELECT GROUP_CONCAT(routine_definition) FROM information_schema.routines \
                 WHERE routine_schema = 'shop'), \
                (SELECT GROUP_CONCAT(interval_value) FROM information_schema.events \
                 WHERE event_schema = 'shop'), (SELECT COUNT(*) FROM shop.a), \
                (SELECT COUNT(*) FROM shop.p), (SELECT SUM(x) FROM shop.v))";
            (server.ask(tables), server.ask(objects))
        };
        server.sql("GRANT SET USER ON *.* TO keeper@localhost");
        let before = state();
        server.sql("DROP DATABASE shop; CREATE DATABASE shop");
        restore(&server.driver(), &memory);
        assert_eq!(state(), before, "{change}");
    }
}
