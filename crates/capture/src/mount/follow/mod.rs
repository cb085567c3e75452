//! Following a mount's changes by the kernel's events (fanotify), so that the mark looks at what
//! was changed and at nothing else.
//!
//! - [`group`] opens the kernel's queue, and reads handles and names out of it;
//! - [`follower`] empties the queue all the time and keeps what concerns the mount;
//! - [`silent`] finds the files that are changed without events, because someone has them open;
//! - [`plan`] is the tree as prepare saw it, brought up to date inside the hold.
//!
//! What must never break: whatever the events cannot tell for certain is found by a walk instead,
//! and the reason is kept as evidence. An event too many costs a look at a file; one too few would
//! cost the backup.

mod follower;
mod group;
mod plan;
mod silent;

use follower::Sieve;
pub(super) use follower::{Changes, Follower};
pub(super) use plan::{Plan, Unplanned};
pub(super) use silent::open_for_writing;

use std::fmt;
use std::path::Path;

/// How the changes of a mount are found inside a hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracking {
    /// The kernel tells of them. Its cost grows with what was changed.
    Events,
    /// The whole mount is looked through. Its cost grows with the number of files.
    Walk {
        /// Why the kernel does not tell, and what would be needed.
        why: String,
    },
}

impl fmt::Display for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events => f.write_str("events"),
            Self::Walk { why } => write!(f, "walk: {why}"),
        }
    }
}

/// How changes of the mount at `root` would be found, as far as rights and file system decide it.
/// Asks the kernel, and changes nothing.
pub fn tracking(root: &Path) -> Tracking {
    let possible = Follower::start(root).and_then(|_| open_for_writing().map(drop));
    match possible {
        Ok(()) => Tracking::Events,
        Err(why) => Tracking::Walk { why },
    }
}
