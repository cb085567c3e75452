//! Prepare, mark and capture.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;

use jiff::Timestamp;
use mysql::Conn;
use mysql::prelude::Queryable;
use stillpoint_model::manifest::Marker;
use tempfile::TempDir;

use super::catalog::{self, CATALOG, Catalog, Database};
use super::connection::{Login, run};
use super::dump::Dump;
use super::{Mariadb, rights};
use crate::{Captured, Prepared, ServiceError, Sink};

/// A prepared server: one parked dump for each database.
pub(super) struct PreparedMariadb {
    // Dumps end before their directory goes.
    dumps: Vec<Dump>,
    control: Conn,
    /// Shares the dumps' instant, and counts rows in it.
    reader: Conn,
    login: Login,
    databases: Vec<String>,
    program: PathBuf,
    version: String,
    mariadb: bool,
    table_lock: bool,
    /// Of each database, as it was before the mark.
    prints: Vec<BTreeMap<String, String>>,
    doubts: Vec<String>,
    marked: bool,
    dir: TempDir,
}

impl PreparedMariadb {
    pub(super) fn new(driver: &Mariadb) -> Result<Self, ServiceError> {
        let program = driver.tool(["mariadb-dump", "mysqldump"])?;
        let mut control = driver.login.connect()?;
        let reader = driver.login.connect()?;
        let version: Option<String> = control
            .query_first("SELECT VERSION()")
            .map_err(|e| ServiceError::new("read the server's version").because(e))?;
        let version = version.unwrap_or_default();
        let mariadb = version.contains("MariaDB");
        rights::refuse_backup(&mut control, &driver.databases)?;
        let mut doubts = Vec::new();
        for database in &driver.databases {
            for (table, engine) in catalog::tables(&mut control, database)? {
                if !engine.eq_ignore_ascii_case("InnoDB") {
                    doubts.push(format!(
                        "table {database}.{table} has the engine {engine}, which knows no snapshots"
                    ));
                }
            }
        }
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
            program,
            table_lock: driver.table_lock || !mariadb || before_10_4(&version),
            version,
            mariadb,
            prints: Vec::new(),
            doubts,
            marked: false,
            dir,
        };
        prepared.park()?;
        Ok(prepared)
    }

    fn park(&mut self) -> Result<(), ServiceError> {
        self.dumps.clear();
        self.prints.clear();
        for (number, database) in self.databases.iter().enumerate() {
            self.prints.push(catalog::fingerprint(&mut self.control, database, self.mariadb)?);
            let views: Vec<String> = catalog::objects(&mut self.control, database)?
                .into_iter()
                .filter(|object| object.kind == "VIEW")
                .map(|object| object.name)
                .collect();
            let dir = self.dir.path().join(number.to_string());
            let dump = Dump::start(&self.program, &self.login, database, &views, &dir)?;
            self.dumps.push(dump);
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<(), ServiceError> {
        let statements: &[&str] = if self.table_lock {
            &["SET SESSION lock_wait_timeout = 1", "FLUSH TABLES WITH READ LOCK"]
        } else {
            &[
                "SET SESSION lock_wait_timeout = 5",
                "BACKUP STAGE START",
                "BACKUP STAGE FLUSH",
                "BACKUP STAGE BLOCK_DDL",
                "BACKUP STAGE BLOCK_COMMIT",
            ]
        };
        for statement in statements {
            if let Err(error) = run(&mut self.control, statement) {
                let busy = self.busy();
                let _ = self.unlock();
                return Err(match busy {
                    Some(busy) => error.hint(format!("it was held up by: {busy}")),
                    None => error,
                });
            }
        }
        Ok(())
    }

    /// The statement that has run longest.
    fn busy(&mut self) -> Option<String> {
        self.control
            .query_first(
                "SELECT CONCAT(user, ' for ', time, ' s: ', info) FROM \
                 information_schema.processlist WHERE info IS NOT NULL AND id <> \
                 CONNECTION_ID() AND command <> 'Daemon' ORDER BY time DESC LIMIT 1",
            )
            .ok()
            .flatten()
    }

    fn unlock(&mut self) -> Result<(), ServiceError> {
        let statement = if self.table_lock { "UNLOCK TABLES" } else { "BACKUP STAGE END" };
        run(&mut self.control, statement)
    }

    fn pass(&mut self) -> Result<(), ServiceError> {
        for dump in &self.dumps {
            dump.open();
        }
        run(&mut self.reader, "START TRANSACTION WITH CONSISTENT SNAPSHOT")?;
        self.dumps.iter().try_for_each(Dump::wait_passed)
    }

    fn refuse_changed(&mut self) -> Result<(), ServiceError> {
        for (database, before) in self.databases.iter().zip(&self.prints) {
            let after = catalog::fingerprint(&mut self.control, database, self.mariadb)?;
            let differs = |(name, value): &(&String, &String)| before.get(*name) != Some(*value);
            let changed = after.iter().find(differs).map(|(name, _)| name.clone());
            let gone = || before.keys().find(|name| !after.contains_key(*name)).cloned();
            if let Some(name) = changed.or_else(gone) {
                return Err(ServiceError::new(format!("capture the database {database}"))
                    .because(format!("{name} was changed while the backup ran"))
                    .hint("back up again when no tables are being changed"));
            }
        }
        Ok(())
    }
}

fn before_10_4(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < (10, 4)
}

impl Prepared for PreparedMariadb {
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("server".to_owned(), self.version.clone())])
    }

    fn doubts(&self) -> Vec<String> {
        self.doubts.clone()
    }

    fn mark_blocks_writers(&self) -> bool {
        true
    }

    fn counter(&mut self) -> Result<String, ServiceError> {
        let doing = || ServiceError::new("read the server's counters of writes");
        let counters: Vec<(String, String)> = self
            .control
            .query(
                "SHOW GLOBAL STATUS WHERE variable_name IN ('Handler_write', 'Handler_update', \
                 'Handler_delete', 'Innodb_rows_inserted', 'Innodb_rows_updated', \
                 'Innodb_rows_deleted')",
            )
            .map_err(|e| doing().because(e))?;
        let values: Vec<String> = counters.into_iter().map(|(_, value)| value).collect();
        Ok(values.join("."))
    }

    fn mark(&mut self) -> Result<Marker, ServiceError> {
        if self.marked {
            self.marked = false;
            run(&mut self.reader, "ROLLBACK")?;
            self.park()?;
        }
        self.lock()?;
        let passed = self.pass();
        let at = Timestamp::now();
        let position: Option<String> = if self.mariadb {
            self.control.query_first("SELECT @@gtid_binlog_pos").ok().flatten()
        } else {
            None
        };
        self.unlock()?;
        passed?;
        self.marked = true;
        let values = position.filter(|text| !text.is_empty());
        Ok(Marker { at, values: values.map(|v| ("gtid".to_owned(), v)).into_iter().collect() })
    }

    fn capture(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        if !std::mem::take(&mut self.marked) {
            return Err(ServiceError::new("capture the server").because("it was not marked"));
        }
        let mut captured = Captured::default();
        let dumps: Vec<_> = self.dumps.drain(..).zip(&self.databases).collect();
        let streamed: Vec<Result<u64, ServiceError>> = std::thread::scope(|scope| {
            let running: Vec<_> = dumps
                .into_iter()
                .map(|(dump, database)| {
                    scope.spawn(move || dump.stream(&format!("{database}.sql"), sink))
                })
                .collect();
            running
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|_| Err(ServiceError::new("stream a dump")))
                })
                .collect()
        });
        for bytes in streamed {
            captured.bytes += bytes?;
        }
        let mut databases = Vec::new();
        for database in &self.databases {
            let mut tables = BTreeMap::new();
            for (table, engine) in catalog::tables(&mut self.reader, database)? {
                let counted = catalog::count(&mut self.reader, database, &table, &engine)?;
                tables.insert(table, counted);
            }
            captured.items += tables.len() as u64;
            let defaults: Option<(String, String)> = self
                .control
                .exec_first(
                    "SELECT default_character_set_name, default_collation_name FROM \
                     information_schema.schemata WHERE schema_name = ?",
                    (database,),
                )
                .map_err(|e| ServiceError::new(format!("look at {database}")).because(e))?;
            let (character_set, collation) = defaults.unwrap_or_default();
            let objects = catalog::objects(&mut self.control, database)?;
            let name = database.clone();
            databases.push(Database { name, character_set, collation, tables, objects });
        }
        self.refuse_changed()?;
        let text = serde_json::to_string_pretty(&Catalog::new(self.version.clone(), databases))
            .map_err(|e| ServiceError::new(format!("write {CATALOG}")).because(e))?;
        captured.bytes += sink
            .write(CATALOG, &mut Cursor::new(text.as_bytes()))
            .map_err(|e| ServiceError::new(format!("store {CATALOG}")).because(e))?;
        Ok(captured)
    }
}
