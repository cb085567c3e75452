//! One run of a cron, from its beginning to its end.

use super::record::{Record, Runs};
use crate::failure::Failure;
use crate::parts::directory;
use crate::place::Place;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use stillpoint_capture::restore::{Journal, Phase};
use stillpoint_capture::worker::{Process, Shell};
use stillpoint_model::config::CronPart;
use stillpoint_model::ids::{BackupId, PartName};

/// How long a run that is due waits for a hold to end. Then it is left out: whoever holds for so long
/// is a restore that cannot end, or a backup that was stopped.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a run's thread looks whether all is to end.
const LOOK: Duration = Duration::from_millis(200);
/// A line of output that is longer is cut.
const LINE: u64 = 8192;

/// A run that is due.
pub(super) struct Run {
    name: String,
    runs: Runs,
    journal: PathBuf,
    cron: CronPart,
    directory: PathBuf,
    variables: BTreeMap<String, String>,
    id: String,
}

impl Run {
    pub(super) fn of(
        place: &Place,
        name: &PartName,
        cron: &CronPart,
        program: &Path,
    ) -> Result<Self, Failure> {
        let id = BackupId::random().as_str().to_owned();
        let mut variables = super::variables(place);
        variables.insert("STILLPOINT_CRON".to_owned(), name.to_string());
        variables.insert("STILLPOINT_CRON_RUN".to_owned(), id.clone());
        let path = std::env::var("PATH").unwrap_or_default();
        if let Some(directory) = program.parent() {
            variables.insert("PATH".to_owned(), format!("{path}:{}", directory.display()));
        }
        Ok(Self {
            name: format!("{}/{name}", place.name),
            runs: Runs::of(place, name, None)?,
            journal: place.journal()?,
            cron: cron.clone(),
            directory: directory(place),
            variables,
            id,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs it to its end. `is_ending` waits at most so long, and says whether all is to end.
    pub(super) fn carry_out(&self, is_ending: impl Fn(Duration) -> bool) {
        let name = &self.name;
        match self.begin(&is_ending) {
            Ok(None) => {}
            Ok(Some((child, output))) => {
                tracing::info!(target: "cron", "{name}: run {} begins", self.id);
                let shown = name.clone();
                let reading = std::thread::spawn(move || show(&shown, output));
                match self.follow(child, &is_ending) {
                    Ok(status) if status.success() => {
                        tracing::info!(target: "cron", "{name}: run {} ended well", self.id);
                    }
                    Ok(status) => {
                        tracing::error!(target: "cron", "{name}: run {} ended: {status}", self.id);
                    }
                    Err(error) => {
                        tracing::error!(target: "cron", "{name}: run {}: {error}", self.id);
                    }
                }
                // What it left in the background may write on: that is shown, and not waited for.
                drop(reading);
            }
            Err(error) => tracing::error!(target: "cron", "{name}: not run: {error}"),
        }
    }

    /// None: it is left out, and that was said.
    fn begin(
        &self,
        is_ending: &impl Fn(Duration) -> bool,
    ) -> io::Result<Option<(Child, PipeReader)>> {
        let until = Instant::now() + PATIENCE;
        let _alone = loop {
            if let Some(alone) = self.runs.alone(Duration::ZERO)?
                && !self.is_half_swapped()?
            {
                break alone;
            }
            if Instant::now() >= until {
                tracing::error!(
                    target: "cron",
                    "{}: left out: a backup or restore has held for {PATIENCE:?}", self.name
                );
                return Ok(None);
            }
            if is_ending(Duration::from_millis(10)) {
                return Ok(None);
            }
        };
        if self.runs.read()?.is_some_and(|last| last.process.is_alive()) {
            tracing::warn!(target: "cron", "{}: left out: the last run goes on", self.name);
            return Ok(None);
        }
        let (reader, writer) = io::pipe()?;
        let both = writer.try_clone()?;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(&self.cron.start);
        command.current_dir(&self.directory).envs(&self.variables);
        command.process_group(0).stdin(Stdio::null()).stdout(writer).stderr(both);
        let mut child = command.spawn()?;
        let recorded = Process::new(child.id().cast_signed())
            .and_then(|process| self.runs.write(&Record { run: self.id.clone(), process }));
        if let Err(error) = recorded {
            // Nobody could freeze it.
            signal(&child, Signal::KILL);
            child.wait()?;
            return Err(error);
        }
        Ok(Some((child, reader)))
    }

    /// A restore has begun to swap, and has not ended: not even if it died.
    fn is_half_swapped(&self) -> io::Result<bool> {
        let open = Journal::read(&self.journal).map_err(io::Error::other)?;
        Ok(open.is_some_and(|journal| journal.phase == Phase::Swapping))
    }

    fn follow(
        &self,
        mut child: Child,
        is_ending: &impl Fn(Duration) -> bool,
    ) -> io::Result<ExitStatus> {
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::InvalidData)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let has_ended = |within: Duration| -> io::Result<bool> {
            let wait = Timespec {
                tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(within.subsec_nanos()),
            };
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&wait)) {
                Ok(ready) => Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => Ok(false),
                Err(error) => Err(error.into()),
            }
        };
        while !has_ended(LOOK)? {
            if is_ending(Duration::ZERO) {
                self.stop(&child);
                let until = Instant::now() + self.cron.shutdown_timeout;
                while !has_ended(until.saturating_duration_since(Instant::now()))? {
                    if Instant::now() >= until {
                        signal(&child, Signal::KILL);
                        break;
                    }
                }
                break;
            }
        }
        child.wait()
    }

    /// Asks it to end.
    fn stop(&self, child: &Child) {
        if let Some(stop) = &self.cron.stop {
            let (command, directory) = (stop.clone(), self.directory.clone());
            let shell = Shell { command, directory, environment: self.variables.clone() };
            match shell.run(Instant::now() + self.cron.shutdown_timeout) {
                Ok(()) => return,
                Err(error) => {
                    let why = Failure::from(error).lines().join(": ");
                    tracing::error!(target: "cron", "{}: asked to stop: {why}", self.name);
                }
            }
        }
        signal(child, Signal::TERM);
    }
}

/// To its whole group. It has not been waited for, so that its number cannot be another group's.
fn signal(child: &Child, signal: Signal) {
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        // One that has ended by itself in this moment is as good.
        kill_process_group(group, signal).unwrap_or(());
    }
}

/// Its output becomes the agent's log, line by line.
fn show(name: &str, output: PipeReader) {
    let mut lines = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        match lines.by_ref().take(LINE).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {
                let line = String::from_utf8_lossy(&line);
                tracing::info!(target: "cron", "{name}: {}", line.trim_end());
            }
            Err(error) => {
                tracing::error!(target: "cron", "{name}: its output cannot be read: {error}");
                return;
            }
        }
    }
}
