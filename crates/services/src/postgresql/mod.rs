//! PostgreSQL, logical: one snapshot over all tables, copied out while the application goes on.
//!
//! What it keeps, and what would break without it:
//! - Every table is locked in ACCESS SHARE mode from prepare to the end of the capture, by the very
//!   session that will copy it, and before that session's first snapshot. A TRUNCATE or a
//!   rewriting ALTER that came between mark and copy would otherwise leave an empty table in the
//!   backup, without an error; and a session that locked late would wait forever behind DDL that
//!   waits for us.
//! - The schema is dumped in prepare, for the same reason, and proven at the mark's snapshot to be
//!   unchanged; only when it did change is it dumped again.
//! - Sequences are no part of a snapshot: their values are read in the mark.
//! - Timeouts that would end our sessions are off; transaction poolers are refused.
//!
//! A restore loads into a database of its own, compares every row, and then swaps by renaming.

mod capture;
mod catalog;
mod connection;
mod examine;
mod large_objects;
mod list;
mod names;
mod prepared;
mod restore;
mod rows;
mod schema;
mod tools;

use std::path::PathBuf;

pub use tools::default_tool_dirs;

use crate::{Driver, Finding, Prepared, Restore, ServiceError};
use connection::Login;

/// How to reach one PostgreSQL server, and what of it.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user@host:port/database`, or `?host=/socket/directory` for a Unix socket.
    pub url: String,
    /// The password, unless the url has one.
    pub password: Option<String>,
    /// The databases; empty for the url's own.
    pub databases: Vec<String>,
    /// Where to look for `pg_dump`. The newest that is not older than the server is taken.
    pub tool_dirs: Vec<PathBuf>,
}

impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("databases", &self.databases)
            .finish_non_exhaustive()
    }
}

/// The driver.
#[derive(Clone)]
pub struct Postgres {
    login: Login,
    databases: Vec<String>,
    tool_dirs: Vec<PathBuf>,
}

impl Postgres {
    /// Checks the options alone; nothing is connected to.
    pub fn new(options: PostgresOptions) -> Result<Self, ServiceError> {
        let login = Login::new(&options.url, options.password.as_deref())?;
        let mut databases = options.databases;
        if databases.is_empty() {
            databases.push(login.database().to_owned());
        }
        databases.sort();
        databases.dedup();
        Ok(Self { login, databases, tool_dirs: options.tool_dirs })
    }
}

impl Driver for Postgres {
    fn kind(&self) -> &'static str {
        "postgresql"
    }

    fn prepare(&self) -> Result<Box<dyn Prepared>, ServiceError> {
        Ok(Box::new(prepared::prepare(self)?))
    }

    fn examine(&self) -> Vec<Finding> {
        examine::examine(self)
    }

    fn restore(&self) -> Box<dyn Restore> {
        Box::new(restore::PostgresRestore::new(self.login.clone(), self.databases.clone()))
    }
}
