//! A private server of our own that reads a captured RDB, and by that proves that it can be read.
//!
//! It listens on a socket in a directory that only its account can enter, keeps nothing, and ends
//! with the value that stands for it. If this process is killed, a shell that waits for the end of
//! its input ends the server and removes the directory: captured data is not left behind in plain
//! text. Run by root, the server has no rights: what it parses comes from a backup.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::address::{Address, Login};
use super::super::connection::{PATIENT, Session};
use super::super::facts::{Facts, RDB};
use super::super::info::{Info, LOOK};
use super::super::rdb::Passing;
use crate::{ServiceError, Source};

/// How many databases it has: more than any captured server.
pub(super) const DATABASES: u32 = 4096;
/// How long it may take to listen. Loading has no limit.
const START: Duration = Duration::from_mins(1);
/// `nobody`, on every system that matters here.
const NOBODY: u32 = 65534;

/// The shell's part. Its input ends with this process. The first word on it says that the directory
/// is filled, a second one that the server is gone.
const GUARD: &str = r#"dir=$1; shift; exec 3<&0
read -r filled <&3 || { rm -rf -- "$dir"; exit 1; }
(read -r gone <&3 || kill -9 $$; rm -rf -- "$dir") >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-"#;

/// A running server. Dropping it ends it.
pub(super) struct Auxiliary {
    child: Child,
    dir: TempDir,
}

impl Auxiliary {
    /// Starts `program`, with the RDB of `source` or empty. Ready when it returns.
    pub(super) fn start(program: &Path, source: Option<&dyn Source>) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new("start an auxiliary server");
        let dir = tempfile::Builder::new()
            .prefix("stillpoint-redis-")
            .tempdir()
            .map_err(|e| doing().because(e))?;
        let log = dir.path().join("log");
        let prepared = File::create(&log).and_then(|log| Ok((log.try_clone()?, log)));
        let (out, errors) = prepared.map_err(|e| doing().because(e))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", GUARD, "sh"])
            .arg(dir.path())
            .arg(program)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(["--enable-debug-command", "local", "--rdbcompression", "no"])
            .args(["--maxmemory", "0", "--unixsocketperm", "700", "--dbfilename", RDB])
            .args(["--databases", &DATABASES.to_string(), "--protected-mode", "yes"])
            .arg("--unixsocket")
            .arg(dir.path().join("socket"))
            .arg("--dir")
            .arg(dir.path())
            .current_dir(dir.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(errors);
        let is_nobody = rustix::process::geteuid().is_root() && is_open_to_all(dir.path());
        if is_nobody {
            give(dir.path(), NOBODY).map_err(|e| doing().because(e))?;
            command.gid(NOBODY).uid(NOBODY);
        }
        let child = command.spawn().map_err(|e| doing().because(e))?;
        let mut auxiliary = Self { child, dir };
        if let Some(source) = source {
            fetch(source, &auxiliary.dir.path().join(RDB))?;
            if is_nobody {
                give(auxiliary.dir.path(), NOBODY).map_err(|e| doing().because(e))?;
            }
        }
        auxiliary.tell("filled\n").map_err(|e| doing().because(e))?;
        auxiliary.wait()?;
        Ok(auxiliary)
    }

    fn tell(&mut self, word: &str) -> io::Result<()> {
        self.child.stdin.as_mut().map_or(Ok(()), |input| input.write_all(word.as_bytes()))
    }

    pub(super) fn connect(&self) -> Result<Session, ServiceError> {
        let address = Address::Socket(self.dir.path().join("socket"));
        let login = Login { user: None, password: None, address };
        login.connect(PATIENT)
    }

    /// Waits until it has loaded everything; fails with its own words if it ends before.
    fn wait(&mut self) -> Result<(), ServiceError> {
        let doing = || ServiceError::new("load the capture into an auxiliary server");
        let end = Instant::now() + START;
        loop {
            if self.child.try_wait().map_err(|e| doing().because(e))?.is_some() {
                return Err(doing().because(self.last_words()));
            }
            // It may end at any moment of this: then the next round says why.
            let asked = self.connect().and_then(|mut session| {
                let info = Info::read(&mut session, &["persistence"])?;
                Ok((session, info.text("loading") == "0"))
            });
            match asked {
                Ok((mut session, true)) => {
                    // Keys that expire go when they are asked for, not at any moment.
                    return session.run(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
                }
                Err(error) if Instant::now() >= end => return Err(error),
                Ok(_) | Err(_) => {}
            }
            thread::sleep(LOOK);
        }
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log).into_owned();
        let mut lines: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once(" # ").map(|(_, words)| words))
            .collect();
        if lines.is_empty() {
            lines = text.lines().collect();
        }
        let last: Vec<&str> = lines.into_iter().rev().take(3).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Auxiliary {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The shell must not end what is gone: its number may be another's by now.
        let _ = self.tell("gone\n");
    }
}

/// Writes the captured RDB to `path`, and refuses one that is not what was captured.
fn fetch(source: &dyn Source, path: &Path) -> Result<(), ServiceError> {
    let doing = || ServiceError::new(format!("read {RDB} of the capture"));
    let facts = Facts::read(source)?;
    let mut file = File::create(path).map_err(|e| doing().because(e))?;
    let mut passing = Passing::new(source.open(RDB).map_err(|e| doing().because(e))?);
    io::copy(&mut passing, &mut file).map_err(|e| doing().because(e))?;
    let (bytes, hash) = passing.finish().map_err(|e| doing().because(e))?;
    if bytes != facts.rdb_bytes || hash != facts.sha256 {
        return Err(doing()
            .because("it is not what was captured: its hash is another")
            .hint("restore another backup"));
    }
    Ok(())
}

/// True where an account without rights can come to `dir`.
fn is_open_to_all(dir: &Path) -> bool {
    let mut above = dir.ancestors().skip(1);
    above.all(|dir| fs::metadata(dir).is_ok_and(|found| found.mode() & 0o001 != 0))
}

fn give(dir: &Path, id: u32) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        chown(entry?.path(), Some(id), Some(id))?;
    }
    chown(dir, Some(id), Some(id))
}
