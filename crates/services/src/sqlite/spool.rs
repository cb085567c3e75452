//! Where a copy of the database is kept until it is streamed: a private directory.
//!
//! The copy is plain text, so it must not outlive a process that was killed. Each process holds a
//! `flock` on its directory, which the kernel gives up with it; the next prepare removes every
//! directory of this account that nobody holds. SQLite needs a name to open, so a file without
//! one would not do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use tempfile::TempDir;

use crate::ServiceError;

const PREFIX: &str = "stillpoint-sqlite-";
/// How often a new directory may be taken for a leftover before it is held.
const ROUNDS: u32 = 16;

/// A directory of this process. The directory goes before its lock does.
pub(super) struct Spool {
    dir: TempDir,
    _held: File,
}

impl Spool {
    /// Makes a directory, and removes what dead processes have left.
    pub(super) fn new() -> Result<Self, ServiceError> {
        let doing = || ServiceError::new("create a directory for a copy");
        for _ in 0..ROUNDS {
            let dir = tempfile::Builder::new()
                .prefix(PREFIX)
                .tempdir()
                .map_err(|e| doing().because(e))?;
            // Whoever sweeps in between takes it for a leftover; then another one is made.
            if let Some(held) = hold(dir.path()).map_err(|e| doing().because(e))? {
                sweep(dir.path())?;
                return Ok(Self { dir, _held: held });
            }
        }
        Err(doing().because("other processes remove it each time"))
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Locks a directory; `None` where another process has it, or where it is gone.
fn hold(dir: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = match open(dir, flags, Mode::empty()) {
        Ok(held) => File::from(held),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    match flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    // Removed while its lock was not ours yet.
    match fs::symlink_metadata(dir) {
        Ok(found) if found.ino() == held.metadata()?.ino() => Ok(Some(held)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes the directories beside `own` that nobody holds.
fn sweep(own: &Path) -> Result<(), ServiceError> {
    let Some(parent) = own.parent() else { return Ok(()) };
    let failed = |path: &Path| {
        let doing = format!("remove the copy that a killed process has left in {}", path.display());
        move |e: io::Error| ServiceError::new(doing).because(e)
    };
    let account = fs::metadata(own).map_err(failed(own))?.uid();
    for entry in fs::read_dir(parent).map_err(failed(parent))? {
        let entry = entry.map_err(failed(parent))?;
        let path = entry.path();
        if path == own || !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let ours =
            fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == account);
        if !ours {
            continue;
        }
        let Some(_held) = hold(&path).map_err(failed(&path))? else { continue };
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(e)),
            _ => {}
        }
    }
    Ok(())
}
