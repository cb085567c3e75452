//! Large objects come back with their content, owners, grants and comments, of the mark's instant.

mod common;

use common::{Memory, capture, loaded, restore, told};
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_services::{Driver, NeededFor};
use stillpoint_testkit as testkit;

fn driver_as(server: &testkit::Postgres, role: &str, password: &str) -> Postgres {
    Postgres::new(PostgresOptions {
        url: server.url().replacen("postgres://shop@", &format!("postgres://{role}@"), 1),
        password: Some(password.to_owned()),
        databases: Vec::new(),
        tool_dirs: default_tool_dirs(std::env::var_os("PATH").as_deref()),
    })
    .unwrap()
}

fn driver(server: &testkit::Postgres) -> Postgres {
    driver_as(server, "shop", server.password())
}

/// Every large object as a superuser sees it: owner, grants, comment, size and hash.
fn picture(server: &testkit::Postgres) -> Vec<String> {
    let rows = server
        .superuser_in("shop")
        .query(
            "SELECT format('%s %s %s %s %s %s', oid, pg_get_userbyid(lomowner), \
             (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(lomacl) a), \
             obj_description(oid, 'pg_largeobject'), length(lo_get(oid)), md5(lo_get(oid))) \
             FROM pg_largeobject_metadata ORDER BY oid",
            &[],
        )
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// A photograph, an empty object, one of several pieces with a hole, sizes at the edges of the
/// pieces, one of another owner, and more than one query or batch takes.
fn photographs(server: &testkit::Postgres) {
    server
        .superuser_in("shop")
        .batch_execute("CREATE ROLE printer; CREATE ROLE guest; GRANT printer TO shop")
        .unwrap();
    server
        .client()
        .batch_execute(
            "CREATE TABLE photos (id int PRIMARY KEY, content oid); \
             SELECT lo_from_bytea(4711, 'content'); \
             INSERT INTO photos VALUES (1, 4711); \
             GRANT SELECT ON LARGE OBJECT 4711 TO PUBLIC; \
             GRANT SELECT, UPDATE ON LARGE OBJECT 4711 TO guest WITH GRANT OPTION; \
             COMMENT ON LARGE OBJECT 4711 IS 'a ''photo''\nof \\ two lines'; \
             SELECT lo_create(4712); \
             SELECT lo_from_bytea(4713, decode(repeat('00ff10', 700000), 'hex')); \
             SELECT lo_put(4713, 5000000, 'after a hole'); \
             SELECT lo_from_bytea(4714, decode(repeat('ab', 65536), 'hex')); \
             SELECT lo_from_bytea(4715, decode(repeat('cd', 65536 + 1048576), 'hex')); \
             SELECT lo_from_bytea(4716, 'of the printer'); \
             ALTER LARGE OBJECT 4716 OWNER TO printer; \
             SELECT lo_from_bytea(20000 + n, n::text::bytea) FROM generate_series(1, 900) n",
        )
        .unwrap();
}

#[test]
fn large_objects_come_back_as_they_were_at_the_mark() {
    let server = testkit::postgres();
    photographs(&server);
    let before = picture(&server);
    assert_eq!(before.len(), 906);
    let memory = capture(&driver(&server), || {
        server
            .client()
            .batch_execute(
                "SELECT lo_put(4711, 0, 'CHANGED'); SELECT lo_unlink(4712); \
                 SELECT lo_put(4713, 1500000, 'in the middle'); \
                 REVOKE ALL ON LARGE OBJECT 4711 FROM guest; \
                 SELECT lo_from_bytea(4717, 'later')",
            )
            .unwrap();
    });
    assert_ne!(picture(&server), before);
    restore(&driver(&server), &memory);
    assert_eq!(picture(&server), before);
    let content: Vec<u8> =
        server.client().query_one("SELECT lo_get(content) FROM photos", &[]).unwrap().get(0);
    assert_eq!(content, b"content");
}

#[test]
fn large_objects_that_came_after_a_backup_without_any_are_gone_after_its_restore_and_back_when_undone()
 {
    let server = testkit::postgres();
    server.client().batch_execute("CREATE TABLE orders AS SELECT 1 AS id").unwrap();
    let memory = capture(&driver(&server), || ());
    photographs(&server);
    let before = picture(&server);
    let mut steps = driver(&server).restore();
    let aside = loaded(steps.as_mut(), &memory);
    common::step("swap", steps.swap(&aside));
    assert_eq!(picture(&server), Vec::<String>::new());
    common::step("swap back", steps.swap_back(&aside));
    common::step("discard", steps.discard(&aside));
    assert_eq!(picture(&server), before);
}

#[test]
fn a_large_object_that_differs_does_not_pass_verification() {
    let server = testkit::postgres();
    photographs(&server);
    let memory = capture(&driver(&server), || ());
    for change in [
        "SELECT lo_put(4713, 4000000, 'x')",
        "SELECT lo_unlink(4712)",
        "GRANT UPDATE ON LARGE OBJECT 4712 TO guest",
        "COMMENT ON LARGE OBJECT 4712 IS 'another'",
        "ALTER LARGE OBJECT 4716 OWNER TO shop",
        "SELECT lo_create(9999)",
    ] {
        let mut steps = driver(&server).restore();
        let aside = steps.plan("t0ken", &memory).unwrap();
        common::step("load", steps.load(&aside, &memory));
        common::step("verify", steps.verify(&aside, &memory));
        server.superuser_in("shop_stillpoint_t0ken").batch_execute(change).unwrap();
        let said = told(&steps.verify(&aside, &memory).unwrap_err());
        assert!(said.contains("verify the large objects"), "{change}: {said}");
        common::step("discard", steps.discard(&aside));
    }
}

#[test]
fn a_role_that_may_not_read_them_is_refused_and_told_what_lets_it() {
    let server = testkit::postgres();
    photographs(&server);
    let mut superuser = server.superuser_in("shop");
    superuser
        .batch_execute(
            "SELECT lo_from_bytea(4717, 'of a superuser'); \
             CREATE ROLE reader LOGIN PASSWORD 'reads'; GRANT SELECT ON photos TO reader",
        )
        .unwrap();
    let driver = driver_as(&server, "reader", "reads");
    let said = told(&driver.prepare().err().unwrap());
    assert!(said.contains("904 large objects of `shop`"), "{said}");
    let hints: Vec<String> = driver
        .examine()
        .into_iter()
        .filter(|finding| finding.problem.is_some() && finding.needed_for == NeededFor::Backup)
        .map(|finding| finding.hint.unwrap())
        .collect();
    assert_eq!(hints.len(), 3, "{hints:?}");
    for hint in &hints {
        assert!(said.contains(hint), "{said}");
        superuser.batch_execute(hint.trim_end_matches("; and so for each")).unwrap();
    }
    let memory = capture(&driver, || ());
    assert!(memory.text("shop/large-objects.sql").contains("lo_create('4717')"));
}

#[test]
fn a_capture_that_counted_them_alone_is_not_restored() {
    let server = testkit::postgres();
    photographs(&server);
    let memory = capture(&driver(&server), || ());
    let mut catalog: serde_json::Value =
        serde_json::from_str(&memory.text("catalog.json")).unwrap();
    let database = catalog["databases"][0].as_object_mut().unwrap();
    database.remove("large_object_statements").unwrap();
    memory.replace("catalog.json", catalog.to_string().into_bytes());
    let said = told(&driver(&server).restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("captured database `shop` had 906 large objects"), "{said}");
}

#[test]
fn a_capture_loads_with_a_plain_client_too() {
    let server = testkit::postgres();
    photographs(&server);
    let before = picture(&server);
    let memory: Memory = capture(&driver(&server), || ());
    let mut client = server.client();
    client.batch_execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata").unwrap();
    client.batch_execute(&memory.text("shop/large-objects.sql")).unwrap();
    assert_eq!(picture(&server), before);
}
