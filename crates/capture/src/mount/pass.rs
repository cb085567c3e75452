//! A look at a whole mount before the hold: [`upload`] reads and stores, [`survey`] only looks.

use super::cache::{Apart, Cache, Known};
use super::filter::Filter;
use super::identity::{Identity, Nanoseconds, file_system, pass_start};
use super::walk::{Entry, Visitor, open_directory, open_file, walk};
use crate::stream::Watched;
use rustix::fs::{CWD, FileType, fstat};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{Content, Node, RepositoryError, Writer};

/// What a pass had to read.
#[derive(Debug, Default)]
pub(super) struct PassStats {
    pub(super) files_read: u64,
    pub(super) bytes_read: u64,
    /// The largest file that was read.
    pub(super) largest: Option<(PathBuf, u64)>,
}

/// Reads and stores everything that is not settled. Files that vanish, change or cannot be read
/// are left to the next pass, and at last to the mark.
pub(super) fn upload(
    root: &Path,
    filter: &Filter,
    apart: &Apart,
    cache: &mut Cache,
    writer: &Writer,
    monitor: &dyn Monitor,
) -> io::Result<PassStats> {
    let directory = open_directory(CWD, root)?;
    let (_, trusted) = file_system(&directory)?;
    let start = pass_start(&directory)?;
    let device = fstat(&directory)?.st_dev;
    // Whole seconds: two changes in one cannot be told apart (ext4 with small inodes, FAT).
    let trusted = trusted && start % 1_000_000_000 != 0;
    cache.untrusted = !trusted;
    cache.bytes = 0;
    cache.device = device;
    cache.last_pass = start;
    if !trusted {
        // Whatever an earlier backup knew of it was known by other means.
        cache.known.values_mut().for_each(|known| known.settled = false);
    }
    let mut uploader = Uploader {
        root,
        apart,
        cache,
        writer,
        monitor,
        device,
        start,
        stats: PassStats::default(),
    };
    walk(directory.as_fd(), Path::new(""), filter, &mut uploader)?;
    let stats = uploader.stats;
    if cache.reads_whole() {
        // Nothing settles here: another pass would read it all again, and to no avail.
        cache.known.values_mut().for_each(|known| known.settled = false);
        return Ok(PassStats::default());
    }
    Ok(stats)
}

struct Uploader<'a> {
    root: &'a Path,
    apart: &'a Apart,
    cache: &'a mut Cache,
    writer: &'a Writer,
    monitor: &'a dyn Monitor,
    device: u64,
    start: Nanoseconds,
    stats: PassStats,
}

impl Visitor for Uploader<'_> {
    fn entry(&mut self, entry: &Entry, parent: BorrowedFd<'_>) -> io::Result<()> {
        if self.monitor.cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        if entry.kind == FileType::RegularFile {
            self.cache.bytes += entry.identity.size;
        }
        if self.cache.settled(&entry.identity).is_some() || self.apart.has(&entry.identity) {
            return Ok(());
        }
        // What fails for a reason in the file itself fails again at the mark, and is named there.
        let Ok(node) = Node::inspect(&self.root.join(&entry.path)) else { return Ok(()) };
        let content = if entry.kind == FileType::RegularFile {
            match self.read(entry, parent)? {
                Some(content) => Some(content),
                None => return Ok(()),
            }
        } else {
            None
        };
        let identity = entry.identity;
        let settled = identity.device == self.device && identity.settled_at(self.start);
        let known = Known { identity, settled, node, content };
        self.cache.known.insert((identity.device, identity.inode), known);
        Ok(())
    }

    fn leave(&mut self) {}
    fn gap(&mut self, _: &Path, _: String) {}
    fn vanished(&mut self, _: &Path) {}
}

impl Uploader<'_> {
    fn read(&mut self, entry: &Entry, parent: BorrowedFd<'_>) -> io::Result<Option<Content>> {
        let Ok(mut file) = open_file(parent, entry) else { return Ok(None) };
        let mut watched = Watched { content: &mut file, monitor: self.monitor };
        let content = match self.writer.save_data(&mut watched) {
            Ok(content) => content,
            Err(RepositoryError::Source(error)) if self.monitor.cancelled() => return Err(error),
            Err(RepositoryError::Source(_)) => return Ok(None),
            Err(other) => return Err(io::Error::other(other)),
        };
        self.stats.files_read += 1;
        self.stats.bytes_read += content.size;
        if self.stats.largest.as_ref().is_none_or(|(_, size)| *size < content.size) {
            self.stats.largest = Some((entry.path.clone(), content.size));
        }
        let after = Identity::of(&fstat(&file)?);
        Ok((after == entry.identity && content.size == after.size).then_some(content))
    }
}

/// A fingerprint of everything that the kernel tells of the mount: equal ones, nothing was changed
/// in between.
pub(super) fn survey(root: &Path, filter: &Filter) -> io::Result<u64> {
    let directory = open_directory(CWD, root)?;
    let mut surveyor = Surveyor(DefaultHasher::new());
    walk(directory.as_fd(), Path::new(""), filter, &mut surveyor)?;
    Ok(surveyor.0.finish())
}

struct Surveyor(DefaultHasher);

impl Visitor for Surveyor {
    fn entry(&mut self, entry: &Entry, _: BorrowedFd<'_>) -> io::Result<()> {
        entry.path.hash(&mut self.0);
        entry.identity.hash(&mut self.0);
        Ok(())
    }

    fn leave(&mut self) {}
    fn gap(&mut self, _: &Path, _: String) {}
    fn vanished(&mut self, path: &Path) {
        path.hash(&mut self.0);
    }
}
