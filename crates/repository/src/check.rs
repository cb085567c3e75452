//! Whether a repository is whole: what the index says is there, and everything that snapshots
//! refer to. With `read_data` every byte of every pack is read and verified.
//!
//! Unreferenced packs are no damage: a writer that was killed leaves them, prune removes them.

use crate::error::RepositoryError;
use crate::format::pack::{self, BlobKind, PackEntry};
use crate::format::tree::Tree;
use crate::id::{BlobId, FileId, SnapshotId};
use crate::index::Index;
use crate::repository::Repository;
use crate::store::FileKind;
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use stillpoint_model::progress::Monitor;

/// How thorough a check is.
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// Reads and verifies every pack as well.
    pub read_data: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Damage, in words. Empty: the repository is whole.
    pub problems: Vec<String>,
    /// What is odd but costs nothing: packs that no index lists.
    pub notes: Vec<String>,
    /// Snapshots whose closure was walked.
    pub snapshots: usize,
    /// Pack files.
    pub packs: usize,
    /// Entries of the index.
    pub blobs: usize,
    /// Bytes of packs that were read and verified.
    pub bytes_read: u64,
}

impl Repository {
    /// Checks the repository. Damage is in the report; an error means that the check itself could
    /// not be done.
    pub fn check(
        &self,
        options: &CheckOptions,
        monitor: &dyn Monitor,
    ) -> Result<CheckReport, RepositoryError> {
        let mut report = CheckReport::default();
        monitor.begin("check structure", None);
        // Snapshots before the index, as readers do.
        let list = self.list_snapshots()?;
        report.problems.extend(list.damaged.iter().map(|(_, error)| error.explain()));
        let (_, unreadable) = crate::deletion::read(self.store(), self.key())?;
        report.problems.extend(unreadable.iter().map(RepositoryError::explain));
        let roots: Vec<_> =
            list.snapshots.into_iter().map(|(id, snapshot)| (id, snapshot.tree)).collect();
        report.snapshots = roots.len();
        let index = match self.load_index() {
            Ok(index) => index,
            Err(error @ RepositoryError::Damaged { .. }) => {
                report.problems.push(error.explain());
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        report.blobs = index.len();
        let packs = index.by_pack();
        self.check_packs(&packs, &mut report)?;
        self.check_trees(&index, &roots, &mut report, monitor)?;
        if options.read_data {
            self.read_packs(&packs, &mut report, monitor)?;
        }
        Ok(report)
    }

    fn check_packs(
        &self,
        packs: &BTreeMap<FileId, Vec<PackEntry>>,
        report: &mut CheckReport,
    ) -> Result<(), RepositoryError> {
        let stored: BTreeMap<FileId, u64> = self
            .store()
            .list(FileKind::Pack)
            .map_err(RepositoryError::store("list the packs"))?
            .into_iter()
            .collect();
        report.packs = stored.len();
        for (id, entries) in packs {
            let blobs: u64 = entries.iter().map(|entry| u64::from(entry.length)).sum();
            let expected = blobs + pack::trailer_length(entries);
            match stored.get(id) {
                None => report.problems.push(format!("pack {} is missing", id.short())),
                Some(size) if *size != expected => report.problems.push(format!(
                    "pack {} has {size} bytes; by the index it should have {expected}",
                    id.short()
                )),
                Some(_) => {}
            }
        }
        for id in stored.keys().filter(|id| !packs.contains_key(id)) {
            report.notes.push(format!("pack {} is in no index; prune removes it", id.short()));
        }
        Ok(())
    }

    fn check_trees(
        &self,
        index: &Index,
        roots: &[(SnapshotId, BlobId)],
        report: &mut CheckReport,
        monitor: &dyn Monitor,
    ) -> Result<(), RepositoryError> {
        let mut seen: HashSet<BlobId> = HashSet::new();
        for (snapshot, root) in roots {
            let mut to_walk = vec![*root];
            let mut complain = |why: String| {
                report.problems.push(format!("snapshot {}: {why}", snapshot.short()));
            };
            while let Some(id) = to_walk.pop() {
                if monitor.cancelled() {
                    return Err(RepositoryError::Cancelled);
                }
                if !seen.insert(id) {
                    continue;
                }
                let tree = self.blob(index, BlobKind::Tree, &id).and_then(|text| {
                    Tree::decode(&text).map_err(|why| {
                        RepositoryError::damaged(format!("tree blob {}", id.short()), why)
                    })
                });
                let tree = match tree {
                    Ok(tree) => tree,
                    Err(error) => {
                        complain(error.explain());
                        continue;
                    }
                };
                for node in &tree.nodes {
                    if !node.has_safe_name() {
                        complain(format!("{} cannot be a file's name", node.quoted_name()));
                    }
                    for blob in node.content.iter().flatten() {
                        if !index.contains(BlobKind::Data, blob) {
                            complain(format!(
                                "data blob {} of {} is missing",
                                blob.short(),
                                node.quoted_name()
                            ));
                        }
                    }
                    to_walk.extend(node.subtree);
                }
            }
        }
        Ok(())
    }

    fn read_packs(
        &self,
        packs: &BTreeMap<FileId, Vec<PackEntry>>,
        report: &mut CheckReport,
        monitor: &dyn Monitor,
    ) -> Result<(), RepositoryError> {
        let listed =
            self.store().list(FileKind::Pack).map_err(RepositoryError::store("list the packs"))?;
        monitor.begin("read all packs", Some(listed.iter().map(|(_, size)| size).sum()));
        let next = AtomicUsize::new(0);
        let found = Mutex::new((Vec::new(), 0));
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((id, size)) = listed.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if monitor.cancelled() {
                            return;
                        }
                        let problems = self.read_pack(id, packs.get(id).map(Vec::as_slice));
                        monitor.advance(*size);
                        let mut found = crate::write::lock(&found);
                        found.0.extend(problems);
                        found.1 += size;
                    }
                });
            }
        });
        if monitor.cancelled() {
            return Err(RepositoryError::Cancelled);
        }
        let (problems, bytes) =
            found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        report.bytes_read = bytes;
        report.problems.extend(problems);
        Ok(())
    }

    fn read_pack(&self, id: &FileId, indexed: Option<&[PackEntry]>) -> Vec<String> {
        let name = format!("pack {}", id.short());
        let bytes = match self.store().read(FileKind::Pack, id) {
            Ok(bytes) => bytes,
            Err(error) => return vec![format!("{name} cannot be read: {error}")],
        };
        let mut problems = Vec::new();
        if FileId::of(&bytes) != *id {
            problems.push(format!("{name} is damaged: its content does not match its name"));
        }
        let entries = match pack::read(self.key(), &bytes) {
            Ok(entries) => entries,
            Err(why) => {
                problems.push(format!("{name} is damaged: {why}"));
                Vec::new()
            }
        };
        if let Some(indexed) = indexed {
            for entry in
                indexed.iter().filter(|entry| !entries.is_empty() && !entries.contains(entry))
            {
                problems.push(format!(
                    "{name}: the index lists {} blob {} otherwise than the pack does",
                    entry.kind.word(),
                    entry.id.short()
                ));
            }
        }
        for entry in entries {
            let sealed = &bytes[entry.offset as usize..][..entry.length as usize];
            if let Err(why) = pack::open_blob(self.key(), sealed, entry.uncompressed, &entry.id) {
                problems.push(format!(
                    "{} blob {} in {name} is damaged: {why}",
                    entry.kind.word(),
                    entry.id.short()
                ));
            }
        }
        problems
    }
}
