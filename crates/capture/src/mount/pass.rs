//! One look at a whole mount: [`upload`] before the hold, [`mark`] inside it.

use super::filter::Filter;
use super::identity::{Identity, MARGIN, Nanoseconds, file_system, file_system_now, pass_start};
use super::spool::{Range, Spool};
use super::walk::{Entry, Visitor, open_directory, walk};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{BlobId, Content, Node, RepositoryError, Tree, Writer};

/// On a file system whose ctime cannot be trusted, this much is read whole inside the hold; of
/// more than this the manifest says that it is in doubt.
const READ_WHOLE: u64 = 64 << 20;
/// A file that changes while it is read is read again this often.
const READ_ATTEMPTS: u32 = 3;

/// What is known of a mount's files from the passes before the hold.
#[derive(Default)]
pub(super) struct Cache {
    known: HashMap<(u64, u64), Known>,
    /// The mount's own device. On another, mounted below it, nothing is ever settled.
    device: u64,
    /// When the last pass began, by the file system's clock.
    last_pass: Nanoseconds,
    /// The file system does not tell of every change.
    untrusted: bool,
    bytes: u64,
}

struct Known {
    identity: Identity,
    settled: bool,
    node: Node,
    content: Option<Content>,
}

impl Cache {
    /// An entry that need not be looked at again.
    fn settled(&self, identity: &Identity) -> Option<&Known> {
        let known = self.known.get(&(identity.device, identity.inode))?;
        let same = known.identity == *identity && identity.device == self.device;
        (known.settled && same).then_some(known)
    }

    /// For the manifest: what the next backup may trust. `None` where nothing may be trusted.
    pub(super) fn settled_before(&self) -> Option<Nanoseconds> {
        (!self.untrusted).then_some(self.last_pass - MARGIN)
    }

    fn reads_whole(&self) -> bool {
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
    /// The files at `paths`, as far as they exist just now.
    pub(super) fn of(paths: &[PathBuf]) -> Self {
        let identity = |path: &PathBuf| rustix::fs::stat(path).map(|s| (s.st_dev, s.st_ino)).ok();
        Self(paths.iter().filter_map(identity).collect())
    }

    fn has(&self, identity: &Identity) -> bool {
        self.0.contains(&(identity.device, identity.inode))
    }
}

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
        let content = match self.writer.save_data(&mut file) {
            Ok(content) => content,
            Err(RepositoryError::Source(_)) => return Ok(None),
            Err(other) => return Err(io::Error::other(other)),
        };
        self.stats.files_read += 1;
        self.stats.bytes_read += content.size;
        if self.stats.largest.as_ref().is_none_or(|(_, size)| *size < content.size) {
            self.stats.largest = Some((entry.path.clone(), content.size));
        }
        self.monitor.advance(content.size);
        let after = Identity::of(&fstat(&file)?);
        Ok((after == entry.identity && content.size == after.size).then_some(content))
    }
}

fn open_file(parent: BorrowedFd<'_>, entry: &Entry) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let name = Path::new(&entry.name);
    // Access times are left alone where the kernel lets us: only a file's owner may ask for that.
    match openat(parent, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(parent, name, flags, Mode::empty()).map(File::from),
        other => other.map(File::from),
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

/// A mount at its instant: the whole tree, with what was read inside the hold in a spool.
pub(super) struct Marked {
    pub(super) file_system: String,
    pub(super) entries: u64,
    pub(super) delta_files: u64,
    pub(super) delta_bytes: u64,
    root: Node,
    top: Vec<MarkedEntry>,
    spool: Spool,
    gaps: Vec<(String, String)>,
    doubts: Vec<String>,
}

struct MarkedEntry {
    name: std::ffi::OsString,
    what: What,
    children: Option<Vec<MarkedEntry>>,
}

enum What {
    /// As the cache knows it.
    Known { device: u64, inode: u64 },
    /// Looked at inside the hold.
    Fresh { node: Box<Node>, content: Option<Range> },
}

/// Fixes the tree: walks it, and reads what is not settled into a spool.
pub(super) fn mark(
    root: &Path,
    filter: &Filter,
    apart: &Apart,
    cache: &Cache,
) -> io::Result<Marked> {
    let directory = open_directory(CWD, root)?;
    let (file_system, _) = file_system(&directory)?;
    // Requests are held and the services stand still: what is stamped later was held by nobody.
    let begun = file_system_now(&directory);
    let mut marker = Marker {
        root,
        apart,
        cache,
        begun,
        open: vec![Level::default()],
        marked: Marked {
            file_system,
            entries: 0,
            delta_files: 0,
            delta_bytes: 0,
            root: Node::inspect(root)?,
            top: Vec::new(),
            spool: Spool::default(),
            gaps: Vec::new(),
            doubts: Vec::new(),
        },
    };
    walk(directory.as_fd(), Path::new(""), filter, &mut marker)?;
    marker.doubt_if_late(&Identity::of(&fstat(&directory)?), Path::new(""));
    let mut marked = marker.marked;
    marked.top = marker.open.pop().unwrap_or_default().entries;
    if cache.untrusted && !cache.reads_whole() {
        marked.doubts.push(format!(
            "it is on {}, where a store to a mapped file may not show, and too large to be read \
             whole inside the hold",
            marked.file_system
        ));
    }
    Ok(marked)
}

struct Marker<'a> {
    root: &'a Path,
    apart: &'a Apart,
    cache: &'a Cache,
    /// When the mark began, by the file system's clock.
    begun: Nanoseconds,
    /// The directories that the walk is in, outermost first.
    open: Vec<Level>,
    marked: Marked,
}

/// A directory that the walk is in.
#[derive(Default)]
struct Level {
    entries: Vec<MarkedEntry>,
    /// It is a gap itself: what is found below it has no place in the tree.
    lost: bool,
}

impl Visitor for Marker<'_> {
    fn entry(&mut self, entry: &Entry, parent: BorrowedFd<'_>) -> io::Result<()> {
        let Identity { device, inode, .. } = entry.identity;
        if self.apart.has(&entry.identity) {
            let why = "it is a service's own file, and captured there: `exclude` it here";
            self.gap(&entry.path, why.to_owned());
            return Ok(());
        }
        self.doubt_if_late(&entry.identity, &entry.path);
        let what = if self.cache.settled(&entry.identity).is_some() {
            What::Known { device, inode }
        } else {
            let Some(what) = self.fresh(entry, parent)? else {
                if entry.kind == FileType::Directory {
                    self.open.push(Level { lost: true, ..Level::default() });
                }
                return Ok(());
            };
            what
        };
        self.marked.entries += 1;
        self.push(entry, what);
        Ok(())
    }

    fn leave(&mut self) {
        let Some(level) = self.open.pop() else { return };
        if level.lost {
            return;
        }
        if let Some(directory) = self.open.last_mut().and_then(|above| above.entries.last_mut()) {
            directory.children = Some(level.entries);
        }
    }

    fn gap(&mut self, path: &Path, why: String) {
        self.marked.gaps.push((display(path), why));
    }

    fn vanished(&mut self, path: &Path) {
        self.doubt(path, "vanished while the mark was taken");
    }
}

impl Marker<'_> {
    fn push(&mut self, entry: &Entry, what: What) {
        let name = entry.name.clone();
        if let Some(level) = self.open.last_mut() {
            level.entries.push(MarkedEntry { name, what, children: None });
        }
        if entry.kind == FileType::Directory {
            self.open.push(Level::default());
        }
    }

    fn doubt_if_late(&mut self, identity: &Identity, path: &Path) {
        if identity.ctime > self.begun {
            self.doubt(path, "was changed while requests were held");
        }
    }

    fn doubt(&mut self, path: &Path, what: &str) {
        self.marked.doubts.push(format!("{} {what}", display(path)));
    }

    fn fresh(&mut self, entry: &Entry, parent: BorrowedFd<'_>) -> io::Result<Option<What>> {
        for attempt in 1..=READ_ATTEMPTS {
            let node = match Node::inspect(&self.root.join(&entry.path)) {
                Ok(node) => Box::new(node),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.vanished(&entry.path);
                    return Ok(None);
                }
                Err(error) => {
                    self.gap(&entry.path, error.to_string());
                    return Ok(None);
                }
            };
            if entry.kind != FileType::RegularFile {
                return Ok(Some(What::Fresh { node, content: None }));
            }
            let mut file = match open_file(parent, entry) {
                Ok(file) => file,
                Err(Errno::NOENT) => {
                    self.vanished(&entry.path);
                    return Ok(None);
                }
                Err(error) => {
                    self.gap(&entry.path, error.to_string());
                    return Ok(None);
                }
            };
            let before = Identity::of(&fstat(&file)?);
            // No more than it has, and one byte to see that: it may grow faster than it is read.
            let mut content = io::Read::take(Tagged(&mut file), before.size + 1);
            let range = match self.marked.spool.take(&mut content) {
                Ok(range) => range,
                Err(error) if is_of_the_file(&error) => {
                    self.gap(&entry.path, error.to_string());
                    return Ok(None);
                }
                // The spool itself failed: no mark without it.
                Err(error) => return Err(error),
            };
            let unchanged = Identity::of(&fstat(&file)?) == before
                && range.length == before.size
                && before.is_of(&node);
            if unchanged || attempt == READ_ATTEMPTS {
                if !unchanged {
                    self.doubt(&entry.path, "was written to while it was read");
                }
                self.marked.delta_files += 1;
                self.marked.delta_bytes += range.length;
                return Ok(Some(What::Fresh { node, content: Some(range) }));
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// Tells a file's own read errors from those of the spool.
struct Tagged<'a>(&'a mut File);

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct OfTheFile(io::Error);

fn is_of_the_file(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<OfTheFile>)
}

impl io::Read for Tagged<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, OfTheFile(error)),
        })
    }
}

fn display(path: &Path) -> String {
    if path.as_os_str().is_empty() { ".".to_owned() } else { path.display().to_string() }
}

/// A mount in the repository.
pub(super) struct Stored {
    /// The mount's own directory.
    pub(super) top: Node,
    pub(super) tree: BlobId,
    pub(super) bytes: u64,
    pub(super) files: u64,
    pub(super) gaps: Vec<(String, String)>,
    pub(super) doubts: Vec<String>,
}

impl Marked {
    /// Stores the spool's contents and the trees. Nothing of the mount itself is looked at.
    pub(super) fn store(
        self,
        cache: &Cache,
        writer: &Writer,
        monitor: &dyn Monitor,
    ) -> Result<Stored, RepositoryError> {
        let mut storer = Storer { cache, writer, monitor, spool: self.spool, bytes: 0, files: 0 };
        let tree = storer.directory(self.top)?;
        let Storer { bytes, files, .. } = storer;
        let (top, gaps, doubts) = (self.root, self.gaps, self.doubts);
        Ok(Stored { top, tree, bytes, files, gaps, doubts })
    }
}

struct Storer<'a> {
    cache: &'a Cache,
    writer: &'a Writer,
    monitor: &'a dyn Monitor,
    spool: Spool,
    bytes: u64,
    files: u64,
}

impl Storer<'_> {
    fn directory(&mut self, entries: Vec<MarkedEntry>) -> Result<BlobId, RepositoryError> {
        let mut nodes = Vec::with_capacity(entries.len());
        for entry in entries {
            let (mut node, content) = match entry.what {
                What::Known { device, inode } => {
                    // A file with several names is known by the one that was seen last.
                    let known = &self.cache.known[&(device, inode)];
                    (known.node.clone(), known.content.clone())
                }
                What::Fresh { node, content: None } => (*node, None),
                What::Fresh { node, content: Some(range) } => {
                    let mut bytes = self.spool.read(range).map_err(RepositoryError::Source)?;
                    let content = self.writer.save_data(&mut bytes)?;
                    self.monitor.advance(content.size);
                    (*node, Some(content))
                }
            };
            node.name = entry.name;
            if let Some(content) = content {
                self.files += 1;
                self.bytes += content.size;
                node.size = content.size;
                node.content = Some(content.blobs);
            }
            if let Some(children) = entry.children {
                node.subtree = Some(self.directory(children)?);
            }
            nodes.push(node);
        }
        self.writer.save_tree(&Tree { nodes })
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
