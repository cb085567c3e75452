//! A writer that is killed leaves a lock and a temporary file; the next one removes both.

use crate::support::{Noise, PASSWORD, Place};
use std::process::{Command, Stdio};
use std::sync::Arc;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{BackupOptions, LocalStore, Repository, WriterOptions};

const PLACE: &str = "STILLPOINT_TEST_WRITE_UNTIL_KILLED";

/// Not a test by itself: the one below runs it in a process of its own, to be killed.
#[test]
fn write_until_killed() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    let store = Arc::new(LocalStore::new(place).unwrap());
    let repository = Repository::open(store, PASSWORD).unwrap();
    let writer = repository.writer(WriterOptions::default()).unwrap();
    writer.save_data(&mut Noise::new(1)).unwrap();
}

#[test]
fn what_a_killed_writer_left_is_cleaned_and_the_next_backup_works() {
    let place = Place::new();
    let repository = place.init();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::write_until_killed"])
        .env(PLACE, place.path("repo"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Killed with packs written and one half written.
    while place.count("data") < 2 || place.count("tmp") == 0 {
        assert!(child.try_wait().unwrap().is_none(), "the writer ended early");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.count("locks"), 1);
    assert_eq!(place.count("snapshots"), 0);
    std::fs::create_dir(place.path("source")).unwrap();
    std::fs::write(place.path("source/file"), "text").unwrap();
    repository.backup(&[place.path("source")], &BackupOptions::default(), &Silent).unwrap();
    assert_eq!(place.count("locks"), 0);
    assert_eq!(place.count("tmp"), 0);
    place.restic_check();
}
