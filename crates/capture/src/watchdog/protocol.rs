//! What a holder and the watchdog say to each other: JSON lines over a unix socket.

use crate::worker::Frozen;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version of this protocol; both sides must speak the same.
pub(super) const PROTOCOL: u32 = 2;

/// When an undo is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Only once the holder's process has ended.
    Dead,
    /// Also when it fell silent, or its time ran out.
    Silent,
}

/// How a process is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndSignal {
    /// SIGTERM: what most programs take as an order to end.
    Terminate,
    /// SIGINT: to PostgreSQL, end now; on SIGTERM it would wait for its clients to go.
    Interrupt,
}

/// One thing to do in a holder's stead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "kebab-case")]
pub enum Undo {
    /// End the holder itself: it keeps others waiting.
    EndHolder {
        /// When this is due.
        when: When,
    },
    /// Remove files that only the holder had a use for: its locks in a repository. Always
    /// [`When::Dead`]: a silent holder may wake up and must find its lock to be trusted.
    RemoveFiles {
        /// Absolute paths. One that is missing is fine.
        paths: Vec<PathBuf>,
    },
    /// End another process that the holder had started: asked first, by SIGKILL after a while.
    /// Always [`When::Dead`].
    EndProcess {
        /// How it is asked.
        by: EndSignal,
        /// Its process id.
        pid: i32,
        /// Its start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
        started: u64,
    },
    /// Let a worker go on that the holder may have frozen. Tried until it succeeds.
    Thaw {
        /// When this is due.
        when: When,
        /// The worker, and how it was frozen.
        frozen: Box<Frozen>,
    },
    /// Run this program again with other arguments: to recover a restore. Always [`When::Dead`].
    Run {
        /// The arguments.
        arguments: Vec<String>,
    },
}

impl Undo {
    /// True if this is due although the holder still lives.
    pub(super) fn when_silent(&self) -> bool {
        matches!(
            self,
            Undo::EndHolder { when: When::Silent } | Undo::Thaw { when: When::Silent, .. }
        )
    }
}

/// From the holder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum FromHolder {
    Hello {
        protocol: u32,
        pid: i32,
        silence_ms: u64,
    },
    /// Replaces all that was registered before. `within_ms`: how long from now until silence is
    /// assumed even of one who beats; none: as long as it lives.
    Register {
        undo: Vec<Undo>,
        within_ms: Option<u64>,
    },
    Beat,
    /// Nothing is to be undone any more; the connection closes.
    Goodbye,
}

/// From the watchdog, in answer to everything but a beat.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(super) enum FromWatchdog {
    Ok,
    Refused { why: String },
}
