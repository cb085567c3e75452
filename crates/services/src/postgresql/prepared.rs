//! Prepare and mark.
//!
//! Per database there is a control session (plain queries), a holder (exports the snapshot), and
//! copiers. Each copier has locked the tables that it will copy, in a transaction without a
//! snapshot yet, so that it imports the mark's; its locks stand from prepare to the end.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use postgres::Statement;
use postgres::error::SqlState;
use stillpoint_model::manifest::Marker;

use super::Postgres;
use super::connection::{Login, Session};
use super::large_objects;
use super::list::{self, Found, SequenceValue};
use super::names::ident;
use super::schema::{self, Schema};
use super::tools::Tools;
use crate::{Captured, Prepared, ServiceError, Sink};

/// Sessions that copy tables at the same time.
const COPIERS: usize = 3;
/// How long one lock is waited for in prepare.
const LOCK_WAIT: &str = "5s";
/// The same in the mark, for what came after prepare: requests may be waiting.
const LOCK_WAIT_IN_HOLD: &str = "2s";
/// How often a list of tables may change under our hands before prepare gives up.
const LOCK_ROUNDS: u32 = 8;
/// How often marks of several databases are taken anew until they are one instant.
const MARK_ROUNDS: u32 = 20;
/// How often two sessions are compared to find a pooler out.
const POOLER_ROUNDS: u32 = 10;
/// Tables named in one statement.
const LOCK_BATCH: usize = 500;

/// A prepared server.
pub(super) struct PreparedPostgres {
    pub(super) login: Login,
    pub(super) tools: Tools,
    pub(super) version: u32,
    pub(super) version_text: String,
    pub(super) databases: Vec<PreparedDatabase>,
}

pub(super) struct PreparedDatabase {
    pub(super) name: String,
    pub(super) control: Session,
    pub(super) holder: Session,
    pub(super) copiers: Vec<Copier>,
    pub(super) tables: BTreeMap<u32, Found>,
    pub(super) schema: Schema,
    /// Which tables and sequences there were when all tables were locked and all sequences known.
    inventory: String,
    /// Prepared in the holder's session.
    sequence_values: Vec<Statement>,
    pub(super) mark: Option<DatabaseMark>,
}

/// A session and the tables that it has locked and will copy.
pub(super) struct Copier {
    pub(super) session: Session,
    pub(super) tables: BTreeSet<u32>,
}

/// The instant of one database.
pub(super) struct DatabaseMark {
    pub(super) exported: String,
    snapshot: String,
    lsn: String,
    pub(super) sequences: Vec<SequenceValue>,
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

pub(super) fn prepare(driver: &Postgres) -> Result<PreparedPostgres, ServiceError> {
    let login = &driver.login;
    let mut databases = Vec::new();
    let mut found: Option<(Tools, u32, String)> = None;
    for name in &driver.databases {
        let mut control = login.connect(name)?;
        if found.is_none() {
            let row = control
                .client
                .query_one("SELECT current_setting('server_version')", &[])
                .map_err(|e| failed(login, name, e))?;
            let tools = Tools::find(&driver.tool_dirs, control.version)?;
            found = Some((tools, control.version, row.get(0)));
        }
        if let Some((tools, ..)) = &found {
            databases.push(PreparedDatabase::open(login, tools, name, control)?);
        }
    }
    let Some((tools, version, version_text)) = found else {
        return Err(ServiceError::new("no database was named"));
    };
    Ok(PreparedPostgres { login: login.clone(), tools, version, version_text, databases })
}

fn failed(login: &Login, database: &str, source: postgres::Error) -> ServiceError {
    ServiceError::new(format!("prepare {}", login.shown(database))).because(source)
}

impl PreparedDatabase {
    fn open(
        login: &Login,
        tools: &Tools,
        name: &str,
        mut control: Session,
    ) -> Result<Self, ServiceError> {
        let in_context = |e| failed(login, name, e);
        let mut holder = login.connect(name)?;
        refuse_pooler(login, name, &mut control, &mut holder)?;
        refuse_unreadable(login, name, &mut control)?;
        prove_lockable(login, name, &mut control)?;
        let schema = schema::dump_now(tools, login, name, &mut control)?;

        let set = format!("SET lock_timeout = '{LOCK_WAIT_IN_HOLD}'");
        holder.client.batch_execute(&set).map_err(in_context)?;
        if holder.version >= 120_000 {
            let set = "SET plan_cache_mode = force_generic_plan";
            holder.client.batch_execute(set).map_err(in_context)?;
        }
        holder.client.batch_execute(BEGIN).map_err(in_context)?;
        let mut copiers = Vec::new();
        for index in 0..=COPIERS {
            let mut session = login.connect(name)?;
            // A wait for a lock keeps later readers of that table waiting as well. Outside the
            // transaction, so that a rollback does not undo it.
            let wait = if index < COPIERS { LOCK_WAIT } else { LOCK_WAIT_IN_HOLD };
            let set = format!("SET lock_timeout = '{wait}'");
            session.client.batch_execute(&set).map_err(in_context)?;
            session.client.batch_execute(BEGIN).map_err(in_context)?;
            copiers.push(Copier { session, tables: BTreeSet::new() });
        }
        let mut this = Self {
            name: name.to_owned(),
            control,
            holder,
            copiers,
            tables: BTreeMap::new(),
            schema,
            inventory: String::new(),
            sequence_values: Vec::new(),
            mark: None,
        };
        this.refresh(login)?;
        // Proves now what the mark will do, and builds the sequences' query.
        this.take_mark(login)?;
        this.release_snapshot().map_err(in_context)?;
        Ok(this)
    }

    /// Locks all tables, until no new one has come in the meantime.
    fn lock_tables(&mut self, login: &Login) -> Result<(), ServiceError> {
        for _ in 0..LOCK_ROUNDS {
            let listed =
                list::tables(&mut self.control).map_err(|e| failed(login, &self.name, e))?;
            let locked: BTreeSet<u32> =
                self.copiers.iter().flat_map(|copier| copier.tables.iter().copied()).collect();
            let mut new: Vec<(u32, &Found)> = listed
                .iter()
                .map(|(oid, t)| (*oid, t))
                .filter(|t| !locked.contains(&t.0))
                .collect();
            if new.is_empty() {
                self.tables = listed;
                return Ok(());
            }
            // The largest first, each to the copier with the least to do. The last copier is for
            // tables that come later: should it fail to lock one, the others' locks still stand.
            new.sort_by_key(|(oid, table)| (std::cmp::Reverse(table.pages), *oid));
            let last = self.copiers.len() - 1;
            let mut shares: Vec<(i64, Vec<(u32, &Found)>)> = vec![(0, Vec::new()); last + 1];
            for (oid, table) in new {
                let chosen = if locked.is_empty() {
                    (0..last).min_by_key(|index| shares[*index].0).unwrap_or(last)
                } else {
                    last
                };
                shares[chosen].0 += i64::from(table.pages) + 1;
                shares[chosen].1.push((oid, table));
            }
            for (copier, (_, share)) in self.copiers.iter_mut().zip(shares) {
                match copier.lock(&share) {
                    Ok(()) => {}
                    // Dropped since it was listed.
                    Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                        copier.start_over().map_err(|e| failed(login, &self.name, e))?;
                    }
                    Err(e) if e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                        let oids: Vec<u32> = share.iter().map(|(oid, _)| *oid).collect();
                        return Err(blocked(&mut self.control, login, &self.name, &oids, e));
                    }
                    Err(e) => return Err(failed(login, &self.name, e)),
                }
            }
        }
        Err(ServiceError::new(format!("lock the tables of {}", login.shown(&self.name)))
            .because("tables are created and dropped faster than they can be locked"))
    }

    /// Locks all tables and learns all sequences that there are now.
    fn refresh(&mut self, login: &Login) -> Result<(), ServiceError> {
        let shown = login.shown(&self.name);
        let fail = |e| ServiceError::new(format!("list the tables of {shown}")).because(e);
        // Preparing a statement takes a snapshot, which must not become the mark's.
        self.holder.client.batch_execute("ROLLBACK").map_err(fail)?;
        for _ in 0..LOCK_ROUNDS {
            let before = list::inventory(&mut self.control.client).map_err(fail)?;
            self.lock_tables(login)?;
            let names = list::sequences(&mut self.control.client).map_err(fail)?;
            match list::prepare_sequences(&mut self.holder.client, &names) {
                Ok(statements) => self.sequence_values = statements,
                Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => continue,
                Err(e) => return Err(fail(e)),
            }
            if before == list::inventory(&mut self.control.client).map_err(fail)? {
                self.inventory = before;
                return Ok(());
            }
        }
        Err(ServiceError::new(format!("list the tables of {shown}"))
            .because("tables are created and dropped faster than they can be listed"))
    }

    fn take_mark(&mut self, login: &Login) -> Result<(), ServiceError> {
        let shown = login.shown(&self.name);
        let doing = || format!("mark {shown}");
        let fail = |e: postgres::Error| ServiceError::new(doing()).because(e);
        for _ in 0..LOCK_ROUNDS {
            let modern = self.holder.version >= 130_000;
            let client = &mut self.holder.client;
            client.batch_execute(&format!("ROLLBACK; {BEGIN}")).map_err(fail)?;
            let row = client
                .query_one(
                    &format!(
                        "SELECT pg_export_snapshot(), {}::text, \
                         (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                          ELSE pg_current_wal_insert_lsn() END)::text",
                        snapshot_function(modern)
                    ),
                    &[],
                )
                .map_err(fail)?;
            if list::inventory(client).map_err(fail)? != self.inventory {
                // A table or a sequence came or went since. What is locked cannot go.
                self.refresh(login)?;
                continue;
            }
            // After the snapshot: no row of it can have a number that the sequence has not given.
            let sequences = match list::read_sequences(client, &self.sequence_values) {
                Ok(values) => values,
                // Dropped in this very moment: the next round sees that.
                Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => continue,
                Err(e) => return Err(fail(e)),
            };
            self.mark = Some(DatabaseMark {
                exported: row.get(0),
                snapshot: row.get(1),
                lsn: row.get::<_, Option<String>>(2).unwrap_or_default(),
                sequences,
            });
            return Ok(());
        }
        Err(ServiceError::new(doing()).because("its tables change faster than they can be marked"))
    }

    /// Between prepare and mark no snapshot is kept: it would hold back VACUUM.
    fn release_snapshot(&mut self) -> Result<(), postgres::Error> {
        self.mark = None;
        self.holder.client.batch_execute("ROLLBACK")
    }
}

impl Copier {
    fn lock(&mut self, tables: &[(u32, &Found)]) -> Result<(), postgres::Error> {
        for batch in tables.chunks(LOCK_BATCH) {
            let names: Vec<String> =
                batch.iter().map(|(_, table)| format!("ONLY {}", table.qualified())).collect();
            self.session
                .client
                .batch_execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")))?;
            self.tables.extend(batch.iter().map(|(oid, _)| *oid));
        }
        Ok(())
    }

    /// After an error the transaction and its locks are gone.
    fn start_over(&mut self) -> Result<(), postgres::Error> {
        self.tables.clear();
        self.session.client.batch_execute(&format!("ROLLBACK; {BEGIN}"))
    }
}

fn snapshot_function(modern: bool) -> &'static str {
    if modern { "pg_current_snapshot()" } else { "txid_current_snapshot()" }
}

/// A transaction pooler lends a server's session for one transaction only. So while nothing holds
/// it, the server's session of the one is lent to the other, or another one comes in its place.
fn refuse_pooler(
    login: &Login,
    database: &str,
    one: &mut Session,
    other: &mut Session,
) -> Result<(), ServiceError> {
    let mut rounds = || -> Result<bool, postgres::Error> {
        let pids = (one.pid()?, other.pid()?);
        for _ in 0..POOLER_ROUNDS {
            let first = one.pid()?;
            other.client.batch_execute("BEGIN")?;
            let second = other.pid()?;
            other.client.batch_execute("ROLLBACK")?;
            if first == second || (first, second) != pids {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if !rounds().map_err(|e| failed(login, database, e))? {
        return Ok(());
    }
    Err(ServiceError::new(format!(
        "{} is a transaction pooler, not a server",
        login.shown(database)
    ))
    .hint(
        "give the server's own address: locks and snapshots need sessions that last (PgBouncer \
         with pool_mode=session would do)",
    ))
}

fn refuse_unreadable(
    login: &Login,
    database: &str,
    control: &mut Session,
) -> Result<(), ServiceError> {
    let tables = list::tables(control).map_err(|e| failed(login, database, e))?;
    let refused: Vec<String> =
        tables.values().filter(|t| !t.readable).map(Found::qualified).collect();
    let user = login.user();
    if !refused.is_empty() {
        return Err(ServiceError::new(format!(
            "`{user}` may not read these tables of {}: {}",
            login.shown(database),
            refused.join(", ")
        ))
        .hint(format!(
            "GRANT USAGE ON SCHEMA ... TO \"{user}\"; GRANT SELECT ON {} TO \"{user}\"",
            refused.join(", ")
        )));
    }
    let sequences =
        list::unreadable_sequences(&mut control.client).map_err(|e| failed(login, database, e))?;
    if !sequences.is_empty() {
        return Err(ServiceError::new(format!(
            "`{user}` may not read these sequences of {}: {}",
            login.shown(database),
            sequences.join(", ")
        ))
        .hint(format!("GRANT SELECT ON SEQUENCE {} TO \"{user}\"", sequences.join(", "))));
    }
    let filtered: Vec<String> =
        tables.values().filter(|t| t.filtered).map(Found::qualified).collect();
    if !filtered.is_empty() {
        return Err(ServiceError::new(format!(
            "row security hides rows of these tables of {} from `{user}`: {}",
            login.shown(database),
            filtered.join(", ")
        ))
        .hint(format!("ALTER ROLE \"{user}\" BYPASSRLS, or use the tables' owner")));
    }
    let objects = large_objects::unreadable(&mut control.client, &ident(user))
        .map_err(|e| failed(login, database, e))?;
    if !objects.is_empty() {
        let (which, statements): (Vec<String>, Vec<String>) = objects.into_iter().unzip();
        return Err(ServiceError::new(format!(
            "`{user}` may not read these of {}: {}",
            login.shown(database),
            which.join(", ")
        ))
        .hint(statements.join("; ")));
    }
    Ok(())
}

/// Locks every table for a moment, so that whoever keeps one locked is named. `pg_dump`, which
/// comes next, would only say that it waited.
fn prove_lockable(
    login: &Login,
    database: &str,
    control: &mut Session,
) -> Result<(), ServiceError> {
    for _ in 0..LOCK_ROUNDS {
        let tables = list::tables(control).map_err(|e| failed(login, database, e))?;
        let oids: Vec<u32> = tables.keys().copied().collect();
        let names: Vec<String> =
            tables.values().map(|table| format!("ONLY {}", table.qualified())).collect();
        let mut lock = || -> Result<(), postgres::Error> {
            let client = &mut control.client;
            client.batch_execute(&format!(
                "BEGIN READ ONLY; SET LOCAL lock_timeout = '{LOCK_WAIT}'"
            ))?;
            for batch in names.chunks(LOCK_BATCH) {
                let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", batch.join(", "));
                client.batch_execute(&lock)?;
            }
            Ok(())
        };
        let locked = lock();
        control.client.batch_execute("ROLLBACK").map_err(|e| failed(login, database, e))?;
        match locked {
            Ok(()) => return Ok(()),
            // Dropped since it was listed.
            Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => {}
            Err(e) if e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                return Err(blocked(control, login, database, &oids, e));
            }
            Err(e) => return Err(failed(login, database, e)),
        }
    }
    Err(ServiceError::new(format!("lock the tables of {}", login.shown(database)))
        .because("tables are dropped faster than they can be locked"))
}

/// A table could not be locked in time: who has it?
fn blocked(
    control: &mut Session,
    login: &Login,
    database: &str,
    oids: &[u32],
    source: postgres::Error,
) -> ServiceError {
    let holders = control.client.query(
        "SELECT l.pid, l.relation::regclass::text, left(coalesce(a.query, ''), 80) \
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND l.relation = ANY ($1) ORDER BY l.granted DESC, l.pid",
        &[&oids],
    );
    let names: Vec<String> = holders
        .unwrap_or_default()
        .iter()
        .map(|row| {
            let (pid, table): (Option<i32>, String) = (row.get(0), row.get(1));
            let who = pid.map_or("a prepared transaction".to_owned(), |p| format!("process {p}"));
            format!("{who} locks {table}: {}", row.get::<_, String>(2))
        })
        .collect();
    let hint = if names.is_empty() { "try again".to_owned() } else { names.join("; ") };
    ServiceError::new(format!("lock the tables of {}", login.shown(database)))
        .because(source)
        .hint(hint)
}

impl Prepared for PreparedPostgres {
    fn facts(&self) -> BTreeMap<String, String> {
        let databases: Vec<&str> = self.databases.iter().map(|d| d.name.as_str()).collect();
        BTreeMap::from([
            ("server".to_owned(), format!("PostgreSQL {}", self.version_text)),
            ("pg_dump".to_owned(), self.tools.version.clone()),
            ("databases".to_owned(), databases.join(", ")),
            ("role_passwords".to_owned(), "not captured".to_owned()),
        ])
    }

    fn gaps(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn counter(&mut self) -> Result<String, ServiceError> {
        let modern = self.version >= 130_000;
        let database = &mut self.databases[0];
        let query = format!("SELECT {}::text", snapshot_function(modern));
        match database.control.client.query_one(&query, &[]) {
            Ok(row) => Ok(row.get(0)),
            Err(e) => Err(ServiceError::new(format!(
                "read the snapshot of {}",
                self.login.shown(&database.name)
            ))
            .because(e)),
        }
    }

    fn mark(&mut self) -> Result<Marker, ServiceError> {
        for _ in 0..MARK_ROUNDS {
            for database in &mut self.databases {
                database.take_mark(&self.login)?;
            }
            let marks: Vec<&DatabaseMark> =
                self.databases.iter().filter_map(|d| d.mark.as_ref()).collect();
            // Snapshots are the whole server's: equal ones of two databases are one instant.
            if marks.windows(2).all(|pair| pair[0].snapshot == pair[1].snapshot) {
                let first = marks[0];
                return Ok(Marker {
                    at: Timestamp::now(),
                    values: BTreeMap::from([
                        ("snapshot".to_owned(), first.snapshot.clone()),
                        ("lsn".to_owned(), first.lsn.clone()),
                        ("exported".to_owned(), first.exported.clone()),
                    ]),
                });
            }
        }
        Err(ServiceError::new("mark all databases at one instant")
            .because("the server is written to faster than they can be marked")
            .hint("back the databases up as services of their own, or not live"))
    }

    fn capture(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        self.stream(sink)
    }
}
