//! Views, triggers, routines and events: read as statements, and made anew from them.
//!
//! They are not renamed with the tables. A routine is never dropped where another one takes its
//! place: the server would forget who may execute it.

use mysql::prelude::Queryable;
use mysql::{Conn, Row, from_value_opt};
use serde::{Deserialize, Serialize};

use super::connection::{filled, name, name_in, run};
use crate::ServiceError;

/// A view, trigger, routine or event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// `VIEW`, `TRIGGER`, `FUNCTION`, `PROCEDURE`, `EVENT`.
    pub(super) kind: String,
    pub(super) name: String,
    /// `user@host`
    pub(super) definer: String,
    pub(super) statement: String,
    pub(super) sql_mode: String,
    /// Of whoever made it. The statement is sent as UTF-8 all the same.
    pub(super) character_set: String,
    pub(super) collation: String,
    /// In which an event's times are meant.
    pub(super) time_zone: String,
}

impl Object {
    pub(super) fn is(&self, kind: &str) -> bool {
        self.kind == kind
    }

    pub(super) fn is_routine(&self) -> bool {
        self.is("FUNCTION") || self.is("PROCEDURE")
    }

    /// Whether `other` has its place.
    pub(super) fn replaces(&self, other: &Self) -> bool {
        self.kind == other.kind && self.name == other.name
    }

    /// Whether `other` does the same.
    pub(super) fn same(&self, other: &Self) -> bool {
        *self == Self { character_set: self.character_set.clone(), ..other.clone() }
    }
}

/// Kind, column with the definition, list of names and definers.
const LISTS: [(&str, &str, &str); 5] = [
    (
        "FUNCTION",
        "Create Function",
        "SELECT routine_name, definer FROM information_schema.routines \
         WHERE routine_schema = ? AND routine_type = 'FUNCTION' ORDER BY routine_name",
    ),
    (
        "PROCEDURE",
        "Create Procedure",
        "SELECT routine_name, definer FROM information_schema.routines \
         WHERE routine_schema = ? AND routine_type = 'PROCEDURE' ORDER BY routine_name",
    ),
    (
        "VIEW",
        "Create View",
        "SELECT table_name, definer FROM information_schema.views \
         WHERE table_schema = ? ORDER BY table_name",
    ),
    (
        "TRIGGER",
        "SQL Original Statement",
        "SELECT trigger_name, definer FROM information_schema.triggers WHERE trigger_schema = ? \
         ORDER BY event_object_table, event_manipulation, action_timing, action_order",
    ),
    (
        "EVENT",
        "Create Event",
        "SELECT event_name, definer FROM information_schema.events \
         WHERE event_schema = ? ORDER BY event_name",
    ),
];

fn text(row: &Row, column: &str) -> Option<String> {
    let value = row.get::<mysql::Value, _>(column)?;
    from_value_opt(value).ok()
}

/// Everything of a database but its tables. The database must exist.
pub(super) fn objects(session: &mut Conn, database: &str) -> Result<Vec<Object>, ServiceError> {
    let doing = |what: &str| ServiceError::new(format!("read {what} of {database}"));
    // Names are printed without the database's own only from within it.
    run(session, &format!("USE {}", name(database)))?;
    let mut found = Vec::new();
    for (kind, column, list) in LISTS {
        let names: Vec<(String, String)> =
            session.query(filled(list, &[database])).map_err(|e| doing(kind).because(e))?;
        for (object, definer) in names {
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
                definer,
                statement,
                sql_mode: word("sql_mode"),
                character_set: word("character_set_client"),
                collation: word("collation_connection"),
                time_zone: word("time_zone"),
            });
        }
    }
    Ok(found)
}

/// Removes one, whether it is there or not.
pub(super) fn drop_object(
    session: &mut Conn,
    database: &str,
    object: &Object,
) -> Result<(), ServiceError> {
    let named = name_in(database, &object.name);
    run(session, &format!("DROP {} IF EXISTS {named}", object.kind))
}

/// Removes what is in the way of other tables, or not wanted any more. Routines that nothing
/// replaces stay.
pub(super) fn clear(
    session: &mut Conn,
    database: &str,
    wanted: &[Object],
) -> Result<(), ServiceError> {
    for object in objects(session, database)? {
        let stays = object.is_routine() || wanted.iter().any(|wanted| wanted.replaces(&object));
        if object.is("TRIGGER") || !stays {
            drop_object(session, database, &object)?;
        }
    }
    Ok(())
}

/// Makes, in each of the databases, what is wanted and is not there as it should be. A view may
/// need one that comes later, also one of another database: what fails is tried again for as long
/// as something else succeeds.
pub(super) fn make(
    session: &mut Conn,
    wanted: &[(&str, &[Object])],
    mariadb: bool,
) -> Result<(), ServiceError> {
    let mut left = Vec::new();
    for (database, objects_wanted) in wanted {
        let now = objects(session, database)?;
        let triggers = |all: &[Object]| {
            all.iter().filter(|one| one.is("TRIGGER")).cloned().collect::<Vec<_>>()
        };
        let (has, wants) = (triggers(&now), triggers(objects_wanted));
        // Their order is the order of their creation.
        let in_order = has.len() == wants.len() && has.iter().zip(&wants).all(|(a, b)| a.same(b));
        if !in_order && !wants.is_empty() {
            for trigger in &has {
                drop_object(session, database, trigger)?;
            }
        }
        left.extend(objects_wanted.iter().filter_map(|object| {
            let there = now.iter().any(|now| now.same(object));
            let kept = if object.is("TRIGGER") { in_order } else { there };
            (!kept).then_some((*database, object))
        }));
    }
    while !left.is_empty() {
        let mut failed = Vec::new();
        let mut last = None;
        for (database, object) in &left {
            if let Err(error) = create(session, database, object, mariadb) {
                last = Some(error);
                failed.push((*database, *object));
            }
        }
        if failed.len() == left.len()
            && let Some(error) = last
        {
            return Err(error);
        }
        left = failed;
    }
    run(session, "SET NAMES utf8mb4")?;
    run(session, "SET SESSION sql_mode = '', time_zone = DEFAULT")
}

fn create(
    session: &mut Conn,
    database: &str,
    object: &Object,
    mariadb: bool,
) -> Result<(), ServiceError> {
    let set = |text: &str| text.replace(['\'', '\\'], "");
    run(session, &format!("USE {}", name(database)))?;
    run(session, &format!("SET SESSION sql_mode = '{}'", set(&object.sql_mode)))?;
    if !object.collation.is_empty() {
        run(session, &format!("SET SESSION collation_connection = '{}'", set(&object.collation)))?;
    }
    if !object.time_zone.is_empty() {
        run(session, &format!("SET SESSION time_zone = '{}'", set(&object.time_zone)))?;
    }
    let statement = if object.is_routine() && mariadb {
        object.statement.replacen("CREATE ", "CREATE OR REPLACE ", 1)
    } else {
        drop_object(session, database, object)?;
        object.statement.clone()
    };
    run(session, &statement)
}
