//! A control group's freezer: `cgroup.freeze` of version 2, `freezer.state` of version 1. All that is
//! in the group or below it stands still, whatever it forks, and does not notice.

use super::target::Aimed;
use super::{Standing, Still, Target, process};
use crate::CaptureError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often version 1, which tells nothing by itself, is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// A control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    directory: PathBuf,
    /// The directory's: another one, and it is another group of the same name.
    inode: u64,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Version {
    One,
    Two,
}

/// The group at `directory`; nothing where there is none, or no process in it.
pub(super) fn at(directory: &Path) -> Result<Aimed, CaptureError> {
    let fail = |e: io::Error| {
        CaptureError::new(format!("look at the control group {}", directory.display())).because(e)
    };
    let inode = match std::fs::metadata(directory) {
        Ok(found) => found.ino(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Aimed::nothing()),
        Err(error) => return Err(fail(error)),
    };
    let version = if directory.join("cgroup.freeze").exists() {
        Version::Two
    } else if directory.join("freezer.state").exists() {
        Version::One
    } else {
        return Err(fail(io::Error::other("it has neither `cgroup.freeze` nor `freezer.state`"))
            .hint(
                "name a directory below the one where cgroup2, or version 1's freezer, is \
                 mounted: the topmost group cannot be frozen",
            ));
    };
    let mut processes = Vec::new();
    collect(directory, &mut processes).map_err(fail)?;
    if processes.is_empty() {
        return Ok(Aimed::nothing());
    }
    let ours = process::ourselves().map_err(fail)?;
    if ours.iter().any(|stat| processes.contains(&stat.pid)) {
        return Err(fail(io::Error::other("this program, or what started it, is in it as well"))
            .hint("put the worker into a control group of its own"));
    }
    let directory = directory.to_owned();
    Ok(Aimed::at(Target::Cgroup(Cgroup { directory, inode, version })))
}

/// The processes in the group and below it. A group that goes away meanwhile has none.
fn collect(directory: &Path, processes: &mut Vec<i32>) -> io::Result<()> {
    let text = match std::fs::read_to_string(directory.join("cgroup.procs")) {
        Err(error) if is_gone(&error) => return Ok(()),
        // A threaded group: its processes are told by the group above.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => String::new(),
        text => text?,
    };
    processes.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    let entries = match std::fs::read_dir(directory) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), processes)?;
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

impl Cgroup {
    fn switch(&self) -> PathBuf {
        self.directory.join(match self.version {
            Version::One => "freezer.state",
            Version::Two => "cgroup.freeze",
        })
    }

    fn is_there(&self) -> bool {
        std::fs::metadata(&self.directory).is_ok_and(|found| found.ino() == self.inode)
    }

    /// Writes into the kernel's file: nothing is made durable by that.
    fn set(&self, frozen: bool) -> io::Result<()> {
        let word = match (self.version, frozen) {
            (Version::One, true) => "FROZEN",
            (Version::One, false) => "THAWED",
            (Version::Two, true) => "1",
            (Version::Two, false) => "0",
        };
        OpenOptions::new().write(true).open(self.switch())?.write_all(word.as_bytes())
    }

    fn is_frozen(&self) -> io::Result<bool> {
        match self.version {
            Version::One => {
                let state = std::fs::read_to_string(self.switch())?;
                Ok(state.trim() == "FROZEN")
            }
            Version::Two => frozen(&mut File::open(self.directory.join("cgroup.events"))?),
        }
    }

    fn freeze_by(&self, until: Instant) -> io::Result<()> {
        self.set(true)?;
        match self.version {
            Version::One => loop {
                if self.is_frozen()? {
                    return Ok(());
                }
                if Instant::now() >= until {
                    return Err(late());
                }
                std::thread::sleep(LOOK);
                // A process that was forked meanwhile is caught by asking again.
                self.set(true)?;
            },
            Version::Two => {
                let mut events = File::open(self.directory.join("cgroup.events"))?;
                while !frozen(&mut events)? {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(late());
                    }
                    let wait = Timespec {
                        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                        tv_nsec: i64::from(left.subsec_nanos()),
                    };
                    let mut waiting = [PollFd::new(&events, PollFlags::PRI)];
                    match poll(&mut waiting, Some(&wait)) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(())
            }
        }
    }

    fn fail(&self, doing: &str, error: io::Error) -> CaptureError {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let failed = CaptureError::new(format!("{doing} {}", self.describe())).because(error);
        if denied {
            failed.hint(format!(
                "the agent must be allowed to write {}: run it as root, or give it that file",
                self.switch().display()
            ))
        } else {
            failed
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "one of its processes does not freeze")
}

fn frozen(events: &mut File) -> io::Result<bool> {
    let mut text = String::new();
    events.seek(SeekFrom::Start(0))?;
    events.read_to_string(&mut text)?;
    Ok(text.lines().any(|line| line == "frozen 1"))
}

impl Still for Cgroup {
    fn describe(&self) -> String {
        format!("control group {}", self.directory.display())
    }

    fn permitted(&self) -> Result<(), CaptureError> {
        access(self.switch(), Access::WRITE_OK).map_err(|error| self.fail("freeze", error.into()))
    }

    fn freeze(&self, until: Instant) -> Result<(), CaptureError> {
        self.freeze_by(until).map_err(|e| self.fail("freeze", e))
    }

    fn standing(&self) -> Result<Standing, CaptureError> {
        let look = || -> io::Result<Standing> {
            let mut processes = Vec::new();
            collect(&self.directory, &mut processes)?;
            if !self.is_there() || processes.is_empty() {
                return Ok(Standing::Gone);
            }
            Ok(if self.is_frozen()? { Standing::Still } else { Standing::Working })
        };
        look().map_err(|e| self.fail("look at", e))
    }

    fn thaw(&self, _: Instant) -> Result<(), CaptureError> {
        if !self.is_there() {
            return Ok(());
        }
        match self.set(false) {
            Err(error) if is_gone(&error) => Ok(()),
            done => done.map_err(|e| self.fail("thaw", e)),
        }
    }
}
