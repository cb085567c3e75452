//! Several locations while others work beside us, disks rot, and places come and go.

use crate::locations::{Two, assert_restic_is_content, heal, open};
use crate::shaky_store::Shaky;
use crate::support::files;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{
    FileKind, Member, Repository, RestoreOptions, Snapshot, SnapshotId, Tree, WriterOptions,
};

/// Something that another process does once, at the first of a kind.
fn once(kind: FileKind, act: impl FnOnce() + Send + 'static) -> impl FnMut(FileKind) + Send {
    let mut act = Some(act);
    move |met| {
        if met == kind
            && let Some(act) = act.take()
        {
            act();
        }
    }
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Publishes an empty directory.
fn publish(writer: stillpoint_repository::Writer) -> (SnapshotId, usize) {
    let tree = writer.save_tree(&Tree::default()).unwrap();
    let snapshot = Snapshot::new(tree, vec![], vec![], jiff::Timestamp::now());
    let (id, stats) = writer.publish(snapshot).unwrap();
    (id, stats.copies)
}

/// A backup that only `name` gets, of a changed source.
fn back_up_at(two: &Arc<Two>, name: &'static str, seed: u64) -> impl FnOnce() + Send + 'static {
    let two = Arc::clone(two);
    move || {
        two.change(seed);
        two.back_up(&two.open_only(name).0);
    }
}

#[test]
fn a_backup_beside_healing_leaves_no_index_without_its_packs() {
    let two = Arc::new(Two::new());
    two.back_up(&two.open_only("a").0);
    let a = Shaky::sound(two.local("a"));
    a.before_read(once(FileKind::Index, back_up_at(&two, "a", 1)));
    let group = open(vec![Member::new("a", a), Member::new("b", two.local("b"))]);
    assert!(heal(&group).is_whole());
    two.assert_whole();
    assert!(heal(&two.open_sound()).is_whole());
    assert_eq!(two.snapshots("a"), two.snapshots("b"));
    two.assert_whole();
}

#[test]
fn a_backup_beside_a_completion_leaves_no_index_without_its_packs() {
    let two = Arc::new(Two::new());
    two.back_up(&two.open_only("a").0);
    two.change(1);
    two.back_up(&two.open_only("b").0);
    let a = Shaky::sound(two.local("a"));
    a.before_read(once(FileKind::Index, back_up_at(&two, "a", 2)));
    let (repository, _) = open(vec![Member::new("a", a), Member::new("b", two.local("b"))]);
    drop(repository.writer(WriterOptions::default()).unwrap());
    two.assert_whole();
}

#[test]
fn a_pack_that_is_damaged_everywhere_does_not_keep_the_others_from_being_copied() {
    let damages: [fn(&Path); 2] = [
        |pack| rewrite(pack, |bytes| bytes[50] ^= 1),
        |pack| rewrite(pack, |bytes| bytes.truncate(100)),
    ];
    for damage in damages {
        let two = Two::new();
        let (repository, _) = two.open_only("a");
        two.back_up(&repository);
        let before = files(&two.path("a/data"));
        two.change(1);
        let (damaged, _) = two.back_up(&repository);
        for pack in files(&two.path("a/data")).iter().filter(|pack| !before.contains(pack)) {
            damage(pack);
        }
        let healed = heal(&two.open_sound());
        let left = healed.locations[1].left.as_ref().unwrap();
        assert!(left.contains(&damaged.to_hex()[..8]) && left.contains("damaged"), "{left}");
        assert_eq!(two.snapshots("b").len(), 1);
    }
}

#[test]
fn a_pack_that_no_disk_can_read_does_not_keep_the_keys_and_snapshots_from_being_copied() {
    let two = Two::new();
    let (kept, _) = {
        let (repository, _) = two.open_sound();
        two.back_up(&repository)
    };
    two.change(1);
    two.back_up(&two.open_only("a").0);
    publish(two.open_only("a").0.writer(WriterOptions::default()).unwrap());
    let a = Shaky::sound(two.local("a"));
    a.cannot_read(FileKind::Pack);
    let healed = heal(&open(vec![Member::new("a", a), Member::new("b", two.local("b"))]));
    assert!(healed.locations[1].left.as_ref().unwrap().contains("damaged"), "{healed:?}");
    assert_eq!(two.snapshots("b"), [kept.to_hex()]);
}

#[test]
fn a_snapshot_file_that_is_damaged_does_not_keep_the_others_from_being_copied() {
    let two = Two::new();
    for seed in 0..3 {
        two.change(seed);
        two.back_up(&two.open_only("a").0);
    }
    // The first in the order of names.
    let damaged = files(&two.path("a/snapshots")).remove(0);
    rewrite(&damaged, |bytes| bytes[10] ^= 1);
    let healed = heal(&two.open_sound());
    let left = healed.locations[1].left.as_ref().unwrap();
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(left.contains(&name[..8]) && left.contains("damaged"), "{left}");
    assert_eq!(two.snapshots("b").len(), 2);
    assert_restic_is_content(&two.path("b"));
}

#[test]
fn healing_copies_no_snapshot_once_its_lock_is_gone() {
    let two = Two::new();
    two.back_up(&two.open_only("a").0);
    let b = Shaky::sound(two.local("b"));
    let locks = two.path("b/locks");
    b.before_write(once(FileKind::Index, move || {
        for lock in files(&locks) {
            fs::remove_file(lock).unwrap();
        }
    }));
    let healed = heal(&two.open(b));
    let left = healed.locations[1].left.as_ref().expect("a prune may have run there");
    assert!(left.contains("lock"), "{left}");
    assert_eq!(two.snapshots("b").len(), 0);
    assert!(heal(&two.open_sound()).is_whole());
    two.assert_whole();
}

#[test]
fn a_location_that_is_unmounted_when_there_is_nothing_to_write_stops_no_backup() {
    let two = Two::new();
    publish(two.open_sound().0.writer(WriterOptions::default()).unwrap());
    let (repository, locations) = two.open_sound();
    let writer = repository.writer(WriterOptions::default()).unwrap();
    fs::rename(two.path("b"), two.path("b is away")).unwrap();
    fs::create_dir(two.path("b")).unwrap();
    assert_eq!(publish(writer).1, 1);
    assert!(locations.notes()[0].starts_with("location b is left out"), "{:?}", locations.notes());
    assert_eq!(two.snapshots("a").len(), 2);
    assert_eq!(fs::read_dir(two.path("b")).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_cut_short_at_one_location_is_no_copy_and_is_healed() {
    for folder in ["snapshots", "index", "keys"] {
        let two = Two::new();
        let (snapshot, _) = two.back_up(&two.open_sound().0);
        let cut = files(&two.path(&format!("b/{folder}"))).remove(0);
        let whole = fs::read(&cut).unwrap();
        rewrite(&cut, Vec::clear);
        // The sound one is the quicker one, so that nobody mends it by reading it.
        let b = Shaky::sound(two.local("b"));
        let (repository, locations) =
            open(vec![Member::new("a", two.local("a")), Member::new("b", b)]);
        assert_eq!(locations.survey(false)[1].missing, 1, "{folder}");
        if folder == "snapshots" {
            let copies = locations.count_snapshots().unwrap();
            assert_eq!(copies.counts[&snapshot], 1);
        }
        assert!(locations.heal(&repository, &Silent).unwrap().is_whole(), "{folder}");
        assert_eq!(fs::read(&cut).unwrap(), whole, "{folder}");
        two.assert_whole();
    }
}

#[test]
fn a_pack_that_grew_is_the_bad_one_of_two() {
    let two = Two::new();
    two.back_up(&two.open_sound().0);
    let grown = files(&two.path("b/data")).remove(0);
    rewrite(&grown, |bytes| bytes.extend(b"more"));
    let sound = two.open_sound();
    two.change(1);
    two.back_up(&sound.0);
    assert_eq!((two.snapshots("a").len(), two.snapshots("b").len()), (2, 1));
    assert!(heal(&two.open_sound()).is_whole());
    assert_eq!(two.snapshots("b").len(), 2);
    two.assert_whole();
}

#[test]
fn an_index_that_only_a_failing_location_has_stops_no_backup_at_the_other() {
    let damages: [fn(&Two, &Shaky); 2] = [
        |_, b| b.cannot_read(FileKind::Index),
        |two, _| {
            rewrite(&files(&two.path("b/index"))[0], |bytes| bytes[20] = bytes[20].wrapping_add(1));
        },
    ];
    for damage in damages {
        let two = Two::new();
        two.back_up(&two.open_only("b").0);
        two.change(1);
        two.back_up(&two.open_only("b").0);
        let b = Shaky::sound(two.local("b"));
        damage(&two, &b);
        two.change(2);
        let (repository, locations) = two.open(b);
        assert_eq!(two.back_up(&repository).1, 1);
        assert_eq!((two.snapshots("a").len(), two.snapshots("b").len()), (1, 2));
        let notes = locations.notes();
        assert!(notes[0].starts_with("location b is left out: index"), "{notes:?}");
        assert_restic_is_content(&two.path("a"));
        assert_eq!(files(&two.path("b/locks")).len(), 0);
        // Nor does it keep a third one from being healed.
        let b = Shaky::sound(two.local("b"));
        damage(&two, &b);
        let group = open(vec![
            Member::new("a", two.local("a")),
            Member::new("b", b),
            Member::empty("c", two.local("c")),
        ]);
        let healed = heal(&group);
        assert_eq!(healed.locations.iter().filter(|l| l.left.is_some()).count(), 1, "{healed:?}");
        assert_eq!(two.snapshots("c"), two.snapshots("a"));
        assert_restic_is_content(&two.path("c"));
    }
}

#[test]
fn a_location_that_can_be_neither_read_nor_mended_is_asked_last_and_told_of_once() {
    let two = Two::new();
    let (snapshot, _) = two.back_up(&two.open_sound().0);
    let a = Shaky::sound(two.local("a"));
    let b = Shaky::sound(two.local("b"));
    let (repository, locations): (Repository, _) =
        open(vec![Member::new("a", a.clone()), Member::new("b", b.clone())]);
    let reader = repository.reader().unwrap();
    a.cannot_read(FileKind::Pack);
    a.becomes_read_only();
    let tree = reader.find_snapshot(&snapshot.to_hex()).unwrap().1.tree;
    let before = b.reads.load(Ordering::SeqCst);
    reader.restore(&tree, &two.path("target"), &RestoreOptions::default(), &Silent).unwrap();
    let notes = locations.notes();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    assert!(!notes.is_empty() && notes.len() <= threads, "{notes:?}");
    let whole_packs = b.reads.load(Ordering::SeqCst) - before;
    assert!(whole_packs <= threads, "{whole_packs} packs were read to mend what cannot be");
}

#[test]
fn a_snapshot_that_is_deleted_while_it_is_copied_by_one_who_cannot_reach_the_target_does_not_stay()
{
    let two = Two::new();
    let (snapshot, _) = two.back_up(&two.open_only("a").0);
    let b = Shaky::sound(two.local("b"));
    let other = two.open_only("a").0;
    b.before_write(once(FileKind::Snapshot, move || other.forget(&[snapshot]).unwrap()));
    let (repository, locations) = two.open(b);
    locations.heal(&repository, &Silent).unwrap();
    assert_eq!(two.snapshots("b"), Vec::<String>::new());
}

#[test]
fn a_location_that_goes_away_while_the_index_is_read_stops_no_backup() {
    let two = Two::new();
    two.back_up(&two.open_only("b").0);
    two.change(1);
    two.back_up(&two.open_only("b").0);
    let b = Shaky::sound(two.local("b"));
    let gone = Arc::downgrade(&b);
    let mut met = 0;
    // The second index file is not read any more.
    b.before_read(move |kind| {
        met += usize::from(kind == FileKind::Index);
        if met == 2
            && let Some(b) = gone.upgrade()
        {
            b.go();
        }
    });
    two.change(2);
    let (repository, _) = two.open(b);
    assert_eq!(two.back_up(&repository).1, 1);
    assert_restic_is_content(&two.path("a"));
}
