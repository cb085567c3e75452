//! A cancel takes effect within one large file, not only after it: in prepare, in the capture, in
//! the load of a restore and in its verification.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use stillpoint_capture::mount::{Filter, MountParticipant, MountRestore};
use stillpoint_capture::{Account, Participant};
use stillpoint_model::progress::{Monitor, Silent};
use stillpoint_repository::{LocalStore, Node, Reader, Repository, Snapshot, WriterOptions};
use stillpoint_services::{Restore, Source};

const MIB: u64 = 1 << 20;

/// Asks to stop once so many bytes are done.
struct After {
    bytes: u64,
    done: AtomicU64,
}

impl After {
    fn new(bytes: u64) -> Self {
        Self { bytes, done: AtomicU64::new(0) }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl Monitor for After {
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.done() >= self.bytes
    }
}

/// The same for a restore.
impl Source for After {
    fn paths(&self) -> Vec<String> {
        Vec::new()
    }

    fn open(&self, _: &str) -> std::io::Result<Box<dyn std::io::Read + Send + '_>> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    fn advance(&self, bytes: u64) {
        Monitor::advance(self, bytes);
    }

    fn stopped(&self) -> bool {
        self.cancelled()
    }
}

struct Scene {
    top: tempfile::TempDir,
    repository: Repository,
}

impl Scene {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("mount")).unwrap();
        fs::create_dir(top.path().join("store")).unwrap();
        let store = Arc::new(LocalStore::new(top.path().join("store")).unwrap());
        let repository = Repository::init(store, "password").unwrap();
        Self { top, repository }
    }

    fn mount(&self) -> PathBuf {
        self.top.path().join("mount")
    }

    fn participant(&self) -> MountParticipant {
        let filter = Filter::new(&[]).unwrap();
        MountParticipant::new("uploads".parse().unwrap(), self.mount(), filter)
    }

    /// A backup of the mount: its directory's node, and a reader that has it.
    fn taken(&self) -> (Arc<Reader>, Node) {
        let writer = self.repository.writer(WriterOptions::default()).unwrap();
        let mut participant = self.participant();
        participant.prepare(&writer, &Silent).unwrap();
        participant.mark().unwrap();
        participant.capture(&writer, &Silent).unwrap();
        let Account { part, .. } = participant.account();
        let node = part.unwrap().1;
        let tree = node.subtree.unwrap();
        let snapshot = Snapshot::new(tree, vec!["/".to_owned()], vec![], jiff::Timestamp::now());
        writer.publish(snapshot).unwrap();
        (Arc::new(self.repository.reader().unwrap()), node)
    }
}

/// What an error and its causes say, innermost last.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Bytes that are no blob twice.
fn noise(mebibytes: u64) -> Vec<u8> {
    let mut state = 1_u64;
    let mut words = Vec::new();
    for _ in 0..mebibytes * MIB / 8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        words.extend_from_slice(&state.to_le_bytes());
    }
    words
}

#[test]
fn prepare_stops_within_a_file_that_would_take_hours() {
    let scene = Scene::new();
    File::create(scene.mount().join("huge")).unwrap().set_len(1 << 42).unwrap();
    let writer = scene.repository.writer(WriterOptions::default()).unwrap();
    let monitor = After::new(8 * MIB);
    let error = scene.participant().prepare(&writer, &monitor).unwrap_err();
    assert_eq!(innermost(&error), "cancelled");
    writer.abandon().unwrap();
}

#[test]
fn the_capture_stops_within_what_the_mark_has_read() {
    let scene = Scene::new();
    let writer = scene.repository.writer(WriterOptions::default()).unwrap();
    let mut participant = scene.participant();
    participant.prepare(&writer, &Silent).unwrap();
    // Written since: it is read inside the hold, and stored after it.
    fs::write(scene.mount().join("late"), noise(64)).unwrap();
    participant.mark().unwrap();
    let monitor = After::new(8 * MIB);
    let error = participant.capture(&writer, &monitor).unwrap_err();
    assert_eq!(innermost(&error), "cancelled");
    assert!(monitor.done() < 64 * MIB, "{} bytes were done", monitor.done());
    writer.abandon().unwrap();
}

#[test]
fn a_restore_stops_within_one_large_file_of_a_mount_and_cleans_up() {
    let scene = Scene::new();
    fs::write(scene.mount().join("large"), noise(128)).unwrap();
    let (reader, node) = scene.taken();
    let filter = Filter::new(&[]).unwrap();
    let mut steps = MountRestore::new(scene.mount(), filter, reader, node);
    let aside = steps.plan("t0ken", &After::new(u64::MAX)).unwrap();

    let stopping = After::new(8 * MIB);
    let error = steps.load(&aside, &stopping).unwrap_err();
    assert_eq!(innermost(&error), "cancelled");
    assert!(stopping.done() < 128 * MIB, "{} bytes were done", stopping.done());

    steps.load(&aside, &After::new(u64::MAX)).unwrap();
    let stopping = After::new(8 * MIB);
    let error = steps.verify(&aside, &stopping).unwrap_err();
    assert_eq!(innermost(&error), "cancelled");
    assert!(stopping.done() < 128 * MIB, "{} bytes were done", stopping.done());

    steps.discard(&aside).unwrap();
    let left: Vec<_> = fs::read_dir(scene.mount()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
