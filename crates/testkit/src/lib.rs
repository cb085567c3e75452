//! For tests: real servers, free ports, accounts without rights, and a workload whose books must
//! balance over all services ([`workload`]).
//!
//! Helpers here panic rather than return errors: a test that cannot be set up has failed. What
//! they start ends with the value that they return, also when the test fails.

mod etcd;
mod postgres;
mod scratch;
mod unprivileged;
pub mod workload;

pub use crate::etcd::Etcd;
pub use crate::postgres::{Postgres, postgres, postgres_with};
pub use crate::scratch::{Mariadb, Redis, mariadb, redis};
pub use crate::unprivileged::{is_root, run_as_unprivileged};
pub use stillpoint_runtimes::ScratchOptions;

use std::net::TcpListener;

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}
