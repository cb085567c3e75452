//! The PostgreSQL driver while definitions are changed between mark and capture: each kind of change
//! waits for the capture, or makes it fail, or leaves what is captured as it was at the mark. It is
//! never a wrong capture.

mod common;

use std::thread::{self, JoinHandle};

use common::{Memory, loaded, restore, told};
use stillpoint_services::Driver;
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_testkit as testkit;

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
    "ALTER TABLE customers RENAME COLUMN tags TO labels",
    "ALTER TABLE customers SET SCHEMA more",
    "ALTER TABLE customers ALTER tags SET DEFAULT '{x}'",
    "ALTER TABLE customers ALTER name DROP NOT NULL",
    "ALTER TABLE customers SET (fillfactor = 50)",
    "ALTER TABLE customers DISABLE TRIGGER stamp",
    "ALTER TABLE payments DROP CONSTRAINT payments_customer_fkey",
    "ALTER TABLE payments ADD CHECK (amount > 0) NOT VALID",
    "ALTER TABLE logs DETACH PARTITION logs_2",
    "CREATE TABLE logs_3 PARTITION OF logs FOR VALUES FROM ('1990-01-01') TO ('1991-01-01')",
    "DROP TABLE logs_1",
    "ALTER TABLE child NO INHERIT base",
    "ALTER TABLE scratch SET LOGGED",
    "ALTER TABLE secured DISABLE ROW LEVEL SECURITY",
    "ALTER POLICY none ON secured USING (true)",
    "DROP POLICY none ON secured",
    "CREATE INDEX ON payments (amount)",
    "DROP INDEX by_name",
    "REINDEX TABLE customers",
    "CLUSTER payments USING payments_pkey",
    "VACUUM FULL customers",
    "VACUUM FREEZE customers",
    "CREATE TABLE late AS SELECT * FROM customers",
    "CREATE TEMPORARY TABLE passing AS SELECT * FROM customers",
    "CREATE SCHEMA later CREATE TABLE t (a int)",
    "DROP SCHEMA more CASCADE",
    "ALTER SCHEMA more RENAME TO less",
    "CREATE OR REPLACE VIEW rich AS SELECT c.name, -p.amount AS amount FROM customers c \
     JOIN payments p ON p.customer = c.id",
    "ALTER VIEW rich RENAME TO poor",
    "DROP VIEW rich",
    "REFRESH MATERIALIZED VIEW totals",
    "DROP MATERIALIZED VIEW totals",
    "CREATE OR REPLACE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "ALTER FUNCTION stamp() RENAME TO stomp",
    "DROP FUNCTION stamp() CASCADE",
    "DROP TRIGGER stamp ON customers",
    "ALTER TYPE mood ADD VALUE 'great'",
    "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'",
    "ALTER TYPE mood RENAME TO temper",
    "ALTER TYPE pair RENAME ATTRIBUTE a TO z CASCADE",
    "ALTER DOMAIN positive ADD CHECK (VALUE < 1000)",
    "DROP DOMAIN positive CASCADE",
    "ALTER SEQUENCE counted RESTART WITH 1",
    "ALTER SEQUENCE counted INCREMENT 5",
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

/// Everything that can be seen of the database, as text.
fn picture(server: &testkit::Postgres) -> String {
    let output = std::process::Command::new(server.installation().bin_dir.join("pg_dump"))
        .args(["--no-password", "--inserts", "--rows-per-insert=1"])
        .env("PGHOST", server.socket_dir())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", "shop")
        .env("PGPASSWORD", server.password())
        .env("PGDATABASE", "shop")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

/// What each change makes of a capture. `before` happens between prepare and mark.
fn try_all(before: &str, undo: &str) {
    let server = testkit::postgres();
    server.client().batch_execute(SCHEMA).unwrap();
    let driver = driver(&server);
    // Once there and back, so that everything stands where a restore puts it.
    let original = {
        let mut prepared = driver.prepare().unwrap_or_else(|e| panic!("{}", told(&e)));
        common::capture_prepared(prepared.as_mut(), || ())
    };
    restore(&driver, &original);
    let (mut waited, mut noticed, mut unharmed) = (0, Vec::new(), 0);
    for sql in CHANGES {
        let mut prepared = driver.prepare().unwrap_or_else(|e| panic!("{sql}: {}", told(&e)));
        server.client().batch_execute(before).unwrap();
        prepared.mark().unwrap_or_else(|e| panic!("{sql}: {}", told(&e)));
        let expected = picture(&server);
        let running = change(&server, sql);
        waited += u32::from(!running.is_finished());
        let memory = Memory::default();
        let outcome = prepared.capture(&memory);
        drop(prepared);
        running.join().unwrap();
        match outcome {
            Ok(captured) => {
                assert_eq!(captured.gaps, [], "{sql}");
                restore(&driver, &memory);
                assert_eq!(picture(&server), expected, "{sql}");
                unharmed += 1;
            }
            Err(error) => {
                noticed.push(format!("{sql}: {}", told(&error)));
            }
        }
        server.client().batch_execute(undo).unwrap();
        if !noticed.is_empty() {
            // Whatever it did is undone for the next.
            restore(&driver, &original);
        }
    }
    println!("{waited} waited, {unharmed} did no harm, {} were noticed:", noticed.len());
    println!("{}", noticed.join("\n"));
}

#[test]
fn no_change_after_the_mark_makes_a_wrong_capture() {
    try_all("", "");
}

#[test]
fn no_change_after_the_mark_makes_a_wrong_capture_when_definitions_are_dumped_anew() {
    // A definition that comes between prepare and mark makes the capture dump all of them again.
    try_all("CREATE TABLE between (a int)", "DROP TABLE IF EXISTS between");
}
