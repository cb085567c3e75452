//! What the stock client wrote, we read, restore, recognise and extend.

use crate::support::{Place, assert_same, build_everything, noise};
use stillpoint_model::progress::Silent;
use stillpoint_repository::{BackupOptions, CheckOptions, RestoreOptions};

#[test]
fn a_repository_of_the_stock_client_is_read_restored_and_extended() {
    let place = Place::new();
    let source = place.path("source");
    build_everything(&source);
    std::fs::write(source.join("large"), noise(9, 20 << 20)).unwrap();
    let path = source.to_str().unwrap();
    place.restic(&["init"]);
    place.restic(&["backup", path, "--tag", "a,b"]);

    let repository = place.open();
    let reader = repository.reader().unwrap();
    let (_, snapshot) = &reader.snapshots()[0];
    assert_eq!(snapshot.tags, ["a", "b"]);
    assert_eq!(snapshot.paths, [path]);
    let subtree = reader.lookup(&snapshot.tree, path).unwrap().subtree.unwrap();
    let target = place.path("restored");
    let report = reader.restore(&subtree, &target, &RestoreOptions::default(), &Silent).unwrap();
    assert_eq!(report.warnings, []);
    std::fs::remove_file(source.join("socket")).unwrap();
    assert_same(&target, &source);
    assert_eq!(reader.verify(&subtree, &target, &Silent).unwrap(), []);
    let check = repository.check(&CheckOptions { read_data: true }, &Silent).unwrap();
    assert_eq!(check.problems, Vec::<String>::new());
    assert!(check.notes.is_empty() && check.bytes_read > 20 << 20);

    // Read again in full, nothing new is stored but the directories above, whose times changed:
    // content is cut where the stock client cut it.
    let options = BackupOptions { read_all: true, ..BackupOptions::default() };
    let again = repository.backup(std::slice::from_ref(&source), &options, &Silent).unwrap();
    assert_eq!(again.found.files_unchanged, 0);
    assert!(again.stats.bytes_added < 64 << 10, "{:?}", again.stats);
    // And with the parent, nothing is read.
    let third = repository.backup(&[source], &BackupOptions::default(), &Silent).unwrap();
    assert_eq!(third.parent, Some(again.snapshot));
    assert_eq!(third.found.files_read, 0, "{:?}", third.found);
    assert!(third.stats.bytes_added < 64 << 10, "{:?}", third.stats);
    place.restic_check();
}

#[test]
fn both_clients_cut_a_changed_file_alike_in_the_stock_clients_repository() {
    let place = Place::new();
    std::fs::create_dir(place.path("source")).unwrap();
    let mut content = noise(11, 24 << 20);
    std::fs::write(place.path("source/file"), &content).unwrap();
    place.restic(&["init"]);
    place.open().backup(&[place.path("source")], &BackupOptions::default(), &Silent).unwrap();
    // An insertion moves everything behind it; the cuts follow.
    content.splice(5_000_000..5_000_000, *b"inserted");
    std::fs::write(place.path("source/file"), &content).unwrap();
    let output = place.restic(&["backup", "--json", place.path("source").to_str().unwrap()]);
    let summary = output.lines().find(|line| line.contains("\"summary\"")).unwrap();
    let new: u64 = summary
        .split("\"data_blobs\":")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=3).contains(&new), "{summary}");
}

#[test]
fn the_stock_clients_other_passwords_and_compression_settings_open() {
    let place = Place::new();
    place.restic(&["init"]);
    std::fs::create_dir(place.path("source")).unwrap();
    std::fs::write(place.path("source/file"), "text ".repeat(10_000)).unwrap();
    std::fs::write(place.path("new"), "other password").unwrap();
    let new = place.path("new");
    place.restic(&["key", "add", "--new-password-file", new.to_str().unwrap()]);
    let source = place.path("source");
    for compression in ["off", "max"] {
        place.restic(&[
            "backup",
            "--force",
            "--compression",
            compression,
            source.to_str().unwrap(),
        ]);
    }
    let other = stillpoint_repository::Repository::open(place.store(), "other password").unwrap();
    assert_eq!(other.snapshots().unwrap().len(), 2);
    let check = other.check(&CheckOptions { read_data: true }, &Silent).unwrap();
    assert_eq!(check.problems, Vec::<String>::new());
}

#[test]
fn a_version_1_repository_is_read_and_not_written() {
    let place = Place::new();
    place.restic(&["init", "--repository-version", "1"]);
    std::fs::create_dir(place.path("source")).unwrap();
    std::fs::write(place.path("source/file"), "text").unwrap();
    place.restic(&["backup", place.path("source").to_str().unwrap()]);
    let repository = place.open();
    let check = repository.check(&CheckOptions { read_data: true }, &Silent).unwrap();
    assert_eq!(check.problems, Vec::<String>::new());
    let refused = repository.backup(&[place.path("source")], &BackupOptions::default(), &Silent);
    assert!(refused.unwrap_err().to_string().contains("version 1"));
}
