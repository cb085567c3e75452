//! Commands that may hang, fail, or write without end: each in a process group of its own, ended
//! with all that it started when its time is over, its output bounded and shown where it failed.

use crate::CaptureError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How much of a command's output is kept: its end.
const KEPT: usize = 2000;

/// A user's command, for `/bin/sh -c`. It inherits this process's environment variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// The command.
    pub command: String,
    /// Where it runs.
    pub directory: PathBuf,
    /// Variables beside the inherited ones.
    pub environment: BTreeMap<String, String>,
}

impl Shell {
    /// Runs it until it has ended well.
    pub fn run(&self, until: Instant) -> Result<(), CaptureError> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(&self.command);
        command.current_dir(&self.directory).envs(&self.environment);
        run(&mut command, until)
            .map(drop)
            .map_err(|e| CaptureError::new(format!("run `{}`", self.command.trim())).because(e))
    }
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("it could not be run")]
    Io(#[from] io::Error),
    #[error("it had not ended in time, and was killed{}", said(.output))]
    Late { output: String },
    #[error("it ended with {status}{}", said(.output))]
    Failed { status: ExitStatus, output: String },
}

fn said(output: &str) -> String {
    match output.trim() {
        "" => " and said nothing".to_owned(),
        text => format!("; it said: {text}"),
    }
}

/// Runs it, and returns the end of what it wrote to its outputs. What it leaves behind in the
/// background goes on, but what that writes is lost.
pub(super) fn run(command: &mut Command, until: Instant) -> Result<String, CommandError> {
    let (reader, writer) = io::pipe()?;
    let both = writer.try_clone()?;
    command.process_group(0).stdin(Stdio::null()).stdout(writer).stderr(both);
    let mut child = command.spawn()?;
    // What is left of the pipe's other end is the child's.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut output = Tail { reader, bytes: Vec::new(), ended: false };
    let ended = output.follow(&child, until);
    if !matches!(ended, Ok(true)) {
        kill(&child);
    }
    let status = child.wait()?;
    let text = String::from_utf8_lossy(&output.bytes).into_owned();
    match ended {
        Ok(true) if status.success() => Ok(text),
        Ok(true) => Err(CommandError::Failed { status, output: text }),
        Ok(false) => Err(CommandError::Late { output: text }),
        Err(error) => Err(error.into()),
    }
}

/// It has not been waited for, so that its number cannot be another group's.
fn kill(child: &Child) {
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        // One that ends by itself in this moment is as good.
        kill_process_group(group, Signal::KILL).unwrap_or(());
    }
}

/// The end of what a child writes.
struct Tail {
    reader: PipeReader,
    bytes: Vec<u8>,
    ended: bool,
}

impl Tail {
    /// Reads until the child has ended; false if its time was over before.
    fn follow(&mut self, child: &Child, until: Instant) -> io::Result<bool> {
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::InvalidData)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
            if !self.ended {
                fds.push(PollFd::new(&self.reader, PollFlags::IN));
            }
            wait(&mut fds, left)?;
            let has_ended = !fds[0].revents().is_empty();
            let has_said = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            drop(fds);
            if has_said {
                self.read()?;
            } else if has_ended {
                // All that it wrote itself has been read.
                return Ok(true);
            }
            if !has_ended && Instant::now() >= until {
                return Ok(false);
            }
            if has_ended && Instant::now() >= until {
                return Ok(true);
            }
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0_u8; 8192];
        let count = match self.reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            count => count?,
        };
        self.ended = count == 0;
        self.bytes.extend_from_slice(&buffer[..count]);
        let surplus = self.bytes.len().saturating_sub(KEPT);
        self.bytes.drain(..surplus);
        Ok(())
    }
}

fn wait(fds: &mut [PollFd<'_>], left: Duration) -> io::Result<()> {
    let left = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    match poll(fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(command: &str, time: Duration) -> Result<String, CommandError> {
        run(Command::new("/bin/sh").arg("-c").arg(command), Instant::now() + time)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_command_that_fails_shows_what_it_said_on_both_outputs() {
        let error = sh("echo one; echo two >&2; exit 3", LONG).unwrap_err();
        assert_eq!(error.to_string(), "it ended with exit status: 3; it said: one\ntwo");
        let error = sh("exit 4", LONG).unwrap_err();
        assert_eq!(error.to_string(), "it ended with exit status: 4 and said nothing");
    }

    #[test]
    fn a_command_that_writes_much_is_not_stopped_by_that_and_its_end_is_kept() {
        let output = sh("head -c 5000000 /dev/zero | tr '\\0' x; echo end", LONG).unwrap();
        assert_eq!(output.len(), KEPT);
        assert!(output.ends_with("xend\n"));
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_all_that_it_started() {
        // The grandchild keeps the pipe open: whoever waited for its end would hang.
        let error = sh("sleep 600 & echo $!; wait", Duration::from_millis(300)).unwrap_err();
        let CommandError::Late { output } = error else { panic!("{error:?}") };
        let pid: i32 = output.trim().parse().unwrap();
        let is_gone = || super::super::process::stat(pid).unwrap().is_none_or(|s| s.has_ended());
        let until = Instant::now() + LONG;
        while !is_gone() {
            assert!(Instant::now() < until, "process {pid} goes on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_a_command_leaves_in_the_background_is_not_waited_for() {
        let output = sh("sleep 5 & echo $!", LONG).unwrap();
        let pid: i32 = output.trim().parse().unwrap();
        let stat = super::super::process::stat(pid).unwrap().unwrap();
        assert!(!stat.has_ended());
        super::super::process::signal(&stat, Signal::KILL).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let error = run(&mut Command::new("/nowhere/at-all"), Instant::now() + LONG).unwrap_err();
        assert!(matches!(error, CommandError::Io(_)), "{error:?}");
    }
}
