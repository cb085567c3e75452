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
    Noise::new(seed).read_exact(&mut bytes).unwrap();
    bytes
}

/// An endless stream of such bytes, however it is read.
pub(crate) struct Noise {
    state: u64,
    left: usize,
}

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, left: 0 }
    }
}

impl Read for Noise {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            if self.left == 0 {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.left = 8;
            }
            let bytes = self.state.to_le_bytes();
            let count = self.left.min(into.len() - filled);
            into[filled..][..count].copy_from_slice(&bytes[8 - self.left..][..count]);
            filled += count;
            self.left -= count;
        }
        Ok(filled)
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

pub(crate) fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory with everything that a file system has: nested, linked, odd names, odd modes.
pub(crate) fn build_everything(directory: &Path) {
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    fs::create_dir_all(directory.join("sub/deeper/deepest")).unwrap();
    fs::create_dir(directory.join("empty directory")).unwrap();
    let write = |name: &str, content: &[u8]| fs::write(directory.join(name), content).unwrap();
    write("hello.txt", b"hello\n");
    write("empty", b"");
    write("<&> \"quoted\" \\ back", b"<&>");
    write("new\nline\ttab\u{1}", b"x");
    write("uml\u{e4}ut \u{2028} \u{feff} \u{1F600}", b"unicode");
    write("sub/deeper/deepest/file", b"deep");
    write("incompressible", &noise(5, 300_000));
    fs::write(directory.join(OsString::from_vec(b"bad\xff\xfe".to_vec())), b"bytes").unwrap();
    symlink("hello.txt", directory.join("link")).unwrap();
    symlink("/nowhere/<&>", directory.join("dangling<&>")).unwrap();
    symlink("..", directory.join("sub/up")).unwrap();
    fs::hard_link(directory.join("hello.txt"), directory.join("sub/hard")).unwrap();
    let sparse = fs::File::create(directory.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (3 << 20) - 3).unwrap();
    UnixListener::bind(directory.join("socket")).unwrap();
    for (name, mode) in
        [("hello.txt", 0o4755), ("sub", 0o1777), ("empty directory", 0o2750), ("empty", 0o400)]
    {
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).current_dir(directory).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    };
    run("mkfifo", &["pipe"]);
    run("touch", &["-h", "-d", "1965-03-04T05:06:07.123456789Z", "hello.txt", "link"]);
    run("touch", &["-d", "2001-01-01T00:00:00.1Z", "sub/deeper"]);
    xattr::set(directory.join("hello.txt"), "user.test", b"value\x00\xff").unwrap();
    xattr::set(directory.join("sub/deeper"), "user.empty", b"").unwrap();
    if as_root() {
        run("mknod", &["null", "c", "1", "3"]);
        run("mknod", &["block", "b", "7", "200"]);
        run("chown", &["-h", "12345:54321", "link", "sub/deeper/deepest/file"]);
    }
}
