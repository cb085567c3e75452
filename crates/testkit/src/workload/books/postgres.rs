//! The books in PostgreSQL.

use super::{Book, Record, one};
use crate::workload::{ACCOUNTS, BoxError, Login, OPENING};
use ::postgres::{Client, Config, NoTls};

pub(super) fn connect(login: &Login) -> Result<Client, BoxError> {
    let mut config: Config = login.url.parse()?;
    Ok(config.password(&login.password).connect(NoTls)?)
}

impl Book for Client {
    fn open(&mut self) -> Result<(), BoxError> {
        Ok(self.batch_execute(&format!(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
             CREATE TABLE orders (number bigint PRIMARY KEY, hash text NOT NULL);
             INSERT INTO accounts SELECT id, {OPENING} FROM generate_series(1, {ACCOUNTS}) AS id;"
        ))?)
    }

    fn add(&mut self, account: u32, amount: i64) -> Result<(), BoxError> {
        let sql = "UPDATE accounts SET balance = balance + $2 WHERE id = $1";
        one(self.execute(sql, &[&account.cast_signed(), &amount])?, "account in db")
    }

    fn order(&mut self, number: u64, hash: &str, old: Option<u64>) -> Result<(), BoxError> {
        let mut transaction = self.transaction()?;
        let sql = "INSERT INTO orders VALUES ($1, $2)";
        transaction.execute(sql, &[&number.cast_signed(), &hash])?;
        if let Some(old) = old {
            let sql = "DELETE FROM orders WHERE number = $1";
            one(transaction.execute(sql, &[&old.cast_signed()])?, "old order in db")?;
        }
        Ok(transaction.commit()?)
    }

    fn read(&mut self) -> Result<Record, BoxError> {
        let money = self
            .query_one("SELECT coalesce(sum(balance), 0)::bigint FROM accounts", &[])?
            .try_get(0)?;
        let rows = self.query("SELECT number, hash FROM orders", &[])?;
        let orders = rows
            .iter()
            .map(|row| Ok((row.try_get::<_, i64>(0)?.cast_unsigned(), row.try_get(1)?)))
            .collect::<Result<_, BoxError>>()?;
        Ok(Record { money, orders })
    }
}
