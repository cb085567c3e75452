//! Workers: what works by itself beside the requests, and must stand still while the marks are
//! taken.
//!
//! There are several ways to make something stand still, one module each (`group`, `cgroup`,
//! `container`, `unit`, `commands`), all behind [`Still`]. What is to be frozen is looked up at the
//! last moment, in [`Participant::aim`]: a worker that was restarted since prepare is found anew.
//! What was found is a [`Target`], which can be written down: the watchdog is told of it before it
//! is frozen, and thaws exactly that, whatever becomes of this process.
//!
//! What must never break:
//! - nothing is frozen that the watchdog has not been told of;
//! - a process id that was given to another process is never signalled (`group`);
//! - letting go may be done again, by anyone, and is harmless where nothing is frozen;
//! - what did not stand still from its freezing to its thawing fails the backup, or costs the label
//!   `consistent`.

mod cgroup;
mod commands;
mod container;
mod examine;
mod frozen;
mod group;
mod participant;
mod process;
mod shell;
mod target;
#[cfg(test)]
pub(crate) mod tests;
mod unit;

pub use cgroup::Cgroup;
pub use commands::Commands;
pub use container::Container;
pub use examine::examine;
pub use frozen::Frozen;
pub use group::{Group, Process};
pub use participant::{Aim, WorkerParticipant};
pub use shell::Shell;
pub use target::{Aimed, Target};
pub use unit::Unit;

use crate::CaptureError;
use std::time::Instant;

/// Something that can be made to stand still.
trait Still {
    /// For messages and evidence: "process group 4711".
    fn describe(&self) -> String;

    /// Whether this process may freeze and thaw it.
    fn permitted(&self) -> Result<(), CaptureError>;

    /// Returns once it stands still; an error if it does not by `until`.
    fn freeze(&self, until: Instant) -> Result<(), CaptureError>;

    /// How it stands.
    fn standing(&self) -> Result<Standing, CaptureError>;

    /// Lets it go on. One that goes on already, or is gone, is fine.
    fn thaw(&self, until: Instant) -> Result<(), CaptureError>;
}

/// How a target stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It stands still, as far as can be known.
    Still,
    /// It works.
    Working,
    /// It has ended.
    Gone,
}
