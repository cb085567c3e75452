//! Healing: every location is given what it lacks, and what was deleted goes from where it still is.
//!
//! Order, at each location: deletions first, so that nothing deleted is copied or comes back; then
//! keys, packs, index files; snapshots last. A snapshot that is deleted while it is being copied is
//! removed again: whoever deletes writes the record before removing, and the record is looked at
//! once more after the copy. Cut off anywhere, healing is begun anew and finds what is left to do.
//! A location's own restic lock is held meanwhile, so that no stock client prunes beside it.

use super::copy::{Lacking, Whole};
use super::{Locations, Member};
use crate::deletion::{self, Records};
use crate::error::RepositoryError;
use crate::format::pack::BlobKind;
use crate::id::{BlobId, FileId, SnapshotId};
use crate::index::Index;
use crate::lock::Lock;
use crate::repository::{CONFIG, Repository};
use crate::store::{FileKind, Store};
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use stillpoint_model::progress::Monitor;

/// What healing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healed {
    /// Each location, in the order of the group.
    pub locations: Vec<HealedLocation>,
}

/// What healing did to one location.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealedLocation {
    /// Its name.
    pub name: String,
    /// Files copied to it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Snapshots that were deleted elsewhere and are now deleted here too.
    pub deleted: u64,
    /// Why it is not whole now; none: it is.
    pub left: Option<String>,
}

impl Healed {
    /// Whether every location is whole now.
    pub fn is_whole(&self) -> bool {
        self.locations.iter().all(|location| location.left.is_none())
    }
}

/// What all locations should hold.
struct Wanted {
    snapshots: BTreeSet<FileId>,
    records: Records,
    deleted: HashSet<SnapshotId>,
    keys: BTreeSet<FileId>,
    whole: Whole,
    /// Packs that the index lists and that are nowhere: then snapshots are looked through before
    /// they are copied, since some may rest on them.
    lost: bool,
}

impl Locations {
    /// Makes every location whole, as far as it can be reached. `repository` must be this group's.
    pub fn heal(
        &self,
        repository: &Repository,
        monitor: &dyn Monitor,
    ) -> Result<Healed, RepositoryError> {
        let wanted = self.wanted(repository)?;
        let mut healed = Healed::default();
        for member in &self.members {
            let mut report = HealedLocation { name: member.name.clone(), ..Default::default() };
            let outcome: Result<(), RepositoryError> = match member.to_heal() {
                Ok(store) => {
                    self.heal_one(repository, member, store, &wanted, &mut report, monitor)
                }
                Err(why) => {
                    report.left = Some(why);
                    Ok(())
                }
            };
            match outcome {
                Err(RepositoryError::Cancelled) => return Err(RepositoryError::Cancelled),
                Err(error) => report.left = Some(error.explain()),
                Ok(()) => {}
            }
            healed.locations.push(report);
        }
        Ok(healed)
    }

    fn wanted(&self, repository: &Repository) -> Result<Wanted, RepositoryError> {
        let list = |kind: FileKind| -> Result<BTreeSet<FileId>, RepositoryError> {
            let doing = format!("list every {}", kind.word());
            let listed = self.list(kind).map_err(RepositoryError::store(doing))?;
            Ok(listed.into_iter().map(|(id, _)| id).collect())
        };
        // Snapshots, then the index, then packs: whatever a listed snapshot needs was there before
        // it, so it is found.
        let mut snapshots = list(FileKind::Snapshot)?;
        let (records, unreadable) = deletion::read(self, repository.key())?;
        if let Some(error) = unreadable.into_iter().next() {
            // Else what it deleted would come back.
            return Err(error);
        }
        let deleted = deletion::deleted(&records);
        snapshots.retain(|id| !deleted.contains(&SnapshotId(id.0)));
        let keys = list(FileKind::Key)?;
        let index = Index::load(self, repository.key())?;
        let packs: Vec<FileId> = index.packs().to_vec();
        let whole =
            Whole::of(self, &packs).map_err(RepositoryError::store("compare the locations"))?;
        let stored = list(FileKind::Pack)?;
        let lost = packs.iter().any(|pack| !stored.contains(pack));
        Ok(Wanted { snapshots, records, deleted, keys, whole, lost })
    }

    fn heal_one(
        &self,
        repository: &Repository,
        member: &Member,
        store: &dyn Store,
        wanted: &Wanted,
        report: &mut HealedLocation,
        monitor: &dyn Monitor,
    ) -> Result<(), RepositoryError> {
        let name = member.name.clone();
        let failed = |doing: &str| RepositoryError::store(format!("{doing} at {name}"));
        if member.is_empty() {
            store.create().map_err(failed("make a repository"))?;
        }
        store.prepare_write().map_err(failed("prepare to write"))?;
        let shared = member.store.clone().unwrap_or_else(|| Arc::clone(&repository.shared_store()));
        let lock = Lock::shared(shared, repository.shared_key(), None)?;
        self.apply_deletions(store, wanted, report).map_err(failed("apply deletions"))?;
        let lacking = wanted.whole.lacking(store).map_err(failed("look at what there is"))?;
        let total: u64 = lacking.packs.iter().map(|(_, size)| size).sum();
        if lacking.files() > 0 {
            monitor.begin(&format!("heal location {}", member.name), Some(total));
        }
        self.copy_all(store, wanted, &lacking, report, monitor).map_err(|error| {
            if monitor.cancelled() {
                RepositoryError::Cancelled
            } else {
                failed("copy what is missing")(error)
            }
        })?;
        if member.is_empty() {
            // Last, as where a repository is made: from now on it is one.
            let config = self.read(FileKind::Config, &CONFIG).map_err(failed("read the config"))?;
            store.write(FileKind::Config, &CONFIG, &config).map_err(failed("write the config"))?;
        }
        self.copy_snapshots(repository, store, wanted, report, monitor)?;
        member.becomes_whole();
        lock.release()
    }

    fn apply_deletions(
        &self,
        store: &dyn Store,
        wanted: &Wanted,
        report: &mut HealedLocation,
    ) -> io::Result<()> {
        for (id, _) in store.list(FileKind::Snapshot)? {
            if wanted.deleted.contains(&SnapshotId(id.0)) {
                remove(store, &id)?;
                report.deleted += 1;
            }
        }
        let known: BTreeSet<FileId> =
            store.list(FileKind::Deletion)?.into_iter().map(|(id, _)| id).collect();
        for id in wanted.records.keys().filter(|id| !known.contains(*id)) {
            self.copy(store, FileKind::Deletion, id)?;
        }
        Ok(())
    }

    fn copy_all(
        &self,
        store: &dyn Store,
        wanted: &Wanted,
        lacking: &Lacking,
        report: &mut HealedLocation,
        monitor: &dyn Monitor,
    ) -> io::Result<()> {
        let mut step = |bytes: u64| {
            report.files += 1;
            report.bytes += bytes;
            monitor.advance(bytes);
            if monitor.cancelled() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        };
        let keys: BTreeSet<FileId> =
            store.list(FileKind::Key)?.into_iter().map(|(id, _)| id).collect();
        for id in wanted.keys.difference(&keys) {
            step(self.copy(store, FileKind::Key, id)?)?;
        }
        self.complete(store, lacking, &mut step)
    }

    fn copy_snapshots(
        &self,
        repository: &Repository,
        store: &dyn Store,
        wanted: &Wanted,
        report: &mut HealedLocation,
        monitor: &dyn Monitor,
    ) -> Result<(), RepositoryError> {
        let name = report.name.clone();
        let failed = |doing: &str| RepositoryError::store(format!("{doing} at {name}"));
        let there: BTreeSet<FileId> = store
            .list(FileKind::Snapshot)
            .map_err(failed("list the snapshots"))?
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        let mut closure = Closure { repository, index: None, seen: HashSet::new() };
        for id in wanted.snapshots.difference(&there) {
            if monitor.cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            if wanted.lost
                && let Err(error) = closure.walk(store, id)
            {
                report.left = Some(format!(
                    "snapshot {} is not copied, since it is damaged everywhere: {}",
                    id.short(),
                    error.explain()
                ));
                continue;
            }
            match self.copy(store, FileKind::Snapshot, id) {
                Ok(bytes) => {
                    report.files += 1;
                    report.bytes += bytes;
                }
                // Deleted since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("copy a snapshot")(error)),
            }
            // Whoever deleted it meanwhile wrote the record first, and may have removed it before
            // we wrote it.
            let (records, _) = deletion::read(store, repository.key())?;
            if deletion::deleted(&records).contains(&SnapshotId(id.0)) {
                remove(store, id).map_err(failed("remove a deleted snapshot"))?;
            }
        }
        Ok(())
    }
}

fn remove(store: &dyn Store, snapshot: &FileId) -> io::Result<()> {
    match store.remove(FileKind::Snapshot, snapshot) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Looks whether all that a snapshot refers to is at one location.
struct Closure<'a> {
    repository: &'a Repository,
    index: Option<Index>,
    seen: HashSet<BlobId>,
}

impl Closure<'_> {
    fn walk(&mut self, store: &dyn Store, snapshot: &FileId) -> Result<(), RepositoryError> {
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
