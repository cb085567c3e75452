//! The schema: dumped in prepare by `pg_dump`, proven unchanged at the mark.
//!
//! `pg_dump` takes locks of its own. After the mark it would wait behind DDL that waits for our
//! locks: forever, since nobody else can see that circle. So the schema is dumped in prepare, and
//! the fingerprint of the system catalogs tells at the mark's snapshot whether it still holds.
//!
//! If it does not it is dumped again, in that snapshot. But the server names functions, types and
//! operators as they are called at the moment: what was changed since the mark would give a dump of
//! two states. So the fingerprint is taken once more when all is captured.

use std::collections::BTreeMap;

use postgres::Client;

use super::connection::{Login, Session};
use super::tools::Tools;
use crate::ServiceError;

/// How long `pg_dump` may wait for one lock.
const LOCK_WAIT: &str = "--lock-wait-timeout=10s";

/// The statements of a database, before and after its data.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    pub(super) pre_data: String,
    pub(super) post_data: String,
    pub(super) warnings: Vec<String>,
    /// Of the catalogs, in the snapshot that was dumped.
    pub(super) fingerprint: String,
}

/// Dumps the schema as it is now, in a snapshot of its own.
pub(super) fn dump_now(
    tools: &Tools,
    login: &Login,
    database: &str,
    session: &mut Session,
) -> Result<Schema, ServiceError> {
    let doing = || ServiceError::new(format!("dump the schema of {}", login.shown(database)));
    let begun = session
        .client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .and_then(|()| session.client.query_one("SELECT pg_export_snapshot()", &[]));
    let snapshot: String = begun.map_err(|e| doing().because(e))?.get(0);
    let fingerprint = fingerprint(&mut session.client).map_err(|e| doing().because(e))?;
    let schema = dump(tools, login, database, &snapshot, fingerprint);
    session.client.batch_execute("ROLLBACK").map_err(|e| doing().because(e))?;
    schema
}

/// Dumps the schema as it is in an exported snapshot.
pub(super) fn dump(
    tools: &Tools,
    login: &Login,
    database: &str,
    snapshot: &str,
    fingerprint: String,
) -> Result<Schema, ServiceError> {
    let snapshot = format!("--snapshot={snapshot}");
    let section = |name: &str| {
        let section = format!("--section={name}");
        tools.run(
            "pg_dump",
            login,
            database,
            &[&section, &snapshot, LOCK_WAIT, "--encoding=UTF8", "--no-blobs"],
        )
    };
    let (pre, post) = std::thread::scope(|scope| {
        let post = scope.spawn(|| section("post-data"));
        (section("pre-data"), post.join().expect("the dump's thread does not panic"))
    });
    let explained = |error: ServiceError| {
        let hint = "if it waited for a lock: a session holds ACCESS EXCLUSIVE on a table (ALTER, \
                    TRUNCATE, VACUUM FULL); pg_stat_activity and pg_blocking_pids() name it";
        if error.advice().is_none() { error.hint(hint) } else { error }
    };
    let (pre_data, mut warnings) = pre.map_err(explained)?;
    let (post_data, more) = post.map_err(explained)?;
    for warning in more {
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    Ok(Schema { pre_data, post_data, warnings, fingerprint })
}

/// Changes whenever a definition in this database does: the versions of all rows of all catalogs.
///
/// Temporary tables are left out: they come and go all the time, and are never dumped.
pub(super) fn fingerprint(client: &mut Client) -> Result<String, postgres::Error> {
    // Statistics and large objects are data; the shared catalogs are the whole server's.
    let catalogs = client.query(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace \
         AND relkind = 'r' AND NOT relisshared AND relname NOT IN ('pg_statistic', \
         'pg_statistic_ext_data', 'pg_largeobject', 'pg_largeobject_metadata') \
         AND has_table_privilege(oid, 'SELECT') ORDER BY relname",
        &[],
    )?;
    let parts: Vec<String> = catalogs
        .iter()
        .map(|row| {
            let name: String = row.get(0);
            format!(
                "SELECT '{name}' AS name, md5(string_agg(ctid::text || xmin::text, ' ' \
                 ORDER BY ctid)) AS rows FROM pg_catalog.{name} WHERE {}",
                lasting(&name)
            )
        })
        .collect();
    let query = format!(
        "WITH temporary AS (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_'), \
         passing AS (SELECT oid FROM pg_class WHERE relnamespace IN (TABLE temporary)) \
         SELECT md5(string_agg(name || coalesce(rows, ''), ' ' ORDER BY name)) FROM ({}) c",
        parts.join(" UNION ALL ")
    );
    Ok(client.query_one(&query, &[])?.get(0))
}

/// Which rows of a catalog are of no temporary table, view or function.
fn lasting(catalog: &str) -> &'static str {
    match catalog {
        "pg_namespace" => "oid NOT IN (TABLE temporary)",
        "pg_class" => "relnamespace NOT IN (TABLE temporary)",
        "pg_type" => "typnamespace NOT IN (TABLE temporary)",
        "pg_proc" => "pronamespace NOT IN (TABLE temporary)",
        "pg_constraint" => "connamespace NOT IN (TABLE temporary)",
        "pg_attribute" => "attrelid NOT IN (TABLE passing)",
        "pg_attrdef" => "adrelid NOT IN (TABLE passing)",
        "pg_index" => "indrelid NOT IN (TABLE passing)",
        "pg_sequence" => "seqrelid NOT IN (TABLE passing)",
        "pg_rewrite" => "ev_class NOT IN (TABLE passing)",
        "pg_trigger" => "tgrelid NOT IN (TABLE passing)",
        "pg_inherits" => "inhrelid NOT IN (TABLE passing)",
        "pg_depend" => {
            "NOT (classid = 'pg_class'::regclass AND objid IN (TABLE passing) \
             OR classid = 'pg_type'::regclass AND objid IN \
                (SELECT oid FROM pg_type WHERE typnamespace IN (TABLE temporary)) \
             OR classid = 'pg_attrdef'::regclass AND objid IN \
                (SELECT oid FROM pg_attrdef WHERE adrelid IN (TABLE passing)) \
             OR classid = 'pg_rewrite'::regclass AND objid IN \
                (SELECT oid FROM pg_rewrite WHERE ev_class IN (TABLE passing)) \
             OR classid = 'pg_trigger'::regclass AND objid IN \
                (SELECT oid FROM pg_trigger WHERE tgrelid IN (TABLE passing)) \
             OR classid = 'pg_proc'::regclass AND objid IN \
                (SELECT oid FROM pg_proc WHERE pronamespace IN (TABLE temporary)) \
             OR classid = 'pg_constraint'::regclass AND objid IN \
                (SELECT oid FROM pg_constraint WHERE connamespace IN (TABLE temporary)))"
        }
        _ => "true",
    }
}

/// The labels of enumerations. Values are written by the labels of the moment, whatever the snapshot,
/// and no lock keeps a label from being renamed.
pub(super) fn labels(client: &mut Client) -> Result<BTreeMap<u32, String>, postgres::Error> {
    let rows = client.query("SELECT oid, enumlabel::text FROM pg_enum", &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
