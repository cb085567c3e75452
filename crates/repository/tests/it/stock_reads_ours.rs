//! What we write, the stock client reads, checks and restores.

use crate::support::{Place, noise};
use jiff::Timestamp;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{Node, RestoreOptions, Snapshot, Tree, WriterOptions};

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
