//! What is compared after a restore: rows, checksums and definitions of tables; and what a dump
//! does not carry exactly.

use mysql::prelude::Queryable;
use mysql::{Conn, Row};

use super::catalog::Table;
use super::connection::{filled, name, name_in};
use crate::ServiceError;

/// Engines whose tables hold their own rows, so that a dump carries them.
const OWN_ROWS: [&str; 7] = ["InnoDB", "Aria", "MyISAM", "MEMORY", "CSV", "ARCHIVE", "RocksDB"];

/// A table that was counted, and what its dump cannot carry.
pub(super) struct Counted {
    pub(super) table: Table,
    /// (what, why)
    pub(super) gaps: Vec<(String, String)>,
}

/// Counts a table, and sums it up where a dump carries its values exactly.
pub(super) fn count(
    session: &mut Conn,
    database: &str,
    table: &str,
    engine: &str,
    history: bool,
) -> Result<Counted, ServiceError> {
    let doing = || ServiceError::new(format!("count the rows of {database}.{table}"));
    let named = name_in(database, table);
    let shown: Option<Row> = session
        .query_first(format!("SHOW CREATE TABLE {named}"))
        .map_err(|e| doing().because(e))?;
    let shown = shown.and_then(|row| row.get::<String, _>(1)).unwrap_or_default();
    let kind: Option<String> = session
        .query_first(filled(
            "SELECT table_type FROM information_schema.tables \
             WHERE table_schema = ? AND table_name = ?",
            &[database, table],
        ))
        .map_err(|e| doing().because(e))?;
    let kind = kind.unwrap_or_default();
    let mut gaps = Vec::new();
    if !OWN_ROWS.iter().any(|known| engine.eq_ignore_ascii_case(known)) {
        let why = format!("the engine {engine} keeps them elsewhere");
        gaps.push((format!("rows of the table {database}.{table}"), why));
    }
    let floats = inexact(session, database, table)?;
    let versioned = kind == "SYSTEM VERSIONED";
    let history = versioned && history;
    if versioned && !history {
        let why = "carried from MariaDB 10.11 on, and in a database where no table is versioned by \
                   transactions";
        gaps.push((format!("the history of the table {database}.{table}"), why.to_owned()));
    }
    // Without their history rows get a new beginning.
    let exact = floats.is_empty() && (history || !versioned);
    gaps.extend(floats);
    let mut counted = Table {
        engine: engine.to_owned(),
        definition: without_counter(&shown),
        rows: None,
        checksum: None,
        history,
    };
    // What a sequence says next is set by its dump; its one row is not a row of the application.
    if kind != "SEQUENCE" {
        let past = if history { " FOR SYSTEM_TIME ALL" } else { "" };
        counted.rows = session
            .query_first(format!("SELECT count(*) FROM {named}{past}"))
            .map_err(|e| doing().because(e))?;
        if exact {
            let row: Option<(String, Option<u64>)> = session
                .query_first(format!("CHECKSUM TABLE {named} EXTENDED"))
                .map_err(|e| doing().because(e))?;
            counted.checksum = row.and_then(|(_, sum)| sum);
        }
    }
    Ok(Counted { table: counted, gaps })
}

/// FLOAT columns with values that a dump rounds: the server prints six digits, some have more.
fn inexact(
    session: &mut Conn,
    database: &str,
    table: &str,
) -> Result<Vec<(String, String)>, ServiceError> {
    let doing = || ServiceError::new(format!("look at the columns of {database}.{table}"));
    let columns: Vec<String> = session
        .query(filled(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = ? \
             AND table_name = ? AND data_type = 'float' AND generation_expression IS NULL",
            &[database, table],
        ))
        .map_err(|e| doing().because(e))?;
    let mut gaps = Vec::new();
    for column in columns {
        // As a DOUBLE a value is printed whole; as itself, with six digits.
        let rounded: Option<u64> = session
            .query_first(format!(
                "SELECT count(*) FROM {} WHERE {column} + 0e0 <> CAST(CAST({column} AS CHAR) AS FLOAT) + 0e0",
                name_in(database, table),
                column = name(&column)
            ))
            .map_err(|e| doing().because(e))?;
        if let Some(rounded @ 1..) = rounded {
            let what = format!("exact values of the column {database}.{table}.{column}");
            let why = format!(
                "{rounded} of them have more than the six digits that a dump carries of a FLOAT: \
                 make it DOUBLE"
            );
            gaps.push((what, why));
        }
    }
    Ok(gaps)
}

/// Writers move the next number.
fn without_counter(definition: &str) -> String {
    let words = definition.split(' ').filter(|word| !word.starts_with("AUTO_INCREMENT="));
    words.collect::<Vec<_>>().join(" ")
}
