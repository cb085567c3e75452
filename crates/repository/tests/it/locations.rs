//! One repository at several locations: whole at each of them at any moment, whatever fails.

use crate::shaky_store::Shaky;
use crate::support::{PASSWORD, files, noise};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{
    BackupOptions, FileKind, Healed, LocalStore, Locations, Member, Repository, RepositoryError,
    RestoreOptions, SnapshotId, Store, WriterOptions,
};
use tempfile::TempDir;

/// Two places beside each other, and a source that is backed up.
pub(crate) struct Two {
    directory: TempDir,
}

impl Two {
    /// Both hold the new repository.
    pub(crate) fn new() -> Self {
        let two = Self { directory: tempfile::tempdir().unwrap() };
        two.change(0);
        let all = vec![Member::new("a", two.local("a")), Member::new("b", two.local("b"))];
        Repository::init(Arc::new(Locations::new(all)), PASSWORD).unwrap();
        two
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn local(&self, name: &str) -> Arc<dyn Store> {
        Arc::new(LocalStore::new(self.path(name)).unwrap())
    }

    /// Opens the repository at `a` and at `b`, where `b` may be a store of the test's.
    pub(crate) fn open(&self, b: Arc<dyn Store>) -> (Repository, Arc<Locations>) {
        open(vec![Member::new("a", self.local("a")), Member::new("b", b)])
    }

    pub(crate) fn open_sound(&self) -> (Repository, Arc<Locations>) {
        self.open(self.local("b"))
    }

    /// Only `name` can be reached.
    pub(crate) fn open_only(&self, name: &str) -> (Repository, Arc<Locations>) {
        let member = |one: &str| {
            if one == name {
                Member::new(one, self.local(one))
            } else {
                Member::down(one, "it is away")
            }
        };
        open(vec![member("a"), member("b")])
    }

    /// Makes the source another one.
    pub(crate) fn change(&self, seed: u64) {
        let source = self.path("source");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join(format!("file {seed}")), noise(seed + 1, 200_000)).unwrap();
        fs::write(source.join("same"), noise(77, 3_000_000)).unwrap();
    }

    pub(crate) fn back_up(&self, repository: &Repository) -> (SnapshotId, usize) {
        let report = self.try_back_up(repository).unwrap();
        (report.snapshot, report.stats.copies)
    }

    pub(crate) fn try_back_up(
        &self,
        repository: &Repository,
    ) -> Result<stillpoint_repository::BackupReport, RepositoryError> {
        repository.backup(&[self.path("source")], &BackupOptions::default(), &Silent)
    }

    pub(crate) fn snapshots(&self, name: &str) -> Vec<String> {
        self.names(&format!("{name}/snapshots"))
    }

    pub(crate) fn names(&self, below: &str) -> Vec<String> {
        let names = files(&self.path(below));
        names.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// Stock restic finds nothing wrong at either location, by itself.
    pub(crate) fn assert_whole(&self) {
        for name in ["a", "b"] {
            assert_restic_is_content(&self.path(name));
        }
    }
}

pub(crate) fn open(members: Vec<Member>) -> (Repository, Arc<Locations>) {
    let locations = Arc::new(Locations::new(members));
    (Repository::open(locations.clone(), PASSWORD).unwrap(), locations)
}

pub(crate) fn assert_restic_is_content(repository: &Path) {
    let output = Command::new("restic")
        .args(["--no-cache", "-q", "check", "--read-data", "-r"])
        .arg(repository)
        .env("RESTIC_PASSWORD", PASSWORD)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", repository.display());
}

pub(crate) fn heal((repository, locations): &(Repository, Arc<Locations>)) -> Healed {
    locations.heal(repository, &Silent).unwrap()
}

#[test]
fn a_backup_is_whole_at_both_locations_and_each_restores_alone() {
    let two = Two::new();
    let (repository, locations) = two.open_sound();
    let (snapshot, copies) = two.back_up(&repository);
    assert_eq!(copies, 2);
    assert!(locations.notes().is_empty());
    assert!(locations.survey(true).iter().all(|state| state.missing == 0 && state.down.is_none()));
    two.assert_whole();
    for name in ["a", "b"] {
        let (repository, _) = two.open_only(name);
        let reader = repository.reader().unwrap();
        let (_, found) = reader.find_snapshot(&snapshot.to_hex()).unwrap();
        let target = two.path(&format!("restored from {name}"));
        reader.restore(&found.tree, &target, &RestoreOptions::default(), &Silent).unwrap();
        let source = two.path("source");
        let inner = target.join(source.strip_prefix("/").unwrap());
        let restored = if inner.exists() { inner } else { target.join("source") };
        assert_eq!(
            fs::read(restored.join("same")).unwrap(),
            fs::read(source.join("same")).unwrap()
        );
    }
}

#[test]
fn a_location_that_fails_at_any_write_stops_no_backup_and_is_whole_before_and_after_healing() {
    // How many writes a backup takes at one location.
    let two = Two::new();
    let counted = Shaky::sound(two.local("b"));
    two.back_up(&two.open(counted.clone()).0);
    let all = counted.writes.load(Ordering::SeqCst);
    assert!(all >= 4, "a lock, packs, an index, a snapshot: {all}");
    for left in 0..=all + 1 {
        let two = Two::new();
        let (repository, locations) = two.open(Shaky::full_after(two.local("b"), None, left));
        let (_, copies) = two.back_up(&repository);
        assert_eq!(two.snapshots("a").len(), 1, "{left}");
        assert_eq!(copies, 1 + two.snapshots("b").len(), "{left}");
        assert_eq!(copies == 2, left >= all, "{left} of {all}");
        if left < all {
            assert!(locations.notes()[0].starts_with("location b is left out"), "{left}");
        }
        two.assert_whole();
        let sound = two.open_sound();
        assert!(heal(&sound).is_whole(), "{left}");
        assert_eq!(two.snapshots("a"), two.snapshots("b"), "{left}");
        assert!(sound.1.survey(true).iter().all(|state| state.missing == 0), "{left}");
        two.assert_whole();
    }
}

#[test]
fn a_location_that_lacks_what_is_deduplicated_gets_no_snapshot_until_it_is_healed() {
    let two = Two::new();
    two.back_up(&two.open_only("a").0);
    two.change(1);
    let sound = two.open_sound();
    let (_, copies) = two.back_up(&sound.0);
    assert_eq!(copies, 1, "its first file rests on a pack that only `a` has");
    assert_eq!(two.snapshots("b").len(), 0);
    two.assert_whole();
    let healed = heal(&sound);
    assert!(healed.is_whole() && healed.locations[1].files > 3, "{healed:?}");
    assert_eq!(two.snapshots("b").len(), 2);
    two.assert_whole();
    two.change(2);
    assert_eq!(two.back_up(&two.open_sound().0).1, 2);
    two.assert_whole();
}

#[test]
fn where_every_location_lacks_something_one_is_completed_for_the_snapshot() {
    let two = Two::new();
    two.back_up(&two.open_only("a").0);
    two.change(1);
    // Alone, `b` knows nothing of what `a` has, and stores it all again.
    two.back_up(&two.open_only("b").0);
    two.change(2);
    let sound = two.open_sound();
    let (_, copies) = two.back_up(&sound.0);
    assert_eq!(copies, 1);
    two.assert_whole();
    assert!(heal(&sound).is_whole());
    assert_eq!((two.snapshots("a").len(), two.snapshots("b").len()), (3, 3));
    two.assert_whole();
}

#[test]
fn what_was_deleted_does_not_come_back_from_a_location_that_was_away() {
    let two = Two::new();
    let sound = two.open_sound();
    let (kept, _) = two.back_up(&sound.0);
    two.change(1);
    let (deleted, _) = two.back_up(&sound.0);
    two.open_only("a").0.forget(&[deleted]).unwrap();
    assert_eq!((two.snapshots("a").len(), two.snapshots("b").len()), (1, 2));

    let sound = two.open_sound();
    let listed: Vec<_> = sound.0.snapshots().unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(listed, [kept], "not listed, although it still lies at `b`");
    assert!(sound.1.survey(false)[1].missing > 0);
    let healed = heal(&sound);
    assert_eq!(healed.locations[1].deleted, 1);
    assert_eq!(two.snapshots("a"), two.snapshots("b"));
    assert_eq!(two.snapshots("b").len(), 1);
    two.assert_whole();
}

#[test]
fn a_snapshot_that_is_deleted_while_it_is_copied_does_not_stay() {
    let two = Two::new();
    let (snapshot, _) = two.back_up(&two.open_only("a").0);
    let b = Shaky::sound(two.local("b"));
    let other = Arc::new(two.open_sound());
    let forget = Arc::clone(&other);
    let mut once = Some(());
    b.before_write(move |kind| {
        if kind == FileKind::Snapshot && once.take().is_some() {
            forget.0.forget(&[snapshot]).unwrap();
        }
    });
    let (repository, locations) = two.open(b);
    locations.heal(&repository, &Silent).unwrap();
    assert_eq!(two.snapshots("b"), Vec::<String>::new());
    assert_eq!(other.0.snapshots().unwrap().len(), 0);
}

#[test]
fn whoever_can_write_to_one_location_cannot_delete_at_the_others() {
    let two = Two::new();
    two.back_up(&two.open_sound().0);
    // A record that was made with another repository's key.
    let other = Two::new();
    let (snapshot, _) = other.back_up(&other.open_sound().0);
    other.open_sound().0.forget(&[snapshot]).unwrap();
    fs::create_dir_all(two.path("b/deletions")).unwrap();
    for record in files(&other.path("a/deletions")) {
        fs::copy(&record, two.path("b/deletions").join(record.file_name().unwrap())).unwrap();
    }
    let (repository, locations) = two.open_sound();
    assert_eq!(repository.snapshots().unwrap().len(), 1, "it hides nothing");
    let error = locations.heal(&repository, &Silent).unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
    assert_eq!((two.snapshots("a").len(), two.snapshots("b").len()), (1, 1));
}

#[test]
fn healing_that_is_cut_off_anywhere_leaves_the_location_whole_and_is_finished_later() {
    let count = {
        let two = Two::new();
        two.back_up(&two.open_only("a").0);
        let b = Shaky::sound(two.local("b"));
        assert!(heal(&two.open(b.clone())).is_whole());
        b.writes.load(Ordering::SeqCst)
    };
    for left in 0..count {
        let two = Two::new();
        two.back_up(&two.open_only("a").0);
        let healed = heal(&two.open(Shaky::full_after(two.local("b"), None, left)));
        let why = healed.locations[1].left.as_ref().expect("it was not finished");
        assert!(why.contains("at b") || why.contains("lock"), "{why}");
        assert_eq!(two.snapshots("b").len(), 0, "{left}");
        two.assert_whole();
        assert!(heal(&two.open_sound()).is_whole());
        assert_eq!(two.snapshots("b").len(), 1);
        two.assert_whole();
    }
}

#[test]
fn an_empty_location_is_made_a_whole_copy() {
    let two = Two::new();
    two.back_up(&two.open_sound().0);
    let members = || {
        vec![
            Member::new("a", two.local("a")),
            Member::new("b", two.local("b")),
            Member::empty("c", two.local("c")),
        ]
    };
    let group = open(members());
    let state = &group.1.survey(false)[2];
    assert!(state.empty && state.can_be_healed());
    // Nothing is written there before it is healed, and nobody waits for it.
    two.change(1);
    assert_eq!(two.back_up(&group.0).1, 2);
    assert!(!two.path("c/config").exists());
    let group = open(members());
    assert!(heal(&group).is_whole());
    let copies = group.1.count_snapshots().unwrap();
    assert!(copies.all_asked && copies.counts.values().all(|count| *count == 3), "{copies:?}");
    assert_restic_is_content(&two.path("c"));
    assert_eq!(two.snapshots("c"), two.snapshots("a"));
}

#[test]
fn a_restore_goes_on_when_a_location_goes_away_in_the_middle() {
    let two = Two::new();
    let (snapshot, _) = two.back_up(&two.open_sound().0);
    let a = Shaky::sound(two.local("a"));
    let (repository, _) = open(vec![Member::new("a", a.clone()), Member::new("b", two.local("b"))]);
    let reader = repository.reader().unwrap();
    a.go();
    let tree = reader.find_snapshot(&snapshot.to_hex()).unwrap().1.tree;
    let target = two.path("target");
    reader.restore(&tree, &target, &RestoreOptions::default(), &Silent).unwrap();
    assert!(files(&target).len() >= 2);
}

#[test]
fn a_damaged_copy_is_read_from_the_other_location_and_mended() {
    let two = Two::new();
    two.back_up(&two.open_sound().0);
    let flipped = |good: &[u8]| good.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>();
    let cut = |good: &[u8]| good[..100].to_vec();
    for pack in files(&two.path("a/data")) {
        assert_met_and_mended(&two, &pack, flipped);
        assert_met_and_mended(&two, &pack, cut);
    }
    for index in files(&two.path("a/index")) {
        assert_met_and_mended(&two, &index, |_| b"nonsense".to_vec());
    }
    two.assert_whole();
}

/// Damages one file of `a`, and restores. One at a time: a read that fails makes its location the
/// slower one, which would then not be asked for the next damaged file.
fn assert_met_and_mended(two: &Two, path: &Path, damage: impl Fn(&[u8]) -> Vec<u8>) {
    let good = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    fs::write(path, damage(&good)).unwrap();
    // The damaged one is the quicker one, and so the one that is read.
    let b = Shaky::sound(two.local("b"));
    b.slow_down();
    let (repository, locations) = two.open(b);
    let reader = repository.reader().unwrap();
    let tree = reader.find_snapshot("latest").unwrap().1.tree;
    // Each is tried once before it is known which one is quicker: the second round reads all that
    // the first one had from the slow one.
    for _ in 0..2 {
        let target = tempfile::tempdir().unwrap();
        reader.restore(&tree, target.path(), &RestoreOptions::default(), &Silent).unwrap();
    }
    // Several threads may meet the same damage.
    let notes: BTreeSet<_> = locations.notes().into_iter().collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes.iter().all(|note| note.ends_with("of location a was bad and is mended")),
        "{notes:?}"
    );
    assert_eq!(fs::read(path).unwrap(), good);
    let met = locations.notes().len();
    let target = tempfile::tempdir().unwrap();
    reader.restore(&tree, target.path(), &RestoreOptions::default(), &Silent).unwrap();
    assert_eq!(locations.notes().len(), met, "what is mended is not met again");
}

#[test]
fn a_snapshot_that_is_damaged_everywhere_is_not_copied_and_the_others_are() {
    let two = Two::new();
    let (repository, _) = two.open_only("a");
    two.back_up(&repository);
    let before = files(&two.path("a/data"));
    two.change(1);
    let (damaged, _) = two.back_up(&repository);
    for pack in files(&two.path("a/data")).iter().filter(|pack| !before.contains(pack)) {
        fs::remove_file(pack).unwrap();
    }
    let healed = heal(&two.open_sound());
    let left = healed.locations[1].left.as_ref().unwrap();
    assert!(left.contains(&damaged.to_hex()[..8]) && left.contains("damaged"), "{left}");
    assert_eq!(two.snapshots("b").len(), 1);
}

#[test]
fn a_lock_that_is_removed_at_one_location_stops_the_publishing() {
    let two = Two::new();
    let (repository, _) = two.open_sound();
    let writer = repository.writer(WriterOptions::default()).unwrap();
    assert_eq!(files(&two.path("b/locks")).len(), 1);
    // What `restic unlock --remove-all` does, and a prune may have followed.
    for lock in files(&two.path("b/locks")) {
        fs::remove_file(lock).unwrap();
    }
    let tree = writer.save_tree(&stillpoint_repository::Tree::default()).unwrap();
    let now = jiff::Timestamp::now();
    let snapshot = stillpoint_repository::Snapshot::new(tree, vec![], vec![], now);
    let error = writer.publish(snapshot).unwrap_err();
    assert!(matches!(error, RepositoryError::LockLost(_)), "{error}");
}

#[test]
fn an_exclusive_lock_at_one_location_refuses_a_backup() {
    let two = Two::new();
    let (repository, _) = two.open_only("b");
    two.back_up(&repository);
    // Stock restic, kept in the middle of a prune: its lock file is what counts.
    let mut prune = Command::new("restic")
        .args(["--no-cache", "-q", "prune", "-r"])
        .arg(two.path("b"))
        .env("RESTIC_PASSWORD", PASSWORD)
        .spawn()
        .unwrap();
    // It is written under another name first.
    let locks = || two.names("b/locks").into_iter().filter(|name| name.len() == 64).count();
    while locks() == 0 {
        assert!(prune.try_wait().unwrap().is_none(), "it was not seen at work");
    }
    let pid = rustix::process::Pid::from_child(&prune);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let refused = locks() == 0 || two.try_back_up(&two.open_sound().0).is_err();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    prune.wait().unwrap();
    assert!(refused);
    two.back_up(&two.open_sound().0);
}

#[test]
fn without_any_location_the_error_names_them_all() {
    let members = vec![Member::down("a", "it burnt"), Member::down("b", "it is flooded")];
    let error = Repository::open(Arc::new(Locations::new(members)), PASSWORD).err().unwrap();
    let said = format!("{error:?}");
    assert!(said.contains("a: it burnt") && said.contains("b: it is flooded"), "{said}");
}
