//! What there is in a database: tables, sequences, and the database's own properties.
//!
//! All queries work in every version from 10 on. They read catalogs only, and lock no table.

use std::collections::BTreeMap;

use postgres::{Client, Row, Statement};

use super::catalog::{Grant, Properties, Sequence, Setting};
use super::connection::Session;
use super::large_objects;
use super::names::{ident, literal, qualified};

/// Tables and sequences that are neither the system's own, nor temporary, nor an extension's (but
/// for those that the extension declares to hold the user's data).
const OURS: &str = "\
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_depend e ON e.classid = 'pg_class'::regclass AND e.objid = c.oid \
        AND e.objsubid = 0 AND e.deptype = 'e' \
    LEFT JOIN pg_extension x ON x.oid = e.refobjid \
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
    AND c.relpersistence <> 't' AND (e.objid IS NULL OR c.oid = ANY (x.extconfig))";

/// A table, as prepare finds it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) schema: String,
    pub(super) name: String,
    /// False for a partitioned table: its rows are in its partitions.
    pub(super) has_rows: bool,
    /// Size in pages, as last estimated.
    pub(super) pages: i32,
    pub(super) columns: Vec<String>,
    pub(super) condition: Option<String>,
    pub(super) readable: bool,
    /// A row policy hides rows from this role.
    pub(super) filtered: bool,
}

impl Found {
    pub(super) fn qualified(&self) -> String {
        qualified(&self.schema, &self.name)
    }
}

pub(super) fn tables(session: &mut Session) -> Result<BTreeMap<u32, Found>, postgres::Error> {
    let generated = if session.version >= 120_000 { "AND a.attgenerated = ''" } else { "" };
    let rows = session.client.query(
        &format!(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'r', c.relpages, \
             ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid \
                   AND a.attnum > 0 AND NOT a.attisdropped {generated} ORDER BY a.attnum), \
             x.extcondition[array_position(x.extconfig, c.oid)], \
             has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), \
             row_security_active(c.oid) \
             {OURS} AND c.relkind IN ('r', 'p')"
        ),
        &[],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), found(row))).collect())
}

fn found(row: &Row) -> Found {
    Found {
        schema: row.get(1),
        name: row.get(2),
        has_rows: row.get(3),
        pages: row.get(4),
        columns: row.get(5),
        condition: row.get::<_, Option<String>>(6).filter(|text| !text.is_empty()),
        readable: row.get(7),
        filtered: row.get(8),
    }
}

/// A sequence, by its oid; schema and name.
pub(super) type SequenceName = (u32, String, String);

/// All sequences, in the order of their names.
pub(super) fn sequences(client: &mut Client) -> Result<Vec<SequenceName>, postgres::Error> {
    let rows = client.query(
        &format!(
            "SELECT c.oid, n.nspname::text, c.relname::text {OURS} AND c.relkind = 'S' \
             ORDER BY n.nspname, c.relname"
        ),
        &[],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Changes when a table or a sequence comes or goes. Cheap, for the mark: one pass over one
/// catalog (the system's own relations have low oids).
pub(super) fn inventory(client: &mut Client) -> Result<String, postgres::Error> {
    let row = client.query_one(
        "SELECT coalesce(md5(string_agg(oid::text, ' ' ORDER BY oid)), '') FROM pg_class \
         WHERE relkind IN ('r', 'p', 'S') AND relpersistence <> 't' AND oid >= 16384",
        &[],
    )?;
    Ok(row.get(0))
}

/// Sequences that this role may not read.
pub(super) fn unreadable_sequences(client: &mut Client) -> Result<Vec<String>, postgres::Error> {
    let rows = client.query(
        &format!(
            "SELECT n.nspname::text, c.relname::text {OURS} AND c.relkind = 'S' \
             AND NOT (has_schema_privilege(n.oid, 'USAGE') \
                      AND has_sequence_privilege(c.oid, 'SELECT'))"
        ),
        &[],
    )?;
    Ok(rows.iter().map(|row| qualified(row.get(0), row.get(1))).collect())
}

/// Sequences in one statement. The planner's work grows faster than their number: 2,000 in one
/// took it two seconds.
const SEQUENCE_BATCH: usize = 100;

/// The statements that read all values, prepared: planning them would take most of a mark's time.
pub(super) fn prepare_sequences(
    client: &mut Client,
    sequences: &[SequenceName],
) -> Result<Vec<Statement>, postgres::Error> {
    sequences
        .chunks(SEQUENCE_BATCH)
        .map(|batch| {
            let parts: Vec<String> = batch
                .iter()
                .map(|(oid, schema, name)| {
                    let from = qualified(schema, name);
                    format!("SELECT '{oid}'::oid, last_value, is_called FROM {from}")
                })
                .collect();
            client.prepare(&parts.join(" UNION ALL "))
        })
        .collect()
}

/// A sequence's value: oid, last value, and whether it was given out.
pub(super) type SequenceValue = (u32, i64, bool);

pub(super) fn read_sequences(
    client: &mut Client,
    statements: &[Statement],
) -> Result<Vec<SequenceValue>, postgres::Error> {
    let mut values = Vec::new();
    for statement in statements {
        let rows = client.query(statement, &[])?;
        values.extend(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))));
    }
    Ok(values)
}

/// Gives values the names that their sequences have in this session's snapshot.
pub(super) fn named(
    client: &mut Client,
    values: &[SequenceValue],
) -> Result<Vec<Sequence>, postgres::Error> {
    let names: BTreeMap<u32, (String, String)> =
        sequences(client)?.into_iter().map(|(oid, schema, name)| (oid, (schema, name))).collect();
    let mut named: Vec<Sequence> = values
        .iter()
        .filter_map(|(oid, last_value, is_called)| {
            let (schema, name) = names.get(oid)?.clone();
            Some(Sequence { schema, name, last_value: *last_value, is_called: *is_called })
        })
        .collect();
    named.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Ok(named)
}

/// The properties of `database`, from a session in any database; `None` where there is no such.
pub(super) fn properties(
    client: &mut Client,
    database: &str,
) -> Result<Option<Properties>, postgres::Error> {
    // Columns that only newer versions have are read by name, from the row as JSON.
    let Some(row) = client.query_opt(
        "SELECT pg_get_userbyid(d.datdba)::text, pg_encoding_to_char(d.encoding)::text, \
         d.datcollate::text, d.datctype::text, to_jsonb(d)->>'datlocprovider', \
         COALESCE(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale'), d.datconnlimit, \
         shobj_description(d.oid, 'pg_database'), d.datacl IS NOT NULL, \
         NULLIF(t.spcname, 'pg_default')::text \
         FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = $1",
        &[&database],
    )?
    else {
        return Ok(None);
    };
    let mut properties = Properties {
        owner: row.get(0),
        encoding: row.get(1),
        collate: row.get(2),
        ctype: row.get(3),
        provider: row.get(4),
        locale: row.get(5),
        tablespace: row.get(9),
        connection_limit: row.get(6),
        comment: row.get(7),
        grants: None,
        settings: Vec::new(),
    };
    if row.get(8) {
        let grants = client.query(
            "SELECT r.rolname::text, a.privilege_type, a.is_grantable \
             FROM pg_database d CROSS JOIN aclexplode(d.datacl) a \
             LEFT JOIN pg_roles r ON r.oid = a.grantee \
             WHERE d.datname = $1 AND a.grantee <> d.datdba ORDER BY 1, 2",
            &[&database],
        )?;
        let grants = grants.iter().map(|row| Grant {
            role: row.get(0),
            privilege: row.get(1),
            grantable: row.get(2),
        });
        properties.grants = Some(grants.collect());
    }
    let settings = client.query(
        "SELECT r.rolname::text, unnest(s.setconfig) FROM pg_db_role_setting s \
         JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole \
         WHERE d.datname = $1",
        &[&database],
    )?;
    for row in settings {
        let text: String = row.get(1);
        if let Some((name, value)) = text.split_once('=') {
            properties.settings.push(Setting {
                role: row.get(0),
                name: name.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    Ok(Some(properties))
}

/// Owners of objects in this database, and the other roles that its objects mention.
pub(super) fn roles(client: &mut Client) -> Result<(Vec<String>, Vec<String>), postgres::Error> {
    let not_extensions = |class: &str| {
        format!(
            "o.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e' \
             AND e.classid = {}::regclass AND e.objid = o.oid)",
            literal(class)
        )
    };
    let mut parts = Vec::new();
    // What depends on another object (indexes, TOAST, row types) has its owner.
    for (class, owner, only) in [
        ("pg_class", "relowner", "o.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')"),
        ("pg_proc", "proowner", "true"),
        ("pg_type", "typowner", "o.typtype IN ('d', 'e', 'r')"),
        ("pg_namespace", "nspowner", "o.nspname !~ '^pg_'"),
    ] {
        parts.push(format!(
            "SELECT pg_get_userbyid(o.{owner})::text FROM {class} o WHERE {only} AND {}",
            not_extensions(class)
        ));
    }
    let mut owners: Vec<String> =
        client.query(&parts.join(" UNION "), &[])?.iter().map(|row| row.get(0)).collect();
    owners.extend(large_objects::owners(client)?);
    owners.sort();
    owners.dedup();
    let mentioned = client.query(
        "SELECT DISTINCT r.rolname::text FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid \
         WHERE s.refclassid = 'pg_authid'::regclass AND s.dbid = \
         (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1",
        &[],
    )?;
    let mentioned = mentioned.iter().map(|row| row.get(0));
    let mentioned = mentioned.filter(|role| !owners.contains(role)).collect();
    Ok((owners, mentioned))
}

/// Those of these extensions that the server's host has no files of.
pub(super) fn extensions_not_installed(
    client: &mut Client,
    names: &[String],
) -> Result<Vec<String>, postgres::Error> {
    let query = "SELECT w FROM unnest($1::text[]) w \
                 WHERE w NOT IN (SELECT name FROM pg_available_extensions)";
    Ok(client.query(query, &[&names])?.iter().map(|row| row.get(0)).collect())
}

/// Those of these extensions that only a superuser may create.
pub(super) fn extensions_not_trusted(
    client: &mut Client,
    names: &[String],
) -> Result<Vec<String>, postgres::Error> {
    // The column `trusted` came with PostgreSQL 13; before it, all need a superuser.
    let query = "SELECT DISTINCT w FROM unnest($1::text[]) w \
                 JOIN pg_available_extension_versions v ON v.name = w \
                 JOIN pg_available_extensions a ON a.name = w AND a.default_version = v.version \
                 WHERE w <> 'plpgsql' AND v.superuser \
                 AND NOT coalesce((to_jsonb(v)->>'trusted')::boolean, false)";
    Ok(client.query(query, &[&names])?.iter().map(|row| row.get(0)).collect())
}

/// What this role may not read, as (the object, what it lacks, the statement that gives it to
/// `user`): schemas, tables, sequences, rows that policies hide,
/// and large objects.
pub(super) fn unreadable(
    client: &mut Client,
    user: &str,
) -> Result<Vec<(String, &'static str, String)>, postgres::Error> {
    let to = ident(user);
    let mut lacks = Vec::new();
    let schemas = client.query(
        &format!(
            "SELECT DISTINCT n.nspname::text {OURS} AND c.relkind IN ('r', 'p', 'S') \
             AND NOT has_schema_privilege(n.oid, 'USAGE') ORDER BY 1"
        ),
        &[],
    )?;
    for row in schemas {
        let schema = ident(row.get(0));
        let grant = format!("GRANT USAGE ON SCHEMA {schema} TO {to}");
        lacks.push((format!("the schema {schema}"), "USAGE", grant));
    }
    let relations = client.query(
        &format!(
            "SELECT n.nspname::text, c.relname::text, c.relkind = 'S' \
             {OURS} AND c.relkind IN ('r', 'p', 'S') AND NOT CASE WHEN c.relkind = 'S' \
             THEN has_sequence_privilege(c.oid, 'SELECT') \
             ELSE has_table_privilege(c.oid, 'SELECT') END ORDER BY 3, 1, 2"
        ),
        &[],
    )?;
    for row in relations {
        let (word, kind) = if row.get(2) { ("sequence", "SEQUENCE ") } else { ("table", "") };
        let name = qualified(row.get(0), row.get(1));
        let grant = format!("GRANT SELECT ON {kind}{name} TO {to}");
        lacks.push((format!("the {word} {name}"), "SELECT", grant));
    }
    let filtered = client.query(
        &format!(
            "SELECT n.nspname::text, c.relname::text {OURS} AND c.relkind IN ('r', 'p') \
             AND row_security_active(c.oid) ORDER BY 1, 2"
        ),
        &[],
    )?;
    for row in filtered {
        let name = qualified(row.get(0), row.get(1));
        let statement = format!("ALTER ROLE {to} BYPASSRLS");
        lacks.push((format!("all rows of the table {name}"), "BYPASSRLS", statement));
    }
    for (which, statement) in large_objects::unreadable(client, &to)? {
        lacks.push((which, "SELECT", statement));
    }
    Ok(lacks)
}
