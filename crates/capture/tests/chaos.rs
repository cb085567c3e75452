//! Writers at full speed, stopped for the mark alone: what is captured must be, to the last byte,
//! mode, owner, attribute and link, what lay in the mount while they stood still.
//!
//! The writers go on as soon as the mark is taken, so a capture that still looks at the mount is
//! found out too. Two tests show that the comparison can fail: one takes the mark too early under
//! the same writers, one changes a single thing of each kind after the mark.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::SystemTime;
use stillpoint_capture::Participant;
use stillpoint_capture::mount::{Filter, MountParticipant};
use stillpoint_model::manifest::Gap;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{LocalStore, Repository, RestoreOptions, Snapshot, WriterOptions};

/// One entry of a tree, with everything of it that a backup must bring back.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// With the type.
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    attributes: BTreeMap<String, Vec<u8>>,
    /// A symbolic link's target is its content.
    content: Vec<u8>,
    /// How many names the file has, and the first of them; not of directories.
    names: Option<(u64, PathBuf)>,
}

type Copy = BTreeMap<PathBuf, Seen>;

/// Reads all of a tree.
fn copy(top: &Path) -> Copy {
    let mut copy = Copy::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(top.join(&directory)).unwrap() {
            let relative = directory.join(entry.unwrap().file_name());
            let path = top.join(&relative);
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                pending.push(relative.clone());
            }
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else if meta.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let seen = Seen {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                modified: (meta.mtime(), meta.mtime_nsec()),
                attributes: if meta.is_symlink() { BTreeMap::new() } else { attributes(&path) },
                content,
                // The first name is known once all are.
                names: (!meta.is_dir())
                    .then(|| (meta.nlink(), PathBuf::from(meta.ino().to_string()))),
            };
            copy.insert(relative, seen);
        }
    }
    // Inodes differ between a tree and its restored copy; which names are one file must not.
    let mut first = HashMap::new();
    for (path, seen) in &mut copy {
        if let Some((_, file)) = &mut seen.names {
            file.clone_from(first.entry(file.clone()).or_insert_with(|| path.clone()));
        }
    }
    copy
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::listxattr(path, &mut names).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 4096];
            let length = rustix::fs::getxattr(path, &name, &mut value).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// What is not the same in two trees, one line each, in words.
fn differences(expected: &Copy, found: &Copy) -> Vec<String> {
    let mut differences = Vec::new();
    for (path, left) in expected {
        let path_text = path.display();
        let Some(right) = found.get(path) else {
            differences.push(format!("{path_text}: missing"));
            continue;
        };
        let mut differs = |what: &str, same: bool| {
            if !same {
                differences.push(format!("{path_text}: {what}"));
            }
        };
        differs("mode", left.mode == right.mode);
        differs("owner", left.owner == right.owner);
        differs("time", left.modified == right.modified);
        differs("attributes", left.attributes == right.attributes);
        differs("content", left.content == right.content);
        differs("names", left.names == right.names);
    }
    let new = found.keys().filter(|path| !expected.contains_key(*path));
    differences.extend(new.map(|path| format!("{}: was not there", path.display())));
    differences
}

/// A repository and a mount, below one directory.
struct Scene {
    top: tempfile::TempDir,
    repository: Repository,
}

impl Scene {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("mount")).unwrap();
        fs::create_dir(top.path().join("store")).unwrap();
        let store = Arc::new(LocalStore::new(top.path().join("store")).unwrap());
        let repository = Repository::init(store, "password").unwrap();
        Self { top, repository }
    }

    fn mount(&self) -> PathBuf {
        self.top.path().join("mount")
    }

    /// One backup: prepare, then what `hold` does around and after the mark, then capture. What
    /// `hold` returns is compared with what was captured. The gaps and doubts come along.
    fn take(&self, hold: impl FnOnce(&mut MountParticipant) -> Copy) -> Outcome {
        let filter = Filter::new(&[]).unwrap();
        let mut participant =
            MountParticipant::new("uploads".parse().unwrap(), self.mount(), filter);
        let writer = self.repository.writer(WriterOptions::default()).unwrap();
        participant.prepare(&writer, &Silent).unwrap();
        let expected = hold(&mut participant);
        participant.capture(&writer, &Silent).unwrap();
        let account = participant.account();
        let tree = account.part.unwrap().1.subtree.unwrap();
        let now = jiff::Timestamp::now();
        writer.publish(Snapshot::new(tree, vec!["/m".to_owned()], vec![], now)).unwrap();
        let target = self.top.path().join("restored");
        let reader = self.repository.reader().unwrap();
        reader.restore(&tree, &target, &RestoreOptions::default(), &Silent).unwrap();
        let differences = differences(&expected, &copy(&target));
        fs::remove_dir_all(&target).unwrap();
        Outcome { differences, gaps: account.gaps, doubts: account.doubts }
    }
}

struct Outcome {
    differences: Vec<String>,
    gaps: Vec<Gap>,
    doubts: Vec<String>,
}

/// Writers that run until they are dropped. Each of their steps is taken while the gate is open:
/// whoever closes it waits for the steps that have begun, as a hold waits for requests in flight.
struct Writers {
    gate: Arc<RwLock<()>>,
    over: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

const WRITERS: u64 = 3;

impl Writers {
    fn start(top: &Path, seed: u64) -> Self {
        let mut writers = Self {
            gate: Arc::default(),
            over: Arc::default(),
            steps: Arc::default(),
            threads: Vec::new(),
        };
        for number in 0..WRITERS {
            let (top, mut random) = (top.to_owned(), Random::new(seed * WRITERS + number));
            writers.add(move || step(&top, &mut random));
        }
        // Opened before every backup and never closed: no close tells of what it writes.
        let log = OpenOptions::new().append(true).create(true).open(top.join("log")).unwrap();
        let mut line = 0_u64;
        writers.add(move || {
            line += 1;
            writeln!(&log, "{line}").unwrap();
            if line.is_multiple_of(1000) {
                log.set_len(0).unwrap();
            }
        });
        let table = File::create(top.join("table")).unwrap();
        table.set_len(1 << 18).unwrap();
        let mut random = Random::new(seed);
        writers.add(move || {
            table.write_all_at(&random.next().to_le_bytes(), random.below((1 << 18) - 8)).unwrap();
        });
        let mut mapped = Mapped::open(&top.join("mapped"), seed);
        writers.add(move || mapped.store());
        writers
    }

    /// A thread that does `step` again and again while the gate is open.
    fn add(&mut self, mut step: impl FnMut() + Send + 'static) {
        let gate = Arc::clone(&self.gate);
        let (over, steps) = (Arc::clone(&self.over), Arc::clone(&self.steps));
        self.threads.push(std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let open = gate.read().unwrap();
                step();
                drop(open);
                steps.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    /// Does something while all writers stand still.
    fn held<T>(&self, inside: impl FnOnce() -> T) -> T {
        let _closed = self.gate.write().unwrap();
        inside()
    }

    /// Waits until so many more steps have been taken.
    fn go_on(&self, count: u64) {
        let until = self.steps.load(Ordering::Relaxed) + count;
        while self.steps.load(Ordering::Relaxed) < until {
            assert!(
                !self.threads.iter().any(std::thread::JoinHandle::is_finished),
                "a writer died"
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A writer that panicked has said so, and fails `go_on`; no second panic here.
            drop(thread.join());
        }
    }
}

/// Numbers that are the same again for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One of a few files in a few directories, some below others.
    fn file(&mut self, top: &Path) -> PathBuf {
        self.directory(top).join(format!("f{}", self.below(12)))
    }

    fn directory(&mut self, top: &Path) -> PathBuf {
        let outer = top.join(format!("d{}", self.below(4)));
        if self.below(2) == 0 { outer } else { outer.join(format!("e{}", self.below(2))) }
    }
}

/// One thing that applications do. Any of it may fail where the target is not there just now, or
/// is of another kind: the writers are in each other's way, and that is the point.
fn step(top: &Path, random: &mut Random) {
    let (path, other) = (random.file(top), random.file(top));
    let opened = |options: &mut OpenOptions| options.open(&path);
    match random.below(13) {
        0 => drop(fs::create_dir_all(random.directory(top))),
        1 | 2 => {
            let content = vec![random.below(256) as u8; random.below(200_000) as usize];
            drop(File::create(&path).and_then(|mut file| file.write_all(&content)));
        }
        3 => drop(opened(OpenOptions::new().append(true)).and_then(|mut f| f.write_all(b"tail"))),
        4 => {
            drop(
                opened(OpenOptions::new().write(true)).and_then(|f| f.set_len(random.below(5000))),
            );
        }
        5 => {
            // The same size, and a modification time that lies.
            let before = fs::metadata(&path).and_then(|meta| meta.modified());
            drop(opened(OpenOptions::new().write(true)).and_then(|file| {
                file.write_all_at(&random.next().to_le_bytes(), random.below(100))?;
                file.set_modified(before?)
            }));
        }
        6 => drop(fs::rename(&path, &other)),
        7 => drop(fs::hard_link(&path, &other)),
        8 => drop(fs::rename(random.directory(top), random.directory(top))),
        9 => {
            drop(fs::set_permissions(
                &path,
                Permissions::from_mode(0o600 + random.below(64) as u32),
            ));
            // Only root may give a file away.
            drop(chown(&path, None, Some(1000 + random.below(3) as u32)));
        }
        10 => {
            let flags = rustix::fs::XattrFlags::empty();
            let value = random.next().to_le_bytes();
            rustix::fs::setxattr(&path, "user.chaos", &value, flags).unwrap_or(());
        }
        11 => drop(symlink(&other, &path)),
        _ => drop(fs::remove_file(&path)),
    }
}

/// A file that another program stores into through a shared mapping: this one has no unsafe code.
struct Mapped(std::process::Child);

impl Mapped {
    fn open(path: &Path, seed: u64) -> Self {
        File::create(path).unwrap().write_all(&vec![0; 1 << 18]).unwrap();
        let script = "import mmap, random, sys\n\
            random.seed(int(sys.argv[2]))\n\
            f = open(sys.argv[1], 'r+b')\n\
            m = mmap.mmap(f.fileno(), 0)\n\
            while sys.stdin.buffer.read(1):\n\
            \x20   m[random.randrange(len(m))] = random.randrange(256)\n\
            \x20   sys.stdout.buffer.write(b'.')\n\
            \x20   sys.stdout.buffer.flush()\n";
        let child = Command::new("python3")
            .args(["-c", script])
            .arg(path)
            .arg(seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        Self(child)
    }

    fn store(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b".").unwrap();
        self.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

const ROUNDS: usize = 5;

/// Files that the writers leave alone, so that prepare comes to trust them.
fn make_calm(top: &Path) {
    for round in 0..ROUNDS {
        let directory = top.join(format!("calm{round}"));
        fs::create_dir(&directory).unwrap();
        for name in ["rewritten", "mode", "attribute", "linked", "moved", "removed"] {
            File::create(directory.join(name)).unwrap().write_all(b"0123456789").unwrap();
        }
    }
}

/// Changes what prepare trusts, and at last the name of the directory above it.
fn disturb(top: &Path, round: usize) {
    let directory = top.join(format!("calm{round}"));
    let file = OpenOptions::new().write(true).open(directory.join("rewritten")).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"9876543210", 0).unwrap();
    file.set_modified(before).unwrap();
    fs::set_permissions(directory.join("mode"), Permissions::from_mode(0o604)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(directory.join("attribute"), "user.new", b"1", flags).unwrap();
    fs::hard_link(directory.join("linked"), top.join(format!("linked{round}"))).unwrap();
    fs::rename(directory.join("moved"), top.join(format!("moved{round}"))).unwrap();
    fs::remove_file(directory.join("removed")).unwrap();
    fs::rename(&directory, top.join(format!("renamed{round}"))).unwrap();
}

#[test]
fn what_writers_left_when_they_were_held_is_captured_to_the_last_bit() {
    let scene = Scene::new();
    let mount = scene.mount();
    make_calm(&mount);
    let writers = Writers::start(&mount, 1);
    for round in 0..ROUNDS {
        writers.go_on(2000);
        let outcome = scene.take(|participant| {
            disturb(&mount, round);
            writers.held(|| {
                participant.mark().unwrap();
                copy(&mount)
            })
        });
        let Outcome { differences, gaps, doubts } = outcome;
        assert!(differences.is_empty(), "round {round}: {differences:#?}");
        assert!(gaps.is_empty(), "round {round}: {gaps:?}");
        assert!(doubts.is_empty(), "round {round}: {doubts:?}");
    }
}

#[test]
fn a_mark_that_is_taken_before_the_writers_are_held_is_found_out() {
    let scene = Scene::new();
    let mount = scene.mount();
    let writers = Writers::start(&mount, 2);
    writers.go_on(2000);
    let outcome = scene.take(|participant| {
        participant.mark().unwrap();
        writers.go_on(2000);
        writers.held(|| copy(&mount))
    });
    assert!(!outcome.differences.is_empty());
}

#[test]
fn a_single_change_of_any_kind_after_the_mark_is_found_out() {
    type Change = fn(&Path);
    let changes: [(&str, &[&str], Change); 7] = [
        ("content", &["a: content"], |top| {
            let file = OpenOptions::new().write(true).open(top.join("a")).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(b"x", 0).unwrap();
            file.set_modified(before).unwrap();
        }),
        ("mode", &["a: mode"], |top| {
            fs::set_permissions(top.join("a"), Permissions::from_mode(0o604)).unwrap();
        }),
        ("owner", &["a: owner"], |top| {
            let group = fs::metadata(top.join("a")).unwrap().gid();
            chown(top.join("a"), None, Some(group + 1)).unwrap();
        }),
        ("attribute", &["a: attributes"], |top| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(top.join("a"), "user.new", b"1", flags).unwrap();
        }),
        ("link", &["a: names", "d: time", "d/linked: missing"], |top| {
            fs::hard_link(top.join("a"), top.join("d/linked")).unwrap();
        }),
        ("removal", &["b: was not there"], |top| fs::remove_file(top.join("b")).unwrap()),
        ("rename", &["c: missing", "b: was not there"], |top| {
            fs::rename(top.join("b"), top.join("c")).unwrap();
        }),
    ];
    for (kind, expected, change) in changes {
        if kind == "owner" && !rustix::process::geteuid().is_root() {
            continue; // Only root may give a file away.
        }
        let scene = Scene::new();
        let mount = scene.mount();
        fs::create_dir(mount.join("d")).unwrap();
        // Long ago: file systems count time in ticks, and two changes may fall into one.
        File::open(mount.join("d")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        for name in ["a", "b"] {
            File::create(mount.join(name)).unwrap().write_all(b"content").unwrap();
        }
        let outcome = scene.take(|participant| {
            participant.mark().unwrap();
            change(&mount);
            copy(&mount)
        });
        assert_eq!(outcome.differences, expected, "{kind}");
    }
}
