//! A small bank that keeps its books in five places at once, and a checker of what was restored of
//! them.
//!
//! The still point promises one instant over all services and mounts. This is what makes a broken
//! promise visible: every request leaves the books balanced, and is out of balance while it is
//! under way. Between the services there is no common transaction, as in most applications.
//!
//! - **Money**: a transfer debits an account in one service and then credits one in another. The
//!   sum over all services is [`MONEY`].
//! - **Orders**: each has a number, and is written to every service and as a file, whose contents'
//!   hash is in every service. The numbers are the same everywhere, without holes. Of all orders
//!   the last [`KEPT`] are kept: an order removes the one that is so much older.
//!
//! Traffic comes by HTTP, by WebSocket messages, by a request that calls its own public address
//! while it is under way (`clients`), and from a worker that nobody asks (`worker`). Bank, clients
//! and worker are processes ([`Process`]): the test program itself, started again, runs them by
//! [`play`].
//!
//! Reading the books is [`Books`]; judging them is [`judge`], which knows nothing of how they came
//! about, so that it can be shown to find what is wrong.

mod bank;
mod books;
mod checker;
mod clients;
mod http;
mod process;
mod receipts;
mod site;
mod worker;

pub use books::Record;
pub use checker::{Books, Violation, judge};
pub use clients::{Summary, Traffic};
pub use process::{Process, play};
pub use site::{Addresses, Login, Site};

/// The shell commands that ask the worker of a site to pause, and to go on.
pub fn worker_commands(site: &Site) -> [String; 2] {
    let directory = site.directory().join("worker");
    [worker::quiesce(&directory), worker::resume(&directory)]
}

/// How many orders the bank at `address` has answered.
pub fn orders_answered(address: std::net::SocketAddr) -> Result<u64, BoxError> {
    let mut answer = ureq::get(format!("http://{address}/orders")).call()?;
    Ok(answer.body_mut().read_to_string()?.parse()?)
}

/// Lets the bank at `address` change one balance, and with it the sum: half of a transfer. `service`
/// is a place in [`PARTS`].
pub fn credit(address: std::net::SocketAddr, service: usize, amount: i64) -> Result<(), BoxError> {
    let url = format!("http://{address}/credit/{service}/1/{amount}");
    ureq::post(url).send_empty()?.body_mut().read_to_string()?;
    Ok(())
}

/// Any failure of the workload.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The parts, as an environment names them: PostgreSQL, MariaDB, Redis, SQLite, and the mount.
pub const PARTS: [&str; 5] = ["db", "ledger", "cache", "local", "receipts"];

/// How many of the parts are services; they come first.
pub const SERVICES: usize = 4;

/// Accounts in each service.
pub const ACCOUNTS: u32 = 16;

/// What each account begins with.
pub const OPENING: i64 = 1_000_000;

/// All the money there is.
pub const MONEY: i64 = OPENING * (ACCOUNTS * SERVICES as u32) as i64;

/// How many orders are kept.
pub const KEPT: u64 = 500;
