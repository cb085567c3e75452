//! Files that must last: written under another name, made durable, then given theirs.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::ServiceError;

/// `PATH` with `suffix` added to its last name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The directory of `path`.
pub(super) fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> ServiceError {
    let doing = format!("{doing} {}", path.display());
    move |e| ServiceError::new(doing).because(e)
}

/// Makes what was created, renamed or removed in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), ServiceError> {
    let directory = directory(path);
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(failed("sync", directory))
}

/// Gives a finished file its name, durably.
pub(super) fn publish(part: &Path, path: &Path) -> Result<(), ServiceError> {
    File::open(part).and_then(|file| file.sync_all()).map_err(failed("sync", part))?;
    fs::rename(part, path).map_err(failed("rename", part))?;
    sync_directory(path)
}

/// Moves a file if it is there.
pub(super) fn move_if_there(from: &Path, to: &Path) -> Result<(), ServiceError> {
    match fs::rename(from, to) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("rename", from)(e)),
        _ => Ok(()),
    }
}

/// Removes a file if it is there.
pub(super) fn remove_if_there(path: &Path) -> Result<(), ServiceError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

/// A new, empty file for this account alone; one that is there is replaced.
pub(super) fn create_private(path: &Path) -> Result<File, ServiceError> {
    remove_if_there(path)?;
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("create", path))
}

/// SHA-256 of what is read, in hexadecimal.
pub(super) fn sha256(content: &mut dyn Read) -> io::Result<String> {
    let mut hashed = Hashed::new(content);
    io::copy(&mut hashed, &mut io::sink())?;
    Ok(hashed.finish())
}

/// Hashes what is read through it.
pub(super) struct Hashed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Hashed<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new() }
    }

    pub(super) fn finish(self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.hasher.finalize() {
            use std::fmt::Write as _;
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Refuses where `wanted` bytes do not fit.
pub(super) fn refuse_full(place: &Path, wanted: u64, what: &str) -> Result<(), ServiceError> {
    let found = rustix::fs::statvfs(place)
        .map_err(|e| failed("look at the free space of", place)(e.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= wanted {
        return Ok(());
    }
    Err(ServiceError::new(format!(
        "{} has {} MiB free, {what} needs {} MiB",
        place.display(),
        free >> 20,
        (wanted >> 20) + 1
    )))
}
