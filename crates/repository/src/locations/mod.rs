//! One repository at several places, each of them whole by itself.
//!
//! [`Locations`] is a [`Store`] over others: it writes to all that can be reached, in parallel, and
//! reads from the quickest that has what is asked for. What must never break:
//!
//! - a snapshot appears at a location only after everything that it may refer to: where a write
//!   failed nothing more is written, and a location that lacks packs or index files of the
//!   repository gets no snapshot until it has been healed. So a snapshot file at a location is a
//!   complete copy, and stock clients find every location whole at any moment;
//! - a location that fails stops nobody as long as another one goes on, and what it missed is found
//!   by comparing names, which no crash can lose;
//! - what was deleted never comes back from a location that missed it: a record of every deletion
//!   lies at every location ([`FileKind::Deletion`], sealed with the repository's key, so that
//!   whoever can write to one location cannot delete at the others), and is applied before anything
//!   is copied.
//!
//! Every object is named by its hash and never changes, so a copy that was checked against its name
//! is right, and copying twice does no harm.

mod closure;
mod copy;
mod heal;
mod store;
mod survey;

pub use heal::{Healed, HealedLocation};
pub use survey::{Copies, LocationState};

use crate::store::{FileId, FileKind, Store};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A group of places that hold one repository. For as long as this value lives, a place that failed
/// once is not written to again.
pub struct Locations {
    members: Vec<Member>,
    notes: Mutex<Vec<String>>,
}

/// One of them.
pub struct Member {
    name: String,
    store: Option<Arc<dyn Store>>,
    /// It has no repository yet, and is made one by healing.
    empty: AtomicBool,
    /// Why it is not used.
    down: Mutex<Option<String>>,
    /// It does not answer: asking it would mean to wait for ever.
    hangs: AtomicBool,
    /// It lacks something that a new snapshot may refer to.
    lacking: AtomicBool,
    /// It was to be written to, to mend what is bad there, and could not: it is not tried again.
    unmendable: AtomicBool,
    /// How long a read takes there, in nanoseconds, averaged; 0: nobody knows yet.
    latency: AtomicU64,
}

impl Member {
    /// A place with the repository, or, where none of them has it yet, for it.
    pub fn new(name: impl Into<String>, store: Arc<dyn Store>) -> Self {
        Self {
            name: name.into(),
            store: Some(store),
            empty: AtomicBool::new(false),
            down: Mutex::default(),
            hangs: AtomicBool::new(false),
            lacking: AtomicBool::new(false),
            unmendable: AtomicBool::new(false),
            latency: AtomicU64::new(0),
        }
    }

    /// A place that is to have the repository, and has nothing yet.
    pub fn empty(name: impl Into<String>, store: Arc<dyn Store>) -> Self {
        let why = "it holds nothing yet".to_owned();
        Self { empty: AtomicBool::new(true), down: Mutex::new(Some(why)), ..Self::new(name, store) }
    }

    /// A place that cannot be used now.
    pub fn down(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            store: None,
            empty: AtomicBool::new(false),
            down: Mutex::new(Some(why.into())),
            hangs: AtomicBool::new(false),
            lacking: AtomicBool::new(false),
            unmendable: AtomicBool::new(false),
            latency: AtomicU64::new(0),
        }
    }

    fn why_down(&self) -> Option<String> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on it is left alone. The first reason stays.
    fn fail(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::TimedOut {
            self.hangs.store(true, Relaxed);
        }
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        down.get_or_insert_with(|| error.to_string());
    }

    /// Its store, if it is used.
    fn used(&self) -> Option<&Arc<dyn Store>> {
        if self.why_down().is_some() { None } else { self.store.as_ref() }
    }

    fn is_empty(&self) -> bool {
        self.empty.load(Relaxed)
    }

    /// It has been healed: whatever it was before, it is used from now on.
    fn becomes_whole(&self) {
        self.lacking.store(false, Relaxed);
        if self.empty.swap(false, Relaxed) {
            *self.down.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn is_complete(&self) -> bool {
        !self.lacking.load(Relaxed)
    }

    fn is_mendable(&self) -> bool {
        !self.unmendable.load(Relaxed)
    }

    fn took(&self, time: Duration) {
        let now = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
        let before = self.latency.load(Relaxed);
        let average = if before == 0 { now } else { before / 8 * 7 + now / 8 };
        self.latency.store(average.max(1), Relaxed);
    }
}

impl Locations {
    /// The group, in the order that people named it.
    pub fn new(members: Vec<Member>) -> Self {
        Self { members, notes: Mutex::default() }
    }

    /// What people should be told: locations that failed meanwhile, copies that were mended.
    pub fn notes(&self) -> Vec<String> {
        let mended = self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let down = self.members.iter().filter_map(|member| {
            member.why_down().map(|why| format!("location {} is left out: {why}", member.name))
        });
        down.chain(mended).collect()
    }

    fn note(&self, text: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn used(&self) -> impl Iterator<Item = (&Member, &Arc<dyn Store>)> {
        self.members.iter().filter_map(|member| Some((member, member.used()?)))
    }

    /// Asks every location that is used. One that fails where another one does not is not used any
    /// more; where all fail, that is the answer, and all are asked again the next time.
    fn each<T>(
        &self,
        mut ask: impl FnMut(&Member, &dyn Store) -> io::Result<T>,
    ) -> io::Result<Vec<T>> {
        let used: Vec<_> = self.used().collect();
        let asked = used.into_iter().map(|(member, store)| (member, ask(member, store.as_ref())));
        self.settle(asked.collect())
    }

    fn settle<T>(&self, outcomes: Vec<(&Member, io::Result<T>)>) -> io::Result<Vec<T>> {
        let mut answers = Vec::new();
        let mut failures = Vec::new();
        for (member, outcome) in outcomes {
            match outcome {
                Ok(answer) => answers.push(answer),
                Err(error) => failures.push((member, error)),
            }
        }
        if answers.is_empty() {
            let first = failures.into_iter().next();
            return Err(first.map_or_else(|| self.none_left(), |(_, error)| error));
        }
        for (member, error) in failures {
            member.fail(&error);
        }
        Ok(answers)
    }

    fn none_left(&self) -> io::Error {
        let why: Vec<String> = self
            .members
            .iter()
            .map(|m| {
                let lacks = || "it lacks what others have, until it is healed".to_owned();
                format!("{}: {}", m.name, m.why_down().unwrap_or_else(lacks))
            })
            .collect();
        io::Error::new(
            io::ErrorKind::NotConnected,
            format!("none of the locations can be used ({})", why.join("; ")),
        )
    }
}

/// The file's name in messages.
fn file(kind: FileKind, id: &FileId) -> String {
    crate::error::file_name(kind, id)
}
