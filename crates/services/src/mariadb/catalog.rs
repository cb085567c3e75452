//! What a database holds besides rows, and what identifies its tables.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::Read;

use mysql::prelude::Queryable;
use mysql::{Conn, Row, from_value_opt};
use serde::{Deserialize, Serialize};

use super::connection::{name, name_in, run};
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
    pub(super) character_set: String,
    pub(super) collation: String,
    /// Table to what was counted in it.
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) objects: Vec<Object>,
}

/// One table or sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) engine: String,
    pub(super) rows: u64,
    /// `CHECKSUM TABLE`; none where a dump does not carry values exactly (FLOAT), or for a
    /// sequence.
    pub(super) checksum: Option<u64>,
}

/// A view, trigger, routine or event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// `VIEW`, `TRIGGER`, `FUNCTION`, `PROCEDURE`, `EVENT`.
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) statement: String,
    pub(super) sql_mode: String,
    pub(super) character_set: String,
    pub(super) collation: String,
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
}

/// Tables (and sequences) with their engines.
pub(super) fn tables(
    session: &mut Conn,
    database: &str,
) -> Result<BTreeMap<String, String>, ServiceError> {
    let rows: Vec<(String, Option<String>)> = session
        .exec(
            "SELECT table_name, engine FROM information_schema.tables \
             WHERE table_schema = ? AND table_type <> 'VIEW'",
            (database,),
        )
        .map_err(|e| ServiceError::new(format!("list the tables of {database}")).because(e))?;
    Ok(rows.into_iter().map(|(name, engine)| (name, engine.unwrap_or_default())).collect())
}

fn text(row: &Row, column: &str) -> Option<String> {
    let value = row.get::<mysql::Value, _>(column)?;
    from_value_opt(value).ok()
}

/// Everything of a database but its rows.
pub(super) fn objects(session: &mut Conn, database: &str) -> Result<Vec<Object>, ServiceError> {
    let doing = |what: &str| ServiceError::new(format!("read {what} of {database}"));
    // Names are printed without the database's own only from within it.
    run(session, &format!("USE {}", name(database)))?;
    let lists = [
        (
            "VIEW",
            "Create View",
            "SELECT table_name FROM information_schema.views WHERE table_schema = ?",
        ),
        (
            "FUNCTION",
            "Create Function",
            "SELECT routine_name FROM information_schema.routines \
          WHERE routine_schema = ? AND routine_type = 'FUNCTION'",
        ),
        (
            "PROCEDURE",
            "Create Procedure",
            "SELECT routine_name FROM information_schema.routines \
          WHERE routine_schema = ? AND routine_type = 'PROCEDURE'",
        ),
        (
            "TRIGGER",
            "SQL Original Statement",
            "SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = ? \
          ORDER BY event_object_table, event_manipulation, action_timing, action_order",
        ),
        (
            "EVENT",
            "Create Event",
            "SELECT event_name FROM information_schema.events WHERE event_schema = ?",
        ),
    ];
    let mut found = Vec::new();
    for (kind, column, list) in lists {
        let names: Vec<String> =
            session.exec(list, (database,)).map_err(|e| doing(kind).because(e))?;
        for object in names {
            let show = format!("SHOW CREATE {kind} {}", name_in(database, &object));
            let row: Option<Row> =
                session.query_first(&show).map_err(|e| doing(&object).because(e))?;
            let statement = row
                .as_ref()
                .and_then(|row| text(row, column))
                .ok_or_else(|| doing(&object).because("the server does not show its definition"))?;
            let word = |column| row.as_ref().and_then(|row| text(row, column)).unwrap_or_default();
            found.push(Object {
                kind: kind.to_owned(),
                name: object,
                statement,
                sql_mode: word("sql_mode"),
                character_set: word("character_set_client"),
                collation: word("collation_connection"),
            });
        }
    }
    Ok(found)
}

/// Removes objects, whether they are there or not.
pub(super) fn drop_objects(
    session: &mut Conn,
    database: &str,
    objects: &[Object],
) -> Result<(), ServiceError> {
    for object in objects.iter().rev() {
        let named = name_in(database, &object.name);
        run(session, &format!("DROP {} IF EXISTS {named}", object.kind))?;
    }
    Ok(())
}

/// Makes objects anew. A view may need one that comes later: what fails is tried again for as
/// long as something else succeeds.
pub(super) fn create_objects(
    session: &mut Conn,
    database: &str,
    objects: &[Object],
) -> Result<(), ServiceError> {
    drop_objects(session, database, objects)?;
    run(session, &format!("USE {}", name(database)))?;
    let mut left: Vec<&Object> = objects.iter().collect();
    while !left.is_empty() {
        let mut failed = Vec::new();
        let mut last = None;
        for object in &left {
            if let Err(error) = create(session, object) {
                // The order of triggers is their order of creation.
                last = Some(error);
                failed.push(*object);
            }
        }
        if failed.len() == left.len()
            && let Some(error) = last
        {
            return Err(error.hint("an object of another account needs: GRANT SET USER ON *.*"));
        }
        left = failed;
    }
    run(session, "SET NAMES utf8mb4")?;
    run(session, "SET SESSION sql_mode = ''")
}

fn create(session: &mut Conn, object: &Object) -> Result<(), ServiceError> {
    let set = |text: &str| text.replace(['\'', '\\'], "");
    run(session, &format!("SET SESSION sql_mode = '{}'", set(&object.sql_mode)))?;
    if !object.collation.is_empty() {
        run(session, &format!("SET SESSION collation_connection = '{}'", set(&object.collation)))?;
    }
    run(session, &object.statement)
}

/// What identifies the tables of a database and how they are defined: another answer means that
/// a dump in between may have lost rows.
pub(super) fn fingerprint(
    session: &mut Conn,
    database: &str,
    mariadb: bool,
) -> Result<BTreeMap<String, String>, ServiceError> {
    let doing = || ServiceError::new(format!("read the table ids of {database}"));
    let table = if mariadb { "INNODB_SYS_TABLES" } else { "INNODB_TABLES" };
    let ids: Vec<(String, u64)> = session
        .query(format!("SELECT name, table_id FROM information_schema.{table}"))
        .map_err(|e| doing().because(e))?;
    let prefix = format!("{}/", encoded(database));
    let mut print: BTreeMap<String, String> = ids
        .into_iter()
        .filter(|(name, _)| name.starts_with(&prefix))
        .map(|(name, id)| (name, id.to_string()))
        .collect();
    for name in tables(session, database)?.into_keys() {
        let row: Option<Row> = session
            .query_first(format!("SHOW CREATE TABLE {}", name_in(database, &name)))
            .map_err(|e| doing().because(e))?;
        let shown = row.as_ref().and_then(|row| row.get::<String, _>(1)).unwrap_or_default();
        print.insert(format!("definition of {name}"), without_counter(&shown));
    }
    for object in objects(session, database)? {
        print.insert(format!("{} {}", object.kind, object.name), object.statement);
    }
    Ok(print)
}

/// As the server writes names of directories.
fn encoded(database: &str) -> String {
    let mut text = String::new();
    for letter in database.chars() {
        if letter.is_ascii_alphanumeric() || letter == '_' {
            text.push(letter);
        } else if (letter as u32) < 0x80 {
            write!(text, "@{:04x}", letter as u32).expect("a string can be written to");
        } else {
            text.push(letter);
        }
    }
    text
}

/// Writers move the next number.
fn without_counter(definition: &str) -> String {
    let words = definition.split(' ').filter(|word| !word.starts_with("AUTO_INCREMENT="));
    words.collect::<Vec<_>>().join(" ")
}

/// Counts a table, and sums it up where a dump carries its values exactly.
pub(super) fn count(
    session: &mut Conn,
    database: &str,
    table: &str,
    engine: &str,
) -> Result<Table, ServiceError> {
    let doing = || ServiceError::new(format!("count the rows of {database}.{table}"));
    let named = name_in(database, table);
    let rows: Option<u64> = session
        .query_first(format!("SELECT count(*) FROM {named}"))
        .map_err(|e| doing().because(e))?;
    let inexact: Option<u8> = session
        .exec_first(
            "SELECT 1 FROM information_schema.columns WHERE table_schema = ? AND table_name = ? \
             AND data_type = 'float' LIMIT 1",
            (database, table),
        )
        .map_err(|e| doing().because(e))?;
    let sequence: Option<u8> = session
        .exec_first(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = ? AND table_name = ? \
             AND table_type = 'SEQUENCE'",
            (database, table),
        )
        .map_err(|e| doing().because(e))?;
    let checksum = if inexact.is_some() || sequence.is_some() {
        None
    } else {
        let row: Option<(String, Option<u64>)> = session
            .query_first(format!("CHECKSUM TABLE {named} EXTENDED"))
            .map_err(|e| doing().because(e))?;
        row.and_then(|(_, sum)| sum)
    };
    Ok(Table { engine: engine.to_owned(), rows: rows.unwrap_or(0), checksum })
}
