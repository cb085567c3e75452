//! A marked mount, stored: the spool's contents and the trees. Nothing of the mount itself is
//! looked at any more.

use super::cache::Cache;
use super::mark::{Marked, MarkedEntry, What};
use super::spool::Spool;
use crate::stream::Watched;
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{BlobId, Node, RepositoryError, Tree, Writer};

/// A mount in the repository.
pub(super) struct Stored {
    /// The mount's own directory.
    pub(super) top: Node,
    pub(super) tree: BlobId,
    pub(super) bytes: u64,
    pub(super) files: u64,
    pub(super) gaps: Vec<(String, String)>,
    pub(super) doubts: Vec<String>,
}

impl Marked {
    /// Stores the spool's contents and the trees. Nothing of the mount itself is looked at.
    pub(super) fn store(
        self,
        cache: &Cache,
        writer: &Writer,
        monitor: &dyn Monitor,
    ) -> Result<Stored, RepositoryError> {
        let mut storer = Storer { cache, writer, monitor, spool: self.spool, bytes: 0, files: 0 };
        let tree = storer.directory(self.top)?;
        let Storer { bytes, files, .. } = storer;
        let (top, gaps, doubts) = (self.root, self.gaps, self.doubts);
        Ok(Stored { top, tree, bytes, files, gaps, doubts })
    }
}

struct Storer<'a> {
    cache: &'a Cache,
    writer: &'a Writer,
    monitor: &'a dyn Monitor,
    spool: Spool,
    bytes: u64,
    files: u64,
}

impl Storer<'_> {
    fn directory(&mut self, entries: Vec<MarkedEntry>) -> Result<BlobId, RepositoryError> {
        let mut nodes = Vec::with_capacity(entries.len());
        for entry in entries {
            if self.monitor.cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            let (mut node, content) = match entry.what {
                What::Known { device, inode } => {
                    // A file with several names is known by the one that was seen last.
                    let known = &self.cache.known[&(device, inode)];
                    (known.node.clone(), known.content.clone())
                }
                What::Fresh { node, content: None } => (*node, None),
                What::Fresh { node, content: Some(range) } => {
                    let content = self.spool.read(range).map_err(RepositoryError::Source)?;
                    let mut watched = Watched { content, monitor: self.monitor };
                    let content = self.writer.save_data(&mut watched)?;
                    (*node, Some(content))
                }
            };
            node.name = entry.name;
            if let Some(content) = content {
                self.files += 1;
                self.bytes += content.size;
                node.size = content.size;
                node.content = Some(content.blobs);
            }
            if let Some(children) = entry.children {
                node.subtree = Some(self.directory(children)?);
            }
            nodes.push(node);
        }
        self.writer.save_tree(&Tree { nodes })
    }
}
