//! Damage of every kind is found by a check, and never restored as if it were content.

use crate::support::{PASSWORD, Place, files, noise};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use stillpoint_model::progress::Silent;
use stillpoint_repository::{
    BackupOptions, CheckOptions, Repository, RepositoryError, RestoreOptions,
};

/// What is done to a file's bytes.
type Damage = fn(&mut Vec<u8>);

/// A repository with one snapshot of one large file.
fn backed_up() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("source")).unwrap();
    fs::write(place.path("source/file"), noise(3, 3 << 20)).unwrap();
    place.init().backup(&[place.path("source")], &BackupOptions::default(), &Silent).unwrap();
    place
}

fn change(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    how(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The pack with the file's content, and the one with the trees.
fn packs(place: &Place) -> (PathBuf, PathBuf) {
    let mut packs = files(&place.path("repo/data"));
    packs.sort_by_key(|path| fs::metadata(path).unwrap().len());
    assert_eq!(packs.len(), 2);
    (packs.pop().unwrap(), packs.pop().unwrap())
}

fn check(place: &Place, read_data: bool) -> Vec<String> {
    place.open().check(&CheckOptions { read_data }, &Silent).unwrap().problems
}

fn restore(place: &Place) -> Result<(), RepositoryError> {
    let reader = place.open().reader()?;
    let tree = reader.snapshots()[0].1.tree;
    reader.restore(&tree, &place.path("target"), &RestoreOptions::default(), &Silent)?;
    Ok(())
}

#[test]
fn every_kind_of_damage_to_a_pack_is_found_and_refused() {
    let place = backed_up();
    let (data, _) = packs(&place);
    let whole = fs::read(&data).unwrap();
    let damages: [(&str, Damage); 4] = [
        ("first byte", |bytes| bytes[0] ^= 1),
        ("in the middle", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x80;
        }),
        ("cut short", |bytes| bytes.truncate(bytes.len() / 2)),
        ("emptied", Vec::clear),
    ];
    for (name, damage) in damages {
        change(&data, damage);
        assert!(!check(&place, true).is_empty(), "{name}");
        let error = restore(&place).unwrap_err();
        assert!(
            matches!(error, RepositoryError::Damaged { .. } | RepositoryError::Store { .. }),
            "{name}: {error}"
        );
        let _ = fs::remove_dir_all(place.path("target"));
        change(&data, |bytes| bytes.clone_from(&whole));
    }
    // The header matters to a check alone: restores have the index.
    change(&data, |bytes| {
        let last = bytes.len() - 10;
        bytes[last] ^= 1;
    });
    assert!(!check(&place, true).is_empty());
    fs::remove_file(&data).unwrap();
    assert!(check(&place, false).iter().any(|problem| problem.contains("is missing")));
    assert!(restore(&place).is_err());
}

#[test]
fn a_cut_pack_is_found_without_reading_it() {
    let place = backed_up();
    change(&packs(&place).0, |bytes| bytes.truncate(bytes.len() - 1));
    assert!(!check(&place, false).is_empty());
}

#[test]
fn a_damaged_tree_pack_is_found_without_reading_the_data() {
    let place = backed_up();
    change(&packs(&place).1, |bytes| bytes[40] ^= 1);
    assert!(!check(&place, false).is_empty());
    assert!(restore(&place).is_err());
}

#[test]
fn a_damaged_index_snapshot_key_or_config_is_an_error() {
    for (folder, opens) in [("index", true), ("snapshots", true), ("keys", false)] {
        let place = backed_up();
        let path = files(&place.path("repo").join(folder)).pop().unwrap();
        change(&path, |bytes| bytes[30] ^= 1);
        if opens {
            assert!(!check(&place, false).is_empty(), "{folder}");
            let refused = match place.open().reader() {
                Ok(reader) => !reader.damaged().is_empty(),
                Err(_) => true,
            };
            assert!(refused, "{folder}");
        } else {
            let error = Repository::open(place.store(), PASSWORD).err().unwrap();
            assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
        }
    }
    let place = backed_up();
    change(&place.path("repo/config"), |bytes| bytes[30] ^= 1);
    let error = Repository::open(place.store(), PASSWORD).err().unwrap();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
}

#[test]
fn a_missing_index_makes_a_check_say_what_is_missing() {
    let place = backed_up();
    fs::remove_file(files(&place.path("repo/index")).pop().unwrap()).unwrap();
    let problems = check(&place, false);
    assert!(problems.iter().any(|problem| problem.contains("tree blob")), "{problems:?}");
}

#[test]
fn a_blob_that_is_in_a_second_pack_survives_the_damage_of_the_first() {
    let place = backed_up();
    let (data, _) = packs(&place);
    let index = files(&place.path("repo/index")).pop().unwrap();
    let saved = (fs::read(&index).unwrap(), data.clone());
    // Without an index the second backup stores everything again.
    fs::remove_file(&index).unwrap();
    fs::remove_file(files(&place.path("repo/snapshots")).pop().unwrap()).unwrap();
    place.open().backup(&[place.path("source")], &BackupOptions::default(), &Silent).unwrap();
    fs::write(&index, &saved.0).unwrap();
    assert_eq!(check(&place, true), Vec::<String>::new());
    change(&saved.1, |bytes| bytes[100] ^= 1);
    assert!(!check(&place, true).is_empty());
    restore(&place).unwrap();
}

#[test]
fn a_wrong_password_and_a_missing_or_second_repository_are_told_apart() {
    let place = Place::new();
    let missing = Repository::open(place.store(), PASSWORD).err().unwrap();
    assert!(matches!(missing, RepositoryError::NotARepository(_)));
    place.init();
    let wrong = Repository::open(place.store(), "wrong").err().unwrap();
    assert!(matches!(wrong, RepositoryError::WrongPassword { keys: 1 }));
    let config = fs::read(place.path("repo/config")).unwrap();
    let second = Repository::init(place.store(), PASSWORD).err().unwrap();
    assert!(matches!(second, RepositoryError::AlreadyInitialized(_)));
    assert!(second.hint().is_some());
    assert_eq!(fs::read(place.path("repo/config")).unwrap(), config);
    assert_eq!(place.count("keys"), 1);
}

#[test]
fn what_was_in_a_lost_or_cut_pack_is_stored_again_by_the_next_backup() {
    for (trees, cut) in [(false, false), (false, true), (true, false), (true, true)] {
        let place = Place::new();
        fs::create_dir(place.path("source")).unwrap();
        fs::write(place.path("source/file"), noise(3, 3 << 20)).unwrap();
        // Clearly behind the file's change time, so that it counts as unchanged.
        let now = jiff::Timestamp::now();
        let options = |minutes| BackupOptions {
            time: Some(now + jiff::SignedDuration::from_mins(minutes)),
            ..BackupOptions::default()
        };
        let source = [place.path("source")];
        place.init().backup(&source, &options(1), &Silent).unwrap();
        let (data, tree) = packs(&place);
        let pack = if trees { tree } else { data };
        if cut {
            change(&pack, |bytes| bytes.truncate(bytes.len() - 1));
        } else {
            fs::remove_file(&pack).unwrap();
        }
        let healing = place.open().backup(&source, &options(2), &Silent).unwrap();
        assert_eq!(healing.stats.packs_lost, 1);
        if !trees {
            assert_eq!((healing.found.files_read, healing.found.files_unchanged), (1, 0));
        }
        // What the pack held is elsewhere now: without it nothing is lost.
        let _ = fs::remove_file(&pack);
        let reader = place.open().reader().unwrap();
        let (_, snapshot) = reader.find_snapshot(&healing.snapshot.to_hex()).unwrap();
        let target = place.path("target");
        reader.restore(&snapshot.tree, &target, &RestoreOptions::default(), &Silent).unwrap();
        // Its older name: newer stock clients know it too.
        place.restic(&["rebuild-index"]);
        let after = place.open().backup(&source, &options(3), &Silent).unwrap();
        assert_eq!((after.stats.packs_lost, after.found.files_unchanged), (0, 1));
        // The first snapshot's trees of the directories above may be lost for good.
        if !trees {
            place.restic_check();
        }
    }
}

#[test]
fn a_damaged_snapshot_stops_neither_restores_of_others_nor_backups_and_is_named() {
    let place = backed_up();
    let good = place.open().snapshots().unwrap()[0].0;
    let source = [place.path("source")];
    let bad = place.open().backup(&source, &BackupOptions::default(), &Silent).unwrap().snapshot;
    change(&place.path("repo/snapshots").join(bad.to_hex()), Vec::clear);
    let named = |error: &RepositoryError| {
        assert!(matches!(error, RepositoryError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(&bad.short()), "{error}");
    };

    let reader = place.open().reader().unwrap();
    assert_eq!(reader.snapshots().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [good]);
    let [(damaged, error)] = reader.damaged() else { panic!("{:?}", reader.damaged()) };
    assert_eq!(*damaged, bad);
    named(error);
    named(&reader.find_snapshot(&bad.to_hex()).unwrap_err());
    assert_eq!(reader.find_snapshot(&good.to_hex()).unwrap().0, good);
    assert_eq!(reader.find_snapshot("latest").unwrap().0, good);
    named(&place.open().snapshots().unwrap_err());
    restore(&place).unwrap();

    let next = place.open().backup(&source, &BackupOptions::default(), &Silent).unwrap();
    assert_eq!(next.parent, Some(good));
    let problems = check(&place, false);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(&bad.short()), "{problems:?}");
}
