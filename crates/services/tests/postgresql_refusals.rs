//! What the PostgreSQL driver refuses, before anything waits, and how it says so.
#![allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{capture, told};
use stillpoint_services::Driver;
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_testkit as testkit;

fn options(server: &testkit::Postgres) -> PostgresOptions {
    PostgresOptions {
        url: server.url(),
        password: Some(server.password().to_owned()),
        databases: Vec::new(),
        tool_dirs: default_tool_dirs(std::env::var_os("PATH").as_deref()),
    }
}

/// What prepare says with these options.
fn refusal(options: PostgresOptions) -> String {
    let error = Postgres::new(options).unwrap().prepare().err().expect("prepare refuses");
    told(&error)
}

#[test]
fn a_wrong_password_is_named_and_never_shown() {
    let server = testkit::postgres();
    let said = refusal(PostgresOptions { password: Some("wr0ng".to_owned()), ..options(&server) });
    assert!(said.contains("password of `shop` is wrong"), "{said}");
    assert!(!said.contains("wr0ng"), "{said}");
}

#[test]
fn a_server_that_is_down_is_named() {
    let port = testkit::free_port();
    let said = refusal(PostgresOptions {
        url: format!("postgres://shop@127.0.0.1:{port}/shop"),
        password: Some("x".to_owned()),
        databases: Vec::new(),
        tool_dirs: Vec::new(),
    });
    assert!(said.contains(&format!("postgres://shop@127.0.0.1:{port}/shop")), "{said}");
    assert!(said.contains("is the server running"), "{said}");
}

#[test]
fn a_missing_database_is_named() {
    let server = testkit::postgres();
    let said =
        refusal(PostgresOptions { databases: vec!["warehouse".to_owned()], ..options(&server) });
    assert!(said.contains("no database `warehouse`"), "{said}");
}

#[test]
fn a_missing_pg_dump_is_named_with_its_package() {
    let server = testkit::postgres();
    let said =
        refusal(PostgresOptions { tool_dirs: vec![PathBuf::from("/nowhere")], ..options(&server) });
    assert!(said.contains("no pg_dump in any of /nowhere"), "{said}");
    assert!(said.contains("postgresql-client-"), "{said}");
}

#[test]
fn a_pg_dump_older_than_the_server_is_refused() {
    let server = testkit::postgres();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("pg_dump");
    std::fs::write(&program, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said =
        refusal(PostgresOptions { tool_dirs: vec![dir.path().to_owned()], ..options(&server) });
    assert!(said.contains("pg_dump 9.6.24") && said.contains("older than the server"), "{said}");
}

#[test]
fn a_table_or_sequence_that_may_not_be_read_is_refused_with_the_grant() {
    let server = testkit::postgres();
    let mut superuser = server.superuser_in("shop");
    superuser.batch_execute("CREATE TABLE public.secret (a int)").unwrap();
    let said = refusal(options(&server));
    assert!(said.contains("\"public\".\"secret\""), "{said}");
    assert!(said.contains("GRANT SELECT ON \"public\".\"secret\" TO \"shop\""), "{said}");
    superuser.batch_execute("DROP TABLE public.secret; CREATE SEQUENCE public.hidden").unwrap();
    let said = refusal(options(&server));
    assert!(said.contains("GRANT SELECT ON SEQUENCE \"public\".\"hidden\""), "{said}");
}

#[test]
fn rows_hidden_by_a_policy_are_refused() {
    let server = testkit::postgres();
    server
        .superuser_in("shop")
        .batch_execute(
            "CREATE TABLE public.tenants (a int); GRANT SELECT ON public.tenants TO shop; \
             ALTER TABLE public.tenants ENABLE ROW LEVEL SECURITY",
        )
        .unwrap();
    let said = refusal(options(&server));
    assert!(said.contains("row security") && said.contains("BYPASSRLS"), "{said}");
}

#[test]
fn a_table_locked_by_somebody_else_is_refused_in_time_and_names_them() {
    let server = testkit::postgres();
    let mut client = server.client();
    client.batch_execute("CREATE TABLE busy (a int)").unwrap();
    let driver = Postgres::new(options(&server)).unwrap();
    client.batch_execute("BEGIN; LOCK TABLE busy").unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let error = driver.prepare().err().expect("prepare gives up");
    let said = told(&error);
    assert!(said.contains(&format!("process {pid} locks public.busy")), "{said}");
    client.batch_execute("ROLLBACK").unwrap();
    driver.prepare().unwrap();
}

#[test]
fn a_restore_without_rights_is_refused_and_the_old_data_stands() {
    let server = testkit::postgres();
    server.client().batch_execute("CREATE TABLE t AS SELECT 1 AS a").unwrap();
    let driver = Postgres::new(options(&server)).unwrap();
    let memory = capture(&driver, || ());
    let mut superuser = server.superuser_in("postgres");
    superuser.batch_execute("ALTER ROLE shop NOCREATEDB").unwrap();
    let said = told(&driver.restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("ALTER ROLE \"shop\" CREATEDB"), "{said}");

    superuser
        .batch_execute("ALTER ROLE shop CREATEDB; ALTER DATABASE shop OWNER TO postgres")
        .unwrap();
    let said = told(&driver.restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("ALTER DATABASE \"shop\" OWNER TO \"shop\""), "{said}");
    assert!(server.client().query_one("SELECT a FROM t", &[]).is_ok());
}

#[test]
fn a_restore_names_roles_that_are_missing_or_not_its_own() {
    let server = testkit::postgres();
    server.client().batch_execute("CREATE TABLE t (a int)").unwrap();
    let mut superuser = server.superuser_in("shop");
    superuser
        .batch_execute(
            "CREATE ROLE other; CREATE TABLE public.theirs (a int); \
             ALTER TABLE public.theirs OWNER TO other; GRANT SELECT ON public.theirs TO shop",
        )
        .unwrap();
    let driver = Postgres::new(options(&server)).unwrap();
    let memory = capture(&driver, || ());
    let said = told(&driver.restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("GRANT \"other\" TO \"shop\""), "{said}");
    superuser.batch_execute("DROP TABLE public.theirs; DROP ROLE other").unwrap();
    let said = told(&driver.restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("do not exist: other"), "{said}");
}

#[test]
fn a_sink_that_fails_ends_the_capture_and_the_next_one_works() {
    struct Full;
    impl stillpoint_services::Sink for Full {
        fn write(&self, _: &str, content: &mut dyn std::io::Read) -> std::io::Result<u64> {
            content.read_exact(&mut [0; 100])?;
            Err(std::io::Error::other("no space left"))
        }
    }
    let server = testkit::postgres();
    server
        .client()
        .batch_execute(
            "CREATE TABLE t AS SELECT n, repeat('x', 200) FROM generate_series(1, 50000) n",
        )
        .unwrap();
    let driver = Postgres::new(options(&server)).unwrap();
    let mut prepared = driver.prepare().unwrap();
    prepared.mark().unwrap();
    let said = told(&prepared.capture(&Full).unwrap_err());
    assert!(said.contains("\"public\".\"t\"") && said.contains("no space left"), "{said}");
    drop(prepared);
    capture(&driver, || ());
}
