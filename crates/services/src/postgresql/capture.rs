//! Capture: tables by COPY on the sessions that locked them, then the schema and the catalog.

use std::io::{self, Cursor, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postgres::NoTls;

use super::catalog::{self, Catalog, Database, Table};
use super::connection::Login;
use super::list::{self, Found};
use super::names::{for_path, ident, literal};
use super::prepared::{Copier, PreparedDatabase, PreparedPostgres};
use super::rows::Summed;
use super::schema;
use super::tools::Tools;
use crate::{Captured, ServiceError, Sink};

/// Names longer than this, once encoded, do not become file names: 255 is the limit of most.
const FILE_NAME: usize = 200;

impl PreparedPostgres {
    pub(super) fn stream(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        let mut captured = Captured::default();
        let mut databases = Vec::new();
        for database in &mut self.databases {
            let done = database.stream(&self.login, &self.tools, sink, &mut captured)?;
            databases.push(done);
        }
        self.stream_globals(sink, &mut captured)?;
        let catalog = Catalog::new(self.version, databases);
        let text = serde_json::to_string_pretty(&catalog)
            .map_err(|e| ServiceError::new("write the catalog").because(e))?;
        write(sink, catalog::PATH, &text, &mut captured)?;
        Ok(captured)
    }

    /// Roles and tablespaces, as far as this role may see them. Never passwords.
    fn stream_globals(&self, sink: &dyn Sink, captured: &mut Captured) -> Result<(), ServiceError> {
        let database = &self.databases[0].name;
        let arguments = ["--globals-only", "--no-role-passwords", "--database", database.as_str()];
        // As a conninfo string it could name another server.
        let plain = !database.contains('=') && !database.contains("://");
        let run = || self.tools.run("pg_dumpall", &self.login, database, &arguments);
        let outcome = if plain {
            run()
        } else {
            Err(ServiceError::new("run pg_dumpall").because("the database's name has `=` or `://`"))
        };
        match outcome {
            Ok((text, warnings)) => {
                for warning in warnings {
                    captured.gaps.push(("roles and tablespaces".to_owned(), warning));
                }
                write(sink, "globals.sql", &text, captured)
            }
            Err(error) => {
                let why = std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
                captured.gaps.push(("roles and tablespaces".to_owned(), why));
                Ok(())
            }
        }
    }
}

impl PreparedDatabase {
    fn stream(
        &mut self,
        login: &Login,
        tools: &Tools,
        sink: &dyn Sink,
        captured: &mut Captured,
    ) -> Result<Database, ServiceError> {
        let shown = login.shown(&self.name);
        let fail = |e: postgres::Error| ServiceError::new(format!("capture {shown}")).because(e);
        let mark = self
            .mark
            .take()
            .ok_or_else(|| ServiceError::new(format!("capture {shown}")).because("not marked"))?;
        let directory = for_path(&self.name);

        // The holder's session sees the mark's snapshot: what it reads is of that instant.
        let holder = &mut self.holder.client;
        let fingerprint = schema::fingerprint(holder).map_err(fail)?;
        let anew = fingerprint != self.schema.fingerprint;
        if anew {
            self.schema = schema::dump(tools, login, &self.name, &mark.exported, fingerprint)?;
        }
        let labels = schema::labels(holder).map_err(fail)?;
        for warning in &self.schema.warnings {
            captured.gaps.push((format!("definitions in {}", self.name), warning.clone()));
        }
        let large_objects = list::large_objects(holder).map_err(fail)?;
        if large_objects > 0 {
            captured.gaps.push((
                format!("{large_objects} large objects in {}", self.name),
                "large objects are not captured yet".to_owned(),
            ));
        }
        let strings = |rows: Vec<postgres::Row>| rows.iter().map(|row| row.get(0)).collect();
        let extensions =
            holder.query("SELECT extname::text FROM pg_extension ORDER BY 1", &[]).map_err(fail)?;
        let foreign = holder
            .query("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'f' ORDER BY 1", &[])
            .map_err(fail)?;
        let has_public = !holder
            .query("SELECT FROM pg_namespace WHERE nspname = 'public'", &[])
            .map_err(fail)?
            .is_empty();
        let (owners, mentioned) = list::roles(holder).map_err(fail)?;
        let properties = list::properties(holder, &self.name)
            .map_err(fail)?
            .ok_or_else(|| ServiceError::new(format!("capture {shown}")).because("it is gone"))?;

        let sequences = list::named(holder, &mark.sequences).map_err(fail)?;

        let tables = copy_all(
            &mut self.copiers,
            &self.tables,
            &mark.exported,
            &directory,
            sink,
            &format!("capture {shown}"),
        )?;
        let now = &mut self.control.client;
        let changed = if anew && schema::fingerprint(now).map_err(fail)? != self.schema.fingerprint
        {
            Some("definitions were changed while the backup ran")
        } else {
            let now = schema::labels(now).map_err(fail)?;
            let renamed =
                labels.iter().any(|(oid, label)| now.get(oid).is_some_and(|l| l != label));
            renamed.then_some("a value of an enumeration was renamed while the backup ran")
        };
        if let Some(what) = changed {
            return Err(ServiceError::new(format!("capture {shown}"))
                .because(what)
                .hint("back up again when no definitions are being changed"));
        }
        for table in &tables {
            captured.bytes += table.bytes;
            captured.items += 1;
        }
        write(sink, &format!("{directory}/pre-data.sql"), &self.schema.pre_data, captured)?;
        write(sink, &format!("{directory}/post-data.sql"), &self.schema.post_data, captured)?;
        Ok(Database {
            name: self.name.clone(),
            directory,
            properties,
            owners,
            mentioned,
            extensions: strings(extensions),
            has_public,
            large_objects,
            foreign_tables: strings(foreign),
            tables,
            sequences,
        })
    }
}

fn write(
    sink: &dyn Sink,
    path: &str,
    text: &str,
    captured: &mut Captured,
) -> Result<(), ServiceError> {
    let bytes = sink
        .write(path, &mut Cursor::new(text.as_bytes()))
        .map_err(|e| ServiceError::new(format!("store {path}")).because(e))?;
    captured.bytes += bytes;
    Ok(())
}

/// Every copier copies the tables that it has locked. The first failure ends all.
fn copy_all(
    copiers: &mut [Copier],
    tables: &std::collections::BTreeMap<u32, Found>,
    snapshot: &str,
    directory: &str,
    sink: &dyn Sink,
    doing: &str,
) -> Result<Vec<Table>, ServiceError> {
    let stop = AtomicBool::new(false);
    let done: Mutex<Vec<Table>> = Mutex::default();
    let failure: Mutex<Option<ServiceError>> = Mutex::default();
    thread::scope(|scope| {
        for copier in copiers {
            let (stop, done, failure) = (&stop, &done, &failure);
            scope.spawn(move || {
                let outcome = copy_share(copier, tables, snapshot, directory, sink, stop, done);
                if let Err(error) = outcome {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().expect("no copier panicked").get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().expect("no copier panicked") {
        return Err(ServiceError::new(doing).because(error));
    }
    let mut done = done.into_inner().expect("no copier panicked");
    done.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Ok(done)
}

fn copy_share(
    copier: &mut Copier,
    tables: &std::collections::BTreeMap<u32, Found>,
    snapshot: &str,
    directory: &str,
    sink: &dyn Sink,
    stop: &AtomicBool,
    done: &Mutex<Vec<Table>>,
) -> Result<(), ServiceError> {
    let client = &mut copier.session.client;
    let cancel = client.cancel_token();
    client
        .batch_execute(&format!("SET TRANSACTION SNAPSHOT {}", literal(snapshot)))
        .map_err(|e| ServiceError::new("share the mark's snapshot").because(e))?;
    for oid in &copier.tables {
        let Some(found) = tables.get(oid).filter(|found| found.has_rows) else { continue };
        let fail = |e: Box<dyn std::error::Error + Send + Sync>| {
            ServiceError::new(format!("copy {}", found.qualified())).because(e)
        };
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let rows = client
            .copy_out(&copy_out(&found.qualified(), &found.columns, found.condition.as_deref()))
            .map_err(|e| fail(e.into()))?;
        let mut rows = Summed::new(Stoppable { inner: rows, stop });
        let path = format!("{directory}/data/{}.copy", file_name(*oid, found));
        if let Err(error) = sink.write(&path, &mut rows) {
            // Else the session would first take in all that is left of the table.
            let _ = cancel.cancel_query(NoTls);
            return Err(fail(error.into()));
        }
        if !rows.sum.is_whole() {
            return Err(fail("its last row was cut off".into()));
        }
        done.lock().expect("no copier panicked").push(Table {
            schema: found.schema.clone(),
            name: found.name.clone(),
            path,
            columns: found.columns.clone(),
            condition: found.condition.clone(),
            rows: rows.sum.rows(),
            bytes: rows.sum.bytes(),
            rows_sum: rows.sum.to_string(),
        });
    }
    Ok(())
}

fn file_name(oid: u32, table: &Found) -> String {
    let name = format!("{}.{}", for_path(&table.schema), for_path(&table.name));
    if name.len() > FILE_NAME { format!("table-{oid}") } else { name }
}

/// The statement that copies a table out: here, and again to verify a restored one.
pub(super) fn copy_out(table: &str, columns: &[String], condition: Option<&str>) -> String {
    match condition {
        Some(condition) => {
            let columns: Vec<String> = columns.iter().map(|c| ident(c)).collect();
            format!("COPY (SELECT {} FROM {table} {condition}) TO STDOUT", columns.join(", "))
        }
        None => format!("COPY {table}{} TO STDOUT", column_list(columns)),
    }
}

/// ` (a, b)`; empty for a table without columns, of which COPY wants no list.
pub(super) fn column_list(columns: &[String]) -> String {
    if columns.is_empty() {
        return String::new();
    }
    let columns: Vec<String> = columns.iter().map(|column| ident(column)).collect();
    format!(" ({})", columns.join(", "))
}

/// Ends a copy early once another has failed.
struct Stoppable<'a, R> {
    inner: R,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped, since another table failed"));
        }
        self.inner.read(buffer)
    }
}
