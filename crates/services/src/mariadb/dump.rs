//! One database's dump: the stock program behind its gate.
//!
//! A dump counts only if the program ended well, said nothing on its standard error, and wrote its
//! last line: it exits with 0 in cases where rows are missing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::gate::Gate;
use super::login::Login;
use super::scan::{Scan, Seen};
use super::tools::Dumper;
use crate::{ServiceError, Sink};

/// How long a dump may take to come to its gate, and to be given its snapshot.
const COME: Duration = Duration::from_secs(60);
const GRANT: Duration = Duration::from_secs(5);

/// A dump that runs. Ends with this value.
pub(super) struct Dump {
    database: String,
    child: Child,
    gate: Gate,
    out: Option<ChildStdout>,
    said: PathBuf,
    options: PathBuf,
}

impl Dump {
    /// Starts it. `dir` is private and the dump's own.
    pub(super) fn start(
        dumper: &Dumper,
        login: &Login,
        database: &str,
        views: &[String],
        history: bool,
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
        let gate = Gate::listen(&socket, login.address.clone()).map_err(|e| {
            doing().because(e).hint("a socket's path is short: set TMPDIR to a short one")
        })?;
        let wrote = login.write_options(&options, Some(&socket), dumper.version.mariadb);
        let errors = File::create(&said).map_err(|e| doing().because(e));
        let (Ok(()), Ok(errors)) = (&wrote, &errors) else {
            gate.abandon();
            return Err(wrote.and(errors.map(drop)).err().unwrap_or_else(doing));
        };
        let mut command = Command::new(&dumper.path);
        command
            .arg(format!("--defaults-file={}", options.display()))
            .args(["--single-transaction", "--skip-triggers", "--hex-blob", "--quick"])
            .args(["--default-character-set=utf8mb4", "--skip-lock-tables", "--no-tablespaces"])
            // Under LOCK TABLES a default that takes the next value of a sequence fails.
            .arg("--skip-add-locks")
            // A statement for a row of any size; how large a server's may be is seen at the restore.
            .args(["--max-allowed-packet=1G", "--net-buffer-length=256K"])
            .args(history.then_some("--dump-history"))
            .args((!dumper.version.mariadb).then_some("--set-gtid-purged=OFF"))
            .args(views.iter().map(|view| format!("--ignore-table={database}.{view}")))
            .args(["--", database])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().map_err(|e| doing().because(e))?);
        let mut child = command.spawn().map_err(|e| {
            gate.abandon();
            doing().because(e)
        })?;
        let out = child.stdout.take();
        Ok(Self { database: database.to_owned(), child, gate, out, said, options })
    }

    /// Waits until it stands at its gate.
    pub(super) fn wait_parked(&mut self) -> Result<(), ServiceError> {
        let child = &mut self.child;
        let parked = self.gate.wait_parked(COME, || matches!(child.try_wait(), Ok(None)));
        // It has been read. Should this process be killed, no password is left behind.
        let _ = fs::remove_file(&self.options);
        if parked {
            return Ok(());
        }
        Err(ServiceError::new(format!("start the dump of the database {}", self.database))
            .because(self.words()))
    }

    /// What it said on its standard error.
    fn said(&self) -> Result<String, ServiceError> {
        let bytes = fs::read(&self.said)
            .map_err(|e| ServiceError::new(format!("read {}", self.said.display())).because(e))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The best words there are for what went wrong.
    fn words(&self) -> String {
        let said = self.said().unwrap_or_default();
        match (self.gate.why(), said.is_empty()) {
            (Some(why), true) => why,
            (Some(why), false) => format!("{said}; at its gate: {why}"),
            (None, false) => said,
            (None, true) => "the dump program ended or fell silent without a word".to_owned(),
        }
    }

    /// Has the server asked for its snapshot.
    pub(super) fn ask(&self) {
        self.gate.ask();
    }

    pub(super) fn wait_granted(&self) -> Result<(), ServiceError> {
        if self.gate.wait_granted(GRANT) {
            return Ok(());
        }
        // An answer that comes later belongs to no mark.
        self.gate.abandon();
        Err(ServiceError::new(format!("take the snapshot of the database {}", self.database))
            .because(self.words())
            .hint("back up again"))
    }

    /// Streams it; fails unless it came to its proper end.
    pub(super) fn stream(
        mut self,
        path: &str,
        sink: &dyn Sink,
    ) -> Result<(u64, Seen), ServiceError> {
        let fail = |database: &str| ServiceError::new(format!("dump the database {database}"));
        let Some(out) = self.out.take() else {
            return Err(fail(&self.database).because("it was streamed before"));
        };
        if !self.gate.release() {
            return Err(fail(&self.database).because(self.words()).hint("back up again"));
        }
        let mut out = Scan::new(out);
        let bytes = sink.write(path, &mut out).map_err(|e| fail(&self.database).because(e))?;
        let seen = out.seen();
        let status = self.child.wait().map_err(|e| fail(&self.database).because(e))?;
        let said = self.said()?;
        // 1412: the table is younger than the snapshot.
        let hint = if said.contains("Error 1412") {
            "back up again when no tables are being changed"
        } else {
            "back up again; the server's log may say more"
        };
        if !status.success() {
            let why = format!("the dump program ended early ({status}): {said}");
            return Err(fail(&self.database).because(why.trim_end_matches([':', ' '])).hint(hint));
        }
        if !said.is_empty() {
            let why = format!("the dump program was not content: {said}");
            return Err(fail(&self.database).because(why));
        }
        if !seen.completed() {
            return Err(fail(&self.database).because("it ended before its last line").hint(hint));
        }
        Ok((bytes, seen))
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        self.gate.abandon();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
