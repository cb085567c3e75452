//! A mount that changes faster than prepare can read it. That is said before anybody waits.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use stillpoint_capture::Participant;
use stillpoint_capture::mount::{Filter, MountParticipant};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{LocalStore, Repository, WriterOptions};

/// Changes a file whenever a pass has been told of.
struct Restless {
    file: PathBuf,
    passes: AtomicU32,
}

impl Monitor for Restless {
    fn note(&self, _: &str) {
        // What matters is that its ctime is another one.
        let mode = 0o600 + (self.passes.fetch_add(1, Ordering::Relaxed) % 2) * 0o44;
        fs::set_permissions(&self.file, fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn a_mount_whose_changes_do_not_get_less_is_refused_and_the_file_is_named() {
    let top = tempfile::tempdir().unwrap();
    let (mount, store) = (top.path().join("mount"), top.path().join("store"));
    fs::create_dir(&mount).unwrap();
    fs::create_dir(&store).unwrap();
    let file = mount.join("journal.bin");
    // More than is read inside a hold.
    File::create(&file).unwrap().set_len(300 << 20).unwrap();
    let store = Arc::new(LocalStore::new(store).unwrap());
    let repository = Repository::init(store, "password").unwrap();
    let writer = repository.writer(WriterOptions::default()).unwrap();
    let name = "uploads".parse().unwrap();
    let monitor = Restless { file, passes: AtomicU32::new(0) };

    let mut participant = MountParticipant::new(name, mount.clone(), Filter::new(&[]).unwrap());
    let refused = participant.prepare(&writer, &monitor).unwrap_err();
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("changes too fast") && why.contains("journal.bin"), "{refused}: {why}");
    assert!(refused.advice().is_some_and(|hint| hint.contains("exclude")), "{refused}");
    assert!(monitor.passes.load(Ordering::Relaxed) > 1, "it was tried more than once");

    // The hint helps.
    let without = Filter::new(&["journal.bin".to_owned()]).unwrap();
    let mut participant = MountParticipant::new("uploads".parse().unwrap(), mount, without);
    participant.prepare(&writer, &monitor).unwrap();
    writer.abandon().unwrap();
}
