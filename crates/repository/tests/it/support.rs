//! What the tests share: a repository in a temporary directory, and the stock client as the oracle.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use stillpoint_repository::{LocalStore, Repository, Store};
use tempfile::TempDir;

pub(crate) const PASSWORD: &str = "correct horse";

/// A place with a repository in `repo`, and room beside it.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::new(LocalStore::new(self.path("repo")).unwrap())
    }

    /// A repository that this program created.
    pub(crate) fn init(&self) -> Repository {
        Repository::init(self.store(), PASSWORD).unwrap()
    }

    pub(crate) fn open(&self) -> Repository {
        Repository::open(self.store(), PASSWORD).unwrap()
    }

    /// Runs the stock client on the repository; its output whatever came of it.
    pub(crate) fn try_restic<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        Command::new("restic")
            .args(["--no-cache", "-q", "-r"])
            .arg(self.path("repo"))
            .args(arguments)
            .env("RESTIC_PASSWORD", PASSWORD)
            .output()
            .expect("the stock client is the oracle of these tests: install the package `restic`")
    }

    /// Runs the stock client, which must succeed; its standard output.
    pub(crate) fn restic<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let output = self.try_restic(arguments);
        assert!(
            output.status.success(),
            "restic {:?}: {}\n{}{}",
            arguments.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The stock client reads and verifies everything.
    pub(crate) fn restic_check(&self) {
        self.restic(&["check", "--read-data"]);
    }

    /// How many files are below a directory of the repository.
    pub(crate) fn count(&self, below: &str) -> usize {
        files(&self.path("repo").join(below)).len()
    }
}

/// Every file below a directory.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Noise(seed | 1).read_exact(&mut bytes).unwrap();
    bytes
}

/// An endless stream of such bytes.
pub(crate) struct Noise(pub(crate) u64);

impl Read for Noise {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        for eight in into.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            eight.copy_from_slice(&self.0.to_le_bytes()[..eight.len()]);
        }
        Ok(into.len())
    }
}

/// The difference between two directories as `diff` and `find` see it: content, names, types,
/// modes, owners, times, links.
pub(crate) fn assert_same(a: &Path, b: &Path) {
    let listing = |directory: &Path| {
        let output = Command::new("find")
            .arg(".")
            .args(["-printf", "%P %y %m %U:%G %n %s %T@ %l\\n"])
            .current_dir(directory)
            .output()
            .unwrap();
        assert!(output.status.success());
        let mut lines: Vec<String> = output
            .stdout
            .split(|byte| *byte == b'\n')
            .map(|line| String::from_utf8_lossy(line).into_owned())
            // A directory's size is the file system's affair; the top was made by the restore.
            .filter(|line| !line.starts_with(' '))
            .map(|line| {
                let mut fields: Vec<&str> = line.split(' ').collect();
                if fields.get(1) == Some(&"d") {
                    fields[5] = "-";
                }
                fields.join(" ")
            })
            .collect();
        lines.sort();
        lines
    };
    let (left, right) = (listing(a), listing(b));
    for (left, right) in left.iter().zip(&right) {
        assert_eq!(left, right);
    }
    assert_eq!(left.len(), right.len());
    let diff = Command::new("diff").args(["-r", "--no-dereference"]).args([a, b]).output().unwrap();
    let text = String::from_utf8_lossy(&diff.stdout);
    // diff says of pipes and devices, always, that it does not compare them.
    let real: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains(" is a fifo ") && !line.contains(" special file "))
        .collect();
    assert!(real.is_empty(), "{real:?} {}", String::from_utf8_lossy(&diff.stderr));
}
