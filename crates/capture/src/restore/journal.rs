//! The record of a restore under way: what was put aside where, and how far the swap has come.
//! Written durably before each step, so that another process can go on from it.

use crate::{CaptureError, durable};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use stillpoint_model::ids::{BackupId, PartName};
use stillpoint_model::manifest::Role;
use stillpoint_services::Aside;

const VERSION: u32 = 1;

/// How far a restore has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing live has been touched, or all of it has been put back.
    Loading,
    /// Any part may have been swapped.
    Swapping,
    /// Every part has been swapped.
    Swapped,
}

/// One part of a restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalPart {
    /// Its name.
    pub name: PartName,
    /// A service or a mount.
    pub role: Role,
    /// What its driver needs to find again what it put aside.
    pub aside: Aside,
}

/// A restore under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// The backup that is restored.
    pub backup: BackupId,
    /// The restore's own name, which is also its hold's.
    pub token: String,
    /// How far it has come.
    pub phase: Phase,
    /// Arguments with which this program recovers it.
    pub recovery: Vec<String>,
    /// Its parts, in the order in which they are swapped.
    pub parts: Vec<JournalPart>,
}

impl Journal {
    pub(super) fn new(backup: BackupId, token: String, recovery: Vec<String>) -> Self {
        let (phase, parts) = (Phase::Loading, Vec::new());
        Self { version: VERSION, backup, token, phase, recovery, parts }
    }

    /// Reads a journal; none where no restore is under way.
    pub fn read(file: &Path) -> Result<Option<Self>, CaptureError> {
        let fail = || CaptureError::new(format!("read the restore's journal {}", file.display()));
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail().because(error)),
        };
        let journal: Self = serde_json::from_slice(&text).map_err(|e| fail().because(e))?;
        if journal.version != VERSION {
            return Err(fail().because(format!("it has version {}", journal.version)));
        }
        Ok(Some(journal))
    }

    pub(super) fn write(&self, file: &Path) -> Result<(), CaptureError> {
        let fail = || CaptureError::new(format!("write the restore's journal {}", file.display()));
        let text = serde_json::to_vec_pretty(self).map_err(|e| fail().because(e))?;
        durable::write(file, &text).map_err(|e| fail().because(e))
    }

    /// The next phase, here and on disk; on an error, here it is still the last one. On disk it
    /// may be either then: whoever goes on must write what it goes on from.
    pub(super) fn advance(&mut self, phase: Phase, file: &Path) -> Result<(), CaptureError> {
        Self { phase, ..self.clone() }.write(file)?;
        self.phase = phase;
        Ok(())
    }

    pub(super) fn remove(file: &Path) -> Result<(), CaptureError> {
        durable::remove(file).map_err(|e| {
            CaptureError::new(format!("remove the restore's journal {}", file.display())).because(e)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        Journal::new(BackupId::random(), "token".to_owned(), vec!["recover".to_owned()])
    }

    #[test]
    fn a_phase_that_could_not_be_written_is_not_taken() {
        let mut journal = journal();
        let nowhere = Path::new("/nonexistent/journal.json");
        assert!(journal.advance(Phase::Swapped, nowhere).is_err());
        assert_eq!(journal.phase, Phase::Loading);
    }

    #[test]
    fn what_is_written_is_read_and_another_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("journal.json");
        assert_eq!(Journal::read(&file).unwrap(), None);
        let mut journal = journal();
        journal.advance(Phase::Swapping, &file).unwrap();
        assert_eq!(Journal::read(&file).unwrap(), Some(journal.clone()));
        Journal { version: 99, ..journal }.write(&file).unwrap();
        assert!(Journal::read(&file).is_err());
        Journal::remove(&file).unwrap();
        Journal::remove(&file).unwrap();
    }
}
