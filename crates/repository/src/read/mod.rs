//! Reading a repository: snapshots, trees, content. Nothing is given out unverified.

mod metadata;
mod restore;
mod target;
mod verify;

pub use restore::{RestoreOptions, RestoreReport};
pub use verify::Difference;

use crate::error::RepositoryError;
use crate::format::node::Node;
use crate::format::pack::BlobKind;
use crate::format::snapshot::Snapshot;
use crate::format::tree::Tree;
use crate::id::{BlobId, FileId, SnapshotId};
use crate::index::Index;
use crate::repository::{Repository, SnapshotList};
use crate::store::FileKind;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

/// A repository as it was when the reader was made.
pub struct Reader {
    repository: Repository,
    list: SnapshotList,
    index: Index,
}

impl Reader {
    pub(crate) fn new(repository: Repository, list: SnapshotList, index: Index) -> Self {
        Self { repository, list, index }
    }

    /// The snapshots that can be read, the oldest first.
    pub fn snapshots(&self) -> &[(SnapshotId, Snapshot)] {
        &self.list.snapshots
    }

    /// The snapshots that cannot be read, each with the reason. Whoever lists or picks snapshots
    /// is to name them: one of them may be the one that is missed.
    pub fn damaged(&self) -> &[(SnapshotId, RepositoryError)] {
        &self.list.damaged
    }

    /// The snapshot that `text` means: an id, the beginning of just one, or `latest` (of those that
    /// can be read).
    pub fn find_snapshot(&self, text: &str) -> Result<&(SnapshotId, Snapshot), RepositoryError> {
        let missing = || RepositoryError::Missing(format!("snapshot {text}"));
        if text == "latest" {
            return self.list.snapshots.last().ok_or_else(missing);
        }
        let means = |id: &SnapshotId| !text.is_empty() && id.to_hex().starts_with(text);
        let mut found = self.list.snapshots.iter().filter(|(id, _)| means(id));
        let mut damaged = self.list.damaged.iter().filter(|(id, _)| means(id));
        match (found.next(), damaged.next(), found.next().is_some() || damaged.next().is_some()) {
            (Some(only), None, false) => Ok(only),
            (None, Some((id, error)), false) => Err(RepositoryError::damaged(
                format!("snapshot {}", id.short()),
                match error {
                    RepositoryError::Damaged { why, .. } => why.clone(),
                    other => other.explain(),
                },
            )),
            (None, None, _) => Err(missing()),
            _ => Err(RepositoryError::Refused(format!(
                "more than one snapshot's id begins with {text}"
            ))),
        }
    }

    /// At how many of the locations that can be reached a snapshot is complete.
    pub fn copies(&self, id: &SnapshotId) -> Result<usize, RepositoryError> {
        self.repository
            .store()
            .count_copies(FileKind::Snapshot, &FileId(id.0))
            .map_err(RepositoryError::store(format!("count the copies of snapshot {}", id.short())))
    }

    /// A directory's entries.
    pub fn tree(&self, id: &BlobId) -> Result<Tree, RepositoryError> {
        let text = self.repository.blob(&self.index, BlobKind::Tree, id)?;
        Tree::decode(&text)
            .map_err(|why| RepositoryError::damaged(format!("tree blob {}", id.short()), why))
    }

    /// The entry at `path` below the tree `root`: names with `/` between them.
    pub fn lookup(&self, root: &BlobId, path: &str) -> Result<Node, RepositoryError> {
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        let mut tree = *root;
        while let Some(name) = names.next() {
            let found = self
                .tree(&tree)?
                .nodes
                .into_iter()
                .find(|node| node.name.as_bytes() == name.as_bytes())
                .ok_or_else(|| RepositoryError::Missing(path.to_owned()))?;
            if names.peek().is_none() {
                return Ok(found);
            }
            tree = found.subtree.ok_or_else(|| RepositoryError::Missing(path.to_owned()))?;
        }
        Err(RepositoryError::Refused("an empty path names no entry".into()))
    }

    /// The content of these blobs, streamed. An error of the repository comes as an
    /// [`io::Error`] with the [`RepositoryError`] inside.
    pub fn open(&self, content: &[BlobId]) -> BlobReader<'_> {
        let left = content.to_vec();
        BlobReader { reader: self, left: left.into_iter(), blob: Vec::new(), given: 0 }
    }

    pub(crate) fn data(&self, id: &BlobId) -> Result<Vec<u8>, RepositoryError> {
        self.repository.blob(&self.index, BlobKind::Data, id)
    }
}

/// Content as a stream; each blob is verified before its first byte is given out.
pub struct BlobReader<'a> {
    reader: &'a Reader,
    left: std::vec::IntoIter<BlobId>,
    blob: Vec<u8>,
    given: usize,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given == self.blob.len() {
            let Some(id) = self.left.next() else { return Ok(0) };
            self.blob = self.reader.data(&id).map_err(io::Error::other)?;
            self.given = 0;
        }
        let count = into.len().min(self.blob.len() - self.given);
        into[..count].copy_from_slice(&self.blob[self.given..][..count]);
        self.given += count;
        Ok(count)
    }
}
