//! A small real shop: the web application that the demo backs up while customers order from it.
//!
//! `POST /orders/{number}` writes one order into every store that it has (SQLite, PostgreSQL,
//! MariaDB, Redis, the uploads directory) and answers 201 only when all of them have it; nothing
//! goes on after the answer. Between the stores there is no common transaction, as in most
//! applications: an order that is being written is in some places and not yet in others, and a
//! backup that does not wait for it is torn there. That is what the demo is about.
//!
//! A process of its own. It ends when told to, or when its standard input ends, so that it never
//! outlives whoever started it.

mod ending;
mod files;
mod http;
mod mariadb;
mod order;
mod pool;
mod postgres;
mod redis;
mod sqlite;

pub(super) use ending::told_to_end;
pub(crate) use files::{picture, picture_path};
pub(crate) use order::{Body, Order, Random};
pub(crate) use redis::{COUNTER, NUMBERS, OFFER, ORDER, user_and_socket};

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Any failure that only a person can do something about.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How to reach a server's database.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its url as in `stillpoint.yaml`, without a password.
    pub(crate) url: String,
    /// The password, if the server asks for one.
    pub(crate) password: Option<String>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("url", &self.url).finish_non_exhaustive()
    }
}

/// What the shop listens on and where it keeps its orders.
#[derive(Debug, Clone)]
pub(crate) struct ShopOptions {
    /// Where to listen; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// The SQLite database, created if it is missing.
    pub(crate) sqlite: Option<PathBuf>,
    /// The PostgreSQL database; its table is created if it is missing.
    pub(crate) postgres: Option<Target>,
    /// The MariaDB database; its tables are created if they are missing.
    pub(crate) mariadb: Option<Target>,
    /// The Redis server, of which it uses the first database.
    pub(crate) redis: Option<Target>,
    /// The uploads directory, created if it is missing.
    pub(crate) uploads: PathBuf,
}

/// What became of an insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// It was not there before.
    New,
    /// That number is taken; nothing was changed.
    Taken,
}

/// Serves until SIGTERM, SIGINT or the end of standard input, then lets requests in flight end.
/// `ready` is told the address once requests are answered.
pub(crate) fn run(options: &ShopOptions, ready: impl FnOnce(SocketAddr)) -> Result<(), BoxError> {
    let stores = http::Stores::open(options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let end = told_to_end(true)?;
        http::serve(options.listen, stores, ready, end).await
    })
}

/// What the shop holds before its first customer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Past {
    /// The orders 1 to this number are in every store.
    pub(crate) orders: u64,
    /// So many pictures are in the uploads directory.
    pub(crate) pictures: usize,
}

/// Gives the shop its past, before it is started, so that a backup has substance.
pub(crate) fn seed(options: &ShopOptions, past: Past) -> Result<(), BoxError> {
    let orders = past.orders;
    files::seed(&options.uploads, past.pictures, 1, orders)?;
    if let Some(path) = &options.sqlite {
        sqlite::seed(path, 1, orders)?;
    }
    if let Some(target) = &options.postgres {
        postgres::seed(target, 1, orders)?;
    }
    if let Some(target) = &options.mariadb {
        mariadb::seed(target, 1, orders)?;
    }
    if let Some(target) = &options.redis {
        redis::seed(target, 1, orders)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
