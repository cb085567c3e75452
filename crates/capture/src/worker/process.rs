//! Processes by `/proc`, and signals to exactly the one that was meant.

use crate::watchdog::started;
use rustix::process::{Pid, PidfdFlags, Signal, getpgrp, pidfd_open, pidfd_send_signal};
use std::io;

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: i32,
    /// `R`, `S`, `D`, `T` (stopped), `t` (traced), `Z` (ended, not yet waited for), ...
    pub(super) state: u8,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// In clock ticks since boot: with the id, its identity.
    pub(super) started: u64,
}

impl Stat {
    /// It has ended, even if nobody has waited for it yet.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the command in parentheses and may hold anything.
        let (before, after) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse().ok();
        Some(Self {
            pid: before.split_once(' ')?.0.parse().ok()?,
            state: *fields.first()?.as_bytes().first()?,
            parent: number(1)?,
            group: number(2)?,
            session: number(3)?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

/// One process; none if there is none of this id.
pub(super) fn stat(pid: i32) -> io::Result<Option<Stat>> {
    stat_at(&format!("/proc/{pid}/stat"))
}

fn stat_at(path: &str) -> io::Result<Option<Stat>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Stat::parse(&text)
            .map(Some)
            .ok_or_else(|| io::Error::other(format!("{path} is not understood"))),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A process that ends while it is looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Every process of which `wanted` is true.
pub(super) fn all(wanted: impl Fn(&Stat) -> bool) -> io::Result<Vec<Stat>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        found.extend(stat(pid)?.filter(|stat| wanted(stat)));
    }
    Ok(found)
}

/// True if every thread of the process is stopped, or has ended.
pub(super) fn is_stopped(pid: i32) -> io::Result<bool> {
    let tasks = match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Err(error) if is_gone(&error) => return Ok(true),
        tasks => tasks?,
    };
    for task in tasks {
        let task = match task {
            Err(error) if is_gone(&error) => continue,
            task => task?,
        };
        let path = format!("/proc/{pid}/task/{}/stat", task.file_name().display());
        if let Some(stat) = stat_at(&path)?
            && !matches!(stat.state, b'T' | b't' | b'Z' | b'X')
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Signals this very process; false if it has ended, whoever has its id now.
pub(super) fn signal(of: &Stat, signal: Signal) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(of.pid) else { return Ok(false) };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        other => other?,
    };
    // Compared after the pidfd was opened: from here on it cannot be another process.
    match started(of.pid) {
        Ok(since) if since == of.started => {}
        Ok(_) => return Ok(false),
        Err(error) if is_gone(&error) => return Ok(false),
        Err(error) => return Err(error),
    }
    match pidfd_send_signal(&process, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// This process and those above it: none of them may be frozen, or nobody is left to thaw.
pub(super) fn ourselves() -> io::Result<Vec<Stat>> {
    let mut above = Vec::new();
    let mut next = rustix::process::getpid().as_raw_nonzero().get();
    while let Some(stat) = stat(next)? {
        above.push(stat);
        // What is above process 1 is not ours to see; 0 is the kernel.
        if stat.parent <= 1 {
            break;
        }
        next = stat.parent;
    }
    Ok(above)
}

/// Whether this process, or one above it, is in the process group.
pub(super) fn is_our_group(group: i32) -> io::Result<bool> {
    let own = getpgrp().as_raw_nonzero().get() == group;
    Ok(own || ourselves()?.iter().any(|stat| stat.group == group))
}
