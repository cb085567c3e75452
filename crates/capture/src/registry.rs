//! What the watchdog has to know, should this process die or fall silent: the repository's lock
//! files, which come and go by themselves, and what is to be undone of a still point for as long as
//! it lasts.

use crate::CaptureError;
use crate::participant::Rank;
use crate::watchdog::{Guard, Undo, WatchdogError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stillpoint_model::ids::PartName;
use stillpoint_repository::LockFiles;

/// Whose undo it is.
pub(crate) type Whose = (Rank, PartName);

/// Tells the watchdog of every change before whoever made it goes on.
#[derive(Clone)]
pub(crate) struct Registry {
    watchdog: Arc<Guard>,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    locks: Vec<PathBuf>,
    undo: BTreeMap<Whose, Vec<Undo>>,
    /// What could not be undone by those who should have.
    owed: Vec<Undo>,
    deadline: Option<Instant>,
}

impl Registry {
    pub(crate) fn new(watchdog: &Arc<Guard>) -> Self {
        Self { watchdog: Arc::clone(watchdog), known: Arc::default() }
    }

    /// Told by the repository whenever its locks change.
    pub(crate) fn listener(&self) -> Arc<dyn Fn(&LockFiles) + Send + Sync> {
        let registry = self.clone();
        Arc::new(move |files| {
            let told = registry.change(|known| known.locks.clone_from(files));
            if let Err(error) = told {
                // Whoever holds next learns of it as well, and refuses.
                tracing::warn!("the watchdog does not know of the repository's lock: {error}");
            }
        })
    }

    /// For the time of the hold, all of this as well; and silence is assumed after `within`.
    pub(crate) fn begin(
        &self,
        undo: BTreeMap<Whose, Vec<Undo>>,
        within: Duration,
    ) -> Result<(), CaptureError> {
        let deadline = Some(Instant::now() + within);
        self.tell(|known| {
            known.undo = undo;
            known.deadline = deadline;
        })
    }

    /// One participant's undo is another one now.
    pub(crate) fn replace(&self, whose: Whose, undo: Vec<Undo>) -> Result<(), CaptureError> {
        if self.lock().undo.get(&whose) == Some(&undo) {
            return Ok(());
        }
        self.tell(|known| drop(known.undo.insert(whose, undo)))
    }

    /// Nothing is held any more.
    pub(crate) fn clear(&self) -> Result<(), CaptureError> {
        self.leave(Vec::new())
    }

    /// Nothing is held any more but this, which is to be undone at once.
    pub(crate) fn leave(&self, owed: Vec<Undo>) -> Result<(), CaptureError> {
        self.tell(|known| {
            known.undo.clear();
            known.deadline = (!owed.is_empty()).then(Instant::now);
            known.owed = owed;
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("nobody panicked who told the watchdog")
    }

    fn tell(&self, change: impl FnOnce(&mut Known)) -> Result<(), CaptureError> {
        self.change(change).map_err(|source| {
            CaptureError::new("keep the watchdog informed")
                .because(source)
                .hint("`stillpoint watchdog` starts one")
        })
    }

    fn change(&self, change: impl FnOnce(&mut Known)) -> Result<(), WatchdogError> {
        let mut known = self.lock();
        change(&mut known);
        let mut all: Vec<Undo> = known.undo.values().flatten().cloned().collect();
        all.extend(known.owed.iter().cloned());
        if !known.locks.is_empty() {
            all.push(Undo::RemoveFiles { paths: known.locks.clone() });
        }
        let within = known.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        self.watchdog.register(all, within)
    }
}
