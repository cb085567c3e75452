//! A mounted directory as a participant.
//!
//! Prepare reads and uploads everything, and then again what has changed, until little is left.
//! From then on the kernel tells of changes where it can ([`follow`]), and the mark, inside the hold,
//! looks at those alone; elsewhere it walks the tree once more. It reads only what changed. What
//! decides is a file's identity ([`Identity`]: device, inode, size, ctime), never its path or
//! mtime: a renamed directory leaves its children's ctime alone, and mtime can be set back.
//!
//! A content is trusted ("settled") only if the file's ctime is older, by a margin, than the start
//! of the pass that read it, where a pass starts with `syncfs`. The margin covers the coarse clock
//! of file systems and writes that take long; `syncfs` covers stores to mapped pages, which change
//! ctime only when the page was clean. On file systems where that does not hold (tmpfs, NFS, FUSE) nothing is ever settled
//! and everything is read inside the hold, or doubted where it is too much.

mod cache;
mod exchange;
mod filter;
mod follow;
mod identity;
mod mark;
mod pass;
mod restore;
mod spool;
mod store;
mod walk;

pub use cache::Earlier;
pub use filter::{Filter, InvalidPattern};
pub use follow::{Tracking, tracking};
pub use restore::MountRestore;

use crate::CaptureError;
use crate::participant::{Account, Participant, Rank};
use cache::{Apart, Cache};
use follow::{Changes, Follower, Plan, Unplanned, open_for_writing};
use jiff::Timestamp;
use mark::Marked;
use pass::PassStats;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stillpoint_model::ids::PartName;
use stillpoint_model::manifest::{Gap, Marker, Part, Role};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::Writer;

/// Prepare stops repeating once a pass had to read no more than this.
const DELTA_BUDGET: u64 = 8 << 20;
/// ... and no more files than this.
const DELTA_FILES: u64 = 500;
/// More than this is not read inside a hold: everybody would wait for it.
const MOST_IN_HOLD: u64 = 256 << 20;
/// A mount that can be looked through this quickly is watched during the hold.
const QUICK_LOOK: Duration = Duration::from_millis(10);
/// Prepare repeats no more often than this, whatever goes on.
const MOST_PASSES: u32 = 5;

/// The marker's value by which the next backup knows what to trust: nanoseconds since the epoch.
pub const SETTLED_BEFORE: &str = "settled_before";

/// The marker's value that says how the mark found what had changed: a [`Tracking`].
pub const TRACKED_BY: &str = "tracked_by";

/// One mounted directory.
pub struct MountParticipant {
    name: PartName,
    root: PathBuf,
    filter: Filter,
    apart: Vec<PathBuf>,
    walking: bool,
    cache: Cache,
    passes: u32,
    watched: bool,
    tracking: Tracking,
    follower: Option<Follower>,
    /// What the next mark goes by. Without it, it walks.
    plan: Option<Plan>,
    /// All that has changed since the plan was made.
    changes: Changes,
    marked: Option<(Marked, Marker)>,
    account: Account,
}

impl MountParticipant {
    /// The directory `root`, but for what `filter` excludes.
    pub fn new(name: PartName, root: PathBuf, filter: Filter) -> Self {
        Self {
            name,
            root: resolved(root),
            filter,
            apart: Vec::new(),
            walking: false,
            cache: Cache::default(),
            passes: 0,
            watched: false,
            tracking: Tracking::Walk { why: "not prepared".to_owned() },
            follower: None,
            plan: None,
            changes: Changes::default(),
            marked: None,
            account: Account::default(),
        }
    }

    /// Files that are never opened, by whatever path they are found: those of databases that this
    /// process holds locks on. Where one is found all the same it is a gap.
    #[must_use]
    pub fn keeping_apart(mut self, files: Vec<PathBuf>) -> Self {
        self.apart = files;
        self
    }

    /// Looks through the whole mount at the mark, even where the kernel would tell what changed.
    #[must_use]
    pub fn walking(mut self) -> Self {
        self.walking = true;
        self
    }

    /// Recalls an earlier backup of the same mount: what is unchanged since is not read again.
    pub fn recall(&mut self, earlier: &Earlier<'_>) -> Result<(), CaptureError> {
        earlier.recall(&mut self.cache).map_err(|e| self.fail("recall the last backup of", e))
    }

    /// Follows the mount from now on, with its tree as it is now.
    fn follow(&mut self) -> Result<(), Unplanned> {
        let unclear = Unplanned::Unclear;
        if self.walking {
            return Err(unclear("it was asked for".to_owned()));
        }
        if self.cache.untrusted {
            return Err(unclear("the file system does not tell of every change".to_owned()));
        }
        // Before the tree is looked at, so that nothing falls between.
        let follower = Follower::start(&self.root).map_err(unclear)?;
        open_for_writing().map_err(unclear)?;
        let (plan, sieve) = Plan::look(&self.root, &self.filter, &self.cache)?;
        follower.keep(sieve);
        self.follower = Some(follower);
        self.plan = Some(plan);
        self.tracking = Tracking::Events;
        self.watched = true;
        Ok(())
    }

    /// Fixes the mount by what is known to have changed, or else by a walk.
    fn fix(&mut self, apart: &Apart) -> io::Result<Marked> {
        match self.fix_by_events(apart) {
            Some(Ok(marked)) => return Ok(marked),
            Some(Err(Unplanned::Failed(error))) => return Err(error),
            Some(Err(Unplanned::Unclear(why))) => self.tracking = Tracking::Walk { why },
            None => {}
        }
        self.plan = None;
        mark::mark(&self.root, &self.filter, apart, &self.cache)
    }

    fn fix_by_events(&mut self, apart: &Apart) -> Option<Result<Marked, Unplanned>> {
        let (follower, plan) = (self.follower.as_ref()?, self.plan.as_mut()?);
        if let Some((marked, _)) = self.marked.take() {
            plan.resume(marked);
        }
        // First who has files open, then the events: whoever closes one in between is among them.
        let silent = match open_for_writing() {
            Ok(silent) => silent,
            Err(why) => return Some(Err(Unplanned::Unclear(why))),
        };
        self.changes.extend(follower.take());
        let marked =
            plan.mark(&self.changes, &silent, &self.root, &self.filter, apart, &self.cache);
        Some(marked.map(|mut marked| {
            let late = follower.take();
            if late.count > self.changes.count {
                let paths = marked.paths(&late.inodes);
                if paths.is_empty() {
                    marked.doubt_late(Path::new(""));
                }
                for path in paths {
                    marked.doubt_late(&path);
                }
            }
            self.changes.extend(late);
            marked
        }))
    }

    fn fail(
        &self,
        doing: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> CaptureError {
        CaptureError::new(format!("{doing} mount `{}`", self.name)).because(source)
    }
}

/// The directory itself, where `path` leads to one by symbolic links: links are followed on the
/// way to a mount, never inside it.
fn resolved(path: PathBuf) -> PathBuf {
    std::fs::canonicalize(&path).unwrap_or(path)
}

impl Participant for MountParticipant {
    fn name(&self) -> &PartName {
        &self.name
    }

    fn rank(&self) -> Rank {
        Rank::Data
    }

    fn prepare(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        match std::fs::metadata(&self.root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                return Err(
                    self.fail("prepare", format!("{} is not a directory", self.root.display()))
                );
            }
            Err(error) => {
                return Err(self
                    .fail("prepare", format!("{}: {error}", self.root.display()))
                    .hint("check the mount's `path` in stillpoint.yaml"));
            }
        }
        self.cache.keep_stored(writer);
        let mut last = PassStats::default();
        for number in 1..=MOST_PASSES {
            self.passes = number;
            let pass = pass::upload(
                &self.root,
                &self.filter,
                &Apart::of(&self.apart)?,
                &mut self.cache,
                writer,
                monitor,
            )
            .map_err(|e| self.fail("prepare", e))?;
            monitor.note(&format!(
                "mount {}: pass {number} read {} files, {} bytes",
                self.name, pass.files_read, pass.bytes_read
            ));
            let little = pass.bytes_read <= DELTA_BUDGET && pass.files_read <= DELTA_FILES;
            last = pass;
            if little {
                break;
            }
        }
        if last.bytes_read > MOST_IN_HOLD {
            let (path, size) = last.largest.unwrap_or_default();
            let found = format!(
                "it changes too fast: after {MOST_PASSES} passes there are still {} bytes to be \
                 read again, {size} of them in {}",
                last.bytes_read,
                path.display()
            );
            return Err(self.fail("prepare", found).hint("`exclude` what need not be backed up"));
        }
        match self.follow() {
            Ok(()) => return Ok(()),
            Err(Unplanned::Failed(error)) => return Err(self.fail("prepare", error)),
            Err(Unplanned::Unclear(why)) => self.tracking = Tracking::Walk { why },
        }
        monitor.note(&format!("mount {}: the mark is by {}", self.name, self.tracking));
        let begun = Instant::now();
        pass::survey(&self.root, &self.filter).map_err(|e| self.fail("prepare", e))?;
        self.watched = begun.elapsed() <= QUICK_LOOK;
        Ok(())
    }

    fn counter(&mut self) -> Result<Option<String>, CaptureError> {
        if !self.watched {
            return Ok(None);
        }
        if let Some(follower) = &self.follower {
            return Ok(Some(follower.count().to_string()));
        }
        let seen = pass::survey(&self.root, &self.filter).map_err(|e| self.fail("watch", e))?;
        Ok(Some(format!("{seen:016x}")))
    }

    fn mark(&mut self) -> Result<(), CaptureError> {
        let apart = Apart::of(&self.apart)?;
        let marked = self.fix(&apart).map_err(|e| self.fail("mark", e))?;
        let mut values = BTreeMap::from([
            ("entries".to_owned(), marked.entries.to_string()),
            ("delta_files".to_owned(), marked.delta_files.to_string()),
            ("delta_bytes".to_owned(), marked.delta_bytes.to_string()),
            ("passes".to_owned(), self.passes.to_string()),
            ("watched".to_owned(), self.watched.to_string()),
            (TRACKED_BY.to_owned(), self.tracking.to_string()),
        ]);
        if let Some(nanoseconds) = self.cache.settled_before() {
            values.insert(SETTLED_BEFORE.to_owned(), nanoseconds.to_string());
        }
        self.marked = Some((marked, Marker { at: Timestamp::now(), values }));
        Ok(())
    }

    fn capture(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        let (marked, marker) = self
            .marked
            .take()
            .ok_or_else(|| CaptureError::new(format!("capture `{}`: not marked", self.name)))?;
        let facts = BTreeMap::from([("file_system".to_owned(), marked.file_system.clone())]);
        let stored =
            marked.store(&self.cache, writer, monitor).map_err(|e| self.fail("capture", e))?;
        self.account.gaps = stored
            .gaps
            .into_iter()
            .map(|(what, why)| Gap { part: self.name.clone(), what, why })
            .collect();
        self.account.doubts =
            stored.doubts.iter().map(|doubt| format!("mount {}: {doubt}", self.name)).collect();
        let part = Part {
            name: self.name.clone(),
            role: Role::Mount,
            kind: "mount".to_owned(),
            marker,
            facts,
            bytes: stored.bytes,
            items: stored.files,
        };
        let mut node = stored.top;
        node.name = self.name.as_str().into();
        node.subtree = Some(stored.tree);
        self.account.part = Some((part, node));
        Ok(())
    }

    fn account(&mut self) -> Account {
        std::mem::take(&mut self.account)
    }
}
