//! A tree, written back to a file system.
//!
//! One thread makes the entries, workers fill the files. Content that cannot be verified ends the
//! restore with an error; metadata that cannot be set is reported and the rest goes on. Zeros become
//! holes. At the end everything is synced.

use super::target::{Directory, open_parent};
use super::{Reader, metadata};
use crate::crypto::OVERHEAD;
use crate::error::RepositoryError;
use crate::format::node::{Node, NodeKind};
use crate::format::pack::BlobKind;
use crate::id::BlobId;
use crossbeam_channel::{Receiver, Sender};
use rustix::fs::FileType;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use stillpoint_model::progress::Monitor;

/// Deeper trees than file systems have are hostile.
const MOST_LEVELS: usize = 1000;
/// Blobs that a worker writes at a time: large files are shared among workers.
const BLOBS_A_JOB: usize = 16;
const HOLE: usize = 32 << 10;

/// How a restore works.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The target may hold files already. Those of the same name are replaced, others stay.
    pub into_existing: bool,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Files, links and devices made.
    pub files: u64,
    /// Directories made.
    pub directories: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// Entries that were not made, each with the reason: sockets, or kinds that are not known.
    pub skipped: Vec<(PathBuf, String)>,
    /// Metadata that could not be set, each with the reason.
    pub warnings: Vec<(PathBuf, String)>,
}

struct Restore<'a> {
    reader: &'a Reader,
    options: &'a RestoreOptions,
    monitor: &'a dyn Monitor,
    target: &'a Path,
    report: Mutex<RestoreReport>,
    failure: OnceLock<RepositoryError>,
}

/// A file that workers fill; whoever writes the last piece sets its metadata.
struct OpenFile {
    file: File,
    node: Node,
    path: PathBuf,
    pieces: AtomicUsize,
}

struct Job {
    file: Arc<OpenFile>,
    blobs: Vec<BlobId>,
    offset: u64,
}

/// The first name of each file that has several, by device and inode.
type Links = HashMap<(u64, u64), (PathBuf, Node)>;

impl Reader {
    /// Restores the entries of `tree` into `target`, which is created if it is missing and must
    /// otherwise be empty. All metadata that the rights allow; sockets are left out and reported.
    pub fn restore(
        &self,
        tree: &BlobId,
        target: &Path,
        options: &RestoreOptions,
        monitor: &dyn Monitor,
    ) -> Result<RestoreReport, RepositoryError> {
        fs::create_dir_all(target).map_err(RepositoryError::file("create", target))?;
        let root = Directory::open(target).map_err(RepositoryError::file("open", target))?;
        let empty = root.is_empty().map_err(RepositoryError::file("list", target))?;
        if !empty && !options.into_existing {
            return Err(RepositoryError::Refused(format!(
                "{} is not empty; nothing was restored",
                target.display()
            )));
        }
        let restore = Restore {
            reader: self,
            options,
            monitor,
            target,
            report: Mutex::default(),
            failure: OnceLock::new(),
        };
        monitor.begin("restore", None);
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| {
            let (jobs, work) = crossbeam_channel::bounded(4 * workers);
            for _ in 0..workers {
                let (restore, work) = (&restore, work.clone());
                scope.spawn(move || restore.work(&work));
            }
            drop(work);
            let walked = restore.directory(&root, Path::new(""), tree, &jobs, &mut Links::new(), 0);
            if let Err(error) = walked {
                let _ = restore.failure.set(error);
            }
        });
        if let Some(error) = restore.failure.into_inner() {
            return Err(error);
        }
        rustix::fs::syncfs(&root)
            .map_err(io::Error::from)
            .map_err(RepositoryError::file("sync", target))?;
        Ok(restore.report.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Restore<'_> {
    fn directory(
        &self,
        directory: &Directory,
        path: &Path,
        tree: &BlobId,
        jobs: &Sender<Job>,
        links: &mut Links,
        level: usize,
    ) -> Result<(), RepositoryError> {
        if level > MOST_LEVELS {
            return Err(RepositoryError::damaged("a tree", "its directories are nested too deep"));
        }
        for node in self.reader.tree(tree)?.nodes {
            if self.monitor.cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            if self.failure.get().is_some() {
                return Ok(());
            }
            if !node.has_safe_name() {
                return Err(RepositoryError::damaged(
                    format!("tree blob {}", tree.short()),
                    format!("{} cannot be a file's name", node.quoted_name()),
                ));
            }
            let path = path.join(&node.name);
            if node.kind == NodeKind::Directory {
                let subtree = node.subtree.ok_or_else(|| {
                    RepositoryError::damaged(path.display().to_string(), "it has no tree")
                })?;
                let child = directory
                    .create(&node.name, self.options.into_existing)
                    .map_err(self.failed("create", &path))?;
                self.directory(&child, &path, &subtree, jobs, links, level + 1)?;
                self.complain(&path, metadata::apply(&child, &node));
                self.report().directories += 1;
            } else {
                self.entry(directory, path, node, jobs, links)?;
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        directory: &Directory,
        path: PathBuf,
        node: Node,
        jobs: &Sender<Job>,
        links: &mut Links,
    ) -> Result<(), RepositoryError> {
        let name = node.name.clone();
        let make = |kind| directory.make_node(&name, kind, node.device);
        let skip = |why: &str| {
            self.report().skipped.push((path.clone(), why.to_owned()));
            Ok(())
        };
        if node.kind == NodeKind::Socket {
            return skip("sockets are made by the programs that listen on them");
        }
        if let NodeKind::Other(word) = &node.kind {
            return skip(&format!("entries of type `{word}` are not known"));
        }
        if self.options.into_existing {
            directory.clear(&name).map_err(self.failed("replace", &path))?;
        }
        if node.links > 1 && node.inode != 0 && self.linked(directory, &path, &node, links) {
            self.report().files += 1;
            return Ok(());
        }
        let made = match &node.kind {
            NodeKind::File => return self.file(directory, path, node, jobs),
            NodeKind::Symlink => directory.symlink(&name, &node.link_target),
            NodeKind::BlockDevice => make(FileType::BlockDevice),
            NodeKind::CharacterDevice => make(FileType::CharacterDevice),
            _ => make(FileType::Fifo),
        };
        match made {
            Ok(()) => self.complain(&path, metadata::apply_at(directory, &node)),
            // Ordinary users cannot make devices; that costs nobody their files.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return skip(&error.to_string());
            }
            Err(error) => return Err(self.failed("create", &path)(error)),
        }
        self.report().files += 1;
        Ok(())
    }

    /// Makes a second name for a file that was restored before. False: restore it by itself. Equal
    /// numbers alone prove nothing: during a backup a number can pass from one file to another, and
    /// file systems of several snapshots or containers can share a device's.
    fn linked(&self, directory: &Directory, path: &Path, node: &Node, links: &mut Links) -> bool {
        let key = (node.device_id, node.inode);
        let Some((first, same)) = links.get(&key) else {
            links.insert(key, (path.to_owned(), node.clone()));
            return false;
        };
        if !is_same_file(same, node) {
            return false;
        }
        let linked = open_parent(self.target, first)
            .and_then(|(parent, name)| directory.link(&node.name, &parent, name));
        if let Err(error) = &linked {
            self.complain(path, vec![format!("not linked to {}: {error}", first.display())]);
        }
        linked.is_ok()
    }

    fn file(
        &self,
        directory: &Directory,
        path: PathBuf,
        node: Node,
        jobs: &Sender<Job>,
    ) -> Result<(), RepositoryError> {
        let file = directory.create_file(&node.name).map_err(self.failed("create", &path))?;
        let blobs = node.content.clone().unwrap_or_default();
        let mut offsets = Vec::with_capacity(blobs.len() / BLOBS_A_JOB + 1);
        let mut size = 0_u64;
        for (place, blob) in blobs.iter().enumerate() {
            if place % BLOBS_A_JOB == 0 {
                offsets.push(size);
            }
            size += self.reader.blob_length(blob)?;
        }
        // Also what makes a file end in a hole.
        file.set_len(size).map_err(self.failed("write", &path))?;
        if blobs.is_empty() {
            self.complain(&path, metadata::apply(&file, &node));
            self.report().files += 1;
            return Ok(());
        }
        let pieces = AtomicUsize::new(offsets.len());
        let file = Arc::new(OpenFile { file, node, path, pieces });
        for (blobs, offset) in blobs.chunks(BLOBS_A_JOB).zip(offsets) {
            let job = Job { file: file.clone(), blobs: blobs.to_vec(), offset };
            jobs.send(job).map_err(|_| RepositoryError::Worker("write files"))?;
        }
        Ok(())
    }

    fn work(&self, jobs: &Receiver<Job>) {
        for job in jobs {
            if self.failure.get().is_none()
                && let Err(error) = self.write(&job)
            {
                let _ = self.failure.set(error);
            }
        }
    }

    fn write(&self, job: &Job) -> Result<(), RepositoryError> {
        let mut offset = job.offset;
        for id in &job.blobs {
            // Of one large file too: there may be nothing else left to walk to.
            if self.monitor.cancelled() {
                return Err(RepositoryError::Cancelled);
            }
            let data = self.reader.data(id)?;
            // The offsets come from the index. A second copy of the blob, listed with another
            // length, may have been the one that opened.
            if data.len() as u64 != self.reader.blob_length(id)? {
                return Err(RepositoryError::damaged(
                    format!("the index's entry of data blob {}", id.short()),
                    format!("the blob has {} bytes, which is not what it lists", data.len()),
                ));
            }
            for (place, piece) in data.chunks(HOLE).enumerate() {
                if piece.iter().any(|byte| *byte != 0) {
                    job.file
                        .file
                        .write_all_at(piece, offset + (place * HOLE) as u64)
                        .map_err(self.failed("write", &job.file.path))?;
                }
            }
            offset += data.len() as u64;
            self.monitor.advance(data.len() as u64);
        }
        self.report().bytes += offset - job.offset;
        if job.file.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            let complaints = metadata::apply(&job.file.file, &job.file.node);
            self.complain(&job.file.path, complaints);
            self.report().files += 1;
        }
        Ok(())
    }

    fn report(&self) -> std::sync::MutexGuard<'_, RestoreReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, path: &Path, complaints: metadata::Complaints) {
        let warnings = complaints.into_iter().map(|why| (path.to_owned(), why));
        self.report().warnings.extend(warnings);
    }

    fn failed(
        &self,
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> RepositoryError + use<> {
        RepositoryError::file(doing, self.target.join(path))
    }
}

fn is_same_file(one: &Node, other: &Node) -> bool {
    let what = |node: &Node| (node.kind.clone(), node.size, node.device, node.link_target.clone());
    what(one) == what(other) && one.content == other.content
}

impl Reader {
    /// How long a data blob's content is, by the index.
    pub(super) fn blob_length(&self, id: &BlobId) -> Result<u64, RepositoryError> {
        let location = self
            .index
            .locate(BlobKind::Data, id)
            .next()
            .ok_or_else(|| RepositoryError::Missing(format!("data blob {}", id.short())))?;
        Ok(match location.uncompressed {
            0 => u64::from(location.length).saturating_sub(OVERHEAD as u64),
            length => length.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::node::Content;
    use crate::format::snapshot::Snapshot;
    use crate::format::tree::Tree;
    use crate::repository::Repository;
    use crate::store::LocalStore;
    use crate::write::WriterOptions;
    use jiff::Timestamp;
    use std::os::unix::fs::MetadataExt;
    use stillpoint_model::progress::Silent;

    #[test]
    fn files_of_one_inode_are_linked_only_if_their_content_is_the_same() {
        let place = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::new(place.path().join("repo")).unwrap());
        let repository = Repository::init(store, "x").unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let writer = repository.writer(WriterOptions::default()).unwrap();
        let node = |name: &str, text: &str| {
            let content = writer.save_data(&mut text.as_bytes()).unwrap();
            let mut node = Node::file(name, content, now);
            (node.links, node.inode, node.device_id) = (2, 7, 1);
            node
        };
        let nodes = vec![node("a", "one"), node("b", "two"), node("c", "one")];
        let root = writer.save_tree(&Tree { nodes }).unwrap();
        writer.publish(Snapshot::new(root, Vec::new(), Vec::new(), now)).unwrap();
        let target = place.path().join("target");
        let reader = repository.reader().unwrap();
        reader.restore(&root, &target, &RestoreOptions::default(), &Silent).unwrap();
        let read = |name: &str| fs::read_to_string(target.join(name)).unwrap();
        assert_eq!([read("a"), read("b"), read("c")], ["one", "two", "one"]);
        let inode = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
        assert_eq!(inode("a"), inode("c"));
        assert_ne!(inode("a"), inode("b"));
    }

    #[test]
    fn a_tree_with_names_that_leave_their_directory_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::new(place.path().join("repo")).unwrap());
        let repository = Repository::init(store, "x").unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let file = Tree { nodes: vec![Node::file("NAME", Content::default(), now)] };
        let text = file.encode().unwrap();
        for name in ["..", ".", "", "../escaped", "a/b", "/etc/escaped", "a\\\\x00"] {
            let writer = repository.writer(WriterOptions::default()).unwrap();
            let evil = writer.save_raw_tree(&text.replace("NAME", name));
            let nodes = vec![Node::directory("inner", evil, now)];
            let root = writer.save_tree(&Tree { nodes }).unwrap();
            let snapshot = Snapshot::new(root, Vec::new(), Vec::new(), now);
            // Publishing takes what was saved at its word; reading does not.
            writer.publish(snapshot).unwrap();
            let reader = repository.reader().unwrap();
            let target = tempfile::tempdir_in(place.path()).unwrap();
            let error = reader
                .restore(&root, target.path(), &RestoreOptions::default(), &Silent)
                .unwrap_err();
            assert!(matches!(error, RepositoryError::Damaged { .. }), "{name}: {error}");
            assert!(!place.path().join("escaped").exists());
        }
    }
}
