//! One database's dump: the stock program behind its gate.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::connection::Login;
use super::gate::Gate;
use crate::{ServiceError, Sink};

/// How long a dump may take to come to its gate, and to be given its snapshot.
const COME: Duration = Duration::from_secs(60);
const PASS: Duration = Duration::from_secs(5);

/// What the dump program writes last.
const COMPLETED: &[u8] = b"-- Dump completed";

/// A dump that runs. Ends with this value.
pub(super) struct Dump {
    database: String,
    child: Child,
    gate: Gate,
    out: Option<ChildStdout>,
    said: PathBuf,
}

impl Dump {
    /// Starts it and waits until it stands at its gate. `dir` is private and the dump's own.
    pub(super) fn start(
        program: &Path,
        login: &Login,
        database: &str,
        views: &[String],
        dir: &Path,
    ) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new(format!("start the dump of the database {database}"));
        fs::create_dir_all(dir).map_err(|e| doing().because(e))?;
        let socket = dir.join("gate");
        let options = dir.join("options");
        let said = dir.join("said");
        for old in [&socket, &options] {
            let _ = fs::remove_file(old);
        }
        let gate = Gate::listen(&socket, login.address.clone()).map_err(|e| doing().because(e))?;
        login.write_options(&options, Some(&socket))?;
        let errors = File::create(&said).map_err(|e| doing().because(e))?;
        let mut command = Command::new(program);
        command
            .arg(format!("--defaults-file={}", options.display()))
            .args(["--single-transaction", "--skip-triggers", "--hex-blob", "--quick"])
            .args(["--default-character-set=utf8mb4", "--skip-lock-tables", "--no-tablespaces"])
            .args(views.iter().map(|view| format!("--ignore-table={database}.{view}")))
            .args(["--", database])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = command.spawn().map_err(|e| doing().because(e))?;
        let out = child.stdout.take();
        let mut dump = Self { database: database.to_owned(), child, gate, out, said };
        let child = &mut dump.child;
        if !dump.gate.wait_parked(COME, || matches!(child.try_wait(), Ok(None))) {
            let why = dump.words();
            return Err(doing().because(why));
        }
        Ok(dump)
    }

    fn words(&self) -> String {
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        match said.trim() {
            "" => "the dump program ended or fell silent without a word".to_owned(),
            said => said.to_owned(),
        }
    }

    pub(super) fn open(&self) {
        self.gate.open();
    }

    pub(super) fn wait_passed(&self) -> Result<(), ServiceError> {
        if self.gate.wait_passed(PASS) {
            return Ok(());
        }
        Err(ServiceError::new(format!("take the snapshot of the database {}", self.database))
            .because(self.words()))
    }

    /// Streams it; fails unless it came to its proper end.
    pub(super) fn stream(mut self, path: &str, sink: &dyn Sink) -> Result<u64, ServiceError> {
        let fail = |database: &str| ServiceError::new(format!("dump the database {database}"));
        let Some(out) = self.out.take() else {
            return Err(fail(&self.database).because("it was streamed before"));
        };
        let mut out = Tail { inner: out, last: Vec::new() };
        let bytes = sink.write(path, &mut out).map_err(|e| fail(&self.database).because(e))?;
        let status = self.child.wait().map_err(|e| fail(&self.database).because(e))?;
        let completed = out.last.windows(COMPLETED.len()).any(|part| part == COMPLETED);
        let words = fs::read_to_string(&self.said).unwrap_or_default();
        if !status.success() || !words.trim().is_empty() {
            return Err(fail(&self.database).because(format!("{status}: {}", words.trim())));
        }
        if !completed {
            return Err(fail(&self.database).because("it ended before its last line"));
        }
        Ok(bytes)
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        self.gate.abandon();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Remembers the last bytes.
struct Tail<R> {
    inner: R,
    last: Vec<u8>,
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.last.extend_from_slice(&buffer[..read]);
        let surplus = self.last.len().saturating_sub(200);
        self.last.drain(..surplus);
        Ok(read)
    }
}
