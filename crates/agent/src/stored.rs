//! The backups of an environment, as its repository holds them.

use crate::failure::Failure;
use crate::parts::role;
use crate::place::Place;
use crate::vault::Opened;
use std::io::Read;
use stillpoint_model::ids::BackupId;
use stillpoint_model::manifest::{MANIFEST_VERSION, Manifest, Part};
use stillpoint_repository::{BlobId, Node, Reader, Snapshot, SnapshotId};

/// One backup.
pub struct Stored {
    /// Its tree.
    pub tree: BlobId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
    /// Its record.
    pub manifest: Manifest,
    /// At how many of the locations that can be reached it is complete.
    pub copies: usize,
}

/// All that is sure of a manifest of any version.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

impl Stored {
    /// Every backup of the environment that can be read, newest first, and why others cannot.
    pub fn all(place: &Place, reader: &Reader) -> (Vec<Self>, Vec<Failure>) {
        let tag = format!("environment={}", place.name);
        let (mut all, mut unreadable) = (Vec::new(), Vec::new());
        for (id, snapshot) in reader.snapshots() {
            if snapshot.tags.contains(&tag) {
                match Self::read(reader, *id, snapshot) {
                    Ok(stored) => all.push(stored),
                    Err(failure) => unreadable.push(failure),
                }
            }
        }
        unreadable.extend(damaged(reader));
        all.sort_by_key(|backup| std::cmp::Reverse(backup.manifest.created));
        (all, unreadable)
    }

    /// The newest backup, without reading the others.
    pub fn newest(place: &Place, reader: &Reader) -> Result<Option<Self>, Failure> {
        let tag = format!("environment={}", place.name);
        let newest = reader
            .snapshots()
            .iter()
            .filter(|(_, snapshot)| snapshot.tags.contains(&tag))
            .max_by_key(|(_, snapshot)| snapshot.time);
        newest.map(|(id, snapshot)| Self::read(reader, *id, snapshot)).transpose()
    }

    /// One backup by its id.
    pub fn one(place: &Place, reader: &Reader, id: &BackupId) -> Result<Self, Failure> {
        let (tag, of) = (format!("backup={id}"), format!("environment={}", place.name));
        reader
            .snapshots()
            .iter()
            .find(|(_, snapshot)| snapshot.tags.contains(&tag) && snapshot.tags.contains(&of))
            .map(|(id, snapshot)| Self::read(reader, *id, snapshot))
            .transpose()?
            .ok_or_else(|| {
                Failure::new(format!("environment `{}` has no backup {id}", place.name))
                    .hint("`stillpoint backup:list` shows what there is")
            })
    }

    fn read(
        reader: &Reader,
        snapshot_id: SnapshotId,
        snapshot: &Snapshot,
    ) -> Result<Self, Failure> {
        let tag = snapshot.tags.iter().find_map(|tag| tag.strip_prefix("backup="));
        let id = tag.unwrap_or("without an id");
        let fail =
            || Failure::new(format!("read the manifest of backup {id} of {:.0}", snapshot.time));
        let node =
            reader.lookup(&snapshot.tree, "manifest.json").map_err(|e| fail().because(&e))?;
        let mut text = Vec::new();
        reader
            .open(node.content.as_deref().unwrap_or_default())
            .read_to_end(&mut text)
            .map_err(|e| fail().because(&e))?;
        // Before anything else of it: another version may look different altogether.
        let Versioned { version } =
            serde_json::from_slice(&text).map_err(|e| fail().because(&e))?;
        if version != MANIFEST_VERSION {
            return Err(fail().hint(format!(
                "it has version {version}, this program knows {MANIFEST_VERSION}: a newer one is \
                 needed"
            )));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| fail().because(&e))?;
        let copies = reader.copies(&snapshot_id).map_err(|e| fail().because(&e))?;
        Ok(Self { tree: snapshot.tree, snapshot: snapshot_id, manifest, copies })
    }

    /// The directory of one of its parts, and the tree below it.
    pub fn directory_of(&self, reader: &Reader, part: &Part) -> Result<(Node, BlobId), Failure> {
        let path = format!("{}s/{}", role(part.role), part.name);
        let fail = || Failure::new(format!("the backup lacks `{path}`"));
        let node = reader.lookup(&self.tree, &path).map_err(|e| fail().because(&e))?;
        let tree = node.subtree.ok_or_else(fail)?;
        Ok((node, tree))
    }
}

/// Snapshots that cannot even be opened, so that nothing tells which environment they are of.
pub fn damaged(reader: &Reader) -> impl Iterator<Item = Failure> + '_ {
    reader.damaged().iter().map(|(id, error)| {
        Failure::new(format!("snapshot {id} is damaged, whatever it is of")).because(error)
    })
}

/// Opens the environment's repository for reading.
pub fn open(place: &Place) -> Result<Reader, Failure> {
    place
        .repository(false)?
        .repository
        .reader()
        .map_err(|e| Failure::new("read the repository's index").because(&e))
}

/// At how many locations backups are.
pub struct Copies {
    /// Backup and number of complete copies.
    pub counts: Vec<(BackupId, u32)>,
    /// Whether every location could be asked; if not, there may be more copies.
    pub all_asked: bool,
}

impl Copies {
    /// Of one backup.
    pub fn of(&self, backup: &BackupId) -> Option<usize> {
        self.counts.iter().find(|(id, _)| id == backup).map(|(_, count)| *count as usize)
    }
}

/// At how many locations each backup of a vault is, of whatever environment.
pub(crate) fn copies(opened: &Opened) -> Result<Copies, Failure> {
    let counted = opened
        .locations
        .count_snapshots()
        .map_err(|e| Failure::new("count the copies of the backups").because(&e))?;
    let list = opened
        .repository
        .list_snapshots()
        .map_err(|e| Failure::new("list the backups").because(&e))?;
    let counts = list.snapshots.iter().filter_map(|(id, snapshot)| {
        let backup = snapshot.tags.iter().find_map(|tag| tag.strip_prefix("backup="))?;
        Some((backup.parse().ok()?, *counted.counts.get(id)? as u32))
    });
    Ok(Copies { counts: counts.collect(), all_asked: counted.all_asked })
}

/// Removes the environment's backups of these ids from its repository, and says which were there.
/// What only they needed stays stored until a prune. One that is not there, while a location cannot
/// be asked, may be at that one alone, and would come back with it: that is a failure.
pub fn forget(place: &Place, backups: &[BackupId]) -> Result<Vec<BackupId>, Failure> {
    if !place.vault()?.is_known()? {
        return Ok(Vec::new());
    }
    let Opened { repository, locations } = place.repository(false)?;
    let of = format!("environment={}", place.name);
    let list =
        repository.list_snapshots().map_err(|e| Failure::new("list the backups").because(&e))?;
    let (mut ids, mut found) = (Vec::new(), Vec::new());
    for (id, snapshot) in &list.snapshots {
        for backup in backups {
            if snapshot.tags.contains(&of) && snapshot.tags.contains(&format!("backup={backup}")) {
                ids.push(*id);
                found.push(backup.clone());
            }
        }
    }
    if !ids.is_empty() {
        repository.forget(&ids).map_err(|e| Failure::new("delete the backups").because(&e))?;
    }
    if let Some(missing) = backups.iter().find(|id| !found.contains(id))
        && !locations.all_asked()
    {
        let away = locations.notes().join("; ");
        let what =
            format!("backup {missing} is at none of the locations that can be used ({away})");
        return Err(Failure::new(what).hint(
            "it may be at one that cannot be used now: delete it once that is back, or take that \
             location out of the configuration",
        ));
    }
    Ok(found)
}
