//! What identifies a database's tables and other definitions. Another answer after the capture
//! means that a dump in between may have lost rows without a word: a swap by RENAME, TRUNCATE and
//! DROP PARTITION make new table ids; every ALTER makes a new time of creation.
//!
//! Asked for in a few questions, whatever the number of tables. What the server answers from memory
//! is looked at inside the hold ([`Print::glance`]); what it opens every table for ([`Print::read`])
//! is not, unless the glance saw a change.

use std::collections::BTreeMap;

use mysql::Conn;
use mysql::prelude::Queryable;

use super::connection::filled;
use crate::ServiceError;

/// Names as `InnoDB`'s lists have them, as a pattern of `LIKE`; `?` is the name.
pub(super) const FILENAME_PATTERN: &str = "REPLACE(CONVERT(CAST(CONVERT(? USING filename) AS \
    BINARY) USING utf8mb4), '_', '\\\\_')";

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Print {
    entries: BTreeMap<String, String>,
    /// Columns, options and times of creation.
    details: BTreeMap<String, String>,
    /// Tables with the engine, where it is not `InnoDB`.
    pub(super) others: Vec<(String, String)>,
    /// Whether there is a history of rows, in system-versioned tables.
    pub(super) versioned: bool,
    /// Whether one of them is versioned by transactions: then no history can be dumped.
    pub(super) by_transaction: bool,
    pub(super) views: Vec<String>,
}

/// Each answers with a name and what identifies it.
const OBJECTS: [&str; 4] = [
    "SELECT CONCAT('the view ', table_name), CONCAT_WS('|', view_definition, definer, \
     security_type, check_option) FROM information_schema.views WHERE table_schema = ?",
    "SELECT CONCAT('the trigger ', trigger_name), CONCAT_WS('|', event_object_table, created, \
     action_order, action_statement, definer) FROM information_schema.triggers \
     WHERE trigger_schema = ?",
    "SELECT CONCAT('the routine ', routine_name), CONCAT_WS('|', routine_type, created, \
     last_altered, definer, dtd_identifier, sql_data_access, security_type, is_deterministic, \
     routine_definition) FROM information_schema.routines \
     WHERE routine_schema = ? ORDER BY routine_type",
    // One that runs once goes by itself.
    "SELECT CONCAT('the event ', event_name), CONCAT_WS('|', created, last_altered, definer, \
     interval_value, interval_field, starts, ends, status, on_completion, event_definition) \
     FROM information_schema.events WHERE event_schema = ? AND event_type = 'RECURRING'",
];
const DETAILS: [&str; 2] = [
    "SELECT CONCAT('the columns of ', table_name), CONCAT_WS('|', column_name, ordinal_position, \
     column_type, column_default, is_nullable, extra) FROM information_schema.columns \
     WHERE table_schema = ? ORDER BY table_name, ordinal_position",
    "SELECT CONCAT('the definition of ', table_name), CONCAT_WS('|', table_collation, \
     create_options, table_comment, IF(engine = 'InnoDB', create_time, '')) \
     FROM information_schema.tables WHERE table_schema = ? AND table_type <> 'VIEW'",
];

fn ask_all(
    session: &mut Conn,
    database: &str,
    questions: &[&str],
    into: &mut BTreeMap<String, String>,
) -> Result<(), ServiceError> {
    for question in questions {
        let found: Vec<(String, Option<String>)> =
            session.query(filled(question, &[database])).map_err(|e| {
                ServiceError::new(format!("read the definitions of {database}")).because(e)
            })?;
        for (name, words) in found {
            let entry = into.entry(name).or_default();
            entry.push_str(&words.unwrap_or_default());
            entry.push('\n');
        }
    }
    Ok(())
}

impl Print {
    /// Reads all of it.
    pub(super) fn read(
        session: &mut Conn,
        database: &str,
        mariadb: bool,
    ) -> Result<Self, ServiceError> {
        let mut print = Self::glance(session, database, mariadb)?;
        ask_all(session, database, &DETAILS, &mut print.details)?;
        Ok(print)
    }

    /// Reads what is quick to read.
    pub(super) fn glance(
        session: &mut Conn,
        database: &str,
        mariadb: bool,
    ) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new(format!("read the definitions of {database}"));
        let mut print = Self::default();
        let table = if mariadb { "INNODB_SYS_TABLES" } else { "INNODB_TABLES" };
        let ids: Vec<(String, u64, u64)> = session
            .query(filled(
                &format!(
                    "SELECT name, table_id, n_cols FROM information_schema.{table} \
                     WHERE CAST(name AS BINARY) LIKE CONCAT({FILENAME_PATTERN}, '/%')"
                ),
                &[database],
            ))
            .map_err(|e| doing().because(e))?;
        let has_ids = !ids.is_empty();
        for (name, id, columns) in ids {
            // Those of a full text index, and of an ALTER that has not ended, are nobody's.
            let short = name.split_once('/').map_or(name.as_str(), |(_, short)| short);
            if !short.starts_with("FTS_") && !short.starts_with("#sql") {
                print.entries.insert(format!("the table {name}"), format!("{id}|{columns}"));
            }
        }
        let tables: Vec<(String, String, Option<String>)> = session
            .query(filled(
                "SELECT table_name, table_type, engine FROM information_schema.tables \
                 WHERE table_schema = ? ORDER BY table_name",
                &[database],
            ))
            .map_err(|e| doing().because(e))?;
        for (name, kind, engine) in tables {
            if kind.ends_with("VIEW") {
                print.views.push(name);
                continue;
            }
            let engine = engine.unwrap_or_default();
            print.versioned |= kind == "SYSTEM VERSIONED";
            print.entries.insert(format!("the kind of {name}"), format!("{kind}|{engine}"));
            if !engine.eq_ignore_ascii_case("InnoDB") {
                print.others.push((name, engine));
            } else if !has_ids {
                return Err(doing().because("the server shows no ids of its tables"));
            }
        }
        if print.versioned {
            let question = "SELECT 1 FROM information_schema.columns WHERE table_schema = ? \
                AND generation_expression = 'ROW START' AND data_type = 'bigint' LIMIT 1";
            let found: Option<u8> = session
                .query_first(filled(question, &[database]))
                .map_err(|e| doing().because(e))?;
            print.by_transaction = found.is_some();
        }
        ask_all(session, database, &OBJECTS, &mut print.entries)?;
        Ok(print)
    }

    /// Whether what a glance sees is the same.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// The first thing in which `self` differs from `before`.
    pub(super) fn differs<'a>(&'a self, before: &'a Self) -> Option<&'a str> {
        let of = |print: &'a Self| print.entries.iter().chain(&print.details);
        let then: BTreeMap<&String, &String> = of(before).collect();
        let now: BTreeMap<&String, &String> = of(self).collect();
        let changed = now.iter().find(|(name, words)| then.get(*name) != Some(*words));
        let gone = || then.iter().find(|(name, _)| !now.contains_key(*name));
        changed.or_else(gone).map(|(name, _)| name.as_str())
    }
}
