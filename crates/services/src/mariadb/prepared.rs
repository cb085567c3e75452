//! Prepare and mark.
//!
//! A dump per database is parked at its gate in prepare. The mark first looks whether the
//! definitions are still those of prepare, outside of the lock (a change after that look is found
//! after the capture); then it locks commits out, has every dump and a reader of ours given its
//! snapshot, and ends the lock. It can be repeated: the same sessions get another snapshot.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use mysql::Conn;
use mysql::prelude::Queryable;
use stillpoint_model::manifest::Marker;
use tempfile::TempDir;

use super::connection::run;
use super::dump::Dump;
use super::lock::Lock;
use super::login::Login;
use super::print::Print;
use super::tools::{Dumper, Version};
use super::{Mariadb, catalog, rights};
use crate::{Captured, Prepared, ServiceError, Sink};

/// A prepared server: one parked dump for each database.
pub(super) struct PreparedMariadb {
    // Dumps end before their directory goes.
    pub(super) dumps: Vec<Dump>,
    pub(super) control: Conn,
    /// Shares the dumps' instant, and counts rows in it.
    pub(super) reader: Conn,
    login: Login,
    pub(super) databases: Vec<String>,
    dumper: Dumper,
    pub(super) server: Version,
    lock: Lock,
    /// Of each database, as it was just before the mark.
    pub(super) prints: Vec<Print>,
    pub(super) marked: bool,
    dir: TempDir,
}

impl PreparedMariadb {
    pub(super) fn new(driver: &Mariadb) -> Result<Self, ServiceError> {
        let mut control = driver.login.connect()?;
        let server = Version::of_server(&mut control)?;
        let dumper = driver.dumper(&server)?;
        rights::refuse_backup(&mut control, &driver.databases, &server)?;
        for database in &driver.databases {
            if catalog::defaults(&mut control, database)?.is_none() {
                return Err(ServiceError::new(format!("back up the database {database}"))
                    .because("the server has none of this name"));
            }
        }
        let reader = driver.login.connect()?;
        let stages = server.mariadb && server.release >= (10, 4) && !driver.table_lock;
        let lock = if stages { Lock::Stages } else { Lock::Tables };
        lock.warm_up(&mut control)?;
        let dir = tempfile::Builder::new()
            .prefix("stillpoint-mariadb-")
            .tempdir()
            .map_err(|e| ServiceError::new("make a private directory").because(e))?;
        let mut prepared = Self {
            dumps: Vec::new(),
            control,
            reader,
            login: driver.login.clone(),
            databases: driver.databases.clone(),
            dumper,
            server,
            lock,
            prints: Vec::new(),
            marked: false,
            dir,
        };
        prepared.prints = prepared.look()?;
        prepared.park()?;
        Ok(prepared)
    }

    /// The definitions of every database, as they are now.
    pub(super) fn look(&mut self) -> Result<Vec<Print>, ServiceError> {
        let mariadb = self.server.mariadb;
        let control = &mut self.control;
        self.databases.iter().map(|name| Print::read(control, name, mariadb)).collect()
    }

    /// Whether the dump of a database carries the history of its system-versioned tables.
    pub(super) fn carries_history(&self, print: &Print) -> bool {
        let known = self.server.knows_history() && self.dumper.version.knows_history();
        known && print.versioned && !print.by_transaction
    }

    /// Starts a dump of each database, all at once, and waits for them at their gates.
    fn park(&mut self) -> Result<(), ServiceError> {
        self.dumps.clear();
        for (number, (database, print)) in self.databases.iter().zip(&self.prints).enumerate() {
            let dir = self.dir.path().join(number.to_string());
            let history = self.carries_history(print);
            self.dumps.push(Dump::start(
                &self.dumper,
                &self.login,
                database,
                &print.views,
                history,
                &dir,
            )?);
        }
        self.dumps.iter_mut().try_for_each(Dump::wait_parked)
    }

    /// Takes the definitions of this moment as those of the mark. The parked dumps know of them
    /// only which are views, and whether there is history: they are parked anew if that changed.
    fn refresh(&mut self) -> Result<(), ServiceError> {
        let mut same = true;
        for (name, print) in self.databases.iter().zip(&self.prints) {
            let glance = Print::glance(&mut self.control, name, self.server.mariadb)?;
            same = same && glance.looks_like(print);
        }
        if same {
            return Ok(());
        }
        let now = self.look()?;
        let before = std::mem::replace(&mut self.prints, now);
        let fits = |(now, before): (&Print, &Print)| {
            now.views == before.views && self.carries_history(now) == self.carries_history(before)
        };
        if self.prints.iter().zip(&before).all(fits) { Ok(()) } else { self.park() }
    }

    fn snapshots(&mut self) -> Result<(), ServiceError> {
        self.dumps.iter().for_each(Dump::ask);
        let read = run(&mut self.reader, "START TRANSACTION WITH CONSISTENT SNAPSHOT");
        // Each is waited for, also after a failure: none may take its snapshot later, unseen.
        let granted: Vec<_> = self.dumps.iter().map(Dump::wait_granted).collect();
        read.and(granted.into_iter().collect())
    }
}

impl Prepared for PreparedMariadb {
    fn facts(&self) -> BTreeMap<String, String> {
        let lock = match self.lock {
            Lock::Stages => "BACKUP STAGE BLOCK_COMMIT",
            Lock::Tables => "FLUSH TABLES WITH READ LOCK",
        };
        BTreeMap::from([
            ("server".to_owned(), self.server.text.clone()),
            ("dump".to_owned(), self.dumper.version.text.clone()),
            ("lock".to_owned(), lock.to_owned()),
        ])
    }

    fn doubts(&self) -> Vec<String> {
        let named = |(database, print): (&String, &Print)| {
            let said = print.others.iter().map(|(table, engine)| {
                format!(
                    "table {database}.{table} has the engine {engine}, which knows no snapshots"
                )
            });
            said.collect::<Vec<_>>()
        };
        self.databases.iter().zip(&self.prints).flat_map(named).collect()
    }

    fn mark_blocks_writers(&self) -> bool {
        true
    }

    /// Rows written by anybody at this server, in any database, also those of transactions that
    /// have not ended. The server's own temporary tables are counted elsewhere; those of
    /// `CREATE TEMPORARY TABLE` are counted here.
    fn counter(&mut self) -> Result<String, ServiceError> {
        let doing = || ServiceError::new("read the server's counters of writes");
        let counters: Vec<(String, String)> = self
            .control
            .query(
                "SHOW GLOBAL STATUS WHERE variable_name IN \
                 ('Handler_write', 'Handler_update', 'Handler_delete', 'Com_truncate')",
            )
            .map_err(|e| doing().because(e))?;
        let values: Vec<String> = counters.into_iter().map(|(_, value)| value).collect();
        Ok(values.join("."))
    }

    fn mark(&mut self) -> Result<Marker, ServiceError> {
        self.marked = false;
        self.refresh()?;
        self.lock.take(&mut self.control)?;
        let begin = Instant::now();
        let taken = self.snapshots();
        let at = Timestamp::now();
        let position: Option<String> = if self.server.mariadb {
            self.control.query_first("SELECT @@gtid_binlog_pos").ok().flatten()
        } else {
            None
        };
        self.lock.end(&mut self.control)?;
        let locked = begin.elapsed().as_micros();
        taken?;
        self.marked = true;
        let mut values = BTreeMap::from([("locked_us".to_owned(), locked.to_string())]);
        values.extend(position.filter(|text| !text.is_empty()).map(|v| ("gtid".to_owned(), v)));
        Ok(Marker { at, values })
    }

    fn capture(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        if !std::mem::take(&mut self.marked) {
            return Err(ServiceError::new("capture the server").because("it was not marked"));
        }
        self.capture_marked(sink)
    }
}
