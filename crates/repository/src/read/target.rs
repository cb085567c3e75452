//! Directories that a restore writes into, by descriptor.
//!
//! Every step goes from an open directory to one of its entries, never through a symbolic link and
//! never by a path: whatever is put in the way meanwhile, nothing is written outside the target.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub(super) struct Directory(OwnedFd);

impl Directory {
    /// The target itself; a link here is the user's own choice.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(CWD, path, OPEN, Mode::empty())?))
    }

    /// The directory `name` in this one; an existing one only if `merge`.
    pub(super) fn create(&self, name: &OsStr, merge: bool) -> io::Result<Self> {
        match rustix::fs::mkdirat(&self.0, name, Mode::RWXU) {
            Err(Errno::EXIST) if merge => {
                if let Ok(existing) = self.child(name) {
                    return Ok(existing);
                }
                // Something else is in the way: it is replaced, as any file would be.
                rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?;
                rustix::fs::mkdirat(&self.0, name, Mode::RWXU)?;
            }
            other => other?,
        }
        self.child(name)
    }

    pub(super) fn child(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(&self.0, name, OPEN | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// A new file for writing, readable by its owner alone until its metadata is set.
    pub(super) fn create_file(&self, name: &OsStr) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    pub(super) fn symlink(&self, name: &OsStr, target: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    pub(super) fn make_node(&self, name: &OsStr, kind: FileType, device: u64) -> io::Result<()> {
        Ok(rustix::fs::mknodat(&self.0, name, kind, Mode::empty(), device)?)
    }

    /// Gives the entry `from` of another directory a second name here.
    pub(super) fn link(&self, name: &OsStr, other: &Self, from: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(&other.0, from, &self.0, name, AtFlags::empty())?)
    }

    /// Removes what is in the way of an entry that is no directory. Nothing there is no error.
    pub(super) fn clear(&self, name: &OsStr) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn is_empty(&self) -> io::Result<bool> {
        for entry in Dir::read_from(&self.0)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A name and its parents, from the target down.
pub(super) fn open_parent<'n>(root: &Path, path: &'n Path) -> io::Result<(Directory, &'n OsStr)> {
    let mut directory = Directory::open(root)?;
    let mut names = path.iter().peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            return Ok((directory, name));
        }
        directory = directory.child(name)?;
    }
    debug_assert!(path.as_os_str().as_bytes().is_empty());
    Err(io::ErrorKind::InvalidInput.into())
}
