//! Directories of a file system, backed up as stock clients back them up: `repo backup`.
//!
//! Nothing is passed over in silence. What could not be read is a gap, and makes the backup
//! partial; what is left out on purpose, or changed while it was read, is a note.

mod exclude;
mod targets;
mod walk;

use crate::error::RepositoryError;
use crate::format::snapshot::Snapshot;
use crate::format::time;
use crate::id::SnapshotId;
use crate::read::Reader;
use crate::repository::Repository;
use crate::write::{WriteStats, WriterOptions};
use jiff::Timestamp;
use std::path::PathBuf;
use stillpoint_model::progress::Monitor;

/// What to back up, and how to label it.
#[derive(Clone, Default)]
pub struct BackupOptions {
    /// Labels of the snapshot.
    pub tags: Vec<String>,
    /// The host's name in the snapshot, if not this machine's.
    pub host: Option<String>,
    /// The snapshot's time, if not now.
    pub time: Option<Timestamp>,
    /// Patterns of what to leave out. Without `/` they are compared with names, else with paths.
    pub excludes: Vec<String>,
    /// Reads every file, also those that look unchanged since the snapshot before.
    pub read_all: bool,
    /// The writer's own options.
    pub writer: WriterOptions,
}

/// What a backup did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupReport {
    /// The published snapshot.
    pub snapshot: SnapshotId,
    /// The snapshot that unchanged files were taken from.
    pub parent: Option<SnapshotId>,
    /// What was written.
    pub stats: WriteStats,
    /// What was seen.
    pub found: Found,
}

/// What a backup saw in the file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Files that were read.
    pub files_read: u64,
    /// Files that were taken from the parent snapshot unread.
    pub files_unchanged: u64,
    /// Links, pipes and devices.
    pub others: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of all files, read or not.
    pub bytes: u64,
    /// What could not be read, each with the reason. Not empty: the backup is partial.
    pub gaps: Vec<(PathBuf, String)>,
    /// What a person should know, each with its words: files that vanished or changed while they
    /// were read, sockets that were left out.
    pub notes: Vec<(PathBuf, String)>,
}

impl Repository {
    /// Backs up `paths` as one snapshot. Files that are as they were in the last snapshot of the
    /// same paths and host are not read again.
    pub fn backup(
        &self,
        paths: &[PathBuf],
        options: &BackupOptions,
        monitor: &dyn Monitor,
    ) -> Result<BackupReport, RepositoryError> {
        // Before anything is read: a file that changes from here on has a later change time.
        let when = options.time.unwrap_or_else(Timestamp::now);
        let targets = targets::Targets::new(paths)?;
        let excludes = exclude::Excludes::new(&options.excludes)?;
        let writer = self.writer(options.writer.clone())?;
        let mut snapshot = Snapshot::new(
            crate::id::BlobId([0; 32]),
            targets::absolute(paths)?,
            options.tags.clone(),
            when,
        );
        if let Some(host) = &options.host {
            snapshot.hostname.clone_from(host);
        }
        snapshot.excludes.clone_from(&options.excludes);
        let lost = writer.stats().packs_lost;
        if lost > 0 {
            monitor.note(&format!(
                "{lost} packs are missing or cut short: what they held is stored again if it is \
                 still there; `check` says what is lost"
            ));
        }
        let reader = self.reader()?;
        let parent = if options.read_all { None } else { parent(&reader, &snapshot) };
        snapshot.parent = parent.map(|(id, _)| *id);
        monitor.begin("backup", None);
        if let Some((id, of)) = parent {
            monitor.note(&format!(
                "unchanged files are taken from snapshot {} of {}",
                id.short(),
                time::encode(of.time)
            ));
        }
        let walk = walk::Walk::new(&writer, &reader, parent.map(|(_, of)| of), &excludes, monitor);
        let (tree, found) = walk.run(&targets)?;
        snapshot.tree = tree;
        let parent = snapshot.parent;
        let (snapshot, stats) = writer.publish(snapshot)?;
        Ok(BackupReport { snapshot, parent, stats, found })
    }
}

/// The last snapshot of the same paths by the same host.
fn parent<'r>(reader: &'r Reader, of: &Snapshot) -> Option<&'r (SnapshotId, Snapshot)> {
    let sorted = |paths: &[String]| {
        let mut paths = paths.to_vec();
        paths.sort();
        paths
    };
    let wanted = sorted(&of.paths);
    reader.snapshots().iter().rev().find(|(_, snapshot)| {
        snapshot.hostname == of.hostname
            && snapshot.time <= of.time
            && sorted(&snapshot.paths) == wanted
    })
}
