//! A process group, stopped by SIGSTOP and let go by SIGCONT.
//!
//! Signals go to each member by itself, through a pidfd whose process is known by its start time: so
//! an id that was given to another process is never hit. A group's number is not given away while
//! one of its members lives; it is the same group as long as its session is the same, and whoever
//! leads it is who led it.
//!
//! A pid file may be older than this boot: the process that it names counts only if it began before
//! the file was written.

use super::process::{self, Stat};
use super::target::Aimed;
use super::{Standing, Still, Target};
use crate::CaptureError;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// How often is looked whether everyone stands still.
const LOOK: Duration = Duration::from_millis(1);
/// Clock ticks in a second, as the kernel shows them on every architecture that Rust supports.
const TICKS: u64 = 100;
/// How much younger than its pid file's last change a process may seem: start times are counted in
/// hundredths of a second, and the boot's in seconds.
const MARGIN: Duration = Duration::from_secs(2);

/// A process group, and a member whose life is the worker's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    id: i32,
    session: i32,
    /// When who leads it began, if it lives.
    leader: Option<u64>,
    pid: i32,
    started: u64,
}

/// A process that leads a group of its own. Written down, it is known again by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    /// The process of this id, which is its group's too.
    pub fn new(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, started: crate::watchdog::started(pid)? })
    }

    /// Whether it lives. One that cannot be looked at counts as alive.
    pub fn is_alive(&self) -> bool {
        process::stat(self.pid).map_or(true, |stat| {
            stat.is_some_and(|stat| stat.started == self.started && !stat.has_ended())
        })
    }

    /// Its group, if anyone in it lives.
    pub fn aim(&self) -> Result<Aimed, CaptureError> {
        of_process(*self)
    }
}

/// What a pid file leads to.
pub(super) fn named_by(file: &Path) -> Result<Aimed, CaptureError> {
    let fail = || CaptureError::new(format!("read the pid file {}", file.display()));
    let read = || -> io::Result<(String, SystemTime)> {
        let written = std::fs::metadata(file)?.modified()?;
        Ok((std::fs::read_to_string(file)?, written))
    };
    let (text, written) = match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Aimed::nothing()),
        read => read.map_err(|e| fail().because(e).hint("it must be readable for the agent"))?,
    };
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 1).ok_or_else(|| {
        fail()
            .because("it does not hold the number of a process")
            .hint("it holds one number in decimal, and no more")
    })?;
    let Some(stat) = alive(pid)? else { return Ok(Aimed::nothing()) };
    let began = began(&stat).map_err(|e| fail().because(e))?;
    if began > written + MARGIN {
        return Ok(Aimed::nothing().doubted(format!(
            "the pid file {} is older than process {pid}, which it names: its process counts as \
             ended",
            file.display()
        )));
    }
    of(&stat)
}

fn of_process(run: Process) -> Result<Aimed, CaptureError> {
    match alive(run.pid)? {
        Some(stat) if stat.started == run.started => of(&stat),
        _ => {
            // Its group may have outlived it.
            let members = members(run.pid).map_err(|e| {
                CaptureError::new(format!("look for process group {}", run.pid)).because(e)
            })?;
            let first = members.iter().find(|stat| stat.pid != run.pid);
            match (members.iter().any(|stat| stat.pid == run.pid), first) {
                (false, Some(stat)) => of(stat),
                _ => Ok(Aimed::nothing()),
            }
        }
    }
}

fn of(stat: &Stat) -> Result<Aimed, CaptureError> {
    let Stat { pid, group, session, started, .. } = *stat;
    let fail = |e: io::Error| CaptureError::new(format!("look at process {pid}")).because(e);
    if group <= 1 || process::is_our_group(group).map_err(fail)? {
        return Err(CaptureError::new(format!(
            "process {pid} is in group {group}, which cannot be stopped"
        ))
        .because("this program, or what started it, is in it as well")
        .hint("start the worker in a process group of its own: by setsid, or as a service"));
    }
    let leader = alive(group)?.map(|leader| leader.started);
    Ok(Aimed::at(Target::Group(Group { id: group, session, leader, pid, started })))
}

fn alive(pid: i32) -> Result<Option<Stat>, CaptureError> {
    let stat = process::stat(pid)
        .map_err(|e| CaptureError::new(format!("look at process {pid}")).because(e))?;
    Ok(stat.filter(|stat| !stat.has_ended()))
}

/// When a process began, by the wall clock.
fn began(stat: &Stat) -> io::Result<SystemTime> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let boot = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    let boot: u64 = boot.ok_or_else(|| io::Error::other("/proc/stat tells no `btime`"))?;
    let since = Duration::from_millis(stat.started.saturating_mul(1000 / TICKS));
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(boot) + since)
}

fn members(group: i32) -> io::Result<Vec<Stat>> {
    process::all(|stat| stat.group == group && !stat.has_ended())
}

impl Group {
    /// Those of its members that live; none if its number is another group's by now.
    fn members(&self) -> io::Result<Vec<Stat>> {
        let members = members(self.id)?;
        let leads = members.iter().find(|stat| stat.pid == self.id);
        if leads.is_some_and(|stat| Some(stat.started) != self.leader) {
            return Ok(Vec::new());
        }
        Ok(members.into_iter().filter(|stat| stat.session == self.session).collect())
    }

    fn fail(&self, doing: &str, error: io::Error) -> CaptureError {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let failed = CaptureError::new(format!("{doing} {}", self.describe())).because(error);
        if denied {
            failed.hint("the agent must run as the worker's user, or as root (CAP_KILL)")
        } else {
            failed
        }
    }

    fn stop_all(&self, until: Instant) -> io::Result<()> {
        let mut quiet = false;
        loop {
            let members = self.members()?;
            let mut working = false;
            for member in &members {
                if member.state == b'T' && process::is_stopped(member.pid)? {
                    continue;
                }
                working = true;
                process::signal(member, Signal::STOP)?;
            }
            // Twice: a child may have been missed whose parent was stopped before it was seen.
            if !working && quiet {
                return Ok(());
            }
            quiet = !working;
            if working && Instant::now() >= until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "one of its processes does not stop: it waits for a device or file system",
                ));
            }
            if working {
                std::thread::sleep(LOOK);
            }
        }
    }
}

impl Still for Group {
    fn describe(&self) -> String {
        format!("process group {}", self.id)
    }

    fn permitted(&self) -> Result<(), CaptureError> {
        let check = || -> io::Result<()> {
            for member in self.members()? {
                let Some(pid) = rustix::process::Pid::from_raw(member.pid) else { continue };
                match rustix::process::test_kill_process(pid) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        };
        check().map_err(|e| self.fail("signal", e))
    }

    fn freeze(&self, until: Instant) -> Result<(), CaptureError> {
        self.stop_all(until).map_err(|e| self.fail("stop", e))
    }

    fn standing(&self) -> Result<Standing, CaptureError> {
        let look = || -> io::Result<Standing> {
            let members = self.members()?;
            if !members.iter().any(|stat| (stat.pid, stat.started) == (self.pid, self.started)) {
                return Ok(Standing::Gone);
            }
            for member in &members {
                if !process::is_stopped(member.pid)? {
                    return Ok(Standing::Working);
                }
            }
            Ok(Standing::Still)
        };
        look().map_err(|e| self.fail("look at", e))
    }

    fn thaw(&self, until: Instant) -> Result<(), CaptureError> {
        let go_on = || -> io::Result<()> {
            loop {
                let stopped = |stat: &Stat| stat.state == b'T';
                let members: Vec<Stat> = self.members()?.into_iter().filter(stopped).collect();
                if members.is_empty() {
                    return Ok(());
                }
                for member in &members {
                    process::signal(member, Signal::CONT)?;
                }
                if Instant::now() >= until {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        };
        go_on().map_err(|e| self.fail("continue", e))
    }
}
