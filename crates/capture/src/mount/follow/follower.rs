//! Keeps up with a mount's events on a thread of its own, so that the kernel's queue (16,384
//! events by default) does not run over while prepare is busy elsewhere.
//!
//! The events are those of the whole file system. Until the mount's tree is known all are kept;
//! then only those of its files and directories are. Too many lose nothing: they are forgotten,
//! and said to be, so that a walk takes their place.

use super::super::filter::Filter;
use super::group::{Event, Group};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// No more names and files than this are kept.
const MOST_KEPT: usize = 1 << 20;

/// What has changed, as far as events told.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in super::super) struct Changes {
    /// Names that came, went or were given to another file, by the inode of their directory.
    pub(in super::super) names: HashMap<u64, HashSet<OsString>>,
    /// Files and directories that changed in themselves.
    pub(in super::super) inodes: HashSet<u64>,
    /// Why this is not all.
    pub(in super::super) lost: Option<String>,
    /// How many changes were told of. A file that was merely closed counts for none.
    pub(in super::super) count: u64,
    kept: usize,
}

impl Changes {
    fn add(&mut self, event: Event) {
        self.count += u64::from(!matches!(event, Event::Closed { .. }));
        if self.lost.is_some() {
            return;
        }
        match event {
            Event::Name { directory, name, .. } => {
                self.kept += usize::from(self.inodes.insert(directory));
                self.kept += usize::from(self.names.entry(directory).or_default().insert(name));
            }
            Event::Changed { inode } | Event::Closed { inode } => {
                self.kept += usize::from(self.inodes.insert(inode));
            }
            Event::Unknown { why } => self.lose(why),
        }
        if self.kept > MOST_KEPT {
            self.lose(format!("more than {MOST_KEPT} changes since the last pass"));
        }
    }

    fn lose(&mut self, why: String) {
        *self = Self { lost: Some(why), count: self.count, ..Self::default() };
    }

    /// All that `later` has as well. What it counts counts from the same beginning.
    pub(in super::super) fn extend(&mut self, later: Self) {
        for (directory, names) in later.names {
            self.names.entry(directory).or_default().extend(names);
        }
        self.inodes.extend(later.inodes);
        self.lost = self.lost.take().or(later.lost);
        self.count = later.count;
    }
}

/// Which events concern a mount.
#[derive(Debug)]
pub(in super::super) struct Sieve {
    pub(in super::super) filter: Filter,
    /// The mount's inodes, sorted.
    pub(in super::super) inodes: Vec<u64>,
    /// Where its directories were when it was looked through. One that was renamed is walked by the
    /// mark in its new place, so what is sifted by the old path is not missed.
    pub(in super::super) directories: HashMap<u64, PathBuf>,
}

impl Sieve {
    fn has(&self, inode: u64) -> bool {
        self.inodes.binary_search(&inode).is_ok()
    }

    fn excludes(&self, directory: u64, name: &OsStr) -> bool {
        let path = self.directories.get(&directory);
        path.is_some_and(|path| self.filter.excludes(&path.join(name)))
    }
}

/// The events that concern the mount.
#[derive(Debug, Default)]
struct Seen {
    changes: Changes,
    /// Once the mount's tree is known.
    sieve: Option<Sieve>,
    /// The inodes that have got a name in the mount since.
    added: HashSet<u64>,
}

impl Seen {
    fn add(&mut self, mut event: Event) {
        if let Some(sieve) = &self.sieve {
            let (Event::Name { directory: inode, .. }
            | Event::Changed { inode }
            | Event::Closed { inode }) = event
            else {
                return self.changes.add(event);
            };
            if !sieve.has(inode) && !self.added.contains(&inode) {
                return;
            }
            match &event {
                // It is the directory alone that changed, and only in its times.
                Event::Name { directory, name, .. } if sieve.excludes(*directory, name) => {
                    event = Event::Closed { inode: *directory };
                }
                // Wherever it was before, it belongs here now.
                Event::Name { of: Some(inode), .. } => drop(self.added.insert(*inode)),
                _ => {}
            }
        }
        self.changes.add(event);
    }
}

#[derive(Debug)]
struct Shared {
    group: Group,
    seen: Mutex<Seen>,
    stop: OwnedFd,
}

impl Shared {
    /// Empties the kernel's queue. What was done before this call is seen after it.
    fn catch_up(&self) -> MutexGuard<'_, Seen> {
        let mut seen = self.lock();
        while self.read(&mut seen) {}
        seen
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics with events")
    }

    fn read(&self, seen: &mut Seen) -> bool {
        match self.group.read(&mut |event| seen.add(event)) {
            Ok(more) => more,
            Err(error) => {
                seen.add(Event::Unknown { why: format!("the kernel's events: {error}") });
                false
            }
        }
    }

    /// Until it is told to stop.
    fn follow(&self) {
        loop {
            let mut ready =
                [PollFd::new(&self.group, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                // Nobody empties the queue any more but those who ask: it runs over, and says so.
                Err(_) => return,
            }
            if !ready[1].revents().is_empty() {
                return;
            }
            // A little at a time: this thread is of low priority, and a mark may want the lock.
            self.read(&mut self.lock());
        }
    }
}

/// Follows the changes below a mount until it is dropped.
#[derive(Debug)]
pub(in super::super) struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// From now on, or why that is not possible.
    pub(in super::super) fn start(root: &Path) -> Result<Self, String> {
        let group = Group::open(root)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
        let shared = Arc::new(Shared { group, seen: Mutex::default(), stop });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("follow".to_owned())
            .spawn(move || theirs.follow())
            .map_err(|e| e.to_string())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// From now on only what `sieve` lets through is kept; what came before is sifted as well.
    pub(in super::super) fn keep(&self, sieve: Sieve) {
        let mut seen = self.shared.catch_up();
        let Changes { names, inodes, kept, .. } = &mut seen.changes;
        names.retain(|directory, _| sieve.has(*directory));
        inodes.retain(|inode| sieve.has(*inode));
        *kept = inodes.len() + names.values().map(HashSet::len).sum::<usize>();
        seen.sieve = Some(sieve);
    }

    /// How many changes there have been until now.
    pub(in super::super) fn count(&self) -> u64 {
        self.shared.catch_up().changes.count
    }

    /// The changes until now that were not taken yet.
    pub(in super::super) fn take(&self) -> Changes {
        let mut seen = self.shared.catch_up();
        let (count, lost) = (seen.changes.count, seen.changes.lost.clone());
        std::mem::replace(&mut seen.changes, Changes { lost, count, ..Changes::default() })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            // It only ever waits for what has just been told.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_changes_are_forgotten_and_said_to_be() {
        let mut changes = Changes::default();
        for inode in 0..=MOST_KEPT as u64 {
            changes.add(Event::Changed { inode });
        }
        assert!(changes.lost.is_some());
        assert!(changes.inodes.is_empty());
        assert_eq!(changes.count, MOST_KEPT as u64 + 1);
    }

    fn seen(inodes: Vec<u64>, exclude: &str) -> Seen {
        let filter = Filter::new(&[exclude.to_owned()]).unwrap();
        let directories = inodes.iter().map(|inode| (*inode, PathBuf::from("d"))).collect();
        Seen { sieve: Some(Sieve { filter, inodes, directories }), ..Seen::default() }
    }

    fn name(name: &str, of: u64) -> Event {
        Event::Name { directory: 3, name: name.into(), of: Some(of) }
    }

    #[test]
    fn what_does_not_concern_the_mount_is_not_kept() {
        let mut seen = seen(vec![3, 5], "*.tmp");
        for inode in 1..=6 {
            seen.add(Event::Changed { inode });
        }
        assert_eq!(seen.changes.inodes, HashSet::from([3, 5]));
        assert_eq!(seen.changes.count, 2);
    }

    #[test]
    fn a_file_that_gets_a_name_in_the_mount_is_followed_from_then_on() {
        let mut seen = seen(vec![3], "*.tmp");
        seen.add(Event::Changed { inode: 9 });
        seen.add(name("new", 9));
        assert_eq!(seen.changes.inodes, HashSet::from([3]));
        seen.add(Event::Changed { inode: 9 });
        assert_eq!(seen.changes.inodes, HashSet::from([3, 9]));
    }

    #[test]
    fn of_an_excluded_file_only_its_directory_is_looked_at() {
        let mut seen = seen(vec![3], "d/*.tmp");
        seen.add(name("x.tmp", 9));
        seen.add(Event::Changed { inode: 9 });
        assert_eq!(seen.changes.inodes, HashSet::from([3]));
        assert!(seen.changes.names.is_empty());
        assert_eq!(seen.changes.count, 0);
    }
}
