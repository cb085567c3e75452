//! What we write, the stock client reads, checks and restores.

use crate::support::{Place, assert_same, build_everything, noise};
use jiff::Timestamp;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{BackupOptions, Node, RestoreOptions, Snapshot, Tree, WriterOptions};

#[test]
fn the_stock_client_checks_and_restores_what_a_writer_published() {
    let place = Place::new();
    let repository = place.init();
    let writer = repository.writer(WriterOptions::default()).unwrap();
    let now = Timestamp::now();
    let big = noise(1, 30 << 20);
    let text = "a line that compresses\n".repeat(100_000);
    let mut nodes = Vec::new();
    for (name, content) in [("big", big.as_slice()), ("text", text.as_bytes()), ("empty", b"")] {
        let saved = writer.save_data(&mut &content[..]).unwrap();
        assert_eq!(saved.size, content.len() as u64);
        nodes.push(Node::file(name, saved, now));
    }
    let inner = writer.save_tree(&Tree { nodes }).unwrap();
    let root =
        writer.save_tree(&Tree { nodes: vec![Node::directory("services", inner, now)] }).unwrap();
    let snapshot = Snapshot::new(root, vec!["/services".into()], vec!["tag".into()], now);
    let (id, stats) = writer.publish(snapshot.clone()).unwrap();
    assert_eq!(stats.bytes_read, stats.bytes_added);
    assert_eq!(stats.lock_left, None);
    assert_eq!(place.count("locks"), 0);
    assert_eq!(place.count("tmp"), 0);

    place.restic_check();
    let restored = place.path("stock");
    place.restic(&["restore", &id.to_hex(), "--target", restored.to_str().unwrap()]);
    assert!(std::fs::read(restored.join("services/big")).unwrap() == big);
    assert_eq!(std::fs::read_to_string(restored.join("services/text")).unwrap(), text);
    assert_eq!(std::fs::read(restored.join("services/empty")).unwrap(), b"");

    let repository = place.open();
    let reader = repository.reader().unwrap();
    assert_eq!(reader.snapshots(), [(id, snapshot)]);
    let ours = place.path("ours");
    reader.restore(&root, &ours, &RestoreOptions::default(), &Silent).unwrap();
    crate::support::assert_same(&restored, &ours);
    assert_eq!(reader.verify(&root, &ours, &Silent).unwrap(), []);
}

#[test]
fn the_stock_client_restores_a_file_system_backup_with_everything_in_it() {
    let place = Place::new();
    let source = place.path("source");
    build_everything(&source);
    std::fs::write(source.join("large"), noise(7, 20 << 20)).unwrap();
    let repository = place.init();
    let report = repository
        .backup(std::slice::from_ref(&source), &BackupOptions::default(), &Silent)
        .unwrap();
    assert_eq!(report.found.gaps, []);
    assert_eq!(report.found.notes.len(), 1, "the socket: {:?}", report.found.notes);
    place.restic_check();
    let target = place.path("restored");
    place.restic(&["restore", "latest", "--target", target.to_str().unwrap()]);
    std::fs::remove_file(source.join("socket")).unwrap();
    let restored = target.join(source.strip_prefix("/").unwrap());
    // Removing the socket changed the directory's own time.
    assert_same(&restored, &source);
}

#[test]
fn our_tree_of_a_directory_is_the_stock_clients_to_the_byte() {
    let place = Place::new();
    let source = place.path("source");
    build_everything(&source);
    // There all content is cut alike; in a repository of ours large files are not.
    place.restic(&["init"]);
    let repository = place.open();
    repository.backup(std::slice::from_ref(&source), &BackupOptions::default(), &Silent).unwrap();
    place.restic(&["backup", "--force", source.to_str().unwrap()]);
    let reader = repository.reader().unwrap();
    let path = source.to_str().unwrap();
    let trees: Vec<_> = reader
        .snapshots()
        .iter()
        .map(|(_, snapshot)| reader.lookup(&snapshot.tree, path).unwrap())
        .collect();
    assert_eq!(trees.len(), 2);
    assert_eq!(trees[0], trees[1], "metadata of the directory itself");
    assert!(trees[0].subtree.is_some(), "equal hashes mean equal bytes, all the way down");
}

#[test]
fn a_nothing_changed_backup_by_the_stock_client_takes_our_snapshot_as_its_parent() {
    let place = Place::new();
    let source = place.path("source");
    build_everything(&source);
    // There all content is cut alike; in a repository of ours large files are not.
    place.restic(&["init"]);
    let repository = place.open();
    let ours = repository
        .backup(std::slice::from_ref(&source), &BackupOptions::default(), &Silent)
        .unwrap();
    let output = place.restic(&["backup", "--json", source.to_str().unwrap()]);
    assert!(output.contains("\"files_new\":0"), "{output}");
    let reader = repository.reader().unwrap();
    assert_eq!(reader.snapshots()[1].1.parent, Some(ours.snapshot));
    // Not the roots: the temporary directory above is everyone's.
    let path = source.to_str().unwrap();
    let trees = [0, 1].map(|place: usize| {
        reader.lookup(&reader.snapshots()[place].1.tree, path).unwrap().subtree.unwrap()
    });
    assert_eq!(trees[0], trees[1]);
}
