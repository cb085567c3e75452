//! A mount's mark must be what is on disk at that moment, whatever went on before it, and however
//! it is found what changed: by the kernel's events or by a walk.

mod events;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use stillpoint_capture::mount::{Earlier, Filter, MountParticipant, SETTLED_BEFORE};
use stillpoint_capture::{Account, Participant};
use stillpoint_model::progress::{Monitor, Silent};
use stillpoint_repository::{
    BlobId, LocalStore, Reader, Repository, RestoreOptions, Snapshot, WriterOptions,
};

/// A repository and a mount, below one directory.
struct Scene {
    top: tempfile::TempDir,
    repository: Repository,
    /// The mark walks, whatever else is possible.
    walking: bool,
}

/// What a backup of the mount came to.
struct Taken {
    tree: BlobId,
    account: Account,
}

impl Scene {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("mount")).unwrap();
        fs::create_dir(top.path().join("store")).unwrap();
        let store = Arc::new(LocalStore::new(top.path().join("store")).unwrap());
        let repository = Repository::init(store, "password").unwrap();
        Self { top, repository, walking: false }
    }

    /// A fresh scene for each way to find what changed.
    fn each_way() -> [Self; 2] {
        [Self::new(), Self { walking: true, ..Self::new() }]
    }

    fn mount(&self) -> PathBuf {
        self.top.path().join("mount")
    }

    fn participant(&self, exclude: &[&str]) -> MountParticipant {
        let exclude: Vec<String> = exclude.iter().map(|e| (*e).to_owned()).collect();
        let filter = Filter::new(&exclude).unwrap();
        let participant = MountParticipant::new("uploads".parse().unwrap(), self.mount(), filter);
        if self.walking { participant.walking() } else { participant }
    }

    /// Prepare; then `between`; then mark and capture.
    fn take(&self, participant: MountParticipant, between: impl FnOnce()) -> Taken {
        self.take_with(participant, &Silent, between)
    }

    fn take_with(
        &self,
        mut participant: MountParticipant,
        monitor: &dyn Monitor,
        between: impl FnOnce(),
    ) -> Taken {
        let writer = self.repository.writer(WriterOptions::default()).unwrap();
        participant.prepare(&writer, monitor).unwrap();
        between();
        participant.mark().unwrap();
        participant.capture(&writer, monitor).unwrap();
        let account = participant.account();
        let tree = account.part.as_ref().unwrap().1.subtree.unwrap();
        let now = jiff::Timestamp::now();
        writer.publish(Snapshot::new(tree, vec!["/m".to_owned()], vec![], now)).unwrap();
        Taken { tree, account }
    }

    fn reader(&self) -> Reader {
        self.repository.reader().unwrap()
    }

    /// Restores what was taken, looks at it, and removes it again.
    fn restored(&self, taken: &Taken) -> Vec<String> {
        let target = self.top.path().join("restored");
        let options = RestoreOptions::default();
        let reader = self.reader();
        reader.restore(&taken.tree, &target, &options, &Silent).unwrap();
        let differences = reader.verify(&taken.tree, &target, &Silent).unwrap();
        assert!(differences.is_empty(), "{differences:?}");
        let seen = look(&target);
        fs::remove_dir_all(&target).unwrap();
        seen
    }

    /// What was taken is what the mount holds now.
    fn assert_same(&self, taken: &Taken) {
        assert_eq!(self.restored(taken), look(&self.mount()));
    }
}

/// All that matters of a tree: paths, types, modes, times, contents, and which are one file.
fn look(directory: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        for entry in fs::read_dir(directory.join(&relative)).unwrap() {
            let relative = relative.join(entry.unwrap().file_name());
            let path = directory.join(&relative);
            let meta = fs::symlink_metadata(&path).unwrap();
            let what = if meta.is_dir() {
                pending.push(relative.clone());
                String::new()
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                let content = fs::read(&path).unwrap();
                let sum = content.iter().fold(0_u64, |sum, byte| {
                    sum.wrapping_mul(1_099_511_628_211).wrapping_add(u64::from(*byte))
                });
                format!("{} bytes, {sum:x}, {} names", content.len(), meta.nlink())
            };
            let mode = meta.permissions().mode();
            let (seconds, rest) = (meta.mtime(), meta.mtime_nsec());
            seen.push(format!("{} {mode:o} {seconds}.{rest} {what}", relative.display()));
        }
    }
    seen.sort();
    seen
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    File::create(path).unwrap().write_all(content.as_ref()).unwrap();
}

fn open(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn every_kind_of_file_comes_back_as_it_was() {
    for scene in Scene::each_way() {
        let mount = scene.mount();
        fs::create_dir_all(mount.join("a/b/c")).unwrap();
        write(&mount.join("a/b/file"), "text");
        write(&mount.join("empty"), "");
        write(&mount.join("large"), vec![5_u8; 3 << 20]);
        symlink("a/b/file", mount.join("link")).unwrap();
        symlink("nowhere", mount.join("dangling")).unwrap();
        fs::hard_link(mount.join("large"), mount.join("a/large")).unwrap();
        fs::set_permissions(mount.join("a/b/file"), fs::Permissions::from_mode(0o640)).unwrap();
        let taken = scene.take(scene.participant(&[]), || {});
        scene.assert_same(&taken);
        assert!(taken.account.gaps.is_empty() && taken.account.doubts.is_empty());
    }
}

#[test]
fn what_changes_between_prepare_and_mark_is_as_at_the_mark() {
    for scene in Scene::each_way() {
        let mount = scene.mount();
        for name in ["grows", "shrinks", "vanishes", "same-size", "mode", "replaced"] {
            write(&mount.join(name), "0123456789");
        }
        fs::create_dir_all(mount.join("old-name/deep")).unwrap();
        write(&mount.join("old-name/deep/child"), "child");
        let taken = scene.take(scene.participant(&[]), || {
            open(&mount.join("shrinks")).set_len(3).unwrap();
            let mut grows = OpenOptions::new().append(true).open(mount.join("grows")).unwrap();
            grows.write_all(b"more").unwrap();
            fs::remove_file(mount.join("vanishes")).unwrap();
            // The same size and a modification time that lies: only ctime tells.
            let before = fs::metadata(mount.join("same-size")).unwrap().modified().unwrap();
            let mut file = open(&mount.join("same-size"));
            file.write_all(b"9876543210").unwrap();
            file.set_modified(before).unwrap();
            fs::set_permissions(mount.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
            write(&mount.join("new"), "new");
            fs::rename(mount.join("new"), mount.join("replaced")).unwrap();
            fs::rename(mount.join("old-name"), mount.join("new-name")).unwrap();
        });
        scene.assert_same(&taken);
    }
}

#[test]
fn two_directories_that_changed_names_are_not_mistaken_for_one_another() {
    for scene in Scene::each_way() {
        let mount = scene.mount();
        for (name, content) in [("a", "aaaa"), ("b", "bbbb")] {
            fs::create_dir(mount.join(name)).unwrap();
            write(&mount.join(name).join("x"), content);
        }
        let taken = scene.take(scene.participant(&[]), || {
            fs::rename(mount.join("a"), mount.join("t")).unwrap();
            fs::rename(mount.join("b"), mount.join("a")).unwrap();
            fs::rename(mount.join("t"), mount.join("b")).unwrap();
        });
        scene.assert_same(&taken);
    }
}

/// A shared mapping, held by another program, since this one has no unsafe code.
struct Mapped(Child);

impl Mapped {
    fn open(path: &Path) -> Self {
        let script = "import mmap, sys\n\
            f = open(sys.argv[1], 'r+b')\n\
            m = mmap.mmap(f.fileno(), 0)\n\
            for line in sys.stdin:\n\
            \x20   place, byte = map(int, line.split())\n\
            \x20   m[place] = byte\n\
            \x20   print('done', flush=True)\n";
        let child = Command::new("python3")
            .args(["-c", script])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        Self(child)
    }

    fn store(&mut self, place: usize, byte: u8) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{place} {byte}").unwrap();
        let mut answer = [0_u8; 5];
        self.0.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn a_store_through_a_mapping_that_was_dirty_before_prepare_is_seen() {
    for scene in Scene::each_way() {
        let path = scene.mount().join("mapped");
        write(&path, vec![b'a'; 1 << 16]);
        let mut mapped = Mapped::open(&path);
        mapped.store(0, b'b');
        let taken = scene.take(scene.participant(&[]), || mapped.store(70, b'c'));
        scene.assert_same(&taken);
    }
}

#[test]
fn what_is_excluded_is_left_out_and_our_own_staging_too() {
    for scene in Scene::each_way() {
        let mount = scene.mount();
        for name in ["kept", "a.tmp"] {
            write(&mount.join(name), name);
        }
        fs::create_dir(mount.join("cache")).unwrap();
        write(&mount.join("cache/x"), "x");
        fs::create_dir(mount.join(".stillpoint-abc")).unwrap();
        let taken = scene.take(scene.participant(&["*.tmp", "/cache"]), || {});
        let nodes = scene.reader().tree(&taken.tree).unwrap().nodes;
        let names: Vec<_> = nodes.iter().map(|node| node.name.clone()).collect();
        assert_eq!(names, ["kept"]);
    }
}

#[test]
fn a_changing_mount_is_marked_as_it_is_when_the_changes_stop() {
    for scene in Scene::each_way() {
        let mount = scene.mount();
        for round in 0..8 {
            let stop = Arc::new(AtomicBool::new(false));
            let (stopping, directory) = (Arc::clone(&stop), mount.clone());
            let chaos = std::thread::spawn(move || wreak(&directory, round, &stopping));
            let taken = scene.take(scene.participant(&[]), || {
                stop.store(true, Ordering::Relaxed);
                chaos.join().unwrap();
            });
            scene.assert_same(&taken);
            assert!(taken.account.gaps.is_empty(), "{:?}", taken.account.gaps);
            assert!(taken.account.doubts.is_empty(), "{:?}", taken.account.doubts);
        }
    }
}

#[test]
fn a_mount_that_changes_in_the_mark_is_still_captured_whole() {
    let scene = Scene::new();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, directory) = (Arc::clone(&stop), scene.mount());
    let chaos = std::thread::spawn(move || wreak(&directory, 77, &stopping));
    for _ in 0..8 {
        let taken = scene.take(scene.participant(&[]), || {});
        scene.restored(&taken);
    }
    stop.store(true, Ordering::Relaxed);
    chaos.join().unwrap();
}

/// Creates, appends, truncates, rewrites, renames and removes files and directories until told to
/// stop. Always the same for the same seed, but for when it is stopped.
fn wreak(top: &Path, seed: u64, stop: &AtomicBool) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    };
    while !stop.load(Ordering::Relaxed) {
        let directory = top.join(format!("d{}", random(4)));
        let path = directory.join(format!("f{}", random(12)));
        // Any of these may fail where the target is not there just now; that is the point.
        match random(8) {
            0 | 1 => drop(fs::create_dir_all(&directory)),
            2 => {
                let content = vec![random(256) as u8; random(300_000) as usize];
                drop(File::create(&path).and_then(|mut file| file.write_all(&content)));
            }
            3 => drop(
                OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(b"tail")),
            ),
            4 => drop(
                OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(random(5000))),
            ),
            5 => drop(OpenOptions::new().write(true).open(&path).and_then(|mut f| {
                f.seek(SeekFrom::Start(random(100)))?;
                f.write_all(&random(u64::MAX).to_le_bytes())
            })),
            6 => drop(fs::rename(&directory, top.join(format!("d{}", random(4))))),
            _ => drop(fs::remove_file(&path)),
        }
    }
}

#[test]
fn a_mount_that_is_reached_by_a_symbolic_link_is_captured() {
    let scene = Scene::new();
    write(&scene.mount().join("file"), "text");
    let link = scene.top.path().join("link");
    symlink(scene.mount(), &link).unwrap();
    let filter = Filter::new(&[]).unwrap();
    let participant = MountParticipant::new("uploads".parse().unwrap(), link, filter);
    let taken = scene.take(participant, || {});
    scene.assert_same(&taken);
}

#[test]
fn who_changes_a_mount_in_the_mark_is_noticed() {
    for scene in Scene::each_way() {
        let mount = scene.mount();
        for number in 0..1000 {
            write(&mount.join(format!("f{number}")), "content");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, path) = (Arc::clone(&stop), mount.join("f500"));
        let writer = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                open(&path).write_all(b"changed").unwrap();
            }
        });
        // Much is to be read in the mark, so that it takes its time.
        let taken = scene.take(scene.participant(&[]), || {
            for number in 0..1000 {
                write(&mount.join(format!("f{number}")), "content again");
            }
        });
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        let doubts = &taken.account.doubts;
        assert!(doubts.iter().any(|doubt| doubt.contains("f500")), "{doubts:?}");
    }
}

#[test]
fn a_counter_stands_still_with_the_mount_and_moves_with_it() {
    for scene in Scene::each_way() {
        write(&scene.mount().join("file"), "text");
        let writer = scene.repository.writer(WriterOptions::default()).unwrap();
        let mut participant = scene.participant(&["*.tmp"]);
        participant.prepare(&writer, &Silent).unwrap();
        let first = participant.counter().unwrap().expect("a small mount is watched");
        write(&scene.mount().join("file.tmp"), "excluded");
        fs::remove_file(scene.mount().join("file.tmp")).unwrap();
        assert_eq!(participant.counter().unwrap().as_ref(), Some(&first));
        write(&scene.mount().join("other"), "text");
        assert_ne!(participant.counter().unwrap(), Some(first));
        drop(participant);
        writer.abandon().unwrap();
    }
}

#[test]
fn a_services_own_file_is_left_out_by_any_path_and_named() {
    for scene in Scene::each_way() {
        let database = scene.top.path().join("app.db");
        write(&database, "locked");
        fs::hard_link(&database, scene.mount().join("linked.db")).unwrap();
        write(&scene.mount().join("other"), "text");
        let participant = scene.participant(&[]).keeping_apart(vec![database]);
        let taken = scene.take(participant, || {});
        let gaps = &taken.account.gaps;
        assert_eq!(gaps.len(), 1);
        assert_eq!(gaps[0].what, "linked.db");
        let nodes = scene.reader().tree(&taken.tree).unwrap().nodes;
        assert_eq!(nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>(), ["other"]);
    }
}

#[test]
fn a_fifo_does_not_stop_the_backup() {
    let scene = Scene::new();
    let path = scene.mount().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let taken = scene.take(scene.participant(&[]), || {});
    assert_eq!(scene.reader().tree(&taken.tree).unwrap().nodes.len(), 1);
}

#[test]
fn what_the_last_backup_trusted_is_not_read_again_unless_it_changed() {
    let scene = Scene::new();
    let mount = scene.mount();
    for number in 0..20 {
        write(&mount.join(format!("f{number}")), format!("content {number}"));
    }
    let first = scene.take(scene.participant(&[]), || {});
    let part = &first.account.part.as_ref().unwrap().0;
    let Some(settled_before) = part.marker.values.get(SETTLED_BEFORE) else {
        return; // A file system that does not tell of every change: nothing may be trusted.
    };
    let settled_before = settled_before.parse().unwrap();
    let trusted = fs::read_dir(&mount)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap())
        .filter(|meta| {
            i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec())
                < settled_before
        })
        .count();
    let reader = scene.reader();
    let mut participant = scene.participant(&[]);
    participant.recall(&Earlier { reader: &reader, tree: first.tree, settled_before }).unwrap();
    let notes = Notes::default();
    let second = scene.take_with(participant, &notes, || {});
    scene.assert_same(&second);
    let first_pass = notes.0.lock().unwrap()[0].clone();
    assert!(
        first_pass.contains(&format!("pass 1 read {} files", 20 - trusted)),
        "{first_pass}, {trusted} trusted"
    );

    let mut participant = scene.participant(&[]);
    participant.recall(&Earlier { reader: &reader, tree: first.tree, settled_before }).unwrap();
    write(&mount.join("f3"), "changed 3");
    let third = scene.take(participant, || {});
    scene.assert_same(&third);
}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Monitor for Notes {
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}
