//! `catalog.json`: what a capture holds besides the dumps, and what a restore is compared with.

use std::collections::BTreeMap;
use std::io::Read;

use mysql::Conn;
use mysql::prelude::Queryable;
use serde::{Deserialize, Serialize};

use super::connection::filled;
use super::objects::Object;
use crate::{ServiceError, Source};

/// The file with the catalog of a capture.
pub(super) const CATALOG: &str = "catalog.json";
/// The version of what [`Catalog`] says.
const VERSION: u32 = 1;

/// `catalog.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Catalog {
    pub(super) version: u32,
    /// The server's own words for its version.
    pub(super) server: String,
    pub(super) databases: Vec<Database>,
}

/// One database, without rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Database {
    pub(super) name: String,
    pub(super) defaults: Defaults,
    /// Table to what was counted in it.
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) objects: Vec<Object>,
    /// Foreign keys that lead to or come from another database.
    pub(super) foreign: Vec<String>,
    /// Bytes of the longest statement in the dump.
    pub(super) longest: u64,
}

/// What new tables of a database get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Defaults {
    pub(super) character_set: String,
    pub(super) collation: String,
}

/// One table or sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) engine: String,
    /// What `SHOW CREATE TABLE` says, without the next number.
    pub(super) definition: String,
    /// None where it was written to while it was dumped (an engine without snapshots).
    pub(super) rows: Option<u64>,
    /// `CHECKSUM TABLE`; none where the rows are not known, where a dump does not carry values
    /// exactly, and for a sequence.
    pub(super) checksum: Option<u64>,
    /// Whether rows of the past are counted: the dump carries those of a system-versioned table.
    pub(super) history: bool,
}

impl Catalog {
    pub(super) fn new(server: String, databases: Vec<Database>) -> Self {
        Self { version: VERSION, server, databases }
    }

    pub(super) fn read(source: &dyn Source) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new(format!("read {CATALOG} of the captured service"));
        let mut text = String::new();
        source
            .open(CATALOG)
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|e| doing().because(e))?;
        let catalog: Self = serde_json::from_str(&text).map_err(|e| doing().because(e))?;
        if catalog.version != VERSION {
            return Err(doing().hint("restore it with a newer Stillpoint"));
        }
        Ok(catalog)
    }

    /// One of its databases.
    pub(super) fn database(&self, name: &str) -> Result<&Database, ServiceError> {
        self.databases
            .iter()
            .find(|found| found.name == name)
            .ok_or_else(|| ServiceError::new(format!("the capture holds no database `{name}`")))
    }
}

/// A database's defaults; none where it does not exist.
pub(super) fn defaults(
    session: &mut Conn,
    database: &str,
) -> Result<Option<Defaults>, ServiceError> {
    let found: Option<(String, String)> = session
        .query_first(filled(
            "SELECT default_character_set_name, default_collation_name FROM \
             information_schema.schemata WHERE schema_name = ?",
            &[database],
        ))
        .map_err(|e| ServiceError::new(format!("look at the database {database}")).because(e))?;
    Ok(found.map(|(character_set, collation)| Defaults { character_set, collation }))
}

/// Tables (and sequences) with their engines.
pub(super) fn tables(
    session: &mut Conn,
    database: &str,
) -> Result<BTreeMap<String, String>, ServiceError> {
    let rows: Vec<(String, Option<String>)> = session
        .query(filled(
            "SELECT table_name, engine FROM information_schema.tables \
             WHERE table_schema = ? AND table_type <> 'VIEW'",
            &[database],
        ))
        .map_err(|e| ServiceError::new(format!("list the tables of {database}")).because(e))?;
    Ok(rows.into_iter().map(|(name, engine)| (name, engine.unwrap_or_default())).collect())
}

/// Foreign keys between `database` and others, each as `child -> parent`. They cannot be
/// restored: they follow a table that is renamed, into the database that is put aside.
pub(super) fn foreign(
    session: &mut Conn,
    database: &str,
    mariadb: bool,
) -> Result<Vec<String>, ServiceError> {
    let table = if mariadb { "INNODB_SYS_FOREIGN" } else { "INNODB_FOREIGN" };
    let own = format!("CONCAT({}, '/%')", super::print::FILENAME_PATTERN);
    let keys: Vec<(String, String)> = session
        .query(filled(&format!(
                "SELECT for_name, ref_name FROM information_schema.{table} \
                 WHERE (CAST(for_name AS BINARY) LIKE {own}) <> (CAST(ref_name AS BINARY) LIKE {own})"
            ), &[database, database]))
        .map_err(|e| ServiceError::new(format!("read the foreign keys of {database}")).because(e))?;
    Ok(keys.into_iter().map(|(child, parent)| format!("{child} -> {parent}")).collect())
}
