//! The marker: tells, from the server alone, what was done, and changes with the data in one
//! transaction.
//!
//! It is a hash in the first spare database, beside the data that is aside: never in a database of
//! the application. It also keeps the functions that belong to that data.

use std::collections::HashMap;

use super::super::connection::{Session, Transaction};
use super::plan::Target;
use crate::ServiceError;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The spare databases are being filled, and may be emptied.
    Loading,
    /// They hold the captured data.
    Loaded,
    /// They hold what was live.
    Swapped,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Swapped => "swapped",
        }
    }
}

#[derive(Debug)]
pub(super) struct Marker {
    pub(super) state: State,
    /// The functions that go with the data that is aside.
    pub(super) functions: Vec<u8>,
}

impl Marker {
    /// The marker of this restore; `None` where it has none.
    pub(super) fn find(live: &mut Session, target: &Target) -> Result<Option<Self>, ServiceError> {
        let doing = || ServiceError::new("read the restore's marker in the server");
        let mut found: HashMap<String, Vec<u8>> = live
            .ask::<()>(&["SELECT", &target.marked_database().to_string()])
            .and_then(|()| live.ask(&["HGETALL", &target.marker]))
            .map_err(|e| doing().because(e))?;
        let Some(word) = found.remove("state") else { return Ok(None) };
        let functions = found.remove("functions").unwrap_or_default();
        let word = String::from_utf8_lossy(&word).into_owned();
        let state = [State::Loading, State::Loaded, State::Swapped]
            .into_iter()
            .find(|state| state.word() == word)
            .ok_or_else(|| doing().because(format!("it says {word:?}")))?;
        Ok(Some(Self { state, functions }))
    }

    /// Empties the spare databases, and says that they are ours.
    pub(super) fn begin(live: &mut Session, target: &Target) -> Result<(), ServiceError> {
        let mut transaction = Transaction::default();
        target.add_emptying(&mut transaction);
        let begun = Self { state: State::Loading, functions: Vec::new() };
        begun.add_storing(&mut transaction, target);
        transaction
            .run(live)
            .map_err(|e| ServiceError::new("begin to fill the spare databases").because(e))
    }

    pub(super) fn store(&self, live: &mut Session, target: &Target) -> Result<(), ServiceError> {
        let mut transaction = Transaction::default();
        self.add_storing(&mut transaction, target);
        transaction
            .run(live)
            .map_err(|e| ServiceError::new("write the restore's marker").because(e))
    }

    fn add_storing(&self, transaction: &mut Transaction, target: &Target) {
        transaction.add(&["SELECT"]).arg(target.marked_database());
        let state = self.state.word();
        let store = transaction.add(&["HSET", &target.marker, "state", state, "functions"]);
        store.arg(&self.functions[..]);
    }

    /// Databases change places. The marker is away meanwhile: it never comes into a live one.
    fn add_swapping(&self, transaction: &mut Transaction, target: &Target) {
        transaction.add(&["SELECT"]).arg(target.marked_database());
        transaction.add(&["UNLINK", &target.marker]);
        for pair in &target.pairs {
            transaction.add(&["SWAPDB"]).arg(pair.live).arg(pair.spare);
        }
        self.add_storing(transaction, target);
    }

    /// Live and spare databases, and functions, change places, with the marker, all or nothing.
    pub(super) fn exchange(self, live: &mut Session, target: &Target) -> Result<(), ServiceError> {
        let doing = || ServiceError::new("exchange live and spare databases");
        let now_live: Vec<u8> = live.run(&["FUNCTION", "DUMP"])?;
        let state = match self.state {
            State::Swapped => State::Loaded,
            State::Loading | State::Loaded => State::Swapped,
        };
        let mut transaction = Transaction::default();
        Self { state, functions: now_live }.add_swapping(&mut transaction, target);
        transaction.add(&["FUNCTION", "RESTORE"]).arg(&self.functions[..]).arg("FLUSH");
        let Err(error) = transaction.run(live) else { return Ok(()) };
        // A command that fails within a transaction does not undo the others. Only functions can
        // fail there, and then they are as before: if the databases have moved, they go back.
        if Self::find(live, target)?.is_some_and(|found| found.state == state) {
            let mut transaction = Transaction::default();
            self.add_swapping(&mut transaction, target);
            transaction.run(live).map_err(|e| doing().because(e))?;
        }
        Err(doing().because(error))
    }
}
