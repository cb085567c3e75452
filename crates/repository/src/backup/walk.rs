//! The walk: one thread lists directories, several read files, so that neither waits for the other.
//!
//! A file counts as unchanged if size, times and inode are those of the parent snapshot, and its
//! change time lies clearly before that snapshot: clocks of file systems tick coarsely, and a change
//! in the same tick as the read before would otherwise be missed.

use super::Found;
use super::exclude::Excludes;
use super::targets::Targets;
use crate::error::RepositoryError;
use crate::format::node::{Node, NodeKind};
use crate::format::snapshot::Snapshot;
use crate::format::tree::Tree;
use crate::id::BlobId;
use crate::read::Reader;
use crate::write::{Writer, lock};
use crossbeam_channel::{Receiver, Sender};
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use stillpoint_model::progress::Monitor;

/// Coarser than any file system's: ext4 with small inodes counts change times in whole seconds, FAT
/// in every second one.
const TICK: SignedDuration = SignedDuration::from_millis(2500);

pub(super) struct Walk<'a> {
    writer: &'a Writer,
    reader: &'a Reader,
    parent: Option<&'a Snapshot>,
    excludes: &'a Excludes,
    monitor: &'a dyn Monitor,
    found: Mutex<Found>,
}

type Saved = Result<Option<Node>, RepositoryError>;

struct Job {
    path: PathBuf,
    reply: Sender<Saved>,
}

/// A directory's entries in the parent snapshot.
type Before = HashMap<OsString, Node>;

impl<'a> Walk<'a> {
    pub(super) fn new(
        writer: &'a Writer,
        reader: &'a Reader,
        parent: Option<&'a Snapshot>,
        excludes: &'a Excludes,
        monitor: &'a dyn Monitor,
    ) -> Self {
        Self { writer, reader, parent, excludes, monitor, found: Mutex::default() }
    }

    /// Saves everything; the root of it.
    pub(super) fn run(self, targets: &Targets) -> Result<(BlobId, Found), RepositoryError> {
        let readers = std::thread::available_parallelism().map_or(2, usize::from);
        let root = std::thread::scope(|scope| {
            let (jobs, work) = crossbeam_channel::bounded::<Job>(64 * readers);
            for _ in 0..readers {
                let (walk, work) = (&self, work.clone());
                scope.spawn(move || walk.read_files(&work));
            }
            drop(work);
            let before = self.entries_before(self.parent.map(|parent| parent.tree));
            match targets {
                Targets::Whole(path) => self.directory(path, &before, &jobs),
                Targets::Way { below, .. } => {
                    let mut nodes = Vec::new();
                    for (name, target) in below {
                        nodes.extend(self.target(name, target, before.get(name), &jobs)?);
                    }
                    self.writer.save_tree(&Tree { nodes }).map(Some)
                }
            }
        })?;
        let root = root.ok_or_else(|| {
            RepositoryError::Refused("nothing of what was named could be read".into())
        })?;
        Ok((root, self.found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    /// What was named, or a directory on the way to it. Here every failure is final: the user
    /// named these paths.
    fn target(
        &self,
        name: &OsStr,
        target: &Targets,
        before: Option<&Node>,
        jobs: &Sender<Job>,
    ) -> Saved {
        match target {
            Targets::Whole(path) => {
                let metadata =
                    fs::symlink_metadata(path).map_err(RepositoryError::file("read", path))?;
                let mut node = if metadata.is_dir() {
                    self.subdirectory(path, before, jobs)?
                } else if metadata.is_file() {
                    self.file(path)?
                } else {
                    self.other(path, &metadata)
                };
                if let Some(node) = &mut node {
                    name.clone_into(&mut node.name);
                }
                Ok(node)
            }
            Targets::Way { path, below } => {
                // A link on the way is followed: the path leads through it.
                let mut node = fs::metadata(path)
                    .and_then(|metadata| Node::from_metadata(path, &metadata))
                    .map_err(RepositoryError::file("read", path))?;
                let before = self.entries_before(before.and_then(|node| node.subtree));
                let mut nodes = Vec::new();
                for (name, target) in below {
                    nodes.extend(self.target(name, target, before.get(name), jobs)?);
                }
                name.clone_into(&mut node.name);
                node.subtree = Some(self.writer.save_tree(&Tree { nodes })?);
                Ok(Some(node))
            }
        }
    }

    /// The parent is a help, no need: where it cannot be read, everything is read anew.
    fn entries_before(&self, tree: Option<BlobId>) -> Before {
        let tree = tree.and_then(|id| self.reader.tree(&id).ok()).unwrap_or_default();
        tree.nodes.into_iter().map(|node| (node.name.clone(), node)).collect()
    }

    fn subdirectory(&self, path: &Path, before: Option<&Node>, jobs: &Sender<Job>) -> Saved {
        let mut node = match Node::inspect(path) {
            Ok(node) => node,
            Err(error) => return self.unreadable(path, &error),
        };
        let before = self.entries_before(before.and_then(|node| node.subtree));
        node.subtree = self.directory(path, &before, jobs)?;
        Ok(node.subtree.is_some().then_some(node))
    }

    /// Saves a directory's entries. `None`: it could not be listed, and that was noted.
    fn directory(
        &self,
        path: &Path,
        before: &Before,
        jobs: &Sender<Job>,
    ) -> Result<Option<BlobId>, RepositoryError> {
        let listed: io::Result<Vec<OsString>> = fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
        let mut names = match listed {
            Ok(names) => names,
            Err(error) => return self.unreadable(path, &error),
        };
        names.sort();
        let (reply, replies) = crossbeam_channel::unbounded();
        let mut nodes = Vec::with_capacity(names.len());
        let mut directories = Vec::new();
        for name in names {
            if self.monitor.cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            let path = path.join(&name);
            if self.excludes.excludes(&path) {
                continue;
            }
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    self.unreadable::<()>(&path, &error)?;
                    continue;
                }
            };
            if metadata.is_dir() {
                directories.push((path, name));
            } else if !metadata.is_file() {
                nodes.extend(self.other(&path, &metadata));
            } else if let Some(node) = self.unchanged(&path, &metadata, before.get(&name)) {
                nodes.push(node);
            } else {
                let job = Job { path, reply: reply.clone() };
                jobs.send(job).map_err(|_| RepositoryError::Worker("read files"))?;
            }
        }
        drop(reply);
        for (path, name) in directories {
            nodes.extend(self.subdirectory(&path, before.get(&name), jobs)?);
        }
        for saved in replies {
            nodes.extend(saved?);
        }
        self.found().directories += 1;
        self.writer.save_tree(&Tree { nodes }).map(Some)
    }

    fn other(&self, path: &Path, metadata: &fs::Metadata) -> Option<Node> {
        if NodeKind::of(metadata.file_type()) == NodeKind::Socket {
            self.note(path, "a socket; it is left out".into());
            return None;
        }
        match Node::from_metadata(path, metadata) {
            Ok(node) => {
                self.found().others += 1;
                Some(node)
            }
            Err(error) => {
                // Notes the path, and cannot fail.
                let _ = self.unreadable::<()>(path, &error);
                None
            }
        }
    }

    fn unchanged(
        &self,
        path: &Path,
        metadata: &fs::Metadata,
        before: Option<&Node>,
    ) -> Option<Node> {
        let (before, parent) = (before?, self.parent?);
        let mut node = Node::from_metadata(path, metadata).ok()?;
        let same = before.kind == NodeKind::File
            && before.size == node.size
            && before.modified == node.modified
            && before.changed == node.changed
            && before.inode == node.inode
            && is_settled(before.changed, parent.time);
        let content = before.content.as_ref().filter(|_| same)?;
        // The parent may be damaged; then the file heals it.
        if !content.iter().all(|blob| self.writer.contains(blob)) {
            return None;
        }
        node.content = Some(content.clone());
        let mut found = self.found();
        found.files_unchanged += 1;
        found.bytes += node.size;
        self.monitor.advance(node.size);
        Some(node)
    }

    fn read_files(&self, jobs: &Receiver<Job>) {
        for job in jobs {
            // Whoever asked may have failed meanwhile.
            let _ = job.reply.send(self.file(&job.path));
        }
    }

    fn file(&self, path: &Path) -> Saved {
        // Not blocking: a pipe may have taken the file's place.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.unreadable(path, &error),
        };
        if !metadata.is_file() {
            return self.unreadable(path, &io::Error::other("another kind of file took its place"));
        }
        let mut node = match Node::from_metadata(path, &metadata) {
            Ok(node) => node,
            Err(error) => return self.unreadable(path, &error),
        };
        let mut reader = Watched { file: &file, monitor: self.monitor };
        let content = match self.writer.save_data(&mut reader) {
            Ok(content) => content,
            Err(RepositoryError::Source(_)) if self.monitor.cancelled() => {
                return Err(RepositoryError::Cancelled);
            }
            Err(RepositoryError::Source(error)) => return self.unreadable(path, &error),
            Err(error) => return Err(error),
        };
        let changed = file.metadata().is_ok_and(|after| {
            (after.ctime(), after.ctime_nsec(), after.len())
                != (metadata.ctime(), metadata.ctime_nsec(), content.size)
        });
        if changed {
            self.note(path, "it changed while it was read".into());
        }
        let mut found = self.found();
        found.files_read += 1;
        found.bytes += content.size;
        node.size = content.size;
        node.content = Some(content.blobs);
        Ok(Some(node))
    }

    /// Records what could not be read. What is not there any more is no gap: it was deleted.
    #[allow(clippy::unnecessary_wraps, reason = "the callers return it")]
    fn unreadable<T>(&self, path: &Path, error: &io::Error) -> Result<Option<T>, RepositoryError> {
        if error.kind() == io::ErrorKind::NotFound {
            self.note(path, "it was removed during the backup".into());
        } else {
            self.monitor.note(&format!("{} cannot be read: {error}", path.display()));
            self.found().gaps.push((path.to_owned(), error.to_string()));
        }
        Ok(None)
    }

    fn note(&self, path: &Path, what: String) {
        self.found().notes.push((path.to_owned(), what));
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        lock(&self.found)
    }
}

/// Whether a change at `changed` was certainly over when a backup that began at `read` read it.
fn is_settled(changed: Timestamp, read: Timestamp) -> bool {
    read.duration_since(changed) > TICK
}

/// Reads a file, reports progress, and stops when asked to.
struct Watched<'a> {
    file: &'a File,
    monitor: &'a dyn Monitor,
}

impl Read for Watched<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.monitor.cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.file.read(into)?;
        self.monitor.advance(count as u64);
        Ok(count)
    }
}
