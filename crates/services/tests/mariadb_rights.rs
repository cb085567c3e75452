//! The MariaDB driver: what an account lacks is named with the very statement that gives it, and
//! every way to log in works.

mod common;
#[path = "common/mariadb.rs"]
mod mariadb_server;

use std::process::Command;

use common::{capture, loaded, restore, step, told};
use mariadb_server::{FOR_BACKUP, FOR_RESTORE, Server, dump_program};
use stillpoint_services::mariadb::{Mariadb, MariadbOptions};
use stillpoint_services::{Driver, NeededFor};

const SHOP: &str = "USE shop; CREATE TABLE t (n INT); INSERT INTO t VALUES (4711); \
    CREATE VIEW v AS SELECT n FROM t; CREATE PROCEDURE r () SELECT 1; \
    CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW SET @x = 1; \
    CREATE EVENT e ON SCHEDULE EVERY 1 YEAR DISABLE DO SELECT 1";

/// The statements of a hint.
fn apply(server: &Server, said: &str) {
    let (_, hint) = said.split_once("(hint: ").unwrap_or_else(|| panic!("no hint: {said}"));
    server.sql(hint.strip_suffix(')').unwrap());
}

#[test]
fn the_grants_that_a_refusal_names_are_those_that_are_needed() {
    let server = Server::bare(&["--skip-networking"]);
    server.sql("CREATE DATABASE shop; CREATE USER keeper@localhost IDENTIFIED BY 'secret'");
    server.sql(SHOP);
    let said = server.refusal();
    for right in [
        "RELOAD",
        "PROCESS",
        "SELECT on shop",
        "SHOW VIEW on shop",
        "TRIGGER on shop",
        "EVENT on shop",
        "SELECT on mysql.proc",
    ] {
        assert!(said.contains(right), "{right}: {said}");
    }
    apply(&server, &said);
    let memory = capture(&server.driver(), || ());

    // Backups may be all that an account can do.
    let said = told(&server.driver().restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("CREATE on stillpoint\\_%") && said.contains("DROP on shop"), "{said}");
    assert_eq!(server.left(), "0");
    apply(&server, &said);
    let said = told(&server.driver().restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("is defined by root@localhost"), "{said}");
    apply(&server, &said);
    server.sql("DELETE FROM shop.t");
    restore(&server.driver(), &memory);
    assert_eq!(server.ask("SELECT n FROM shop.v"), "4711");
}

#[test]
fn each_single_missing_right_is_found() {
    let server = Server::start();
    server.sql(SHOP);
    let account = "keeper@localhost";
    assert!(server.driver().examine().iter().all(|found| found.problem.is_none()));
    let mut rights: Vec<(String, NeededFor)> =
        ["RELOAD ON *.*", "PROCESS ON *.*", "SELECT ON mysql.proc"]
            .map(|right| (right.to_owned(), NeededFor::Backup))
            .into();
    for right in ["SELECT", "SHOW VIEW", "TRIGGER", "EVENT"] {
        rights.push((format!("{right} ON `shop`.*"), NeededFor::Backup));
    }
    for right in [
        "INSERT",
        "CREATE",
        "DROP",
        "ALTER",
        "INDEX",
        "REFERENCES",
        "LOCK TABLES",
        "CREATE VIEW",
        "CREATE ROUTINE",
        "ALTER ROUTINE",
    ] {
        rights.push((format!("{right} ON `shop`.*"), NeededFor::Restore));
        rights.push((format!("{right} ON `stillpoint\\_%`.*"), NeededFor::Restore));
    }
    for (right, needed_for) in rights {
        server.sql(&format!("REVOKE {right} FROM {account}"));
        let findings = server.driver().examine();
        let found = findings
            .iter()
            .find(|found| found.problem.is_some() && found.needed_for == needed_for)
            .unwrap_or_else(|| panic!("{right} is not missed: {findings:?}"));
        let grant = found.hint.clone().unwrap();
        assert_eq!(grant, format!("GRANT {right} TO 'keeper'@'localhost'"));
        server.sql(&grant);
        assert!(server.driver().examine().iter().all(|found| found.problem.is_none()), "{right}");
    }
}

#[test]
fn rights_by_a_role_by_pattern_or_all_of_them_count() {
    let server = Server::bare(&["--skip-networking"]);
    server.sql("CREATE DATABASE shop; CREATE USER keeper@localhost IDENTIFIED BY 'secret'; CREATE ROLE backups");
    server.sql(SHOP);
    server.sql(&FOR_BACKUP.replace("keeper@localhost", "backups"));
    assert!(server.refusal().contains("RELOAD"));
    server.sql("GRANT backups TO keeper@localhost; SET DEFAULT ROLE backups FOR keeper@localhost");
    capture(&server.driver(), || ());
    server.sql("DROP ROLE backups; GRANT ALL ON `sh%`.* TO keeper@localhost");
    let said = server.refusal();
    assert!(said.contains("RELOAD") && !said.contains("on shop"), "{said}");
    server.sql("GRANT ALL ON *.* TO keeper@localhost");
    restore(&server.driver(), &capture(&server.driver(), || ()));
}

#[test]
fn with_a_binary_log_triggers_and_functions_need_the_servers_trust() {
    let server = Server::start_with(&["--skip-networking", "--log-bin=log"]);
    server.sql("GRANT SET USER ON *.* TO keeper@localhost");
    server.sql(SHOP);
    let driver = server.driver();
    let mut prepared = server.prepared();
    let marker = prepared.mark().unwrap();
    assert!(marker.values.contains_key("gtid"), "{marker:?}");
    drop(prepared);
    let memory = capture(&driver, || ());
    let said = told(&driver.restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("binary log") && said.contains("TRIGGER g"), "{said}");
    apply(&server, &said);
    restore(&driver, &memory);
}

fn at(server: &Server, url: &str, password: Option<&str>) -> Mariadb {
    let password = password.map(str::to_owned);
    Mariadb::new(MariadbOptions { url: url.to_owned(), password, ..server.options() }).unwrap()
}

#[test]
fn a_wrong_password_a_missing_database_and_a_dead_server_are_told_apart() {
    let server = Server::start();
    let socket = server.socket().display().to_string();
    let url = format!("mysql://keeper@localhost/shop?socket={socket}");
    let said = told(&at(&server, &url, Some("wr0ng")).prepare().err().unwrap());
    assert!(said.contains("Access denied") && said.contains("check the user"), "{said}");
    assert!(!said.contains("wr0ng"), "{said}");
    server.sql("DROP DATABASE shop");
    assert!(server.refusal().contains("the server has none of this name"));
    let said = told(
        &at(&server, "mysql://keeper@localhost/shop?socket=/nowhere", None)
            .prepare()
            .err()
            .unwrap(),
    );
    assert!(said.contains("/nowhere") && said.contains("is the server running"), "{said}");
}

/// A whole way there and back with this driver.
fn works(server: &Server, driver: &Mariadb) {
    server.sql("CREATE TABLE IF NOT EXISTS shop.t (n INT)");
    let memory = capture(driver, || ());
    let mut steps = driver.restore();
    let aside = loaded(steps.as_mut(), &memory);
    step("discard", steps.discard(&aside));
}

#[test]
fn a_password_of_any_letters_works_and_is_never_an_argument() {
    let server = Server::start();
    let password = "a 'b\" \\c #d ;%e=é\\\\n$(f) \t";
    let quoted = password.replace('\\', "\\\\").replace('\'', "\\'");
    server.sql(&format!("ALTER USER keeper@localhost IDENTIFIED BY '{quoted}'"));
    let url = format!("mysql://keeper@localhost/shop?socket={}", server.socket().display());
    let driver = at(&server, &url, Some(password));
    works(&server, &driver);
    let prepared = driver.prepare().unwrap();
    let parent = std::process::id().to_string();
    let seen = Command::new("ps").args(["e", "-o", "args", "--ppid", &parent]).output().unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains("mariadb-dump --defaults-file="), "{seen}");
    assert!(!seen.contains("$(f)"), "{seen}");
    drop(prepared);
}

#[test]
fn tcp_by_number_and_by_name_and_a_socket_account_without_password_work() {
    let port = stillpoint_testkit::free_port().to_string();
    let server = Server::start_with(&["--bind-address=127.0.0.1", &format!("--port={port}")]);
    for host in ["127.0.0.1", "localhost"] {
        works(&server, &at(&server, &format!("mysql://keeper@{host}:{port}/shop"), Some("secret")));
    }
    // The account that this test runs as.
    let me = Command::new("id").arg("-un").output().unwrap();
    let me = String::from_utf8_lossy(&me.stdout).trim().to_owned();
    if me == "root" {
        server.sql("ALTER USER root@localhost IDENTIFIED VIA unix_socket");
    } else {
        server.sql(&format!("CREATE USER '{me}'@localhost IDENTIFIED VIA unix_socket"));
        for grants in [FOR_BACKUP, FOR_RESTORE] {
            server.sql(&grants.replace("keeper@", &format!("'{me}'@")));
        }
    }
    let url = format!("mysql://{me}@localhost/shop?socket={}", server.socket().display());
    works(&server, &at(&server, &url, None));
}

#[test]
fn a_dump_program_that_does_not_fit_the_server_is_refused() {
    let server = Server::start();
    for (says, expected) in [
        (
            "mariadb-dump  Ver 10.19 Distrib 10.6.5-MariaDB, for debian-linux-gnu (x86_64)",
            "older than the server",
        ),
        (
            "mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)",
            "it is MySQL's",
        ),
        ("what?", "its version is not known"),
    ] {
        let dir = dump_program("exit 1");
        let program = dir.path().join("mariadb-dump");
        write_program(&program, &format!("#!/bin/sh\necho '{says}'\n"));
        let tool_dirs = vec![dir.path().to_owned()];
        let driver = Mariadb::new(MariadbOptions { tool_dirs, ..server.options() }).unwrap();
        let said = told(&driver.prepare().err().unwrap());
        assert!(said.contains(expected), "{said}");
        assert!(
            driver
                .examine()
                .iter()
                .any(|f| f.problem.as_deref().is_some_and(|p| p.contains(expected)))
        );
    }
    let facts = server.prepared().facts();
    assert!(facts["server"].contains("MariaDB") && facts["dump"].contains("MariaDB"), "{facts:?}");
}

#[allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]
fn write_program(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).unwrap();
}
