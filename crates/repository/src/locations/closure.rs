//! Whether a snapshot would be complete at a location, by its trees and the packs that are there:
//! needed only where something was lost, since otherwise names tell. It guards against a snapshot
//! file that appears where what it refers to never will.

use crate::error::RepositoryError;
use crate::format::pack::BlobKind;
use crate::id::{BlobId, FileId, SnapshotId};
use crate::index::Index;
use crate::repository::Repository;
use crate::store::{FileKind, Store};
use std::collections::HashSet;

/// Looks whether all that a snapshot refers to is at one location.
pub(super) struct Closure<'a> {
    repository: &'a Repository,
    index: Option<Index>,
    seen: HashSet<BlobId>,
}

impl<'a> Closure<'a> {
    pub(super) fn new(repository: &'a Repository) -> Self {
        Self { repository, index: None, seen: HashSet::new() }
    }

    pub(super) fn walk(
        &mut self,
        store: &dyn Store,
        snapshot: &FileId,
    ) -> Result<(), RepositoryError> {
        // What leads to something that is missing must not count as whole for the next one.
        self.look_through(store, snapshot).inspect_err(|_| self.seen.clear())
    }

    fn look_through(
        &mut self,
        store: &dyn Store,
        snapshot: &FileId,
    ) -> Result<(), RepositoryError> {
        if self.index.is_none() {
            let mut index = self.repository.load_index()?;
            let stored =
                store.list(FileKind::Pack).map_err(RepositoryError::store("list the packs"))?;
            index.forget_lost(&stored);
            self.index = Some(index);
        }
        let Some(index) = &self.index else { return Ok(()) };
        let mut to_walk = vec![self.repository.snapshot(&SnapshotId(snapshot.0))?.tree];
        while let Some(id) = to_walk.pop() {
            if !self.seen.insert(id) {
                continue;
            }
            let text = self.repository.blob(index, BlobKind::Tree, &id)?;
            let tree = crate::format::tree::Tree::decode(&text).map_err(|why| {
                RepositoryError::damaged(format!("tree blob {}", id.short()), why)
            })?;
            for node in &tree.nodes {
                for blob in node.content.iter().flatten() {
                    if !index.contains(BlobKind::Data, blob) {
                        let what = format!("data blob {} of {}", blob.short(), node.quoted_name());
                        return Err(RepositoryError::Missing(what));
                    }
                }
                to_walk.extend(node.subtree);
            }
        }
        Ok(())
    }
}
