//! MariaDB and MySQL: stock dumps that all see one instant.
//!
//! What it keeps, and what would break without it:
//! - A dump per database waits at a gate of ours before the statement that takes its snapshot; the
//!   mark locks commits out, lets all take theirs, and unlocks. Without it each would see its own
//!   instant.
//! - What changes a table's definition after the mark loses rows silently (a swap by RENAME, DROP
//!   PARTITION, TRUNCATE): definitions are compared just before the mark and after the capture,
//!   and a difference fails the capture.
//! - Views, triggers, routines and events are captured as statements of their own, because tables
//!   with triggers, and views, cannot be renamed into another database.
//! - What a dump cannot carry is a gap, and an engine without snapshots a doubt, by name.
//!
//! A restore loads into a database of its own, compares definitions, rows and checksums, and swaps
//! by one `RENAME TABLE`.

mod capture;
mod catalog;
mod connection;
mod count;
mod dump;
mod gate;
mod grants;
mod lock;
mod login;
mod objects;
mod prepared;
mod print;
mod restore;
mod rights;
mod scan;
mod tools;

use std::path::PathBuf;

use login::Login;

use crate::{Driver, Finding, Prepared, Restore, ServiceError};

/// How to reach one server, and what of it.
#[derive(Clone)]
pub struct MariadbOptions {
    /// As configured: `mariadb` or `mysql`.
    pub kind: &'static str,
    /// `mysql://USER@HOST[:PORT][/DATABASE][?socket=/PATH]`.
    pub url: String,
    /// The password.
    pub password: Option<String>,
    /// The databases; empty for the url's own.
    pub databases: Vec<String>,
    /// Where to look for `mariadb-dump` and `mariadb` (or `mysqldump` and `mysql`).
    pub tool_dirs: Vec<PathBuf>,
}

impl std::fmt::Debug for MariadbOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MariadbOptions").field("databases", &self.databases).finish_non_exhaustive()
    }
}

/// The driver.
#[derive(Clone)]
pub struct Mariadb {
    kind: &'static str,
    login: Login,
    databases: Vec<String>,
    tool_dirs: Vec<PathBuf>,
    table_lock: bool,
}

impl Mariadb {
    /// Checks the options alone; nothing is connected to.
    pub fn new(options: MariadbOptions) -> Result<Self, ServiceError> {
        let login = Login::new(&options.url, options.password)?;
        let mut databases = options.databases;
        if databases.is_empty() {
            databases.extend(login.database.clone());
        }
        databases.sort();
        databases.dedup();
        if databases.is_empty() {
            return Err(ServiceError::new("choose what to back up of the MariaDB service")
                .because("neither its url nor `databases` names a database")
                .hint("write \"mysql://USER@HOST:PORT/DATABASE\""));
        }
        if let Some(bad) = databases.iter().find(|name| name.contains('/') || name.contains('.')) {
            return Err(ServiceError::new(format!("back up the database {bad}"))
                .because("names with `/` or `.` are not supported"));
        }
        Ok(Self {
            kind: options.kind,
            login,
            databases,
            tool_dirs: options.tool_dirs,
            table_lock: false,
        })
    }

    /// Marks by `FLUSH TABLES WITH READ LOCK` even where `BACKUP STAGE` is there.
    #[must_use]
    pub fn with_table_lock(mut self) -> Self {
        self.table_lock = true;
        self
    }
}

impl Driver for Mariadb {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn prepare(&self) -> Result<Box<dyn Prepared>, ServiceError> {
        Ok(Box::new(prepared::PreparedMariadb::new(self)?))
    }

    fn restore(&self) -> Box<dyn Restore> {
        Box::new(restore::MariadbRestore::new(self.clone()))
    }

    fn examine(&self) -> Vec<Finding> {
        rights::examine(self)
    }
}
