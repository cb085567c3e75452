//! The books in SQLite, in WAL mode. Writers of several processes wait for each other.

use super::{Book, Record, one};
use crate::workload::{ACCOUNTS, BoxError, OPENING};
use rusqlite::{Connection, TransactionBehavior, params};
use std::path::Path;
use std::time::Duration;

/// Writers queue without order: with dozens of them one may wait for long.
const BUSY: Duration = Duration::from_secs(60);

pub(super) fn connect(path: &Path) -> Result<Connection, BoxError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // A power cut is not what is tested here.
    connection.pragma_update(None, "synchronous", "normal")?;
    Ok(connection)
}

impl Book for Connection {
    fn open(&mut self) -> Result<(), BoxError> {
        let transaction = self.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
             CREATE TABLE orders (number INTEGER PRIMARY KEY, hash TEXT NOT NULL);",
        )?;
        for id in 1..=ACCOUNTS {
            transaction.execute("INSERT INTO accounts VALUES (?1, ?2)", params![id, OPENING])?;
        }
        Ok(transaction.commit()?)
    }

    fn add(&mut self, account: u32, amount: i64) -> Result<(), BoxError> {
        let sql = "UPDATE accounts SET balance = balance + ?2 WHERE id = ?1";
        one(self.execute(sql, params![account, amount])? as u64, "account in local")
    }

    fn order(&mut self, number: u64, hash: &str, old: Option<u64>) -> Result<(), BoxError> {
        let transaction = self.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "INSERT INTO orders VALUES (?1, ?2)";
        transaction.execute(sql, params![number.cast_signed(), hash])?;
        if let Some(old) = old {
            let sql = "DELETE FROM orders WHERE number = ?1";
            one(transaction.execute(sql, [old.cast_signed()])? as u64, "old order in local")?;
        }
        Ok(transaction.commit()?)
    }

    fn read(&mut self) -> Result<Record, BoxError> {
        let transaction = self.transaction()?;
        let sql = "SELECT coalesce(sum(balance), 0) FROM accounts";
        let money = transaction.query_row(sql, [], |row| row.get(0))?;
        let mut statement = transaction.prepare("SELECT number, hash FROM orders")?;
        let orders = statement
            .query_map([], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(Record { money, orders })
    }
}
