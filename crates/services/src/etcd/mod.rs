//! etcd: all keys as they were at one revision, read while the application goes on.
//!
//! etcd keeps every revision until it is compacted, and serves a range of keys as it was at any of
//! them. So the instant is a revision: the mark reads its number, the capture reads that revision,
//! and nobody waits. What this relies on, and what would break without it:
//! - The revision is read through the cluster's consensus, not from what one member happens to know.
//! - A compaction between mark and capture takes the revision away. The server says so, and the
//!   capture fails; it never goes on with a later one.
//! - The server's own snapshot (`maintenance/snapshot`) is not used: only the role `root` may take
//!   it, its instant is when the server comes to it, and only a server that is set up anew can load
//!   it.
//!
//! A restore loads beside the live keys, under a prefix of its own, compares, and then exchanges
//! what differs; every transaction that changes a live key also writes down what it was.

mod client;
mod entry;
mod examine;
mod pages;
mod prepared;
mod restore;

use crate::{Driver, Finding, Prepared, Restore, ServiceError};
use client::{Client, Login};

/// How to reach one etcd server.
#[derive(Clone)]
pub struct EtcdOptions {
    /// `http://[USER@]HOST[:PORT]`, never with a password.
    pub url: String,
    /// The user's password.
    pub password: Option<String>,
}

/// The driver.
#[derive(Clone)]
pub struct Etcd {
    login: Login,
}

impl Etcd {
    /// Checks the options alone; nothing is connected to.
    pub fn new(options: EtcdOptions) -> Result<Self, ServiceError> {
        Ok(Self { login: Login::new(&options.url, options.password)? })
    }
}

impl Driver for Etcd {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn prepare(&self) -> Result<Box<dyn Prepared>, ServiceError> {
        Ok(Box::new(prepared::prepare(Client::connect(&self.login)?)?))
    }

    fn examine(&self) -> Vec<Finding> {
        examine::examine(&self.login)
    }

    fn restore(&self) -> Box<dyn Restore> {
        Box::new(restore::EtcdRestore::new(self.login.clone()))
    }
}
