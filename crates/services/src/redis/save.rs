//! The server's own file: found, proven to be this server's, and opened when our save has ended.
//!
//! Guards against taking another save's file for ours. `rdb_saves` counts the saves that were begun
//! in the background: it must be one more than before our `BGSAVE`, still after the file was opened.
//! `FLUSHALL` ends a save that runs, without calling that a failure, and writes an empty file in the
//! foreground, which is counted nowhere: so calls of commands that save in the foreground are
//! compared too. The file stays ours once it is open, since a server never writes into a file that
//! has its final name.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::address::Address;
use super::connection::Session;
use super::info::{Info, LOOK};
use crate::ServiceError;

/// Where the server writes.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    name: String,
}

impl Files {
    /// The server's file, where it is on this machine and can be read; `None` where not.
    pub(super) fn find(
        session: &mut Session,
        address: &Address,
        info: &Info,
    ) -> Result<Option<Self>, ServiceError> {
        if !address.is_local() {
            return Ok(None);
        }
        let settings: HashMap<String, String> =
            session.run(&["CONFIG", "GET", "dir", "dbfilename"])?;
        let (Some(dir), Some(name)) = (settings.get("dir"), settings.get("dbfilename")) else {
            return Ok(None);
        };
        let files = Self { dir: PathBuf::from(dir), name: name.clone() };
        let process = PathBuf::from(format!("/proc/{}", info.number("process_id")?));
        Ok((files.is_of(&process) && files.is_readable(&process)).then_some(files))
    }

    /// A server works in its directory. Behind a forwarded port, or in a container, it is another
    /// process, or another directory.
    fn is_of(&self, process: &Path) -> bool {
        match (fs::metadata(process.join("cwd")), fs::metadata(&self.dir)) {
            (Ok(cwd), Ok(dir)) => (cwd.dev(), cwd.ino()) == (dir.dev(), dir.ino()),
            _ => false,
        }
    }

    fn is_readable(&self, process: &Path) -> bool {
        let own = rustix::process::geteuid();
        let same = fs::metadata(process).is_ok_and(|found| found.uid() == own.as_raw());
        own.is_root() || same || File::open(self.path()).is_ok()
    }

    fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }
}

/// What tells our save from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Saves {
    /// Begun in the background.
    pub(super) background: u64,
    /// Commands that may have saved in the foreground.
    foreground: u64,
}

impl Saves {
    /// The sections of [`Info`] that this needs.
    pub(super) const SECTIONS: [&'static str; 2] = ["persistence", "commandstats"];

    pub(super) fn of(info: &Info) -> Result<Self, ServiceError> {
        let saves = |command: &str| {
            let name = command.split('|').next().unwrap_or(command);
            matches!(name, "flushall" | "save" | "debug" | "shutdown" | "replicaof" | "slaveof")
        };
        Ok(Self { background: info.number("rdb_saves")?, foreground: info.calls(saves) })
    }

    /// After one more in the background.
    pub(super) fn and_one(self) -> Self {
        Self { background: self.background + 1, ..self }
    }
}

/// A save that is followed to its end.
pub(super) struct Save {
    follower: Option<JoinHandle<Result<File, ServiceError>>>,
    stop: Arc<AtomicBool>,
}

impl Save {
    /// Follows the last of `saves`, and opens its file when it has ended.
    pub(super) fn follow(session: Session, files: Files, saves: Saves) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let follower = Some(thread::spawn(move || follow(session, &files, saves, &told)));
        Self { follower, stop }
    }

    /// The file, once the save has ended.
    pub(super) fn finish(mut self) -> Result<File, ServiceError> {
        let follower = self.follower.take();
        follower
            .and_then(|thread| thread.join().ok())
            .unwrap_or_else(|| Err(ServiceError::new("follow the server's save")))
    }
}

impl Drop for Save {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.follower.take() {
            let _ = thread.join();
        }
    }
}

fn follow(
    mut session: Session,
    files: &Files,
    saves: Saves,
    stop: &AtomicBool,
) -> Result<File, ServiceError> {
    let replaced = || {
        ServiceError::new("take the file of the server's save")
            .because(
                "another save, or a FLUSHALL, came before it was opened, and may have replaced it",
            )
            .hint("try again; were this to happen often, capture by replication")
    };
    while !stop.load(Ordering::Relaxed) {
        let info = Info::read(&mut session, &Saves::SECTIONS)?;
        if Saves::of(&info)? != saves {
            return Err(replaced());
        }
        if info.number("rdb_bgsave_in_progress")? == 0 {
            refuse_failed(&info, Some(&files.dir))?;
            let path = files.path();
            let file = File::open(&path)
                .map_err(|e| ServiceError::new(format!("open {}", path.display())).because(e))?;
            let now = Info::read(&mut session, &Saves::SECTIONS)?;
            return if Saves::of(&now)? == saves { Ok(file) } else { Err(replaced()) };
        }
        thread::sleep(LOOK);
    }
    Err(ServiceError::new("follow the server's save").because("it is not needed any more"))
}

/// Why a save that was ours has not succeeded.
pub(super) fn refuse_failed(info: &Info, dir: Option<&Path>) -> Result<(), ServiceError> {
    if info.text("rdb_last_bgsave_status") == "ok" {
        return Ok(());
    }
    let place = dir.map_or_else(String::new, |dir| format!(" into {}", dir.display()));
    Err(ServiceError::new("let the server save")
        .because(format!("the server could not write its RDB file{place}"))
        .hint(
            "its log says why (room, rights of its directory); with \
             stop-writes-on-bgsave-error it refuses the application's writes until a BGSAVE \
             succeeds: mend the cause, then run BGSAVE",
        ))
}
