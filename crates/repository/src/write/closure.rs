//! That a snapshot refers to nothing that is not there.
//!
//! Each saved tree is checked as it is saved. A subtree that was not saved by this writer (taken
//! over from an earlier snapshot) is remembered, and walked before publishing: what an earlier
//! writer claimed is not believed.

use super::pipeline::{Shared, lock};
use crate::error::RepositoryError;
use crate::format::pack::BlobKind;
use crate::format::tree::Tree;
use crate::id::BlobId;
use std::collections::HashSet;

#[derive(Default)]
pub(super) struct Trees {
    checked: HashSet<BlobId>,
    unchecked: HashSet<BlobId>,
}

impl Shared {
    /// Refuses a tree that refers to blobs that were never saved.
    pub(super) fn check_references(&self, id: &BlobId, tree: &Tree) -> Result<(), RepositoryError> {
        for node in &tree.nodes {
            for blob in node.content.iter().flatten() {
                if !self.contains(BlobKind::Data, blob) {
                    return Err(missing("data blob", blob, node));
                }
            }
            if let Some(subtree) = &node.subtree {
                if !self.contains(BlobKind::Tree, subtree) {
                    return Err(missing("tree blob", subtree, node));
                }
                let mut trees = lock(&self.trees);
                if !trees.checked.contains(subtree) {
                    trees.unchecked.insert(*subtree);
                }
            }
        }
        let mut trees = lock(&self.trees);
        trees.unchecked.remove(id);
        trees.checked.insert(*id);
        Ok(())
    }

    /// Walks all trees reachable from `root` that were not checked when they were saved.
    pub(super) fn check_closure(&self, root: &BlobId) -> Result<(), RepositoryError> {
        if !self.contains(BlobKind::Tree, root) {
            return Err(RepositoryError::Missing(format!("tree blob {}", root.short())));
        }
        let mut to_walk: Vec<BlobId> = {
            let mut trees = lock(&self.trees);
            if !trees.checked.contains(root) {
                trees.unchecked.insert(*root);
            }
            trees.unchecked.drain().collect()
        };
        while let Some(id) = to_walk.pop() {
            let text = self.repository.blob(&self.index, BlobKind::Tree, &id)?;
            let tree = Tree::decode(&text).map_err(|why| {
                RepositoryError::damaged(format!("tree blob {}", id.short()), why)
            })?;
            self.check_references(&id, &tree)?;
            to_walk.extend(lock(&self.trees).unchecked.drain());
        }
        Ok(())
    }
}

fn missing(what: &str, id: &BlobId, node: &crate::format::node::Node) -> RepositoryError {
    RepositoryError::Missing(format!("{what} {} of {}", id.short(), node.quoted_name()))
}
