//! What a restore has put where, and what forbids one.

use std::collections::BTreeSet;

use mysql::Conn;
use mysql::prelude::Queryable;
use serde::{Deserialize, Serialize};

use super::super::catalog::{self, Database, Defaults};
use super::super::connection::{filled, name, name_in};
use super::super::objects::Object;
use crate::{Aside, ServiceError};

/// The table that tells what was done.
pub(super) const MARKER: &str = "stillpoint_marker";

/// What is written into the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) mariadb: bool,
    pub(super) targets: Vec<Target>,
}

/// One database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Target {
    pub(super) live: String,
    pub(super) new: String,
    pub(super) old: String,
    /// Of the live database; none where there was none.
    pub(super) defaults_before: Option<Defaults>,
    pub(super) defaults_after: Defaults,
    /// Those of the live database, to be made anew if the swap is undone.
    pub(super) before: Vec<Object>,
    /// Those of the captured one.
    pub(super) after: Vec<Object>,
}

/// On which side the data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Loaded,
    Swapped,
}

impl Plan {
    pub(super) fn parse(aside: &Aside) -> Result<Self, ServiceError> {
        serde_json::from_value(aside.0.clone())
            .map_err(|e| ServiceError::new("read what the journal says of the restore").because(e))
    }

    /// The name of a lock that belongs to this restore alone.
    pub(super) fn lock(&self, what: &str) -> String {
        let new = self.targets.first().map_or("stillpoint", |target| target.new.as_str());
        format!("{new}.{what}")
    }
}

/// Makes sure that no other session works at this restore, and that none begins to while
/// `session` lives.
pub(super) fn alone(session: &mut Conn, plan: &Plan) -> Result<(), ServiceError> {
    let doing = || ServiceError::new("be the only one at work on this restore");
    // A minute: another process's last statement may still run.
    for (what, keeps) in [("step", true), ("pour", false)] {
        let lock = plan.lock(what);
        let got: Option<Option<i64>> = session
            .query_first(filled("SELECT GET_LOCK(?, 60)", &[&lock]))
            .map_err(|e| doing().because(e))?;
        if got.flatten() != Some(1) {
            let holder: Option<Option<u64>> = session
                .query_first(filled("SELECT IS_USED_LOCK(?)", &[&lock]))
                .map_err(|e| doing().because(e))?;
            let holder = holder.flatten().unwrap_or_default();
            return Err(doing().because(format!("connection {holder} still is")));
        }
        if !keeps {
            session
                .query_drop(filled("DO RELEASE_LOCK(?)", &[&lock]))
                .map_err(|e| doing().because(e))?;
        }
    }
    Ok(())
}

pub(super) fn find(session: &mut Conn, target: &Target) -> Result<Found, ServiceError> {
    if catalog::tables(session, &target.old)?.contains_key(MARKER) {
        return Ok(Found::Swapped);
    }
    let loaded = catalog::tables(session, &target.new)?.contains_key(MARKER);
    Ok(if loaded { Found::Loaded } else { Found::Nothing })
}

/// Refuses what a swap would break, or the server would not take.
pub(super) fn refuse(
    session: &mut Conn,
    captured: &Database,
    mariadb: bool,
) -> Result<(), ServiceError> {
    let database = &captured.name;
    let doing = || ServiceError::new(format!("restore the database {database}"));
    let mut keys = catalog::foreign(session, database, mariadb)?;
    keys.extend(captured.foreign.iter().cloned());
    if let Some(key) = keys.first() {
        return Err(doing()
            .because(format!("a foreign key leads from one database to another: {key}"))
            .hint("drop it, restore, and make it anew; or load the dump by hand"));
    }
    let live = catalog::tables(session, database)?;
    let missing: Vec<String> = sequences(captured)
        .into_iter()
        .filter(|sequence| !live.contains_key(sequence))
        .map(|sequence| format!("CREATE SEQUENCE {}", name_in(database, &sequence)))
        .collect();
    if !missing.is_empty() {
        let make = format!("CREATE DATABASE IF NOT EXISTS {}", name(database));
        return Err(doing()
            .because(
                "columns take their values from sequences, by names in the live database, where \
                 these must be until the restored ones take their place",
            )
            .hint(format!("{make}; {}", missing.join("; "))));
    }
    let most: Option<u64> = session
        .query_first("SELECT @@GLOBAL.max_allowed_packet")
        .map_err(|e| doing().because(e))?;
    // A statement travels with a byte before it.
    let needed = captured.longest + 1;
    if most.is_some_and(|most| most < needed) {
        let room = needed.div_ceil(1024) * 1024;
        return Err(doing()
            .because(format!("its longest row takes {needed} bytes, the server accepts fewer"))
            .hint(format!("SET GLOBAL max_allowed_packet = {room}, for the restore")));
    }
    Ok(())
}

/// The sequences that columns' defaults name, with the live database's name.
fn sequences(captured: &Database) -> BTreeSet<String> {
    let before = format!("val({}.`", name(&captured.name));
    let mut found = BTreeSet::new();
    for table in captured.tables.values() {
        for part in table.definition.split(&before).skip(1) {
            let mut name = String::new();
            let mut letters = part.chars().peekable();
            while let Some(letter) = letters.next() {
                if letter == '`' && letters.next_if_eq(&'`').is_none() {
                    break;
                }
                name.push(letter);
            }
            if captured.tables.contains_key(&name) {
                found.insert(name);
            }
        }
    }
    found
}
