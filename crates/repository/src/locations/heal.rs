//! Healing: every location is given what it lacks, and what was deleted goes from where it still is.
//!
//! Order, at each location: deletions first, so that nothing deleted is copied or comes back; then
//! keys, packs, index files; snapshots last. A snapshot that is deleted while it is being copied is
//! removed again: whoever deletes writes the record before removing, and the record is looked at
//! once more after the copy. Cut off anywhere, healing is begun anew and finds what is left to do.
//! A location's own restic lock is held meanwhile, so that no stock client prunes beside it, and
//! looked at before each snapshot, as by every writer.
//!
//! What is damaged everywhere is passed over and named: it must not keep everything else from having
//! a second copy. From then on snapshots are looked through before they are copied.

use super::closure::Closure;
use super::copy::{Lacking, Whole};
use super::{Locations, Member, file};
use crate::deletion::{self, Records};
use crate::error::RepositoryError;
use crate::id::{FileId, SnapshotId};
use crate::index::Index;
use crate::lock::Lock;
use crate::repository::{CONFIG, Repository};
use crate::store::{FileKind, Store};
use std::collections::{BTreeMap, HashSet};
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
    snapshots: BTreeMap<FileId, u64>,
    records: Records,
    deleted: HashSet<SnapshotId>,
    /// Records with their sizes, and keys.
    record_files: BTreeMap<FileId, u64>,
    keys: BTreeMap<FileId, u64>,
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
        // Where a location goes away while it is read, what there is is read again without it.
        let mut tries = self.members.len();
        let wanted = loop {
            match self.wanted(repository) {
                Err(RepositoryError::Store { .. }) if tries > 0 => tries -= 1,
                read => break read?,
            }
        };
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
        let list = |kind: FileKind| {
            let doing = format!("list every {}", kind.word());
            self.sizes(kind).map_err(RepositoryError::store(doing))
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
        snapshots.retain(|id, _| !deleted.contains(&SnapshotId(id.0)));
        let mut record_files = list(FileKind::Deletion)?;
        record_files.retain(|id, _| records.contains_key(id));
        let keys = list(FileKind::Key)?;
        let index = Index::load(self, repository.key())?;
        let whole = Whole::of(self, index.packs(), index.files())
            .map_err(RepositoryError::store("compare the locations"))?;
        let lost = whole.packs() < index.packs().len();
        Ok(Wanted { snapshots, records, deleted, record_files, keys, whole, lost })
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
        let copied = self.copy_all(store, wanted, &lacking, report, monitor);
        let damaged = copied.map_err(|error| {
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
        let there = Target { store, lock: &lock, look_through: wanted.lost || damaged };
        self.copy_snapshots(repository, &there, wanted, report, monitor)?;
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
        for id in lacks(store, FileKind::Deletion, &wanted.record_files)? {
            self.copy(store, FileKind::Deletion, &id)??;
        }
        Ok(())
    }

    /// Whether something is damaged everywhere, and so was not copied.
    fn copy_all(
        &self,
        store: &dyn Store,
        wanted: &Wanted,
        lacking: &Lacking,
        report: &mut HealedLocation,
        monitor: &dyn Monitor,
    ) -> io::Result<bool> {
        let mut damaged = false;
        let mut step = |kind: FileKind, id: &FileId, copied: io::Result<u64>| {
            match copied {
                Ok(bytes) => {
                    report.files += 1;
                    report.bytes += bytes;
                    monitor.advance(bytes);
                }
                // Snapshots cannot be looked through without their index.
                Err(error) if kind == FileKind::Index => return Err(error),
                Err(error) => {
                    let why = self.damage(error)?;
                    damaged = true;
                    report.left = Some(not_copied(kind, id, &why.to_string()));
                }
            }
            if monitor.cancelled() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        };
        for id in lacks(store, FileKind::Key, &wanted.keys)? {
            step(FileKind::Key, &id, self.copy(store, FileKind::Key, &id)?)?;
        }
        self.complete(store, lacking, &mut step)?;
        Ok(damaged)
    }

    fn copy_snapshots(
        &self,
        repository: &Repository,
        there: &Target<'_>,
        wanted: &Wanted,
        report: &mut HealedLocation,
        monitor: &dyn Monitor,
    ) -> Result<(), RepositoryError> {
        let (store, name) = (there.store, report.name.clone());
        let failed = |doing: &str| RepositoryError::store(format!("{doing} at {name}"));
        let mut closure = Closure::new(repository);
        let known: HashSet<FileId> = wanted.records.keys().copied().collect();
        let lacks = lacks(store, FileKind::Snapshot, &wanted.snapshots)
            .map_err(failed("list the snapshots"))?;
        for id in lacks {
            if monitor.cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            if there.look_through
                && let Err(error) = closure.walk(store, &id)
            {
                report.left = Some(not_copied(FileKind::Snapshot, &id, &error.explain()));
                continue;
            }
            // Else a prune may have removed what was copied.
            there.lock.verify()?;
            match self.copy(store, FileKind::Snapshot, &id).map_err(failed("copy a snapshot"))? {
                Ok(bytes) => {
                    report.files += 1;
                    report.bytes += bytes;
                }
                // Deleted since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let why = self.damage(error).map_err(failed("copy a snapshot"))?;
                    report.left = Some(not_copied(FileKind::Snapshot, &id, &why.to_string()));
                    continue;
                }
            }
            if self.was_deleted(repository, &id, &known)? {
                remove(store, &id).map_err(failed("remove a deleted snapshot"))?;
            }
        }
        Ok(())
    }

    /// Whether a record has come that names the snapshot: whoever deleted it meanwhile wrote the
    /// record first, wherever they could, and may have removed it before we wrote it. Records that
    /// are `known` do not name it.
    fn was_deleted(
        &self,
        repository: &Repository,
        snapshot: &FileId,
        known: &HashSet<FileId>,
    ) -> Result<bool, RepositoryError> {
        let listed = self
            .list(FileKind::Deletion)
            .map_err(RepositoryError::store("list the deletions again"))?;
        for (id, _) in listed {
            if !known.contains(&id) {
                let named = deletion::read_one(self, repository.key(), &id)?;
                if named.contains(&SnapshotId(snapshot.0)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// A location while it is given snapshots.
struct Target<'a> {
    store: &'a dyn Store,
    lock: &'a Lock,
    /// Something is missing there that snapshots may rest on.
    look_through: bool,
}

/// Which of the files `store` has not, or not whole.
fn lacks(
    store: &dyn Store,
    kind: FileKind,
    wanted: &BTreeMap<FileId, u64>,
) -> io::Result<Vec<FileId>> {
    let has: BTreeMap<FileId, u64> = store.list(kind)?.into_iter().collect();
    let lacks = wanted.iter().filter(|(id, size)| has.get(*id) != Some(*size));
    Ok(lacks.map(|(id, _)| *id).collect())
}

fn not_copied(kind: FileKind, id: &FileId, why: &str) -> String {
    format!("{} is not copied, since it is damaged everywhere: {why}", file(kind, id))
}

fn remove(store: &dyn Store, snapshot: &FileId) -> io::Result<()> {
    match store.remove(FileKind::Snapshot, snapshot) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
