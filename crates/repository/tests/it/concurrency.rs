//! Several threads on one writer, several writers on one repository.

use crate::support::{Noise, Place};
use jiff::Timestamp;
use std::io::Read;
use std::num::NonZeroU64;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{CheckOptions, Node, Repository, Snapshot, Tree, WriterOptions};

fn write(repository: &Repository, seeds: &[u64]) {
    let writer = repository.writer(WriterOptions::default()).unwrap();
    let now = Timestamp::now();
    let nodes = std::thread::scope(|scope| {
        let saving: Vec<_> = seeds
            .iter()
            .map(|seed| {
                let writer = &writer;
                scope.spawn(move || {
                    let content = writer.save_data(&mut Noise::new(*seed).take(5 << 20)).unwrap();
                    Node::file(&seed.to_string(), content, now)
                })
            })
            .collect();
        saving.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let tree = writer.save_tree(&Tree { nodes }).unwrap();
    writer.publish(Snapshot::new(tree, vec![], vec![], now)).unwrap();
}

#[test]
fn writers_at_the_same_time_do_not_disturb_one_another() {
    let place = Place::new();
    let repository = place.init();
    std::thread::scope(|scope| {
        for seeds in [[1, 3, 5], [3, 5, 7], [5, 7, 9]] {
            let repository = &repository;
            scope.spawn(move || write(repository, &seeds));
        }
    });
    assert_eq!(repository.snapshots().unwrap().len(), 3);
    let check = repository.check(&CheckOptions { read_data: true }, &Silent).unwrap();
    assert_eq!(check.problems, Vec::<String>::new());
    assert_eq!(place.count("locks"), 0);
    place.restic_check();
}

#[test]
fn content_is_cut_and_ordered_the_same_whatever_the_number_of_threads() {
    let place = Place::new();
    let repository = place.init();
    let mut contents = Vec::new();
    for workers in [1, 2, 7] {
        let options = WriterOptions { workers, ..WriterOptions::default() };
        let writer = repository.writer(options).unwrap();
        let content = writer.save_data(&mut Noise::new(21).take(50 << 20)).unwrap();
        assert_eq!(content.size, 50 << 20);
        let new = writer.stats().blobs_new;
        let tree = Tree { nodes: vec![Node::file("f", content.clone(), Timestamp::UNIX_EPOCH)] };
        let tree = writer.save_tree(&tree).unwrap();
        let snapshot = Snapshot::new(tree, vec![], vec![], Timestamp::now());
        writer.publish(snapshot).unwrap();
        assert_eq!(new == 0, !contents.is_empty(), "stored once only");
        contents.push(content);
    }
    assert!(contents.iter().all(|content| *content == contents[0]));
    let reader = repository.reader().unwrap();
    let (mut read, mut expected) = (Vec::new(), Vec::new());
    reader.open(&contents[0].blobs).read_to_end(&mut read).unwrap();
    Noise::new(21).take(50 << 20).read_to_end(&mut expected).unwrap();
    assert!(read == expected);
}

#[test]
fn the_same_content_from_several_threads_is_stored_once() {
    let place = Place::new();
    let repository = place.init();
    let writer = repository.writer(WriterOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| writer.save_data(&mut Noise::new(33).take(3 << 20)).unwrap());
        }
    });
    let stats = writer.stats();
    assert_eq!(stats.bytes_read, 12 << 20);
    assert_eq!(stats.bytes_added, 3 << 20);
    writer.abandon().unwrap();
    // Referring to what nobody published is refused.
    let writer = repository.writer(WriterOptions::default()).unwrap();
    let orphan = stillpoint_repository::BlobId::of(b"never saved");
    let nodes = vec![Node::directory("x", orphan, Timestamp::UNIX_EPOCH)];
    assert!(writer.save_tree(&Tree { nodes }).is_err());
    assert!(writer.publish(Snapshot::new(orphan, vec![], vec![], Timestamp::UNIX_EPOCH)).is_err());
}

/// Noise that notes how much was asked of it at once.
struct Asked(Noise, usize);

impl Read for Asked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1.max(buffer.len());
        self.0.read(buffer)
    }
}

#[test]
fn a_writer_with_a_rate_reads_the_same_in_smaller_steps() {
    let place = Place::new();
    let repository = place.init();
    let rate = NonZeroU64::new(1_000_000);
    let [(free, most), (paced, step)] = [None, rate].map(|rate| {
        let options = WriterOptions { rate, ..WriterOptions::default() };
        let writer = repository.writer(options).unwrap();
        let mut source = Asked(Noise::new(5), 0);
        let content = writer.save_data(&mut (&mut source).take(300_000)).unwrap();
        (content, source.1)
    });
    assert_eq!(paced.blobs, free.blobs);
    assert_eq!(step, 100_000, "a tenth of a second's");
    assert!(most > step, "without a rate {most} bytes were asked for at once");
}
