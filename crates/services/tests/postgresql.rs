//! The PostgreSQL driver on a real server, as the application's own role.

mod common;

use std::thread;

use common::{Memory, capture, capture_prepared, loaded, restore, step, told};
use postgres::Client;
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_services::{Aside, Driver};
use stillpoint_testkit as testkit;

fn options(server: &testkit::Postgres) -> PostgresOptions {
    PostgresOptions {
        url: server.url(),
        password: Some(server.password().to_owned()),
        databases: Vec::new(),
        tool_dirs: default_tool_dirs(std::env::var_os("PATH").as_deref()),
    }
}

fn driver(server: &testkit::Postgres) -> Postgres {
    Postgres::new(options(server)).unwrap()
}

fn orders(server: &testkit::Postgres, count: i32) -> Client {
    let mut client = server.client();
    client
        .batch_execute(&format!(
            "CREATE TABLE orders (id serial PRIMARY KEY, what text); \
             INSERT INTO orders (what) SELECT 'order ' || n FROM generate_series(1, {count}) n"
        ))
        .unwrap();
    client
}

fn number(client: &mut Client, query: &str) -> i64 {
    client.query_one(query, &[]).unwrap().get(0)
}

fn databases(server: &testkit::Postgres) -> Vec<String> {
    let rows = server
        .superuser_in("postgres")
        .query("SELECT datname::text FROM pg_database WHERE NOT datistemplate ORDER BY 1", &[])
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Runs `sql` in a session of its own and waits until it is seen waiting for a lock.
fn waiting(server: &testkit::Postgres, sql: &'static str) -> thread::JoinHandle<()> {
    let mut client = server.client();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let handle = thread::spawn(move || client.batch_execute(sql).unwrap());
    let mut watcher = server.client();
    while number(
        &mut watcher,
        &format!("SELECT count(*) FROM pg_locks WHERE pid = {pid} AND NOT granted"),
    ) == 0
    {
        assert!(!handle.is_finished(), "`{sql}` did not wait");
        thread::yield_now();
    }
    handle
}

#[test]
fn rows_written_after_the_mark_are_not_captured() {
    let server = testkit::postgres();
    let mut client = orders(&server, 100);
    let memory = capture(&driver(&server), || {
        client
            .batch_execute(
                "INSERT INTO orders (what) VALUES ('late'); \
                 UPDATE orders SET what = 'changed' WHERE id = 1; DELETE FROM orders WHERE id = 2",
            )
            .unwrap();
    });
    restore(&driver(&server), &memory);
    let mut client = server.client();
    assert_eq!(number(&mut client, "SELECT count(*) FROM orders"), 100);
    assert_eq!(number(&mut client, "SELECT count(*) FROM orders WHERE what = 'order ' || id"), 100);
    assert_eq!(databases(&server), ["postgres", "shop"]);
}

#[test]
fn sequences_are_restored_as_they_were_at_the_mark() {
    let server = testkit::postgres();
    let mut client = orders(&server, 10);
    client.batch_execute("CREATE SEQUENCE untouched START 5").unwrap();
    let memory = capture(&driver(&server), || {
        client
            .batch_execute("SELECT nextval('orders_id_seq') FROM generate_series(1, 89)")
            .unwrap();
        client.batch_execute("SELECT nextval('untouched')").unwrap();
    });
    restore(&driver(&server), &memory);
    let mut client = server.client();
    assert_eq!(number(&mut client, "SELECT nextval('orders_id_seq')"), 11);
    assert_eq!(number(&mut client, "SELECT nextval('untouched')"), 5);
}

#[test]
fn ddl_between_mark_and_copy_waits_and_does_no_harm() {
    for ddl in [
        "TRUNCATE orders",
        "ALTER TABLE orders ALTER COLUMN what TYPE varchar(200) USING what || '!'",
        "DROP TABLE orders",
        "ALTER TABLE orders RENAME TO gone",
    ] {
        let server = testkit::postgres();
        let _client = orders(&server, 100);
        let driver = driver(&server);
        let mut prepared = driver.prepare().unwrap();
        let mut blocked = None;
        let memory = capture_prepared(prepared.as_mut(), || blocked = Some(waiting(&server, ddl)));
        drop(prepared);
        blocked.unwrap().join().unwrap();
        restore(&driver, &memory);
        let mut client = server.client();
        assert_eq!(
            number(&mut client, "SELECT count(*) FROM orders WHERE what = 'order ' || id"),
            100,
            "{ddl}"
        );
    }
}

#[test]
fn a_truncate_that_waits_since_before_the_mark_does_no_harm() {
    let server = testkit::postgres();
    let _client = orders(&server, 100);
    let driver = driver(&server);
    let mut prepared = driver.prepare().unwrap();
    let blocked = waiting(&server, "TRUNCATE orders");
    let memory = capture_prepared(prepared.as_mut(), || ());
    drop(prepared);
    blocked.join().unwrap();
    restore(&driver, &memory);
    assert_eq!(number(&mut server.client(), "SELECT count(*) FROM orders"), 100);
}

#[test]
fn what_is_created_between_prepare_and_mark_is_captured() {
    let server = testkit::postgres();
    let mut client = orders(&server, 1);
    let driver = driver(&server);
    let mut prepared = driver.prepare().unwrap();
    client
        .batch_execute(
            "CREATE TABLE later (id int GENERATED ALWAYS AS IDENTITY, v text); \
             INSERT INTO later (v) VALUES ('x'), ('y'); \
             CREATE VIEW seen AS SELECT count(*) AS n FROM later; \
             CREATE INDEX ON orders (what)",
        )
        .unwrap();
    let memory = capture_prepared(prepared.as_mut(), || ());
    drop(prepared);
    restore(&driver, &memory);
    let mut client = server.client();
    assert_eq!(number(&mut client, "SELECT n FROM seen"), 2);
    assert_eq!(
        number(&mut client, "SELECT count(*) FROM pg_indexes WHERE tablename = 'orders'"),
        2
    );
    client.batch_execute("INSERT INTO later (v) VALUES ('z')").unwrap();
    assert_eq!(number(&mut client, "SELECT max(id)::bigint FROM later"), 3);
}

#[test]
fn a_second_mark_counts_and_the_first_does_not() {
    let server = testkit::postgres();
    let mut client = orders(&server, 1);
    let driver = driver(&server);
    let mut prepared = driver.prepare().unwrap();
    let first = prepared.mark().unwrap();
    client.batch_execute("INSERT INTO orders (what) VALUES ('between')").unwrap();
    let memory = {
        let second = prepared.mark().unwrap();
        assert_ne!(first.values["snapshot"], second.values["snapshot"]);
        assert!(second.values.contains_key("lsn"));
        let memory = Memory::default();
        prepared.capture(&memory).unwrap();
        memory
    };
    drop(prepared);
    assert!(memory.text("shop/data/public.orders.copy").contains("between"));
}

#[test]
fn the_counter_stands_still_until_something_is_written() {
    let server = testkit::postgres();
    let mut client = orders(&server, 1);
    let mut prepared = driver(&server).prepare().unwrap();
    let before = prepared.counter().unwrap();
    number(&mut client, "SELECT count(*) FROM orders");
    assert_eq!(before, prepared.counter().unwrap());
    client.batch_execute("INSERT INTO orders (what) VALUES ('x')").unwrap();
    assert_ne!(before, prepared.counter().unwrap());
}

#[test]
fn the_servers_timeouts_do_not_end_the_snapshot() {
    let server = testkit::postgres_with(&testkit::ScratchOptions {
        settings: vec![
            ("idle_in_transaction_session_timeout".to_owned(), "1ms".to_owned()),
            ("statement_timeout".to_owned(), "400ms".to_owned()),
            ("idle_session_timeout".to_owned(), "400ms".to_owned()),
        ],
        ..testkit::ScratchOptions::default()
    });
    orders(&server, 100);
    let memory = capture(&driver(&server), || {
        // As long as it takes the server to end a session for these reasons.
        let mut idle = server.client();
        let _ = idle.batch_execute("BEGIN");
        while idle.batch_execute("SELECT 1").is_ok() {}
        let mut idle = server.client();
        while idle.is_valid(std::time::Duration::from_secs(1)).is_ok() {
            let _ = idle.batch_execute("SELECT pg_sleep(0.5)");
            if idle.batch_execute("SET statement_timeout = 0; SELECT pg_sleep(0.5)").is_ok() {
                break;
            }
        }
    });
    assert_eq!(memory.text("shop/data/public.orders.copy").lines().count(), 100);
}

/// One of everything that a schema can hold and that has gone wrong somewhere.
const RICH: &str = r#"
CREATE EXTENSION pg_trgm;
CREATE SCHEMA "Odd ""Schema"".x";
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE "Odd ""Schema"".x"."Ta/ble.ä" ("Co""l" int, "select" text, "ge n" int GENERATED ALWAYS AS ("Co""l" * 2) STORED);
INSERT INTO "Odd ""Schema"".x"."Ta/ble.ä" VALUES (1, 'x'), (2, NULL);
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, m mood, p positive, q pair, tags text[]);
INSERT INTO customers (name, m, p, q, tags) VALUES ('Zoë', 'happy', 3, (1, 'b,"c'), ARRAY['a', NULL, '{']);
INSERT INTO customers (name) SELECT md5(n::text) FROM generate_series(1, 500) n;
CREATE INDEX ON customers USING gin (name public.gin_trgm_ops);
CREATE TABLE payments (id int PRIMARY KEY, customer bigint REFERENCES customers ON DELETE CASCADE, parent int REFERENCES payments, amount numeric, at timestamptz, f8 float8, raw bytea, j jsonb);
INSERT INTO payments VALUES (1, 1, 2, 'NaN', '2024-02-29 12:00:00.123456+05:45', 'Infinity', '\x00ff0a5c', '{"a": [1, null]}'), (2, 1, NULL, 0.1, 'infinity', 0.1::float8 + 0.2, '', NULL);
CREATE TABLE edge (v text, n int);
INSERT INTO edge VALUES (NULL, 1), ('', 2), (E'tab\tnew\nline\r\\back\\N', 3), ('\N', 4), ('\.', 5), (E'\\.\n', 6), ('𝄞 ünï', 7), (repeat('x', 100000), 8), (E'\b\f\v', 9);
CREATE TABLE nothing ();
INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
CREATE TABLE logs (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE logs_2 PARTITION OF logs DEFAULT;
INSERT INTO logs SELECT '2024-06-01'::date + n, 'log ' || n FROM generate_series(0, 400) n;
CREATE TABLE base (a int); CREATE TABLE child (b int) INHERITS (base);
INSERT INTO base VALUES (1); INSERT INTO child VALUES (2, 3);
CREATE UNLOGGED TABLE scratch (a int); INSERT INTO scratch VALUES (7);
CREATE VIEW rich AS SELECT c.name, p.amount FROM customers c JOIN payments p ON p.customer = c.id;
CREATE MATERIALIZED VIEW totals AS SELECT customer, count(*) AS n FROM payments GROUP BY customer;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN
  -- \restrict is only text here
  NEW.name := upper(NEW.name); RETURN NEW;
END $f$;
CREATE TRIGGER stamp BEFORE INSERT ON customers FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TABLE secured (a int); ALTER TABLE secured ENABLE ROW LEVEL SECURITY; INSERT INTO secured VALUES (1);
CREATE POLICY none ON secured USING (false);
COMMENT ON TABLE customers IS 'it''s\n a comment';
GRANT SELECT ON customers TO PUBLIC;
"#;

/// Everything that can be seen of a database, as text.
fn picture(server: &testkit::Postgres, database: &str) -> String {
    let installation = server.installation();
    let output = std::process::Command::new(installation.bin_dir.join("pg_dump"))
        .args(["--no-password", "--inserts", "--rows-per-insert=1"])
        .env("PGHOST", server.socket_dir())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", "shop")
        .env("PGPASSWORD", server.password())
        .env("PGDATABASE", database)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn everything_that_a_schema_can_hold_comes_back() {
    let server = testkit::postgres();
    server.client().batch_execute(RICH).unwrap();
    let before = picture(&server, "shop");
    let memory = capture(&driver(&server), || ());
    assert!(memory.text("globals.sql").contains("CREATE ROLE shop"));
    assert!(!memory.text("globals.sql").contains("SCRAM-SHA-256"));
    server
        .client()
        .batch_execute("DROP TABLE payments, edge CASCADE; UPDATE customers SET name = 'x'")
        .unwrap();
    restore(&driver(&server), &memory);
    let after = picture(&server, "shop");
    assert_eq!(before, after);
    // The trigger came after the data, and works again.
    let mut client = server.client();
    assert_eq!(number(&mut client, "SELECT count(*) FROM customers WHERE name = 'Zoë'"), 1);
    client.batch_execute("INSERT INTO customers (name) VALUES ('low')").unwrap();
    assert_eq!(number(&mut client, "SELECT count(*) FROM customers WHERE name = 'LOW'"), 1);
    assert_eq!(number(&mut client, "SELECT n FROM totals"), 2);
}

#[test]
fn a_role_that_only_reads_is_enough_for_a_backup() {
    let server = testkit::postgres();
    server.client().batch_execute(RICH).unwrap();
    // As in the guide.
    server
        .superuser_in("shop")
        .batch_execute(
            "CREATE ROLE stillpoint LOGIN PASSWORD 'reads'; \
             GRANT CONNECT ON DATABASE shop TO stillpoint; \
             GRANT pg_read_all_data TO stillpoint; ALTER ROLE stillpoint BYPASSRLS",
        )
        .unwrap();
    let before = picture(&server, "shop");
    let mut reading = options(&server);
    reading.url = reading.url.replace("shop@", "stillpoint@");
    reading.password = Some("reads".to_owned());
    let memory = capture(&Postgres::new(reading).unwrap(), || ());
    restore(&driver(&server), &memory);
    let after = picture(&server, "shop");
    // The reader's password and rights stay where they were; the data is the same.
    assert_eq!(before, after);
}

#[test]
fn several_databases_are_one_instant() {
    let server = testkit::postgres();
    orders(&server, 3);
    server.client().batch_execute("CREATE DATABASE second").unwrap();
    server.client_in("second").batch_execute("CREATE TABLE t AS SELECT 1 AS a").unwrap();
    let mut both = options(&server);
    both.databases = vec!["shop".to_owned(), "second".to_owned()];
    let driver = Postgres::new(both).unwrap();
    let memory = capture(&driver, || {
        server.client_in("second").batch_execute("INSERT INTO t VALUES (2)").unwrap();
    });
    server.client().batch_execute("DROP TABLE orders").unwrap();
    restore(&driver, &memory);
    assert_eq!(number(&mut server.client(), "SELECT count(*) FROM orders"), 3);
    assert_eq!(number(&mut server.client_in("second"), "SELECT count(*) FROM t"), 1);
    assert_eq!(databases(&server), ["postgres", "second", "shop"]);
}

#[test]
fn what_belongs_to_the_database_itself_is_carried_over() {
    let server = testkit::postgres();
    orders(&server, 1);
    let mut superuser = server.superuser_in("shop");
    superuser.batch_execute("CREATE ROLE reader LOGIN").unwrap();
    server
        .client()
        .batch_execute(
            "ALTER DATABASE shop SET search_path = \"$user\", public, \"Odd\"; \
             ALTER DATABASE shop SET work_mem = '5MB'; \
             ALTER DATABASE shop SET default_transaction_read_only = on; \
             ALTER ROLE shop IN DATABASE shop SET application_name = 'a, b'; \
             REVOKE CONNECT ON DATABASE shop FROM PUBLIC; \
             GRANT CONNECT ON DATABASE shop TO reader; \
             ALTER DATABASE shop CONNECTION LIMIT 30; COMMENT ON DATABASE shop IS 'ours'",
        )
        .unwrap();
    let seen = "SELECT (SELECT string_agg(setrole::text || array_to_string(setconfig, ';'), '|' \
                ORDER BY setrole) FROM pg_db_role_setting WHERE setdatabase = d.oid) || \
                (SELECT string_agg(a::text, ';' ORDER BY a::text) FROM unnest(datacl) a) || \
                datconnlimit || shobj_description(oid, 'pg_database') || datallowconn \
                FROM pg_database d WHERE datname = 'shop'";
    let mut watcher = server.superuser_in("postgres");
    let before: String = watcher.query_one(seen, &[]).unwrap().get(0);
    let memory = capture(&driver(&server), || ());
    drop(superuser);
    restore(&driver(&server), &memory);
    assert_eq!(before, watcher.query_one(seen, &[]).unwrap().get::<_, String>(0));
}

#[test]
fn a_dropped_database_is_restored() {
    let server = testkit::postgres();
    orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    server.client_in("postgres").batch_execute("DROP DATABASE shop").unwrap();
    restore(&driver(&server), &memory);
    assert_eq!(number(&mut server.client(), "SELECT count(*) FROM orders"), 5);
    assert_eq!(databases(&server), ["postgres", "shop"]);
}

#[test]
fn a_dropped_database_is_gone_again_after_swapping_back() {
    let server = testkit::postgres();
    orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    server.client_in("postgres").batch_execute("DROP DATABASE shop").unwrap();
    let mut steps = driver(&server).restore();
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    step("swap back", steps.swap_back(&aside));
    step("discard", steps.discard(&aside));
    // Somebody makes a new one; a repeated undo must not take it for ours.
    server.client_in("postgres").batch_execute("CREATE DATABASE shop").unwrap();
    step("swap back", steps.swap_back(&aside));
    step("discard", steps.discard(&aside));
    assert_eq!(databases(&server), ["postgres", "shop"]);
}

fn state(server: &testkit::Postgres) -> i64 {
    number(&mut server.client(), "SELECT count(*) FROM orders")
}

#[test]
fn every_step_may_be_repeated_by_another_process() {
    let server = testkit::postgres();
    let mut client = orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    client.batch_execute("DELETE FROM orders WHERE id > 2").unwrap();
    let journal = {
        let mut steps = driver(&server).restore();
        let aside = steps.plan("t0ken", &memory).unwrap();
        serde_json::to_string(&aside).unwrap()
    };
    assert!(!journal.contains(server.password()));
    let aside: Aside = serde_json::from_str(&journal).unwrap();
    let fresh = || driver(&server).restore();
    for _ in 0..2 {
        step("load", fresh().load(&aside, &memory));
        step("verify", fresh().verify(&aside, &memory));
    }
    assert_eq!(state(&server), 2);
    // Undone before it began, and again.
    step("swap back", fresh().swap_back(&aside));
    assert_eq!(state(&server), 2);
    for _ in 0..2 {
        step("swap", fresh().swap(&aside));
        step("swap", fresh().swap(&aside));
        assert_eq!(state(&server), 5);
        step("swap back", fresh().swap_back(&aside));
        step("swap back", fresh().swap_back(&aside));
        assert_eq!(state(&server), 2);
    }
    step("swap", fresh().swap(&aside));
    for _ in 0..2 {
        step("finish", fresh().finish(&aside));
    }
    assert_eq!(state(&server), 5);
    assert_eq!(databases(&server), ["postgres", "shop"]);
}

#[test]
fn part_of_a_killed_swapper() {
    common::swap_if_told(|service| {
        Box::new(
            Postgres::new(PostgresOptions {
                url: service[0].clone(),
                password: Some(service[1].clone()),
                databases: Vec::new(),
                tool_dirs: Vec::new(),
            })
            .unwrap(),
        )
    });
}

#[test]
fn a_swap_killed_at_any_moment_is_undone_or_finished() {
    let server = testkit::postgres();
    let mut client = orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    client.batch_execute("DELETE FROM orders").unwrap();
    let fresh = || driver(&server).restore();
    let aside = loaded(fresh().as_mut(), &memory);
    let (url, password) = (server.url(), server.password());
    for moment in 0..12 {
        let after = std::time::Duration::from_millis(moment * 5);
        common::killed_in_swap("part_of_a_killed_swapper", &aside, &[&url, password], after);
        step("swap back", fresh().swap_back(&aside));
        assert_eq!(state(&server), 0, "{moment}");
    }
    let after = std::time::Duration::from_millis(30);
    common::killed_in_swap("part_of_a_killed_swapper", &aside, &[&url, password], after);
    step("swap", fresh().swap(&aside));
    step("finish", fresh().finish(&aside));
    assert_eq!(state(&server), 5);
    assert_eq!(databases(&server), ["postgres", "shop"]);
}

#[test]
fn an_undo_waits_for_what_a_killed_swap_has_left_running() {
    let server = testkit::postgres();
    let mut client = orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    client.batch_execute("DELETE FROM orders").unwrap();
    drop(client);
    let mut steps = driver(&server).restore();
    let aside = loaded(steps.as_mut(), &memory);
    // The superuser's session, which a swap may not end, makes its rename wait at the server.
    let superuser = server.superuser_in("shop");
    let (url, password) = (server.url(), server.password());
    let after = std::time::Duration::from_millis(300);
    common::killed_in_swap("part_of_a_killed_swapper", &aside, &[&url, password], after);
    superuser.close().unwrap();
    step("swap back", steps.swap_back(&aside));
    assert_eq!(state(&server), 0);
    // Nothing is left that could still swap.
    let mut watcher = server.superuser_in("postgres");
    let left = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%RENAME%' \
                AND state <> 'idle' AND pid <> pg_backend_pid()";
    assert_eq!(number(&mut watcher, left), 0);
    step("discard", steps.discard(&aside));
    assert_eq!(databases(&server), ["postgres", "shop"]);
}

#[test]
fn a_swap_cut_off_before_its_renames_is_undone() {
    let server = testkit::postgres();
    let mut client = orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    client.batch_execute("DELETE FROM orders").unwrap();
    let mut steps = driver(&server).restore();
    let aside = loaded(steps.as_mut(), &memory);
    // As far as a swap comes before its transaction: nobody may connect.
    let mut maintenance = server.client_in("postgres");
    maintenance.batch_execute("ALTER DATABASE shop ALLOW_CONNECTIONS false").unwrap();
    assert!(server.try_client_in(None).is_err());
    step("swap back", steps.swap_back(&aside));
    assert_eq!(state(&server), 0);
    step("discard", steps.discard(&aside));
    step("discard", steps.discard(&aside));
    assert_eq!(databases(&server), ["postgres", "shop"]);
}

#[test]
fn a_load_cut_off_in_the_middle_is_discarded_or_loaded_again() {
    let server = testkit::postgres();
    orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    let mut steps = driver(&server).restore();
    let aside = steps.plan("t0ken", &memory).unwrap();
    let mut maintenance = server.client_in("postgres");
    maintenance.batch_execute("CREATE DATABASE shop_stillpoint_t0ken").unwrap();
    step("discard", steps.discard(&aside));
    assert_eq!(databases(&server), ["postgres", "shop"]);
    maintenance.batch_execute("CREATE DATABASE shop_stillpoint_t0ken").unwrap();
    step("load", steps.load(&aside, &memory));
    step("verify", steps.verify(&aside, &memory));
    step("discard", steps.discard(&aside));
}

#[test]
fn sessions_that_linger_are_ended_by_a_swap() {
    let server = testkit::postgres();
    let mut lingering = orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    lingering.batch_execute("BEGIN; DELETE FROM orders").unwrap();
    restore(&driver(&server), &memory);
    assert!(lingering.batch_execute("COMMIT").is_err());
    assert_eq!(state(&server), 5);
}

#[test]
fn a_session_that_may_not_be_ended_fails_the_swap_and_is_named() {
    let server = testkit::postgres();
    let mut application = orders(&server, 5);
    let memory = capture(&driver(&server), || ());
    application.batch_execute("DELETE FROM orders").unwrap();
    let mut steps = driver(&server).restore();
    let aside = loaded(steps.as_mut(), &memory);
    let mut superuser = server.superuser_in("shop");
    let pid: i32 = superuser.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let said = told(&steps.swap(&aside).unwrap_err());
    assert!(said.contains(&format!("process {pid} of `postgres`")), "{said}");
    assert_eq!(state(&server), 0, "the live database accepts connections again");
    superuser.close().unwrap();
    step("swap", steps.swap(&aside));
    step("finish", steps.finish(&aside));
    assert_eq!(state(&server), 5);
}

#[test]
fn a_damaged_row_does_not_pass_verification() {
    let server = testkit::postgres();
    orders(&server, 50);
    let memory = capture(&driver(&server), || ());
    let path = "shop/data/public.orders.copy";
    memory.replace(path, memory.text(path).replace("order 17\n", "order 71\n").into_bytes());
    let mut steps = driver(&server).restore();
    let aside = steps.plan("t0ken", &memory).unwrap();
    step("load", steps.load(&aside, &memory));
    let error = steps.verify(&aside, &memory).unwrap_err();
    assert!(told(&error).contains("orders"), "{}", told(&error));
    step("discard", steps.discard(&aside));
    assert_eq!(state(&server), 50);
}
