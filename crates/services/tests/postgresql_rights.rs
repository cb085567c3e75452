//! What `doctor` finds for PostgreSQL: each missing right by name, with the statement that gives it,
//! on roles that have what they need and nothing more.

mod common;

use common::{capture, told};
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_services::{Driver, Finding, NeededFor};
use stillpoint_testkit as testkit;

/// The driver, as a role that may only read.
fn driver(server: &testkit::Postgres, role: &str, password: &str) -> Postgres {
    Postgres::new(PostgresOptions {
        url: server.url().replacen("postgres://shop@", &format!("postgres://{role}@"), 1),
        password: Some(password.to_owned()),
        databases: Vec::new(),
        tool_dirs: default_tool_dirs(std::env::var_os("PATH").as_deref()),
    })
    .unwrap()
}

fn problems(driver: &Postgres) -> Vec<Finding> {
    driver.examine().into_iter().filter(|finding| finding.problem.is_some()).collect()
}

fn hints(driver: &Postgres, needed_for: NeededFor) -> Vec<String> {
    let found = problems(driver).into_iter().filter(|finding| finding.needed_for == needed_for);
    found.map(|finding| finding.hint.unwrap()).collect()
}

/// A shop with a schema of its own, a table with row security, and a sequence.
fn shop() -> testkit::Postgres {
    let server = testkit::postgres();
    server
        .client()
        .batch_execute(
            "CREATE SCHEMA orders; CREATE TABLE orders.\"Order\" (id serial, who text); \
             INSERT INTO orders.\"Order\" (who) VALUES ('me'); \
             CREATE TABLE public.notes (who text); \
             ALTER TABLE public.notes ENABLE ROW LEVEL SECURITY",
        )
        .unwrap();
    server
}

#[test]
fn a_role_that_owns_everything_lacks_nothing_and_nothing_is_changed() {
    let server = shop();
    let driver = driver(&server, "shop", server.password());
    let mut client = server.client();
    let count = "SELECT (SELECT count(*) FROM pg_class) + (SELECT count(*) FROM pg_database)";
    let before: i64 = client.query_one(count, &[]).unwrap().get(0);
    let found = driver.examine();
    let after: i64 = client.query_one(count, &[]).unwrap().get(0);
    assert!(found.iter().all(|finding| finding.problem.is_none()), "{found:#?}");
    let named = |word: &str| found.iter().any(|finding| finding.what.contains(word));
    assert!(named("pg_dump 1") && named("pg_dumpall 1") && named("CREATEDB"), "{found:#?}");
    assert_eq!(before, after);
}

#[test]
fn each_right_that_a_backup_lacks_is_named_and_the_statement_gives_it() {
    let server = shop();
    let mut superuser = server.superuser_in("shop");
    superuser
        .batch_execute(
            "CREATE ROLE reader LOGIN PASSWORD 'r3ader'; REVOKE CONNECT ON DATABASE shop FROM PUBLIC",
        )
        .unwrap();
    let driver = driver(&server, "reader", "r3ader");
    // Before it may connect, nothing else can be seen.
    let expected = [
        &["GRANT CONNECT ON DATABASE \"shop\" TO \"reader\""][..],
        &[
            "GRANT USAGE ON SCHEMA \"orders\" TO \"reader\"",
            "GRANT SELECT ON \"orders\".\"Order\" TO \"reader\"",
            "GRANT SELECT ON \"public\".\"notes\" TO \"reader\"",
            "GRANT SELECT ON SEQUENCE \"orders\".\"Order_id_seq\" TO \"reader\"",
            "ALTER ROLE \"reader\" BYPASSRLS",
        ],
    ];
    for round in expected {
        assert!(driver.prepare().is_err());
        let mut left = hints(&driver, NeededFor::Backup);
        assert_eq!(left, round, "{:#?}", problems(&driver));
        // One after the other: each takes away the one that it is the answer to.
        for statement in round {
            superuser.batch_execute(statement).unwrap();
            left.remove(0);
            let now = hints(&driver, NeededFor::Backup);
            assert!(!now.contains(&(*statement).to_owned()), "{statement}: {now:?}");
            assert!(left.iter().all(|other| now.contains(other)), "{statement}: {now:?}");
        }
    }
    assert_eq!(hints(&driver, NeededFor::Backup), [""; 0]);
    capture(&driver, || ());
    // Each one again, taken away alone: found alone.
    for (taken, statement) in [
        ("REVOKE USAGE ON SCHEMA orders FROM reader", expected[1][0]),
        ("REVOKE SELECT ON orders.\"Order\" FROM reader", expected[1][1]),
        ("REVOKE SELECT ON SEQUENCE orders.\"Order_id_seq\" FROM reader", expected[1][3]),
        ("ALTER ROLE reader NOBYPASSRLS", expected[1][4]),
    ] {
        superuser.batch_execute(taken).unwrap();
        assert_eq!(hints(&driver, NeededFor::Backup), [statement], "{taken}");
        superuser.batch_execute(statement).unwrap();
        assert_eq!(hints(&driver, NeededFor::Backup), [""; 0], "{statement}");
    }
}

#[test]
fn each_right_that_a_restore_lacks_is_named_and_the_statement_gives_it() {
    let server = shop();
    let driver = driver(&server, "shop", server.password());
    let memory = capture(&driver, || ());
    let mut superuser = server.superuser_in("postgres");
    superuser
        .batch_execute("CREATE ROLE other LOGIN; GRANT CONNECT ON DATABASE shop TO other")
        .unwrap();
    let mut in_shop = server.superuser_in("shop");
    in_shop.batch_execute("CREATE TABLE public.theirs (); ALTER TABLE public.theirs OWNER TO other; GRANT SELECT ON public.theirs TO shop").unwrap();
    // Its own session is a superuser's in that database: that is found as well.
    drop(in_shop);
    for (taken, statement) in [
        ("ALTER ROLE shop NOCREATEDB", "ALTER ROLE \"shop\" CREATEDB"),
        ("ALTER DATABASE shop OWNER TO postgres", "ALTER DATABASE \"shop\" OWNER TO \"shop\""),
        ("REVOKE other FROM shop", "GRANT \"other\" TO \"shop\""),
    ] {
        superuser.batch_execute(taken).unwrap();
        await_hints(&driver, |hints| hints.contains(&statement.to_owned()));
        superuser.batch_execute(statement).unwrap();
        await_hints(&driver, |hints| !hints.contains(&statement.to_owned()));
    }
    await_hints(&driver, <[String]>::is_empty);
    driver.restore().plan("t0ken", &memory).unwrap_or_else(|e| panic!("{}", told(&e)));
}

#[test]
fn sessions_of_others_and_extensions_that_need_a_superuser_are_named() {
    let server = shop();
    let driver = driver(&server, "shop", server.password());
    let mut superuser = server.superuser_in("postgres");
    superuser.batch_execute("CREATE ROLE other LOGIN PASSWORD '0ther'").unwrap();
    let mut config: postgres::Config = server.url().parse().unwrap();
    let session = config.user("other").password("0ther").connect(postgres::NoTls).unwrap();
    let grant = "GRANT pg_signal_backend TO \"shop\"";
    assert_eq!(hints(&driver, NeededFor::Restore), [grant]);
    superuser.batch_execute(grant).unwrap();
    assert_eq!(hints(&driver, NeededFor::Restore), [""; 0]);
    drop(session);

    // A superuser's session is nobody else's to end.
    let mut foreign = server.superuser_in("shop");
    let pid: i32 = foreign.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let statement = format!("SELECT pg_terminate_backend({pid})");
    assert_eq!(hints(&driver, NeededFor::Restore), [statement.as_str()]);
    foreign.batch_execute("CREATE EXTENSION pg_stat_statements").unwrap();
    superuser.batch_execute(&statement).unwrap();
    await_hints(&driver, |hints| hints == ["restore with a superuser's role"]);
    let found = problems(&driver);
    assert!(found[0].what.contains("pg_stat_statements"), "{found:?}");
}

/// A session that was closed is gone a moment later.
fn await_hints(driver: &Postgres, wanted: impl Fn(&[String]) -> bool) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let hints = hints(driver, NeededFor::Restore);
        if wanted(&hints) {
            return;
        }
        assert!(std::time::Instant::now() < until, "{hints:?}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
