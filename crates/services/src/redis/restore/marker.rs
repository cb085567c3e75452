//! The marker: tells, from the server alone, what was done, and changes with the data in one
//! transaction.
//!
//! It is a hash in the first spare database, beside the data that is aside: never in a database of
//! the application. It also keeps the functions that belong to that data.

use std::collections::HashMap;

use redis::{Cmd, Pipeline};

use super::super::connection::Session;
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

fn command(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command
}

impl Marker {
    /// The marker of this restore; `None` where it has none.
    pub(super) fn find(live: &mut Session, target: &Target) -> Result<Option<Self>, ServiceError> {
        let doing = || ServiceError::new("read the restore's marker in the server");
        let mut pipe = redis::pipe();
        pipe.add_command(command(&["SELECT", &target.marked_database().to_string()])).ignore();
        pipe.add_command(command(&["HGETALL", &target.marker]));
        let (mut found,): (HashMap<String, Vec<u8>>,) =
            pipe.query(&mut live.connection).map_err(|e| doing().because(e))?;
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
        let mut pipe = redis::pipe();
        pipe.atomic();
        target.add_emptying(&mut pipe);
        Self { state: State::Loading, functions: Vec::new() }.add_storing(&mut pipe, target);
        pipe.exec(&mut live.connection)
            .map_err(|e| ServiceError::new("begin to fill the spare databases").because(e))
    }

    pub(super) fn store(&self, live: &mut Session, target: &Target) -> Result<(), ServiceError> {
        let mut pipe = redis::pipe();
        pipe.atomic();
        self.add_storing(&mut pipe, target);
        pipe.exec(&mut live.connection)
            .map_err(|e| ServiceError::new("write the restore's marker").because(e))
    }

    fn add_storing(&self, pipe: &mut Pipeline, target: &Target) {
        pipe.add_command(command(&["SELECT", &target.marked_database().to_string()])).ignore();
        let mut store = command(&["HSET", &target.marker, "state", self.state.word(), "functions"]);
        store.arg(&self.functions[..]);
        pipe.add_command(store).ignore();
    }

    /// Live and spare databases, and functions, change places, with the marker, all or nothing.
    pub(super) fn exchange(self, live: &mut Session, target: &Target) -> Result<(), ServiceError> {
        let doing = || ServiceError::new("exchange live and spare databases");
        let now_live: Vec<u8> = live.run(&["FUNCTION", "DUMP"])?;
        let state = match self.state {
            State::Swapped => State::Loaded,
            State::Loading | State::Loaded => State::Swapped,
        };
        let mut pipe = redis::pipe();
        pipe.atomic();
        let marked = target.marked_database().to_string();
        // Away before, and back after: it never comes into a live database.
        pipe.add_command(command(&["SELECT", &marked])).ignore();
        pipe.add_command(command(&["UNLINK", &target.marker])).ignore();
        for pair in &target.pairs {
            let (live, spare) = (pair.live.to_string(), pair.spare.to_string());
            pipe.add_command(command(&["SWAPDB", &live, &spare])).ignore();
        }
        let mut functions = command(&["FUNCTION", "RESTORE"]);
        functions.arg(&self.functions[..]).arg("FLUSH");
        pipe.add_command(functions).ignore();
        let after = Self { state, functions: now_live };
        after.add_storing(&mut pipe, target);
        let Err(error) = pipe.exec(&mut live.connection) else { return Ok(()) };
        // A command that fails within a transaction does not undo the others. Only functions can
        // fail there; if the databases have moved, they go back.
        if Self::find(live, target)?.is_some_and(|found| found.state == state) {
            let mut pipe = redis::pipe();
            pipe.atomic();
            pipe.add_command(command(&["SELECT", &marked])).ignore();
            pipe.add_command(command(&["UNLINK", &target.marker])).ignore();
            for pair in &target.pairs {
                let (live, spare) = (pair.live.to_string(), pair.spare.to_string());
                pipe.add_command(command(&["SWAPDB", &live, &spare])).ignore();
            }
            self.add_storing(&mut pipe, target);
            pipe.exec(&mut live.connection).map_err(|e| doing().because(e))?;
        }
        Err(doing().because(error))
    }
}
