//! Lists a directory tree with `fstatat` relative to each directory, so that a rename above it
//! cannot lead the walk elsewhere, and a symlink is never followed.

use super::filter::Filter;
use super::identity::{Identity, file_type};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What a walk tells of, parents before their children, siblings by name.
pub(super) trait Visitor {
    /// A directory's entry. `parent` is open; `path` is relative to the top.
    fn entry(&mut self, entry: &Entry, parent: BorrowedFd<'_>) -> io::Result<()>;
    /// All entries of the directory that was entered last have been told.
    fn leave(&mut self);
    /// Something could not be looked at: what, why.
    fn gap(&mut self, path: &Path, why: String);
    /// Something vanished while it was looked at.
    fn vanished(&mut self, path: &Path);
}

/// One entry of a directory.
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    pub(super) kind: FileType,
}

/// Opens a directory for a walk.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Walks all below `directory`. Fails only where the visitor does: what cannot be listed is a gap.
pub(super) fn walk(
    directory: BorrowedFd<'_>,
    path: &Path,
    filter: &Filter,
    visitor: &mut dyn Visitor,
) -> io::Result<()> {
    let names = match list(directory) {
        Ok(names) => names,
        Err(error) => {
            visitor.gap(path, error.to_string());
            return Ok(());
        }
    };
    for name in names {
        let path = path.join(&name);
        if filter.excludes(&path) {
            continue;
        }
        let stat = match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                visitor.vanished(&path);
                continue;
            }
            Err(error) => {
                visitor.gap(&path, error.to_string());
                continue;
            }
        };
        let kind = file_type(&stat);
        let entry = Entry { name, path, identity: Identity::of(&stat), kind };
        visitor.entry(&entry, directory)?;
        if kind == FileType::Directory {
            match open_directory(directory, Path::new(&entry.name)) {
                Ok(inner) => walk(inner.as_fd(), &entry.path, filter, visitor)?,
                Err(Errno::NOENT) => visitor.vanished(&entry.path),
                Err(error) => visitor.gap(&entry.path, error.to_string()),
            }
            visitor.leave();
        }
    }
    Ok(())
}

fn list(directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens a file of a walk to be read, without leaving a trace where that is permitted.
pub(super) fn open_file(parent: BorrowedFd<'_>, entry: &Entry) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let name = Path::new(&entry.name);
    // Access times are left alone where the kernel lets us: only a file's owner may ask for that.
    match openat(parent, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(parent, name, flags, Mode::empty()).map(File::from),
        other => other.map(File::from),
    }
}
