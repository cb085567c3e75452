//! SQLite: one file, marked by a read transaction, restored into the live file.
//!
//! What it keeps, and what would break without it:
//! - In WAL mode the mark is a read transaction; writers go on. In rollback-journal mode a read
//!   transaction locks writers out, so the file is copied inside the mark (by reflink where the
//!   file system can) and let go at once.
//! - Everything is read and written through SQLite itself. A file renamed over a live database
//!   gives "malformed", or an old `-wal` beside it brings the old data back.
//! - In rollback-journal mode the copy needs a handle of its own; closing it would drop every lock
//!   that this process has on the file (that is what POSIX says), so it is closed last.
//!
//! The process that runs this driver must not be one that has the database open otherwise.

mod connection;
mod files;
mod locks;
mod prepared;
mod restore;
mod spool;
mod swap;

use std::path::PathBuf;

use crate::{Driver, Prepared, Restore, ServiceError};

/// The captured database.
const DATABASE: &str = "database.sqlite";
/// What was captured, for a restore to compare with.
const FACTS: &str = "facts.json";

/// Which database.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Its file.
    pub path: PathBuf,
}

/// The driver.
#[derive(Debug, Clone)]
pub struct Sqlite {
    path: PathBuf,
}

impl Sqlite {
    /// Checks the options alone; the file is not touched.
    pub fn new(options: SqliteOptions) -> Result<Self, ServiceError> {
        let SqliteOptions { path } = options;
        if path.file_name().is_none() {
            return Err(ServiceError::new(format!(
                "`{}` is not the path of an SQLite database",
                path.display()
            )));
        }
        // A relative path would mean another file once the working directory changes.
        let absolute = std::path::absolute(&path)
            .map_err(|e| ServiceError::new(format!("find {}", path.display())).because(e))?;
        Ok(Self { path: absolute })
    }
}

impl Driver for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn prepare(&self) -> Result<Box<dyn Prepared>, ServiceError> {
        Ok(Box::new(prepared::PreparedSqlite::open(&self.path)?))
    }

    fn restore(&self) -> Box<dyn Restore> {
        Box::new(restore::SqliteRestore::new(self.path.clone()))
    }
}
