//! A look at a whole mount inside the hold: [`mark`] fixes it, and reads what is not settled.

use super::cache::{Apart, Cache};
use super::filter::Filter;
use super::identity::{Identity, Nanoseconds, file_system, file_system_now};
use super::spool::{Range, Spool};
use super::walk::{Entry, Visitor, open_directory, open_file, walk};
use rustix::fs::{CWD, FileType, fstat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use stillpoint_repository::Node;

/// A file that changes while it is read is read again this often.
const READ_ATTEMPTS: u32 = 3;

/// A mount at its instant: the whole tree, with what was read inside the hold in a spool.
pub(super) struct Marked {
    pub(super) file_system: String,
    pub(super) entries: u64,
    pub(super) delta_files: u64,
    pub(super) delta_bytes: u64,
    pub(super) root: Node,
    pub(super) top: Vec<MarkedEntry>,
    pub(super) spool: Spool,
    pub(super) gaps: Vec<(String, String)>,
    pub(super) doubts: Vec<String>,
}

impl Marked {
    /// Where these inodes are in the tree.
    pub(super) fn paths(&self, inodes: &HashSet<u64>) -> Vec<PathBuf> {
        fn below(
            entries: &[MarkedEntry],
            path: &Path,
            inodes: &HashSet<u64>,
            found: &mut Vec<PathBuf>,
        ) {
            for entry in entries {
                if inodes.contains(&entry.inode) {
                    found.push(path.join(&entry.name));
                }
                if let Some(children) = &entry.children {
                    below(children, &path.join(&entry.name), inodes, found);
                }
            }
        }
        let mut found = Vec::new();
        below(&self.top, Path::new(""), inodes, &mut found);
        found
    }

    /// Somebody changed the file at `path` although all who may were held.
    pub(super) fn doubt_late(&mut self, path: &Path) {
        let doubt = format!("{} was changed while requests were held", display(path));
        if !self.doubts.contains(&doubt) {
            self.doubts.push(doubt);
        }
    }
}

/// One entry of the tree.
pub(super) struct MarkedEntry {
    pub(super) name: OsString,
    pub(super) inode: u64,
    pub(super) kind: FileType,
    pub(super) what: What,
    pub(super) children: Option<Vec<MarkedEntry>>,
}

/// Where an entry's metadata and content are.
pub(super) enum What {
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
    let mut marker = Marker::begin(root, &directory, apart, cache)?;
    walk(directory.as_fd(), Path::new(""), filter, &mut marker)?;
    let top = marker.walked();
    marker.end(&directory, top)
}

/// Takes in what belongs to a mark.
pub(super) struct Marker<'a> {
    root: &'a Path,
    apart: &'a Apart,
    cache: &'a Cache,
    /// When the mark began, by the file system's clock.
    begun: Nanoseconds,
    /// The directories that the walk is in, outermost first.
    open: Vec<Level>,
    pub(super) marked: Marked,
}

impl<'a> Marker<'a> {
    /// A mark of `root`, whose `directory` is open.
    pub(super) fn begin(
        root: &'a Path,
        directory: &OwnedFd,
        apart: &'a Apart,
        cache: &'a Cache,
    ) -> io::Result<Self> {
        let (file_system, _) = file_system(directory)?;
        // Requests are held and the services stand still: what is stamped later was held by nobody.
        let begun = file_system_now(directory);
        let marked = Marked {
            file_system,
            entries: 0,
            delta_files: 0,
            delta_bytes: 0,
            root: Node::inspect(root)?,
            top: Vec::new(),
            spool: Spool::default(),
            gaps: Vec::new(),
            doubts: Vec::new(),
        };
        Ok(Self { root, apart, cache, begun, open: vec![Level::default()], marked })
    }

    /// The entries of the directory that was walked, for the next walk to begin anew.
    pub(super) fn walked(&mut self) -> Vec<MarkedEntry> {
        let top = self.open.pop().unwrap_or_default().entries;
        self.open = vec![Level::default()];
        top
    }

    /// The mark, with the tree that it fixed.
    pub(super) fn end(mut self, directory: &OwnedFd, top: Vec<MarkedEntry>) -> io::Result<Marked> {
        self.doubt_if_late(&Identity::of(&fstat(directory)?), Path::new(""));
        let mut marked = self.marked;
        marked.top = top;
        if self.cache.untrusted && !self.cache.reads_whole() {
            marked.doubts.push(format!(
                "it is on {}, where a store to a mapped file may not show, and too large to be \
                 read whole inside the hold",
                marked.file_system
            ));
        }
        Ok(marked)
    }
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
        if let Some(what) = self.look(entry, parent)? {
            self.marked.entries += 1;
            self.push(entry, what);
        } else if entry.kind == FileType::Directory {
            self.open.push(Level { lost: true, ..Level::default() });
        }
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
    /// What is to be stored of an entry; `None` if it has no place in the tree, and why is noted.
    pub(super) fn look(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
    ) -> io::Result<Option<What>> {
        if self.apart.has(&entry.identity) {
            let why = "it is a service's own file, and captured there: `exclude` it here";
            self.gap(&entry.path, why.to_owned());
            return Ok(None);
        }
        self.doubt_if_late(&entry.identity, &entry.path);
        if self.cache.settled(&entry.identity).is_some() {
            let Identity { device, inode, .. } = entry.identity;
            return Ok(Some(What::Known { device, inode }));
        }
        self.fresh(entry, parent)
    }

    fn push(&mut self, entry: &Entry, what: What) {
        let (name, inode, kind) = (entry.name.clone(), entry.identity.inode, entry.kind);
        if let Some(level) = self.open.last_mut() {
            level.entries.push(MarkedEntry { name, inode, kind, what, children: None });
        }
        if entry.kind == FileType::Directory {
            self.open.push(Level::default());
        }
    }

    fn doubt_if_late(&mut self, identity: &Identity, path: &Path) {
        if identity.ctime > self.begun {
            self.marked.doubt_late(path);
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
