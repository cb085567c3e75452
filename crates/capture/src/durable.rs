//! The one way in which this crate writes a file that must survive a power cut: a temporary file
//! beside it, synced, renamed over it, and the directory synced.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Writes `content` to `path` (mode 0600): after this either the old file is there or the new one.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new().prefix(".write-").tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Removes `path` for good. One that is missing is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}
