//! The books in MariaDB.

use super::{Book, Record, one};
use crate::workload::{ACCOUNTS, BoxError, Login, OPENING};
use mysql::prelude::Queryable;
use mysql::{Conn, Opts, OptsBuilder, TxOpts};

pub(super) fn connect(login: &Login) -> Result<Conn, BoxError> {
    let options = OptsBuilder::from_opts(Opts::from_url(&login.url)?)
        .pass(Some(&login.password))
        .prefer_socket(false);
    Ok(Conn::new(options)?)
}

impl Book for Conn {
    fn open(&mut self) -> Result<(), BoxError> {
        self.query_drop(
            "CREATE TABLE accounts (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE=InnoDB",
        )?;
        self.query_drop(
            "CREATE TABLE orders (number BIGINT PRIMARY KEY, hash CHAR(64) NOT NULL) ENGINE=InnoDB",
        )?;
        Ok(self.exec_batch(
            "INSERT INTO accounts VALUES (?, ?)",
            (1..=ACCOUNTS).map(|id| (id, OPENING)),
        )?)
    }

    fn add(&mut self, account: u32, amount: i64) -> Result<(), BoxError> {
        let sql = "UPDATE accounts SET balance = balance + ? WHERE id = ?";
        self.exec_drop(sql, (amount, account))?;
        one(self.affected_rows(), "account in ledger")
    }

    fn order(&mut self, number: u64, hash: &str, old: Option<u64>) -> Result<(), BoxError> {
        let mut transaction = self.start_transaction(TxOpts::default())?;
        transaction.exec_drop("INSERT INTO orders VALUES (?, ?)", (number, hash))?;
        if let Some(old) = old {
            transaction.exec_drop("DELETE FROM orders WHERE number = ?", (old,))?;
            one(transaction.affected_rows(), "old order in ledger")?;
        }
        Ok(transaction.commit()?)
    }

    fn read(&mut self) -> Result<Record, BoxError> {
        let money: Option<i64> =
            self.query_first("SELECT CAST(SUM(balance) AS SIGNED) FROM accounts")?;
        let orders: Vec<(u64, String)> = self.query("SELECT number, hash FROM orders")?;
        let money = money.ok_or("ledger has no accounts")?;
        Ok(Record { money, orders: orders.into_iter().collect() })
    }
}
