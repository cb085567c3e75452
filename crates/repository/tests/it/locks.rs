//! Locks are honoured both ways, and their loss forbids publishing.

use crate::support::{PASSWORD, Place};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use stillpoint_repository::{LockFiles, RepositoryError, Snapshot, Tree, WriterOptions};

#[test]
fn the_stock_client_honours_our_lock() {
    let place = Place::new();
    let writer = place.init().writer(WriterOptions::default()).unwrap();
    let refused = place.try_restic(&["check"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("already locked"));
    assert_eq!(place.restic(&["list", "locks"]).lines().count(), 1, "it sees ours");
    writer.abandon().unwrap();
    place.restic_check();
}

#[test]
fn we_share_with_the_stock_clients_lock_and_remove_it_once_its_owner_is_dead() {
    let place = Place::new();
    let repository = place.init();
    // A shared lock, held while it waits for its input.
    let mut stock = Command::new("restic")
        .args(["--no-cache", "-q", "backup", "--stdin", "-r"])
        .arg(place.path("repo"))
        .env("RESTIC_PASSWORD", PASSWORD)
        .stdin(Stdio::piped())
        .spawn()
        .expect("the stock client is needed: install the package `restic`");
    stock.stdin.as_mut().unwrap().write_all(b"some").unwrap();
    while place.count("locks") == 0 {
        assert!(stock.try_wait().unwrap().is_none(), "the stock client ended early");
        std::thread::yield_now();
    }
    // Shared locks go together.
    repository.writer(WriterOptions::default()).unwrap().abandon().unwrap();
    assert_eq!(place.count("locks"), 1);
    stock.kill().unwrap();
    stock.wait().unwrap();
    assert_eq!(place.count("locks"), 1, "the killed process left its lock");
    repository.writer(WriterOptions::default()).unwrap().abandon().unwrap();
    assert_eq!(place.count("locks"), 0, "and we removed it");
    place.restic_check();
}

#[test]
fn publishing_is_refused_once_our_lock_is_gone() {
    let place = Place::new();
    let owned: Arc<Mutex<LockFiles>> = Arc::default();
    let told = owned.clone();
    let options = WriterOptions {
        on_lock: Some(Arc::new(move |files: &LockFiles| told.lock().unwrap().clone_from(files))),
        ..WriterOptions::default()
    };
    let writer = place.init().writer(options).unwrap();
    let tree = writer.save_tree(&Tree::default()).unwrap();
    let paths = owned.lock().unwrap().clone();
    assert_eq!(paths.len(), 1);
    for path in paths {
        fs::remove_file(path).unwrap();
    }
    let snapshot = Snapshot::new(tree, vec![], vec![], jiff::Timestamp::now());
    let error = writer.publish(snapshot).unwrap_err();
    assert!(matches!(error, RepositoryError::LockLost(_)), "{error}");
    assert_eq!(place.count("snapshots"), 0);
    assert_eq!(*owned.lock().unwrap(), LockFiles::new());
    place.restic_check();
}

#[test]
fn a_writer_that_is_abandoned_or_dropped_gives_its_lock_back() {
    let place = Place::new();
    let repository = place.init();
    let writer = repository.writer(WriterOptions::default()).unwrap();
    writer.save_data(&mut &b"content"[..]).unwrap();
    assert_eq!(place.count("locks"), 1);
    writer.abandon().unwrap();
    assert_eq!(place.count("locks"), 0);
    drop(repository.writer(WriterOptions::default()).unwrap());
    assert_eq!(place.count("locks"), 0);
}
