//! The disaster that the demo recovers from: what a bad migration and a wrong `rm` leave behind.
//! The application may be running; nothing is stopped for it.

use super::{Restored, places};
use crate::demo::shop::BoxError;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Drops the table of orders in each database, flushes Redis and deletes everything in the uploads
/// directory. Each is done by the application's own account, but for Redis: what that account may
/// not do, an administrator's slip can. Says what it did, one sentence for each place.
pub(crate) fn destroy(stores: &Restored) -> Result<Vec<String>, BoxError> {
    let mut done = Vec::new();
    if let Some(path) = &stores.sqlite {
        let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let rows: i64 =
            transaction.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
        transaction.execute_batch("DROP TABLE orders")?;
        transaction.commit()?;
        done.push(format!("dropped table orders with {rows} rows in the SQLite database"));
    }
    if let Some(postgres) = &stores.postgres {
        let rows = places::psql(postgres, "SELECT count(*) FROM orders; DROP TABLE orders")?;
        let rows = rows.trim();
        done.push(format!(
            "dropped table orders with {rows} rows, and its sequence, in the PostgreSQL database"
        ));
    }
    if let Some(mariadb) = &stores.mariadb {
        let sql = "SELECT COUNT(*) FROM orders; DROP TABLE payments, orders";
        let rows = places::mariadb_client(mariadb, sql)?;
        let rows = rows.trim();
        done.push(format!(
            "dropped table orders with {rows} rows, and their payments, in the MariaDB database"
        ));
    }
    if let Some(redis) = &stores.redis {
        let keys = places::redis_flush(redis)?;
        done.push(format!("flushed all {keys} keys of the Redis server"));
    }
    let files = empty(&stores.uploads)?;
    done.push(format!("deleted all {files} files in the uploads directory"));
    Ok(done)
}

/// Deletes what is below a directory; returns how many files that were. A file that the running
/// application adds meanwhile is deleted as well if it is seen, and left if not.
fn empty(directory: &Path) -> Result<u64, BoxError> {
    let mut files = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files += empty(&entry.path())?;
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
            files += 1;
        }
    }
    Ok(files)
}
