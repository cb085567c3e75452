//! Where a repository's files are: the seam behind which directories, object stores and groups of
//! locations ([`crate::Locations`]) stand.
//!
//! All files but `config` are named by the hash of their bytes and never change. A store must make
//! a file visible whole or not at all, and `write` returns only when it would survive a power cut:
//! the write order of the format (packs, index, snapshot) rests on both.

mod local;

pub use crate::id::FileId;
pub use local::LocalStore;

use std::io;
use std::path::PathBuf;

/// The kinds of files that a repository consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// The one file without a hash for a name; every repository has it, and it is written last.
    Config,
    /// A key, wrapped by a password.
    Key,
    /// A sign that a process works with the repository.
    Lock,
    /// A snapshot.
    Snapshot,
    /// Which blobs are in which packs.
    Index,
    /// Blobs.
    Pack,
    /// What was deleted, so that no copy of it comes back. Ours alone: stock clients never look
    /// into its directory.
    Deletion,
}

impl FileKind {
    /// What people call it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "key",
            Self::Lock => "lock",
            Self::Snapshot => "snapshot",
            Self::Index => "index",
            Self::Pack => "pack",
            Self::Deletion => "deletion",
        }
    }
}

/// A place that holds the files of one repository. All calls block. For [`FileKind::Config`] the id
/// is ignored.
pub trait Store: Send + Sync {
    /// The place, as people know it.
    fn describe(&self) -> String;

    /// Creates the directories of an empty repository. Existing ones are no error.
    fn create(&self) -> io::Result<()>;

    /// Called before this process's first write: removes what writers that died left behind.
    fn prepare_write(&self) -> io::Result<()>;

    /// The whole file.
    fn read(&self, kind: FileKind, id: &FileId) -> io::Result<Vec<u8>>;

    /// Exactly `length` bytes from `offset`.
    fn read_range(
        &self,
        kind: FileKind,
        id: &FileId,
        offset: u64,
        length: usize,
    ) -> io::Result<Vec<u8>>;

    /// Writes the file, durably and atomically. A config that exists already is an error of kind
    /// `AlreadyExists`.
    fn write(&self, kind: FileKind, id: &FileId, content: &[u8]) -> io::Result<()>;

    /// Removes the file.
    fn remove(&self, kind: FileKind, id: &FileId) -> io::Result<()>;

    /// All files of a kind with their sizes. Names that are no hash are passed over: they are other
    /// programs' temporary files.
    fn list(&self, kind: FileKind) -> io::Result<Vec<(FileId, u64)>>;

    /// Whether the file is there.
    fn exists(&self, kind: FileKind, id: &FileId) -> io::Result<bool>;

    /// Where the file is in this machine's file system, for stores that are there: once for each
    /// copy.
    fn paths(&self, kind: FileKind, id: &FileId) -> Vec<PathBuf>;

    /// Whether the file stands, unchanged, wherever this store writes.
    fn stands(&self, kind: FileKind, id: &FileId) -> io::Result<bool> {
        match self.read(kind, id) {
            Ok(bytes) => Ok(FileId::of(&bytes) == *id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The copies that can be read one by one, the quickest first: numbers for
    /// [`Store::read_range_of`]. A part of a file has no hash, so that only the caller can tell
    /// that a copy is damaged, and ask for another.
    fn copies(&self) -> Vec<usize> {
        vec![0]
    }

    /// As [`Store::read_range`], of one copy alone.
    fn read_range_of(
        &self,
        _copy: usize,
        kind: FileKind,
        id: &FileId,
        offset: u64,
        length: usize,
    ) -> io::Result<Vec<u8>> {
        self.read_range(kind, id, offset, length)
    }

    /// One copy of the file is missing or damaged, and another was found good: writes it anew, if
    /// that can be done.
    fn mend(&self, _copy: usize, _kind: FileKind, _id: &FileId) {}

    /// Told before a snapshot is prepared that it may rest on any of these packs, and on the index
    /// files that list them. Where some are missing, the snapshot must not appear.
    fn rest_on(&self, _packs: &[FileId], _indexes: &[FileId]) -> io::Result<()> {
        Ok(())
    }

    /// At how many places the file is.
    fn count_copies(&self, kind: FileKind, id: &FileId) -> io::Result<usize> {
        Ok(usize::from(self.exists(kind, id)?))
    }
}
