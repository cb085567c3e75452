//! A server that crashes between mark and capture, and is back before the capture begins, with other
//! data. Its mark is lost, and that is said: what is captured is never the new server's state.

mod common;
#[path = "common/mariadb.rs"]
mod mariadb_server;
mod redis_server;

use std::time::{Duration, Instant};

use common::{Memory, told};
use mariadb_server::until;
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_services::{Driver, Prepared};
use stillpoint_testkit as testkit;

/// What the capture says. It must not succeed.
fn failed(prepared: &mut dyn Prepared) -> String {
    told(&prepared.capture(&Memory::default()).expect_err("the mark is lost"))
}

#[test]
fn a_restart_of_postgresql_between_mark_and_capture_fails_the_capture() {
    let server = testkit::postgres();
    server.client().batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").unwrap();
    let driver = Postgres::new(PostgresOptions {
        url: server.url(),
        password: Some(server.password().to_owned()),
        databases: Vec::new(),
        tool_dirs: default_tool_dirs(std::env::var_os("PATH").as_deref()),
    })
    .unwrap();
    let mut prepared = driver.prepare().unwrap_or_else(|e| panic!("{}", told(&e)));
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));

    // One of its processes is killed: the server ends all others, recovers, and goes on.
    let mut victim = server.client();
    let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("the server has noticed", || victim.simple_query("SELECT 1").is_err());
    until("the server is back", || {
        let insert = "INSERT INTO t VALUES (2)";
        server.try_client_in(None).is_ok_and(|mut client| client.batch_execute(insert).is_ok())
    });

    let said = failed(prepared.as_mut());
    assert!(said.contains("capture") && said.contains("shop"), "{said}");
    drop(prepared);
    // Nothing of it is left in the new server.
    let mut client = server.client();
    client.batch_execute("SET lock_timeout = '20s'; DROP TABLE t").unwrap();
    driver.prepare().unwrap_or_else(|e| panic!("{}", told(&e)));
}

#[test]
fn a_restart_of_mariadb_between_mark_and_capture_fails_the_capture() {
    let mut server = mariadb_server::Server::start();
    // More than fits into the pipes of a dump, which would be whole by now.
    server.sql(mariadb_server::LARGE);
    let mut prepared = mariadb_server::marked(&server);
    server.crash_and_start();
    server.sql("INSERT INTO shop.large VALUES (0, 'new')");
    let said = failed(prepared.as_mut());
    assert!(said.contains("shop"), "{said}");
    drop(prepared);
    server.sql("DROP TABLE shop.large");
    server.prepared();
}

#[test]
fn a_restart_of_redis_between_mark_and_capture_fails_the_capture() {
    for account in ["byfile", "byreplication"] {
        let mut server = redis_server::Server::start();
        server.lines(0, "MSET a 1 b 2 c 3");
        // The save is still running when the server dies.
        server.set("rdb-key-save-delay", "2000000");
        let mut prepared =
            server.driver(account).prepare().unwrap_or_else(|e| panic!("{}", told(&e)));
        prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
        server.crash_and_start();
        server.lines(0, "SET new x");
        let said = failed(prepared.as_mut());
        assert!(!said.is_empty(), "{account}");
        println!("{account}: {said}");
        drop(prepared);
        let end = Instant::now() + Duration::from_secs(60);
        // A save that the dead server began may be at work for a moment.
        while let Err(error) = server.driver(account).prepare() {
            assert!(Instant::now() < end, "{}", told(&error));
        }
    }
}
