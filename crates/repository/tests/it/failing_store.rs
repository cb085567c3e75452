//! The store fails in the middle: the first error is kept, and nothing is published.

use crate::shaky_store::Shaky;
use crate::support::{Noise, PASSWORD, Place, as_root, noise};
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{
    BackupOptions, Content, FileKind, LocalStore, Node, Repository, RepositoryError, Snapshot,
    Tree, Writer, WriterOptions,
};

/// Saves much, then publishes.
fn write(writer: Writer) -> Result<(), RepositoryError> {
    let now = jiff::Timestamp::now();
    let mut content = Content::default();
    for seed in 1..=4 {
        content = writer.save_data(&mut Noise::new(seed).take(20 << 20))?;
    }
    let tree = writer.save_tree(&Tree { nodes: vec![Node::file("file", content, now)] })?;
    writer.publish(Snapshot::new(tree, Vec::new(), Vec::new(), now)).map(|_| ())
}

fn is_full(error: &RepositoryError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::StorageFull;
        }
        cause = error.source();
    }
    false
}

#[test]
fn a_full_disk_at_any_step_publishes_nothing_and_leaves_a_clean_repository() {
    for (kind, left) in [
        (FileKind::Pack, 0),
        (FileKind::Pack, 2),
        (FileKind::Index, 0),
        (FileKind::Snapshot, 0),
        (FileKind::Lock, 0),
    ] {
        let place = Place::new();
        place.init();
        let store = Shaky::full_after(place.store(), Some(kind), left);
        let repository = Repository::open(store, PASSWORD).unwrap();
        let error = match repository.writer(WriterOptions::default()) {
            Ok(writer) => write(writer).unwrap_err(),
            Err(error) => error,
        };
        assert!(is_full(&error), "{kind:?}: {error:?}");
        assert!(error.hint().unwrap().contains("room"), "{kind:?}");
        assert_eq!(place.count("snapshots"), 0);
        assert_eq!(place.count("locks"), 0);
        place.restic_check();
    }
}

#[test]
fn after_a_failure_every_call_fails_with_the_first_error() {
    let place = Place::new();
    place.init();
    let store = Shaky::full_after(place.store(), Some(FileKind::Pack), 0);
    let repository = Repository::open(store, PASSWORD).unwrap();
    let options = WriterOptions { pack_size: 1, ..WriterOptions::default() };
    let writer = repository.writer(options).unwrap();
    let mut seed = 0;
    // The write happens beside us: go on until it was noticed.
    let first = loop {
        seed += 1;
        if let Err(error) = writer.save_data(&mut Noise::new(seed).take(1000)) {
            break error;
        }
    };
    assert!(matches!(&first, RepositoryError::Failed(_)) && is_full(&first));
    assert!(is_full(&writer.save_data(&mut &b"x"[..]).unwrap_err()));
    assert!(is_full(&writer.save_tree(&Tree::default()).unwrap_err()));
    let snapshot = Snapshot::new(
        stillpoint_repository::BlobId::of(b""),
        vec![],
        vec![],
        jiff::Timestamp::UNIX_EPOCH,
    );
    assert!(is_full(&writer.publish(snapshot).unwrap_err()));
}

#[test]
fn a_source_that_fails_is_told_apart_and_leaves_the_writer_usable() {
    struct Broken(usize);
    impl Read for Broken {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("the source broke"));
            }
            let count = into.len().min(self.0);
            self.0 -= count;
            Ok(count)
        }
    }
    let place = Place::new();
    let repository = place.init();
    let writer = repository.writer(WriterOptions::default()).unwrap();
    for after in [0, 1000, 30 << 20] {
        let error = writer.save_data(&mut Broken(after)).unwrap_err();
        assert!(matches!(error, RepositoryError::Source(_)), "{error}");
    }
    write(writer).unwrap();
    place.restic_check();
}

/// A small file system that is full for real; mounting takes root.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_that_is_really_full_publishes_nothing() {
    // Ordinary users cannot mount; for them the store above stands in.
    if !as_root() {
        return;
    }
    let place = Place::new();
    let path = place.path("repo");
    std::fs::create_dir(&path).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(mounted.success(), "a tmpfs could not be mounted");
    let _mount = Mount(path.clone());
    let source = place.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), noise(1, 40 << 20)).unwrap();
    let store = Arc::new(LocalStore::new(&path).unwrap());
    let repository = Repository::init(store, PASSWORD).unwrap();
    let error = repository.backup(&[source], &BackupOptions::default(), &Silent).unwrap_err();
    assert!(is_full(&error), "{error:?}");
    for folder in ["snapshots", "locks", "tmp"] {
        assert_eq!(place.count(folder), 0, "{folder}");
    }
    place.restic_check();
}
