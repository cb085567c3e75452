//! etcd: what is refused before anything is touched, each with what to do about it.

mod common;

use common::{capture, restore, told};
use stillpoint_services::etcd::{Etcd, EtcdOptions};
use stillpoint_services::{Driver, NeededFor};
use stillpoint_testkit as testkit;

/// The driver, as one of the server's users, or as nobody in particular.
fn driver(server: &testkit::Etcd, user: &str) -> Etcd {
    driver_with(server, user, "secret")
}

fn driver_with(server: &testkit::Etcd, user: &str, password: &str) -> Etcd {
    let password = (!user.is_empty()).then(|| password.to_owned());
    Etcd::new(EtcdOptions { url: server.url(user), password }).unwrap()
}

fn problems(driver: &dyn Driver) -> Vec<(NeededFor, String)> {
    let found = driver.examine().into_iter().filter(|finding| finding.problem.is_some());
    found.map(|finding| (finding.needed_for, finding.hint.unwrap())).collect()
}

#[test]
fn each_right_that_is_missing_is_named_and_the_statement_gives_it() {
    let server = testkit::Etcd::start();
    server.put("/a", b"1");
    let before = server.keys();
    assert_eq!(problems(&driver(&server, "restorer")), []);
    let backup = problems(&driver(&server, "backup"));
    assert_eq!(backup.len(), 1, "{backup:?}");
    let nobody = driver(&server, "nobody");
    let found = problems(&nobody);
    let kinds: Vec<NeededFor> = found.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [NeededFor::Backup, NeededFor::Restore]);
    let said = told(&nobody.prepare().err().unwrap());
    assert!(said.contains("permission denied") && said.contains(&found[0].1), "{said}");
    for (kind, hint) in found {
        let statement = hint.split(',').next().unwrap().replace("ROLE", "nobody");
        server.etcdctl(statement.strip_prefix("etcdctl ").unwrap());
        assert!(problems(&nobody).iter().all(|(other, _)| *other != kind));
    }
    assert_eq!(server.keys(), before);
    restore(&nobody, &capture(&nobody, || server.put("/a", b"2")));
    assert_eq!(server.content(), before.into_iter().map(|(k, (v, l, _))| (k, (v, l))).collect());
}

#[test]
fn a_restore_by_a_user_who_may_only_read_is_refused_and_changes_nothing() {
    let server = testkit::Etcd::start();
    server.put("/a", b"1");
    let before = server.keys();
    let memory = capture(&driver(&server, "backup"), || ());
    let said = told(&driver(&server, "backup").restore().plan("t0ken", &memory).unwrap_err());
    assert!(said.contains("`backup` may not write all keys"), "{said}");
    assert!(said.contains("etcdctl role grant-permission"), "{said}");
    assert_eq!(server.keys(), before);
}

#[test]
fn a_wrong_password_and_a_server_that_is_down_are_named() {
    let mut server = testkit::Etcd::start();
    let said = told(&driver_with(&server, "backup", "s3cret").prepare().err().unwrap());
    assert!(said.contains("authentication failed") && !said.contains("s3cret"), "{said}");
    let said = told(&driver(&server, "").prepare().err().unwrap());
    assert!(said.contains("user name is empty"), "{said}");
    server.kill();
    let said = told(&driver(&server, "backup").prepare().err().unwrap());
    assert!(said.contains("is etcd running there"), "{said}");
}

#[test]
fn a_server_without_users_needs_none_and_takes_any() {
    let server = testkit::Etcd::bare(&[]);
    server.put("/a", b"1");
    for user in ["", "backup"] {
        let any = driver(&server, user);
        assert_eq!(problems(&any), []);
        restore(&any, &capture(&any, || server.put("/a", b"2")));
        assert_eq!(server.content()[&b"/a"[..]].0, b"1");
    }
}

#[test]
fn a_server_without_room_or_with_an_alarm_is_not_restored_to() {
    let server = testkit::Etcd::with(&["--quota-backend-bytes", "16777216"]);
    for number in 0..5 {
        server.put(&format!("/large/{number}"), &vec![b'x'; 1_000_000]);
    }
    let memory = capture(&driver(&server, "backup"), || ());
    let plan = || told(&driver(&server, "restorer").restore().plan("t0ken", &memory).unwrap_err());
    let said = plan();
    assert!(said.contains("has too little room") && said.contains("quota of 16 MiB"), "{said}");
    let activate = serde_json::json!({ "action": "ACTIVATE", "memberID": "0", "alarm": "NOSPACE" });
    server.ok("maintenance/alarm", &activate);
    let said = plan();
    assert!(said.contains("has alarms") && said.contains("etcdctl alarm disarm"), "{said}");
    let found = problems(&driver(&server, "restorer"));
    assert_eq!(found.len(), 1, "{found:?}");
    // A backup only reads.
    driver(&server, "backup").prepare().unwrap();
}
