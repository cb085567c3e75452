//! etcd: what is captured is one revision, what is restored is that, and what is undone is as it was.

mod common;

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{
    Memory, capture, capture_prepared, killed_in_swap, loaded, restore, step, swap_if_told, told,
};
use stillpoint_services::etcd::{Etcd, EtcdOptions};
use stillpoint_services::{Driver, Sink, Source};
use stillpoint_testkit as testkit;

fn driver_at(url: &str) -> Etcd {
    Etcd::new(EtcdOptions { url: url.to_owned(), password: Some("secret".to_owned()) }).unwrap()
}

/// The driver, as one of the server's users.
fn driver(server: &testkit::Etcd, user: &str) -> Etcd {
    driver_at(&server.url(user))
}

/// Keys of every kind: empty and binary values, large ones, more than a page, leased ones.
fn settings(server: &testkit::Etcd) {
    server.put("/app/name", b"shop");
    server.put("/app/empty", b"");
    server.put("/app/binary", b"\0\xff\n\"");
    server.put("\u{ff}last", b"of all");
    server.put("/large/a", &vec![b'a'; 800_000]);
    server.put("/large/b", &vec![b'b'; 100_000]);
    server.put_many("/many/", 700, "before");
    server.lease(7_587_861_094_731_302_401, 600);
    server.put_leased("/lock/a", b"held", 7_587_861_094_731_302_401);
    server.put_leased("/lock/b", b"held", 7_587_861_094_731_302_401);
    server.lease(77, 500);
    server.put_leased("/lock/c", b"held", 77);
}

/// What an application and an accident do to them.
fn change(server: &testkit::Etcd) {
    server.put("/app/name", b"changed");
    server.delete("/app/empty");
    server.delete("\u{ff}last");
    server.put("/large/a", &vec![b'A'; 800_000]);
    server.put_many("/many/", 300, "after");
    server.put_many("/new/", 150, "after");
    server.put("\u{1}first", b"new");
    server.revoke(7_587_861_094_731_302_401);
    server.put("/lock/a", b"held by another");
}

#[test]
fn a_backup_is_of_the_marks_revision_and_its_restore_brings_that_back() {
    let server = testkit::Etcd::start();
    settings(&server);
    let before = server.content();
    let memory = capture(&driver(&server, "backup"), || change(&server));
    assert_ne!(server.content(), before);
    restore(&driver(&server, "restorer"), &memory);
    assert_eq!(server.content(), before);
    assert_eq!(server.granted(7_587_861_094_731_302_401), 600);
}

#[test]
fn a_key_that_is_as_it_was_is_not_written() {
    let server = testkit::Etcd::start();
    settings(&server);
    let before = server.keys();
    let memory = capture(&driver(&server, "backup"), || ());
    server.put("/app/name", b"changed");
    server.put("/other", b"new");
    restore(&driver(&server, "restorer"), &memory);
    let after = server.keys();
    let mut differing = before.iter().filter(|(key, found)| after[*key] != **found);
    assert_eq!(differing.next().unwrap().0, b"/app/name");
    assert!(differing.next().is_none() && after.len() == before.len());
}

#[test]
fn a_swap_that_is_undone_leaves_everything_as_it_was() {
    let server = testkit::Etcd::start();
    settings(&server);
    let memory = capture(&driver(&server, "backup"), || change(&server));
    let before = server.content();
    let mut steps = driver(&server, "restorer").restore();
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    assert_ne!(server.content(), before);
    // Each by another process, and again.
    for _ in 0..2 {
        step("swap back", driver(&server, "restorer").restore().swap_back(&aside));
    }
    step("discard", driver(&server, "restorer").restore().discard(&aside));
    assert_eq!(server.content(), before);
}

#[test]
fn an_undo_does_not_revive_what_has_ended_with_its_lease() {
    let server = testkit::Etcd::start();
    server.put("/a", b"1");
    let memory = capture(&driver(&server, "backup"), || ());
    server.lease(5, 600);
    server.put_leased("/session", b"alive", 5);
    server.lease(6, 600);
    server.put_leased("/other", b"alive", 6);
    let mut steps = driver(&server, "restorer").restore();
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    server.revoke(5);
    step("swap back", steps.swap_back(&aside));
    step("discard", steps.discard(&aside));
    let keys: Vec<Vec<u8>> = server.content().into_keys().collect();
    assert_eq!(keys, [b"/a".to_vec(), b"/other".to_vec()]);
}

#[test]
fn every_step_may_be_repeated_by_another_process() {
    let server = testkit::Etcd::start();
    settings(&server);
    let before = server.content();
    let memory = capture(&driver(&server, "backup"), || change(&server));
    let steps = || driver(&server, "restorer").restore();
    let aside = steps().plan("t0ken", &memory).unwrap();
    for _ in 0..2 {
        step("load", steps().load(&aside, &memory));
    }
    for _ in 0..2 {
        step("verify", steps().verify(&aside, &memory));
    }
    for _ in 0..2 {
        step("swap", steps().swap(&aside));
    }
    for _ in 0..2 {
        step("finish", steps().finish(&aside));
    }
    assert_eq!(server.content(), before);
}

/// Not a test: what `a_swap_killed_at_any_moment_is_undone_or_done_again` starts.
#[test]
fn part_of_a_killed_swapper() {
    swap_if_told(|service| Box::new(driver_at(&service[0])));
}

#[test]
fn a_swap_killed_at_any_moment_is_undone_or_done_again() {
    let server = testkit::Etcd::start();
    settings(&server);
    let captured = server.content();
    let memory = capture(&driver(&server, "backup"), || change(&server));
    let live = server.content();
    let url = server.url("restorer");
    for (number, milliseconds) in [0, 10, 30, 90].into_iter().enumerate() {
        let mut steps = driver(&server, "restorer").restore();
        let aside = loaded(steps.as_mut(), &memory);
        let after = Duration::from_millis(milliseconds);
        killed_in_swap("part_of_a_killed_swapper", &aside, &[&url], after);
        if number % 2 == 0 {
            step("swap", steps.swap(&aside));
            let mut swapped = server.content();
            swapped.retain(|key, _| !key.starts_with(b"\0stillpoint/"));
            assert_eq!(swapped, captured);
        }
        step("swap back", steps.swap_back(&aside));
        step("discard", steps.discard(&aside));
        assert_eq!(server.content(), live);
    }
}

#[test]
fn a_key_that_somebody_writes_during_the_swap_fails_it_and_the_undo_works() {
    let server = testkit::Etcd::start();
    settings(&server);
    server.put("zz", b"captured");
    let memory = capture(&driver(&server, "backup"), || change(&server));
    let mut steps = driver(&server, "restorer").restore();
    let aside = loaded(steps.as_mut(), &memory);
    let (done, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let number = writes.fetch_add(1, Ordering::Relaxed);
                server.put("zz", number.to_string().as_bytes());
            }
        });
        while writes.load(Ordering::Relaxed) < 3 {
            std::thread::yield_now();
        }
        let swapped = steps.swap(&aside);
        done.store(true, Ordering::Relaxed);
        let said = told(&swapped.unwrap_err());
        assert!(said.contains("somebody else wrote a key"), "{said}");
    });
    let written = server.content()[&b"zz"[..]].clone();
    step("swap back", steps.swap_back(&aside));
    step("discard", steps.discard(&aside));
    let after = server.content();
    assert_eq!(after[&b"zz"[..]], written);
    assert_eq!(after[&b"/app/name"[..]].0, b"changed");
    assert!(after.keys().all(|key| !key.starts_with(b"\0")));
}

#[test]
fn a_server_that_restarts_between_mark_and_capture_loses_nothing() {
    let mut server = testkit::Etcd::start();
    settings(&server);
    let before = server.content();
    let mut prepared = driver(&server, "backup").prepare().unwrap();
    prepared.mark().unwrap();
    change(&server);
    // Its tokens are forgotten, too.
    server.crash_and_start();
    let memory = Memory::default();
    prepared.capture(&memory).unwrap_or_else(|e| panic!("{}", told(&e)));
    restore(&driver(&server, "restorer"), &memory);
    assert_eq!(server.content(), before);
}

#[test]
fn a_revision_compacted_before_it_was_read_fails_the_capture() {
    let server = testkit::Etcd::start();
    settings(&server);
    let mut prepared = driver(&server, "backup").prepare().unwrap();
    let mark = prepared.mark().unwrap();
    change(&server);
    let revision: i64 = mark.values["revision"].parse().unwrap();
    let later = (revision + 1).to_string();
    server.ok("kv/compaction", &serde_json::json!({ "revision": later, "physical": true }));
    let said = told(&prepared.capture(&Memory::default()).unwrap_err());
    assert!(said.contains("has been compacted"), "{said}");
    assert!(said.contains("--auto-compaction-retention"), "{said}");
}

#[test]
fn the_counter_stands_still_until_something_is_written() {
    let server = testkit::Etcd::start();
    let mut prepared = driver(&server, "backup").prepare().unwrap();
    let first = prepared.counter().unwrap();
    prepared.mark().unwrap();
    assert_eq!(prepared.counter().unwrap(), first);
    server.put("/a", b"1");
    assert_ne!(prepared.counter().unwrap(), first);
}

#[test]
fn a_lease_that_is_never_seen_alive_comes_back_short() {
    let server = testkit::Etcd::start();
    let mut prepared = driver(&server, "backup").prepare().unwrap();
    server.lease(9, 600);
    server.put_leased("/session", b"alive", 9);
    let memory = capture_prepared(prepared.as_mut(), || server.revoke(9));
    assert_eq!(memory.text("leases.jsonl"), "{\"ID\":\"9\",\"TTL\":\"1\"}\n");
    restore(&driver(&server, "restorer"), &memory);
    // It may be over by now; if not, the key belongs to it.
    assert!(server.content().values().all(|(_, lease)| *lease == 9));
}

#[test]
fn a_damaged_key_does_not_pass_verification() {
    let server = testkit::Etcd::start();
    settings(&server);
    let memory = capture(&driver(&server, "backup"), || ());
    for (key, value) in [("new//app/name", &b"\0\0\0\0\0\0\0\0Shop"[..]), ("new/added", &[0; 8])] {
        let mut steps = driver(&server, "restorer").restore();
        let aside = loaded(steps.as_mut(), &memory);
        server.put(&format!("\0stillpoint/t0ken/{key}"), value);
        let said = told(&steps.verify(&aside, &memory).unwrap_err());
        assert!(said.contains("verify the keys"), "{said}");
        step("discard", steps.discard(&aside));
    }
}

/// Takes so many bytes and then fails, as a cancelled backup's does.
struct Full(u64);

impl Sink for Full {
    fn write(&self, _: &str, content: &mut dyn Read) -> io::Result<u64> {
        io::copy(&mut content.take(self.0), &mut io::sink())?;
        Err(io::Error::other("cancelled"))
    }
}

/// Gives most of each file and then fails, as a cancelled restore's does.
struct Most<'m>(&'m Memory);

impl Source for Most<'_> {
    fn paths(&self) -> Vec<String> {
        self.0.paths()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        if path == "facts.json" {
            return self.0.open(path);
        }
        let most = self.0.text(path).len() as u64 / 10 * 9;
        Ok(Box::new(self.0.open(path)?.take(most).chain(Broken)))
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("cancelled"))
    }
}

#[test]
fn a_capture_or_load_that_is_cancelled_leaves_nothing_behind() {
    let server = testkit::Etcd::start();
    settings(&server);
    let before = server.keys();
    let mut prepared = driver(&server, "backup").prepare().unwrap();
    prepared.mark().unwrap();
    let said = told(&prepared.capture(&Full(100_000)).unwrap_err());
    assert!(said.contains("cancelled"), "{said}");
    let memory = capture(&driver(&server, "backup"), || ());
    let mut steps = driver(&server, "restorer").restore();
    let aside = steps.plan("t0ken", &memory).unwrap();
    let said = told(&steps.load(&aside, &Most(&memory)).unwrap_err());
    assert!(said.contains("cancelled"), "{said}");
    assert!(server.keys().len() > before.len());
    step("discard", steps.discard(&aside));
    assert_eq!(server.keys(), before);
}

#[test]
fn a_capture_loads_with_plain_calls_too() {
    let server = testkit::Etcd::start();
    settings(&server);
    let before = server.content();
    let memory = capture(&driver(&server, "backup"), || ());
    let other = testkit::Etcd::bare(&[]);
    for (file, call) in [("leases.jsonl", "lease/grant"), ("keys.jsonl", "kv/put")] {
        for line in memory.text(file).lines() {
            other.ok(call, &serde_json::from_str(line).unwrap());
        }
    }
    assert_eq!(other.content(), before);
}
