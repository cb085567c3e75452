//! Which run of a cron is under way: written by the agent that begins it, read by the tasks that
//! freeze it, under a lock. Whoever holds still has the lock shared for as long as that lasts, so that
//! no run begins which he did not find; the agent has it alone for the moment in which a run begins.
//!
//! The file says no more than who it may be: the process counts only by its start time, so what an
//! earlier boot has left is nothing.

use crate::failure::Failure;
use crate::place::{Place, private};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use stillpoint_capture::CaptureError;
use stillpoint_capture::worker::{Aim, Aimed, Process};
use stillpoint_model::ids::PartName;

/// How often is looked whether a lock is free.
const LOOK: Duration = Duration::from_millis(10);

/// A run that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its `STILLPOINT_CRON_RUN`.
    pub(super) run: String,
    pub(super) process: Process,
}

/// The runs of one cron.
pub(crate) struct Runs {
    name: PartName,
    record: PathBuf,
    lock: PathBuf,
    /// The run that asked for this still point.
    asked_by: Option<String>,
    /// Held while nothing may begin.
    closed: Mutex<Option<File>>,
}

impl Runs {
    pub(crate) fn of(
        place: &Place,
        name: &PartName,
        asked_by: Option<&str>,
    ) -> Result<Self, Failure> {
        let directory = private(&place.data, "crons")?;
        let file = |end: &str| directory.join(format!("{}.{name}.{end}", place.slug()));
        Ok(Self {
            name: name.clone(),
            record: file("json"),
            lock: file("lock"),
            asked_by: asked_by.map(str::to_owned),
            closed: Mutex::new(None),
        })
    }

    /// The run that is under way, or was the last.
    pub(super) fn read(&self) -> io::Result<Option<Record>> {
        match fs::read(&self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            text => Ok(Some(serde_json::from_slice(&text?)?)),
        }
    }

    /// Whole or not at all; it need not outlive this boot.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let new = self.record.with_extension("new");
        let mut file = open(OpenOptions::new().write(true).create(true).truncate(true), &new)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(&new, &self.record)
    }

    /// The moment in which a run may begin; none: somebody has held still for all that time.
    pub(super) fn alone(&self, within: Duration) -> io::Result<Option<File>> {
        self.locked(within, File::try_lock)
    }

    fn locked(
        &self,
        within: Duration,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> io::Result<Option<File>> {
        let file = open(OpenOptions::new().write(true).create(true).truncate(false), &self.lock)?;
        let until = Instant::now() + within;
        loop {
            match lock(&file) {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOOK);
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    fn fail(&self, doing: &str, error: io::Error) -> CaptureError {
        CaptureError::new(format!("{doing} cron `{}`", self.name)).because(error)
    }
}

fn open(options: &mut OpenOptions, path: &std::path::Path) -> io::Result<File> {
    options.mode(0o600).open(path)
}

impl Aim for Runs {
    fn close(&self, within: Duration) -> Result<(), CaptureError> {
        let locked = self.locked(within, File::try_lock_shared);
        let locked = locked.map_err(|e| self.fail("hold back", e))?.ok_or_else(|| {
            self.fail("hold back", io::Error::other("the agent does not come to an end with a run"))
        })?;
        *self.closed.lock().expect("nobody panicked who held it back") = Some(locked);
        Ok(())
    }

    fn open(&self) {
        *self.closed.lock().expect("nobody panicked who held it back") = None;
    }

    fn aim(&self, _: Duration) -> Result<Aimed, CaptureError> {
        let record = self.read().map_err(|e| self.fail("look for a run of", e))?;
        match record {
            Some(record) if Some(&record.run) != self.asked_by.as_ref() => record.process.aim(),
            _ => Ok(Aimed::nothing()),
        }
    }
}
