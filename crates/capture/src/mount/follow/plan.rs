//! A mount's tree as prepare saw it last, and how the mark brings it up to date.
//!
//! The mark goes through the tree in memory. On disk it looks at names that came or went, at files
//! and directories that changed, at those that someone may be changing silently, and at those
//! whose content prepare could not settle. A directory that is new to its place is walked.
//! Directories are opened beneath the mount and recognised by their inode; where one is not what
//! the tree says, or where something was mounted meanwhile, the tree is given up for a walk.

use super::super::cache::{Apart, Cache};
use super::super::filter::Filter;
use super::super::identity::{Identity, file_type};
use super::super::mark::{Marked, MarkedEntry, Marker, What};
use super::super::walk::{Entry, Visitor, open_directory, walk};
use super::{Changes, Sieve};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, statat};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Why a mark must walk instead.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Unplanned {
    /// The mount is not what the tree says, or cannot be followed.
    #[error("{0}")]
    Unclear(String),
    /// The mark itself failed.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl From<Errno> for Unplanned {
    fn from(error: Errno) -> Self {
        Self::Failed(error.into())
    }
}

fn unclear<T>(why: impl Into<String>) -> Result<T, Unplanned> {
    Err(Unplanned::Unclear(why.into()))
}

/// The tree of a mount, as it was when it was looked through last.
pub(in super::super) struct Plan {
    root: (u64, u64),
    /// What is mounted where, as the kernel lists it.
    mounts: Vec<u8>,
    top: Vec<MarkedEntry>,
    /// Looked at by every mark: what prepare read was not settled.
    unsettled: HashSet<u64>,
    /// It lacks something, or has directories that nobody followed.
    outdated: bool,
}

impl Plan {
    /// Looks through the mount. Gives what tells its events from those of others, too.
    pub(in super::super) fn look(
        root: &Path,
        filter: &Filter,
        cache: &Cache,
    ) -> Result<(Self, Sieve), Unplanned> {
        let directory = open_directory(CWD, root)?;
        let stat = fstat(&directory)?;
        let mounts = mounts()?;
        let mut planner = Planner {
            cache,
            device: stat.st_dev,
            open: vec![Vec::new()],
            unsettled: HashSet::new(),
            inodes: vec![stat.st_ino],
            directories: HashMap::from([(stat.st_ino, PathBuf::new())]),
            unclear: None,
        };
        walk(directory.as_fd(), Path::new(""), filter, &mut planner)?;
        if let Some(why) = planner.unclear {
            return unclear(why);
        }
        let mut inodes = planner.inodes;
        inodes.sort_unstable();
        inodes.dedup();
        let plan = Self {
            root: (stat.st_dev, stat.st_ino),
            mounts,
            top: planner.open.pop().unwrap_or_default(),
            unsettled: planner.unsettled,
            outdated: false,
        };
        let directories = planner.directories;
        Ok((plan, Sieve { filter: filter.clone(), inodes, directories }))
    }

    /// Takes back the tree that a mark gave away, for the next one.
    pub(in super::super) fn resume(&mut self, marked: Marked) {
        self.top = marked.top;
    }

    /// Fixes the mount: what is in `changes` or `silent` is looked at, all else is as it was.
    pub(in super::super) fn mark(
        &mut self,
        changes: &Changes,
        silent: &HashSet<u64>,
        root: &Path,
        filter: &Filter,
        apart: &Apart,
        cache: &Cache,
    ) -> Result<Marked, Unplanned> {
        if let Some(why) = &changes.lost {
            return unclear(why.clone());
        }
        if self.outdated {
            return unclear("the mark before found new directories, or something unreadable");
        }
        let directory = open_directory(CWD, root)?;
        let stat = fstat(&directory)?;
        if (stat.st_dev, stat.st_ino) != self.root {
            return unclear("the mount's directory is another one than before");
        }
        if mounts()? != self.mounts {
            return unclear("something was mounted or unmounted since prepare");
        }
        let marker = Marker::begin(root, &directory, apart, cache)?;
        let inodes = changes.inodes.iter().chain(silent).chain(&self.unsettled).copied().collect();
        let names = &changes.names;
        let mut updater =
            Updater { directory: &directory, filter, names, inodes, marker, outdated: false };
        let mut top = std::mem::take(&mut self.top);
        updater.update(self.root.1, Path::new(""), &mut top)?;
        // What is missing must be named again by the next mark, and is not in the tree any more.
        self.outdated = updater.outdated || !updater.marker.marked.gaps.is_empty();
        Ok(updater.marker.end(&directory, top)?)
    }
}

fn mounts() -> io::Result<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo")
}

struct Planner<'a> {
    cache: &'a Cache,
    device: u64,
    /// The directories that the walk is in, outermost first.
    open: Vec<Vec<MarkedEntry>>,
    unsettled: HashSet<u64>,
    inodes: Vec<u64>,
    directories: HashMap<u64, PathBuf>,
    unclear: Option<String>,
}

impl Visitor for Planner<'_> {
    fn entry(&mut self, entry: &Entry, _: BorrowedFd<'_>) -> io::Result<()> {
        let Identity { device, inode, .. } = entry.identity;
        if device != self.device {
            let why = format!("another file system is mounted at {}", entry.path.display());
            self.unclear.get_or_insert(why);
        }
        if self.cache.settled(&entry.identity).is_none() {
            self.unsettled.insert(inode);
        }
        self.inodes.push(inode);
        let (name, kind) = (entry.name.clone(), entry.kind);
        let what = What::Known { device, inode };
        if let Some(level) = self.open.last_mut() {
            level.push(MarkedEntry { name, inode, kind, what, children: None });
        }
        if kind == FileType::Directory {
            if self.directories.insert(inode, entry.path.clone()).is_some() {
                let why = format!("{} can be reached by two ways", entry.path.display());
                self.unclear.get_or_insert(why);
            }
            self.open.push(Vec::new());
        }
        Ok(())
    }

    fn leave(&mut self) {
        let Some(entries) = self.open.pop() else { return };
        if let Some(directory) = self.open.last_mut().and_then(|above| above.last_mut()) {
            directory.children = Some(entries);
        }
    }

    fn gap(&mut self, path: &Path, why: String) {
        self.unclear.get_or_insert(format!("{}: {why}", path.display()));
    }

    // It will be among the names that changed.
    fn vanished(&mut self, _: &Path) {}
}

struct Updater<'a> {
    directory: &'a OwnedFd,
    filter: &'a Filter,
    names: &'a HashMap<u64, HashSet<OsString>>,
    inodes: HashSet<u64>,
    marker: Marker<'a>,
    outdated: bool,
}

impl Updater<'_> {
    /// Brings the entries of one directory, and all below it, up to date.
    fn update(
        &mut self,
        inode: u64,
        path: &Path,
        entries: &mut Vec<MarkedEntry>,
    ) -> Result<(), Unplanned> {
        let mut place = Place { root: self.directory, inode, path, open: None };
        let mut new = Vec::new();
        if let Some(names) = self.names.get(&inode) {
            self.rename(names, &mut place, entries, &mut new)?;
        }
        let mut gone = false;
        for entry in &mut *entries {
            if self.inodes.contains(&entry.inode) || matches!(entry.what, What::Fresh { .. }) {
                let Some(found) = place.find(&entry.name)? else {
                    self.marker.vanished(&path.join(&entry.name));
                    entry.name.clear();
                    gone = true;
                    continue;
                };
                if (found.identity.inode, found.kind) != (entry.inode, entry.kind) {
                    return unclear(format!("{} is another file", found.path.display()));
                }
                if let Some(what) = self.marker.look(&found, place.open()?)? {
                    entry.what = what;
                } else {
                    entry.name.clear();
                    gone = true;
                    continue;
                }
            }
            self.marker.marked.entries += 1;
            if let Some(children) = &mut entry.children {
                self.update(entry.inode, &path.join(&entry.name), children)?;
            }
        }
        if gone {
            entries.retain(|entry| !entry.name.is_empty());
        }
        if !new.is_empty() {
            entries.append(&mut new);
            entries.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(())
    }

    /// Looks at names that changed: takes out those that went, and those that are another file's
    /// now; puts into `new` what came.
    fn rename(
        &mut self,
        names: &HashSet<OsString>,
        place: &mut Place<'_>,
        entries: &mut Vec<MarkedEntry>,
        new: &mut Vec<MarkedEntry>,
    ) -> Result<(), Unplanned> {
        let mut found = HashMap::new();
        for name in names {
            if !self.filter.excludes(&place.path.join(name)) {
                found.insert(name, place.find(name)?);
            }
        }
        entries.retain(|entry| {
            let Some(now) = found.get(&entry.name) else { return true };
            let same = now
                .as_ref()
                .is_some_and(|now| (now.identity.inode, now.kind) == (entry.inode, entry.kind));
            if same {
                self.inodes.insert(entry.inode);
                found.remove(&entry.name);
            }
            same
        });
        for entry in found.into_values().flatten() {
            let Some(what) = self.marker.look(&entry, place.open()?)? else { continue };
            self.marker.marked.entries += 1;
            let children = if entry.kind == FileType::Directory {
                self.outdated = true;
                match open_directory(place.open()?, Path::new(&entry.name)) {
                    Ok(inner) => {
                        walk(inner.as_fd(), &entry.path, self.filter, &mut self.marker)?;
                        Some(self.marker.walked())
                    }
                    Err(error) => return unclear(format!("{}: {error}", entry.path.display())),
                }
            } else {
                None
            };
            let (inode, kind) = (entry.identity.inode, entry.kind);
            new.push(MarkedEntry { name: entry.name, inode, kind, what, children });
        }
        Ok(())
    }
}

/// A directory of the tree, opened once something in it is to be looked at.
struct Place<'a> {
    root: &'a OwnedFd,
    inode: u64,
    path: &'a Path,
    open: Option<OwnedFd>,
}

impl Place<'_> {
    fn open(&mut self) -> Result<BorrowedFd<'_>, Unplanned> {
        if self.open.is_none() {
            let path = if self.path.as_os_str().is_empty() { Path::new(".") } else { self.path };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            let opened = openat2(self.root, path, flags, Mode::empty(), beneath);
            match opened.and_then(|opened| fstat(&opened).map(|stat| (opened, stat))) {
                Ok((opened, stat)) if stat.st_ino == self.inode => self.open = Some(opened),
                Ok(_) => return unclear(format!("{} is another directory", path.display())),
                Err(error) => return unclear(format!("{}: {error}", path.display())),
            }
        }
        match &self.open {
            Some(open) => Ok(open.as_fd()),
            None => unclear("a directory is not open"),
        }
    }

    /// What has this name now.
    fn find(&mut self, name: &OsString) -> Result<Option<Entry>, Unplanned> {
        let path = self.path.join(name);
        match statat(self.open()?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let (identity, kind) = (Identity::of(&stat), file_type(&stat));
                Ok(Some(Entry { name: name.clone(), path, identity, kind }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => unclear(format!("{}: {error}", path.display())),
        }
    }
}
