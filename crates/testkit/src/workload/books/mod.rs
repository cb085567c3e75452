//! One service's part of the books: accounts with balances, and orders with their receipt's hash.
//! Each call is one transaction of its own.

mod mariadb;
mod postgres;
mod redis;
mod sqlite;

use super::{Addresses, BoxError};
use std::collections::BTreeMap;

/// All that one service holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The sum of its accounts' balances.
    pub money: i64,
    /// Number and receipt's hash of each order.
    pub orders: BTreeMap<u64, String>,
}

/// A connection to one service.
pub(super) trait Book: Send {
    /// Makes the tables and the accounts.
    fn open(&mut self) -> Result<(), BoxError>;

    /// Changes an account's balance.
    fn add(&mut self, account: u32, amount: i64) -> Result<(), BoxError>;

    /// Writes an order, and removes an old one if it is there.
    fn order(&mut self, number: u64, hash: &str, old: Option<u64>) -> Result<(), BoxError>;

    /// Reads everything.
    fn read(&mut self) -> Result<Record, BoxError>;
}

/// Connects to every service, in the order of [`super::PARTS`].
pub(super) fn connect(at: &Addresses) -> Result<[Box<dyn Book>; super::SERVICES], BoxError> {
    Ok([
        Box::new(postgres::connect(&at.db)?),
        Box::new(mariadb::connect(&at.ledger)?),
        Box::new(redis::connect(&at.cache)?),
        Box::new(sqlite::connect(&at.local)?),
    ])
}

/// An answer that changed nothing where it should have changed one thing.
fn one(changed: u64, what: &str) -> Result<(), BoxError> {
    if changed == 1 { Ok(()) } else { Err(format!("{what}: {changed} rows").into()) }
}
