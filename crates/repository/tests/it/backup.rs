//! Backups of a file system that does not hold still, or may not be read.

use crate::support::{Place, noise};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use stillpoint_model::progress::{Monitor, Silent};
use stillpoint_repository::{
    BackupOptions, BackupReport, Node, Reader, Repository, RepositoryError, RestoreOptions,
};

fn backup(repository: &Repository, source: &Path, monitor: &dyn Monitor) -> BackupReport {
    repository.backup(&[source.to_owned()], &BackupOptions::default(), monitor).unwrap()
}

fn saved(reader: &Reader, report: &BackupReport, path: &Path) -> Result<Node, RepositoryError> {
    let (_, snapshot) = reader.find_snapshot(&report.snapshot.to_hex()).unwrap();
    reader.lookup(&snapshot.tree, path.to_str().unwrap())
}

/// Runs something once, at the first progress of the kind.
struct Once<F: FnOnce() + Send> {
    at_advance: bool,
    run: Mutex<Option<F>>,
}

impl<F: FnOnce() + Send> Once<F> {
    fn now(&self) {
        if let Some(run) = self.run.lock().unwrap().take() {
            run();
        }
    }
}

impl<F: FnOnce() + Send> Monitor for Once<F> {
    fn advance(&self, _: u64) {
        if self.at_advance {
            self.now();
        }
    }
    fn cancelled(&self) -> bool {
        if !self.at_advance {
            self.now();
        }
        false
    }
}

#[test]
fn a_file_that_shrinks_or_grows_while_it_is_read_is_saved_as_read_and_noted() {
    for grow in [false, true] {
        let place = Place::new();
        let source = place.path("source");
        fs::create_dir(&source).unwrap();
        let file = source.join("file");
        fs::write(&file, noise(1, 20 << 20)).unwrap();
        let monitor = Once {
            at_advance: true,
            run: Mutex::new(Some({
                let file = file.clone();
                move || {
                    let opened = fs::OpenOptions::new().append(true).open(&file).unwrap();
                    if grow {
                        (&opened).write_all(&noise(2, 5 << 20)).unwrap();
                    } else {
                        opened.set_len(10 << 20).unwrap();
                    }
                }
            })),
        };
        let repository = place.init();
        let report = backup(&repository, &source, &monitor);
        assert_eq!(report.found.gaps, []);
        assert_eq!(report.found.notes.len(), 1, "{:?}", report.found.notes);
        assert_eq!(report.found.notes[0].0, file);
        let reader = repository.reader().unwrap();
        let node = saved(&reader, &report, &file).unwrap();
        assert_eq!(node.size, if grow { 25 << 20 } else { 10 << 20 });
        // The next backup does not take it for unchanged.
        let next = backup(&repository, &source, &Silent);
        assert_eq!((next.found.files_read, next.found.files_unchanged), (1, 0));
        let subtree = saved(&reader, &report, &source).unwrap().subtree.unwrap();
        let target = place.path("target");
        reader.restore(&subtree, &target, &RestoreOptions::default(), &Silent).unwrap();
        assert_eq!(fs::metadata(target.join("file")).unwrap().len(), node.size);
        place.restic_check();
    }
}

#[test]
fn a_file_that_vanishes_is_noted_and_is_no_gap() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    for name in ["a", "z"] {
        fs::write(source.join(name), name).unwrap();
    }
    let gone = source.join("z");
    let monitor = Once {
        at_advance: false,
        run: Mutex::new(Some({
            let gone = gone.clone();
            move || fs::remove_file(gone).unwrap()
        })),
    };
    let repository = place.init();
    let report = backup(&repository, &source, &monitor);
    assert_eq!(report.found.gaps, []);
    assert_eq!(report.found.notes.len(), 1);
    assert_eq!(report.found.notes[0].0, gone);
    let reader = repository.reader().unwrap();
    assert!(saved(&reader, &report, &source.join("a")).is_ok());
    assert!(saved(&reader, &report, &gone).is_err());
}

/// Makes this thread, and those it starts, obey file permissions even as root.
fn obey_permissions() {
    let mut sets = capabilities(None).unwrap();
    let overrides = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    sets.effective.remove(overrides);
    set_capabilities(None, sets).unwrap();
}

#[test]
fn what_cannot_be_read_is_a_gap_and_the_rest_is_saved() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir_all(source.join("closed directory")).unwrap();
    for name in ["closed", "open", "closed directory/inside"] {
        fs::write(source.join(name), name).unwrap();
    }
    for name in ["closed", "closed directory"] {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(0o0)).unwrap();
    }
    let repository = place.init();
    let report = std::thread::scope(|scope| {
        let saving = scope.spawn(|| {
            obey_permissions();
            backup(&repository, &source, &Silent)
        });
        saving.join().unwrap()
    });
    fs::set_permissions(source.join("closed directory"), fs::Permissions::from_mode(0o700))
        .unwrap();
    let mut gaps: Vec<_> = report.found.gaps.iter().map(|(path, _)| path.clone()).collect();
    gaps.sort();
    assert_eq!(gaps, [source.join("closed"), source.join("closed directory")]);
    let reader = repository.reader().unwrap();
    assert!(saved(&reader, &report, &source.join("open")).is_ok());
    assert!(saved(&reader, &report, &source.join("closed")).is_err());
    place.restic_check();
}

#[test]
fn unchanged_files_are_not_read_and_changed_ones_are() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for name in ["a", "b", "sub/c"] {
        fs::write(source.join(name), name).unwrap();
    }
    let repository = place.init();
    // A snapshot far enough behind the files' change times that the clock's tick does not matter.
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(5);
    let options = BackupOptions { time: Some(later), ..BackupOptions::default() };
    let first = repository.backup(std::slice::from_ref(&source), &options, &Silent).unwrap();
    assert_eq!(first.found.files_read, 3);
    fs::write(source.join("b"), "B").unwrap();
    let later = later + jiff::SignedDuration::from_secs(5);
    let options = BackupOptions { time: Some(later), ..BackupOptions::default() };
    let second = repository.backup(std::slice::from_ref(&source), &options, &Silent).unwrap();
    assert_eq!(second.parent, Some(first.snapshot));
    assert_eq!((second.found.files_read, second.found.files_unchanged), (1, 2));
    let reader = repository.reader().unwrap();
    let node = saved(&reader, &second, &source.join("b")).unwrap();
    let mut content = String::new();
    std::io::Read::read_to_string(&mut reader.open(&node.content.unwrap()), &mut content).unwrap();
    assert_eq!(content, "B");
    place.restic_check();
}

#[test]
fn a_change_in_the_tick_of_the_last_backup_is_not_missed() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "1").unwrap();
    let repository = place.init();
    let changed = Node::inspect(&source.join("file")).unwrap().changed;
    // Some file systems count whole seconds, FAT every second one.
    for (after, files_read) in [(0, 1), (1000, 1), (2000, 1), (3000, 0)] {
        let time = changed + jiff::SignedDuration::from_millis(after);
        let options = BackupOptions { time: Some(time), ..BackupOptions::default() };
        repository.backup(std::slice::from_ref(&source), &options, &Silent).unwrap();
        let time = Some(time + jiff::SignedDuration::from_millis(1));
        let options = BackupOptions { time, ..BackupOptions::default() };
        let next = repository.backup(std::slice::from_ref(&source), &options, &Silent).unwrap();
        assert_eq!(next.found.files_read, files_read, "{after} ms after the change");
    }
}

#[test]
fn a_parent_whose_blobs_are_lost_is_healed_by_reading_again() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let repository = place.init();
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(5);
    let options = BackupOptions { time: Some(later), ..BackupOptions::default() };
    repository.backup(std::slice::from_ref(&source), &options, &Silent).unwrap();
    fs::remove_dir_all(place.path("repo/index")).unwrap();
    fs::create_dir(place.path("repo/index")).unwrap();
    let second = repository.backup(std::slice::from_ref(&source), &options, &Silent).unwrap();
    assert_eq!(second.found.files_read, 1);
    let reader = repository.reader().unwrap();
    let subtree = saved(&reader, &second, &source).unwrap().subtree.unwrap();
    let target = place.path("target");
    reader.restore(&subtree, &target, &RestoreOptions::default(), &Silent).unwrap();
    assert_eq!(fs::read(target.join("file")).unwrap(), b"content");
}

#[test]
fn excluded_files_are_left_out_and_missing_paths_are_an_error() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir_all(source.join("cache")).unwrap();
    for name in ["keep", "drop.tmp", "cache/x"] {
        fs::write(source.join(name), name).unwrap();
    }
    let repository = place.init();
    let options = BackupOptions {
        excludes: vec!["*.tmp".into(), source.join("cache").to_str().unwrap().into()],
        ..BackupOptions::default()
    };
    let report = repository.backup(std::slice::from_ref(&source), &options, &Silent).unwrap();
    let reader = repository.reader().unwrap();
    assert!(saved(&reader, &report, &source.join("keep")).is_ok());
    assert!(saved(&reader, &report, &source.join("drop.tmp")).is_err());
    assert!(saved(&reader, &report, &source.join("cache")).is_err());
    let missing = repository.backup(&[place.path("missing")], &options, &Silent).unwrap_err();
    assert!(missing.to_string().contains("missing"), "{missing}");
    assert_eq!(repository.snapshots().unwrap().len(), 1);
    assert_eq!(place.count("locks"), 0);
}
