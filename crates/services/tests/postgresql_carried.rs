//! What a restore must not lose beside rows: refused where it cannot be carried, kept where it can.
#![allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]

mod common;

use std::process::{Command, Stdio};

use common::{capture, loaded, restore, step, told};
use stillpoint_services::Driver;
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_testkit as testkit;

fn driver(server: &testkit::Postgres) -> Postgres {
    Postgres::new(PostgresOptions {
        url: server.url(),
        password: Some(server.password().to_owned()),
        databases: Vec::new(),
        tool_dirs: default_tool_dirs(std::env::var_os("PATH").as_deref()),
    })
    .unwrap()
}

fn orders(server: &testkit::Postgres) {
    server.client().batch_execute("CREATE TABLE orders AS SELECT 1 AS id").unwrap();
}

/// What a plan says that must refuse; it must have changed nothing.
fn refusal(server: &testkit::Postgres, memory: &common::Memory) -> String {
    let said = told(&driver(server).restore().plan("t0ken", memory).unwrap_err());
    let databases = "SELECT count(*) FROM pg_database WHERE datname LIKE '%t0ken%'";
    let left: i64 = server.superuser_in("postgres").query_one(databases, &[]).unwrap().get(0);
    assert_eq!(left, 0);
    said
}

#[test]
fn a_live_database_with_subscriptions_is_not_replaced() {
    let server = testkit::postgres();
    orders(&server);
    let memory = capture(&driver(&server), || ());
    let mut superuser = server.superuser_in("shop");
    superuser
        .batch_execute(
            "CREATE SUBSCRIPTION feed CONNECTION 'host=/nowhere' PUBLICATION p \
             WITH (connect = false)",
        )
        .unwrap();
    let said = refusal(&server, &memory);
    assert!(said.contains("logical subscriptions (feed)"), "{said}");
    superuser
        .batch_execute("ALTER SUBSCRIPTION feed SET (slot_name = NONE); DROP SUBSCRIPTION feed")
        .unwrap();
    driver(&server).restore().plan("t0ken", &memory).unwrap();
}

#[test]
fn a_sender_of_replication_is_ended_by_a_swap() {
    let server = testkit::postgres();
    orders(&server);
    let memory = capture(&driver(&server), || ());
    let mut superuser = server.superuser_in("postgres");
    superuser.batch_execute("ALTER ROLE shop REPLICATION").unwrap();
    let mut steps = driver(&server).restore();
    let aside = loaded(steps.as_mut(), &memory);
    // It stays for as long as its input is open.
    let mut sender = Command::new(server.installation().bin_dir.join("psql"))
        .args(["-X", "-d", "dbname=shop replication=database"])
        .env("PGHOST", server.socket_dir())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", "shop")
        .env("PGPASSWORD", server.password())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let senders = "SELECT FROM pg_stat_activity WHERE backend_type = 'walsender'";
    while superuser.query(senders, &[]).unwrap().is_empty() {
        assert!(sender.try_wait().unwrap().is_none(), "no session for replication");
        std::thread::yield_now();
    }
    let swapped = steps.swap(&aside);
    drop(sender.stdin.take());
    sender.wait().unwrap();
    step("swap", swapped);
    step("finish", steps.finish(&aside));
}

#[test]
fn sessions_of_other_roles_are_ended_where_that_right_was_given() {
    let server = testkit::postgres();
    orders(&server);
    let memory = capture(&driver(&server), || ());
    server
        .superuser_in("postgres")
        .batch_execute(
            "CREATE ROLE reporter LOGIN PASSWORD 'reads'; GRANT pg_signal_backend TO shop",
        )
        .unwrap();
    let mut config: postgres::Config = server.url().parse().unwrap();
    let reporter = config.user("reporter").password("reads").connect(postgres::NoTls);
    let mut reporter = reporter.expect("the reporter connects");
    restore(&driver(&server), &memory);
    assert!(reporter.batch_execute("SELECT 1").is_err());
}

#[test]
fn a_database_stays_in_its_tablespace() {
    let server = testkit::postgres();
    orders(&server);
    let mut superuser = server.superuser_in("postgres");
    // Directories inside the server's own: no account but the server's must be able to write.
    superuser
        .batch_execute("SET allow_in_place_tablespaces = on")
        .and_then(|()| superuser.batch_execute("CREATE TABLESPACE fast LOCATION ''"))
        .unwrap();
    superuser.batch_execute("ALTER DATABASE shop SET TABLESPACE fast").unwrap();
    let memory = capture(&driver(&server), || ());

    let said = refusal(&server, &memory);
    assert!(said.contains("GRANT CREATE ON TABLESPACE \"fast\" TO \"shop\""), "{said}");
    superuser.batch_execute("GRANT CREATE ON TABLESPACE fast TO shop").unwrap();
    restore(&driver(&server), &memory);
    let place = "SELECT spcname::text FROM pg_database d JOIN pg_tablespace t \
                 ON t.oid = dattablespace WHERE datname = 'shop'";
    assert_eq!(superuser.query_one(place, &[]).unwrap().get::<_, String>(0), "fast");

    superuser.batch_execute("DROP DATABASE shop").unwrap();
    superuser.batch_execute("DROP TABLESPACE fast").unwrap();
    let said = refusal(&server, &memory);
    assert!(said.contains("tablespace `fast`"), "{said}");
    assert!(said.contains("does not exist"), "{said}");
}

#[test]
fn settings_of_the_role_change_no_value() {
    let server = testkit::postgres();
    server
        .client()
        .batch_execute(
            "CREATE TABLE texts (a text[], b regclass); \
             INSERT INTO texts VALUES (ARRAY['a', NULL], 'pg_class'), (ARRAY['NULL'], 'texts')",
        )
        .unwrap();
    let memory = capture(&driver(&server), || ());
    server
        .superuser_in("postgres")
        .batch_execute(
            "ALTER ROLE shop SET array_nulls = off; ALTER ROLE shop SET quote_all_identifiers = on",
        )
        .unwrap();
    restore(&driver(&server), &memory);
    let nulls = "SELECT count(*) FROM texts WHERE a[2] IS NULL AND a[1] = 'a'";
    assert_eq!(server.client().query_one(nulls, &[]).unwrap().get::<_, i64>(0), 1);
}
