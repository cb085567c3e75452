//! The schema: dumped in prepare by `pg_dump`, proven unchanged at the mark.
//!
//! `pg_dump` takes locks of its own. After the mark it would wait behind DDL that waits for our
//! locks: forever, since nobody else can see that circle. So the schema is dumped in prepare, and
//! the fingerprint of the system catalogs tells at the mark's snapshot whether it still holds.

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
/// Rows that come and go with temporary tables count too; the only harm is a second dump.
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
                 ORDER BY ctid)) AS rows FROM pg_catalog.{name}"
            )
        })
        .collect();
    let query = format!(
        "SELECT md5(string_agg(name || coalesce(rows, ''), ' ' ORDER BY name)) FROM ({}) c",
        parts.join(" UNION ALL ")
    );
    Ok(client.query_one(&query, &[])?.get(0))
}
