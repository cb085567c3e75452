//! Files on disk, compared with a tree: proves a restore without trusting what wrote it.

use super::Reader;
use crate::error::RepositoryError;
use crate::format::node::{Node, NodeKind};
use crate::id::BlobId;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use stillpoint_model::progress::Monitor;

/// One way in which files and tree differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entry, relative to the target.
    pub path: PathBuf,
    /// How it differs.
    pub what: String,
}

impl Reader {
    /// Compares the entries below `target` with `tree`: names, types, modes, sizes, link targets,
    /// and contents by their hashes. Sockets are left out, as restores leave them out.
    pub fn verify(
        &self,
        tree: &BlobId,
        target: &Path,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Difference>, RepositoryError> {
        monitor.begin("verify", None);
        let mut differences = Vec::new();
        let mut directories = vec![(PathBuf::new(), *tree)];
        while let Some((path, tree)) = directories.pop() {
            let on_disk = target.join(&path);
            let mut extra = names(&on_disk).map_err(RepositoryError::file("list", &on_disk))?;
            for node in self.tree(&tree)?.nodes {
                if monitor.cancelled() {
                    return Err(RepositoryError::Cancelled);
                }
                let known = extra.remove(&node.name);
                let path = path.join(&node.name);
                if node.kind == NodeKind::Socket {
                    continue;
                }
                if !known {
                    differences.push(Difference { path, what: "it is missing".into() });
                    continue;
                }
                if let Some(what) = self.compare(&node, &target.join(&path), monitor)? {
                    differences.push(Difference { path, what });
                } else if let (NodeKind::Directory, Some(subtree)) = (&node.kind, node.subtree) {
                    directories.push((path, subtree));
                }
            }
            differences.extend(extra.into_iter().map(|name| Difference {
                path: path.join(name),
                what: "it is not in the backup".into(),
            }));
        }
        differences.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(differences)
    }

    fn compare(
        &self,
        node: &Node,
        path: &Path,
        monitor: &dyn Monitor,
    ) -> Result<Option<String>, RepositoryError> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return Ok(Some(format!("it cannot be read: {error}"))),
        };
        if NodeKind::of(metadata.file_type()) != node.kind {
            return Ok(Some("it is of another type".into()));
        }
        let mode = metadata.mode() & 0o7777;
        if node.kind != NodeKind::Symlink && mode != node.mode {
            return Ok(Some(format!("its mode is {mode:o}, not {:o}", node.mode)));
        }
        match node.kind {
            NodeKind::Symlink => {
                let same = fs::read_link(path).is_ok_and(|found| found == *node.link_target);
                Ok((!same).then(|| "it points elsewhere".into()))
            }
            NodeKind::File => self.compare_content(node, path, &metadata, monitor),
            NodeKind::BlockDevice | NodeKind::CharacterDevice => {
                Ok((metadata.rdev() != node.device).then(|| "it is another device".into()))
            }
            _ => Ok(None),
        }
    }

    fn compare_content(
        &self,
        node: &Node,
        path: &Path,
        metadata: &fs::Metadata,
        monitor: &dyn Monitor,
    ) -> Result<Option<String>, RepositoryError> {
        let blobs = node.content.as_deref().unwrap_or_default();
        let mut size = 0;
        for blob in blobs {
            size += self.blob_length(blob)?;
        }
        if metadata.len() != size {
            return Ok(Some(format!("it has {} bytes, not {size}", metadata.len())));
        }
        let mut file = match open_file(path) {
            Ok(file) => file,
            Err(error) => return Ok(Some(format!("it cannot be read: {error}"))),
        };
        let mut bytes = Vec::new();
        for blob in blobs {
            if monitor.cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            bytes.resize(self.blob_length(blob)? as usize, 0);
            if let Err(error) = file.read_exact(&mut bytes) {
                return Ok(Some(format!("it cannot be read: {error}")));
            }
            if BlobId::of(&bytes) != *blob {
                return Ok(Some("its content differs".into()));
            }
            monitor.advance(bytes.len() as u64);
        }
        Ok(None)
    }
}

fn names(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}
