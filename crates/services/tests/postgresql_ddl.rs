//! The PostgreSQL driver while definitions are changed between mark and capture: each kind of change
//! waits for the capture, or makes it fail, or leaves what is captured as it was at the mark. It is
//! never a wrong capture.

mod common;

use std::thread::{self, JoinHandle};

use common::{Memory, told};
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_services::{Driver, Prepared};
use stillpoint_testkit::{self as testkit, ScratchOptions};

/// Something of each kind that a change can be made to.
const SCHEMA: &str = "
CREATE EXTENSION pg_trgm;
CREATE SCHEMA more;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE customers (id serial PRIMARY KEY, name text NOT NULL, m mood, p positive, tags text[]);
INSERT INTO customers (name, m, p) SELECT 'c' || n, 'ok', n FROM generate_series(1, 300) n;
CREATE INDEX by_name ON customers (name);
CREATE TABLE payments (id int PRIMARY KEY, customer int REFERENCES customers, amount numeric);
INSERT INTO payments SELECT n, n, n FROM generate_series(1, 50) n;
CREATE TABLE logs (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE logs_2 PARTITION OF logs DEFAULT;
INSERT INTO logs SELECT '2024-06-01'::date + n, 'log ' || n FROM generate_series(0, 400) n;
CREATE TABLE base (a int); CREATE TABLE child (b int) INHERITS (base);
INSERT INTO base VALUES (1); INSERT INTO child VALUES (2, 3);
CREATE UNLOGGED TABLE scratch (a int); INSERT INTO scratch VALUES (7);
CREATE TABLE more.composed (v pair); INSERT INTO more.composed VALUES ((1, 'x'));
CREATE VIEW rich AS SELECT c.name, p.amount FROM customers c JOIN payments p ON p.customer = c.id;
CREATE MATERIALIZED VIEW totals AS SELECT customer, count(*) AS n FROM payments GROUP BY customer;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER stamp BEFORE INSERT ON customers FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TABLE secured (a int); ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
INSERT INTO secured VALUES (1);
CREATE POLICY none ON secured USING (false);
CREATE SEQUENCE counted START 5; SELECT nextval('counted');
COMMENT ON TABLE customers IS 'a comment';
GRANT SELECT ON customers TO PUBLIC;
";

const CHANGES: &[&str] = &[
    "TRUNCATE customers CASCADE",
    "DROP TABLE payments CASCADE",
    "ALTER TABLE customers ADD COLUMN extra int DEFAULT 7",
    "ALTER TABLE customers DROP COLUMN tags",
    "ALTER TABLE customers ALTER COLUMN tags TYPE text USING 'x'",
    "ALTER TABLE customers RENAME TO clients",
    "ALTER TABLE customers SET SCHEMA more",
    "ALTER TABLE customers SET (fillfactor = 50)",
    "ALTER TABLE payments DROP CONSTRAINT payments_customer_fkey",
    "ALTER TABLE logs DETACH PARTITION logs_2",
    "CREATE TABLE logs_3 PARTITION OF logs FOR VALUES FROM ('1990-01-01') TO ('1991-01-01')",
    "ALTER TABLE child NO INHERIT base",
    "ALTER TABLE scratch SET LOGGED",
    "ALTER POLICY none ON secured USING (true)",
    "CREATE INDEX ON payments (amount)",
    "DROP INDEX by_name",
    "CLUSTER payments USING payments_pkey",
    "VACUUM FREEZE customers",
    "CREATE TABLE late AS SELECT * FROM customers",
    "CREATE TEMPORARY TABLE passing AS SELECT * FROM customers",
    "CREATE SCHEMA later CREATE TABLE t (a int)",
    "DROP SCHEMA more CASCADE",
    "ALTER SCHEMA more RENAME TO less",
    "CREATE OR REPLACE VIEW rich AS SELECT c.name, -p.amount AS amount FROM customers c \
     JOIN payments p ON p.customer = c.id",
    "DROP VIEW rich",
    "REFRESH MATERIALIZED VIEW totals",
    "CREATE OR REPLACE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "ALTER FUNCTION stamp() RENAME TO stomp",
    "DROP FUNCTION stamp() CASCADE",
    "ALTER TYPE mood ADD VALUE 'great'",
    "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'",
    "ALTER TYPE mood RENAME TO temper",
    "ALTER TYPE pair RENAME ATTRIBUTE a TO z CASCADE",
    "ALTER DOMAIN positive ADD CHECK (VALUE < 1000)",
    "DROP DOMAIN positive CASCADE",
    "ALTER SEQUENCE counted RESTART WITH 1",
    "ALTER SEQUENCE counted RENAME TO uncounted",
    "DROP SEQUENCE counted",
    "COMMENT ON TABLE customers IS 'another'",
    "REVOKE SELECT ON customers FROM PUBLIC",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "DROP EXTENSION pg_trgm",
    "ALTER DATABASE shop SET work_mem = '5MB'",
];

fn driver(server: &testkit::Postgres) -> Postgres {
    Postgres::new(PostgresOptions {
        url: server.url(),
        password: Some(server.password().to_owned()),
        databases: Vec::new(),
        tool_dirs: default_tool_dirs(std::env::var_os("PATH").as_deref()),
    })
    .unwrap()
}

/// Begins a change in a session of its own, and waits until it is done or seen waiting for a lock.
fn change(server: &testkit::Postgres, sql: &'static str) -> JoinHandle<()> {
    let mut client = server.client();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let handle = thread::spawn(move || {
        client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    });
    let mut watcher = server.client();
    let mut waits = || {
        let waits = "SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted";
        watcher.query_one(waits, &[&pid]).unwrap().get::<_, i64>(0) > 0
    };
    while !handle.is_finished() && !waits() {
        thread::yield_now();
    }
    handle
}

/// A server whose disk nobody waits for: no test pulls the plug.
fn server() -> testkit::Postgres {
    let off = |name: &str| (name.to_owned(), "off".to_owned());
    let settings = vec![off("fsync"), off("full_page_writes"), off("synchronous_commit")];
    testkit::postgres_with(&ScratchOptions { settings, ..ScratchOptions::default() })
}

/// Everything as it was in the beginning.
fn reset(server: &testkit::Postgres) {
    let mut client = server.client();
    client
        .batch_execute(
            "DROP SCHEMA IF EXISTS more, less, later CASCADE; DROP SCHEMA public CASCADE; \
             CREATE SCHEMA public; ALTER DATABASE shop RESET ALL; \
             ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC",
        )
        .unwrap();
    client.batch_execute(SCHEMA).unwrap();
}

fn prepared(server: &testkit::Postgres) -> Box<dyn Prepared> {
    driver(server).prepare().unwrap_or_else(|e| panic!("{}", told(&e)))
}

/// Without the words that a dump makes up anew each time.
fn comparable(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.contains("restrict ")).collect()
}

/// What became of captures while each of some changes was made.
#[derive(Debug, Default)]
struct Tally {
    waited: u32,
    unharmed: u32,
    noticed: Vec<String>,
}

/// Tries each change. `before` happens between prepare and mark.
fn try_each(changes: &[&'static str], before: &str) -> Tally {
    let server = server();
    let mut tally = Tally::default();
    let mut capture = |sql: Option<&'static str>| {
        reset(&server);
        let mut prepared = prepared(&server);
        server.client().batch_execute(before).unwrap();
        prepared.mark().unwrap_or_else(|e| panic!("{sql:?}: {}", told(&e)));
        let running = sql.map(|sql| change(&server, sql));
        let waits = running.as_ref().is_some_and(|running| !running.is_finished());
        tally.waited += u32::from(waits);
        let memory = Memory::default();
        let outcome = prepared.capture(&memory);
        drop(prepared);
        if let Some(running) = running {
            running.join().unwrap();
        }
        outcome.map(|captured| {
            assert_eq!(captured.gaps, [], "{sql:?}");
            memory.texts()
        })
    };
    let expected = capture(None).unwrap_or_else(|e| panic!("{}", told(&e)));
    let (mut unharmed, mut noticed) = (0, Vec::new());
    for sql in changes {
        match capture(Some(sql)) {
            Ok(found) => {
                for (path, text) in &expected {
                    let found = found.get(path).map(|text| comparable(text));
                    assert_eq!(found, Some(comparable(text)), "{sql}: {path}");
                }
                unharmed += 1;
            }
            Err(error) => noticed.push(format!("{sql}: {}", told(&error))),
        }
    }
    tally.unharmed = unharmed;
    tally.noticed = noticed;
    println!("{tally:#?}");
    tally
}

#[test]
fn no_change_after_the_mark_makes_a_wrong_capture() {
    let tally = try_each(CHANGES, "");
    // They are tried at a capture that is under way.
    assert!(tally.waited > 15 && tally.unharmed > 30, "{tally:?}");
    // Its values are written as they are called at the moment, and no lock keeps that.
    let renamed = "a value of an enumeration was renamed";
    assert!(tally.noticed.iter().any(|noticed| noticed.contains(renamed)), "{tally:?}");
}

/// A definition that came between prepare and mark makes the capture dump all of them again, after
/// the mark, and what has another name by then would have it in the dump.
#[test]
fn no_change_after_the_mark_makes_a_wrong_capture_when_definitions_are_dumped_anew() {
    let named = |sql: &&&str| sql.contains("FUNCTION") || sql.contains("TYPE mood");
    let mut changes: Vec<&str> = CHANGES.iter().filter(named).copied().collect();
    // One that waits would be waited for in turn. That takes its time: here is one for all.
    changes.retain(|sql| !sql.contains("CASCADE"));
    changes.extend(["TRUNCATE customers CASCADE", "VACUUM FREEZE customers"]);
    let tally = try_each(&changes, "CREATE TABLE between (a int)");
    let changed = "definitions were changed while the backup ran";
    let noticed = tally.noticed.iter().filter(|noticed| noticed.contains(changed)).count();
    assert!(noticed >= 4 && tally.unharmed >= 1, "{tally:?}");
}

/// Applications make temporary tables all the time: those are no change.
#[test]
fn temporary_tables_fail_no_capture() {
    let server = server();
    reset(&server);
    let passing = "CREATE TEMPORARY TABLE passing (a mood, b serial PRIMARY KEY); \
        CREATE TEMPORARY VIEW seen AS SELECT a FROM passing";
    let mut stays = server.client();
    let mut prepared = prepared(&server);
    stays.batch_execute(passing).unwrap();
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
    server.client().batch_execute(passing).unwrap();
    stays.batch_execute("DROP TABLE passing CASCADE").unwrap();
    prepared.capture(&Memory::default()).unwrap_or_else(|e| panic!("{}", told(&e)));
}
