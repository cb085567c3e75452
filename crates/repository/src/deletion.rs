//! The record of what was deleted: written before anything goes, sealed with the repository's key.
//!
//! It guards against a copy that comes back: a location that was away while a snapshot was deleted
//! still has it, and without the record would look like the only one that still knows it. Where a
//! snapshot is both listed and deleted, it is deleted.

use crate::crypto::Key;
use crate::error::RepositoryError;
use crate::format::{time, unpacked};
use crate::id::{FileId, SnapshotId};
use crate::store::{FileKind, Store};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Deletion {
    version: u32,
    #[serde(with = "time::text")]
    time: Timestamp,
    snapshots: Vec<FileId>,
}

/// Writes down that `snapshots` are deleted.
pub(crate) fn record(
    store: &dyn Store,
    key: &Key,
    snapshots: &[SnapshotId],
) -> Result<(), RepositoryError> {
    let snapshots = snapshots.iter().map(|id| FileId(id.0)).collect();
    let deletion = Deletion { version: VERSION, time: Timestamp::now(), snapshots };
    let (id, bytes) = unpacked::encode(key, &deletion)?;
    store
        .write(FileKind::Deletion, &id, &bytes)
        .map_err(RepositoryError::store("write down what is deleted"))
}

/// Every record, with the snapshots that it names.
pub(crate) type Records = BTreeMap<FileId, Vec<SnapshotId>>;

/// Reads every record that can be read; why one cannot be, beside it.
pub(crate) fn read(
    store: &dyn Store,
    key: &Key,
) -> Result<(Records, Vec<RepositoryError>), RepositoryError> {
    let listed =
        store.list(FileKind::Deletion).map_err(RepositoryError::store("list the deletions"))?;
    let (mut records, mut unreadable) = (Records::new(), Vec::new());
    for (id, _) in listed {
        match read_one(store, key, &id) {
            Ok(named) => drop(records.insert(id, named)),
            Err(error) => unreadable.push(error),
        }
    }
    Ok((records, unreadable))
}

/// The snapshots that one record names.
pub(crate) fn read_one(
    store: &dyn Store,
    key: &Key,
    id: &FileId,
) -> Result<Vec<SnapshotId>, RepositoryError> {
    let deletion = unpacked::read::<Deletion>(store, key, FileKind::Deletion, id)?;
    if deletion.version != VERSION {
        return Err(RepositoryError::Unsupported(format!(
            "{} is of version {}, and known is {VERSION}",
            crate::error::file_name(FileKind::Deletion, id),
            deletion.version
        )));
    }
    Ok(deletion.snapshots.into_iter().map(|id| SnapshotId(id.0)).collect())
}

/// The snapshots that are deleted, wherever they may still lie.
pub(crate) fn deleted(records: &Records) -> HashSet<SnapshotId> {
    records.values().flatten().copied().collect()
}
