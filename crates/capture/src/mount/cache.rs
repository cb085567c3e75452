//! What is known of a mount's files from earlier looks at it, and which of it may be trusted.

use crate::CaptureError;
use rustix::io::Errno;

use super::identity::{Identity, MARGIN, Nanoseconds};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use stillpoint_repository::{BlobId, Content, Node, RepositoryError, Writer};

/// On a file system whose ctime cannot be trusted, this much is read whole inside the hold; of
/// more than this the manifest says that it is in doubt.
const READ_WHOLE: u64 = 64 << 20;

/// What is known of a mount's files from the passes before the hold.
#[derive(Default)]
pub(super) struct Cache {
    pub(super) known: HashMap<(u64, u64), Known>,
    /// The mount's own device. On another, mounted below it, nothing is ever settled.
    pub(super) device: u64,
    /// When the last pass began, by the file system's clock.
    pub(super) last_pass: Nanoseconds,
    /// The file system does not tell of every change.
    pub(super) untrusted: bool,
    pub(super) bytes: u64,
}

/// One entry of the mount, as it was when it was read last.
pub(super) struct Known {
    pub(super) identity: Identity,
    pub(super) settled: bool,
    pub(super) node: Node,
    pub(super) content: Option<Content>,
}

impl Cache {
    /// An entry that need not be looked at again.
    pub(super) fn settled(&self, identity: &Identity) -> Option<&Known> {
        let known = self.known.get(&(identity.device, identity.inode))?;
        let same = known.identity == *identity && identity.device == self.device;
        (known.settled && same).then_some(known)
    }

    /// For the manifest: what the next backup may trust. `None` where nothing may be trusted.
    pub(super) fn settled_before(&self) -> Option<Nanoseconds> {
        (!self.untrusted).then_some(self.last_pass - MARGIN)
    }

    pub(super) fn reads_whole(&self) -> bool {
        self.untrusted && self.bytes <= READ_WHOLE
    }

    /// Forgets what an earlier backup held and the repository no longer does.
    pub(super) fn keep_stored(&mut self, writer: &Writer) {
        self.known.retain(|_, known| {
            known.content.iter().all(|content| content.blobs.iter().all(|b| writer.contains(b)))
        });
    }

    /// Adds a file that an earlier backup read when it was settled.
    fn remember(&mut self, identity: Identity, node: Node, content: Content) {
        let key = (identity.device, identity.inode);
        self.known.insert(key, Known { identity, settled: true, node, content: Some(content) });
    }
}

/// Files that must not even be opened: of an SQLite database that this process holds a lock on.
/// POSIX gives up a process's locks on a file when it closes any descriptor of it, and with the
/// lock the marked state would go, silently. Known by inode, whatever path leads to them.
#[derive(Debug, Default)]
pub(super) struct Apart(HashSet<(u64, u64)>);

impl Apart {
    /// The files at `paths`, as far as they exist just now. One that cannot be looked at is not
    /// missing: it might be opened by another path.
    pub(super) fn of(paths: &[PathBuf]) -> Result<Self, CaptureError> {
        let mut identities = HashSet::new();
        for path in paths {
            match rustix::fs::stat(path) {
                Ok(stat) => drop(identities.insert((stat.st_dev, stat.st_ino))),
                Err(Errno::NOENT) => {}
                Err(error) => {
                    return Err(CaptureError::new(format!("look for {}", path.display()))
                        .because(std::io::Error::from(error)));
                }
            }
        }
        Ok(Self(identities))
    }

    pub(super) fn has(&self, identity: &Identity) -> bool {
        self.0.contains(&(identity.device, identity.inode))
    }
}

/// Where an earlier backup of the same mount lies.
pub struct Earlier<'a> {
    /// Opened on the same repository.
    pub reader: &'a stillpoint_repository::Reader,
    /// The mount's tree.
    pub tree: BlobId,
    /// As that backup's manifest says.
    pub settled_before: Nanoseconds,
}

impl Earlier<'_> {
    /// Fills a cache with every file that need not be read again if it is found unchanged.
    pub(super) fn recall(&self, cache: &mut Cache) -> Result<(), RepositoryError> {
        let mut pending: Vec<BlobId> = vec![self.tree];
        while let Some(tree) = pending.pop() {
            for node in self.reader.tree(&tree)?.nodes {
                if let Some(subtree) = node.subtree {
                    pending.push(subtree);
                }
                let Some(blobs) = node.content.clone() else { continue };
                let identity = Identity {
                    device: node.device_id,
                    inode: node.inode,
                    size: node.size,
                    ctime: node.changed.as_nanosecond(),
                };
                if identity.ctime < self.settled_before {
                    let content = Content { blobs, size: node.size };
                    cache.remember(identity, node, content);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[test]
    fn what_an_earlier_backup_read_on_another_device_is_not_trusted() {
        let identity = |device| Identity { device, inode: 7, size: 3, ctime: 1 };
        let node = Node::file("f", Content { blobs: vec![], size: 3 }, Timestamp::UNIX_EPOCH);
        let mut cache = Cache { device: 1, ..Cache::default() };
        for device in [1, 2] {
            let content = Content { blobs: vec![], size: 3 };
            cache.remember(identity(device), node.clone(), content);
        }
        assert!(cache.settled(&identity(1)).is_some());
        assert!(cache.settled(&identity(2)).is_none());
    }

    #[test]
    fn a_large_file_may_still_be_written_to_long_after_its_ctime() {
        let file = |size| Identity { device: 1, inode: 1, size, ctime: 0 };
        let at = |milliseconds: i128| milliseconds * 1_000_000;
        assert!(!file(10).settled_at(at(200)));
        assert!(file(10).settled_at(at(300)));
        assert!(!file(1 << 20).settled_at(at(1_900)));
        assert!(file(1 << 20).settled_at(at(2_100)));
    }
}
