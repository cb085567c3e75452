//! Redis and Valkey: the server's own save, taken at the mark, and a restore that is one `SWAPDB`.
//!
//! What it keeps, and what would break without it:
//! - The instant is a fork. Nothing else may be forked off at that moment: `BGSAVE` is refused
//!   while a save runs, and `PSYNC` may quietly attach to the older fork of another replica. So
//!   saves and rewrites are waited out, and what came back is compared with what was asked for.
//! - The next automatic save replaces the file. It is opened at once when ours has ended, and
//!   proven to be ours, or the capture fails.
//! - A save that fails can make the server refuse the application's writes
//!   (`stop-writes-on-bgsave-error`): a server whose last save failed is refused beforehand.
//! - Live keys are never touched before the swap: a restore fills spare, empty databases, and all
//!   of them change places in one transaction, with the marker that tells on which side they are.
//!
//! The unit is the whole server, with all of its databases and functions. Users (ACL) are part of
//! its configuration and not captured.
//!
//! Redis 7.0 is the oldest: `rdb_saves` proves whose file it is, `PEXPIRETIME` gives the exact time
//! a key lives until, `FUNCTION DUMP` tells the version of the format.

mod address;
mod connection;
mod facts;
mod info;
mod prepared;
mod rdb;
mod replication;
mod restore;
mod rights;
mod save;

use std::path::PathBuf;
use std::time::Duration;

use address::Login;

use crate::{Driver, Finding, Prepared, Restore, ServiceError};

/// How to reach one server.
#[derive(Clone)]
pub struct RedisOptions {
    /// As configured: `redis` or `valkey`.
    pub kind: &'static str,
    /// `redis://[USER@]HOST[:PORT]`, `redis+unix://[USER@]/PATH` or `unix://[USER@]/PATH`.
    pub url: String,
    /// The password.
    pub password: Option<String>,
    /// Where to look for `redis-server` (or `valkey-server`), before `/usr/bin` and
    /// `/usr/local/bin`. Needed for restores only.
    pub tool_dirs: Vec<PathBuf>,
}

impl std::fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisOptions").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// How long the server's own work is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// In prepare, for a save or a rewrite that runs. Nothing else waits meanwhile.
    pub prepare: Duration,
    /// At the mark, where requests wait.
    pub mark: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { prepare: Duration::from_mins(10), mark: Duration::from_secs(3) }
    }
}

/// How a server's data is had.
enum Way {
    /// From the file that it writes.
    File(save::Files),
    /// Over the network, as a replica gets it.
    Replication,
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Replication => "replication",
        }
    }
}

/// The driver.
#[derive(Clone)]
pub struct Redis {
    kind: &'static str,
    login: Login,
    tool_dirs: Vec<PathBuf>,
    patience: Patience,
    replication_only: bool,
}

impl Redis {
    /// Checks the options alone; nothing is connected to.
    pub fn new(options: RedisOptions) -> Result<Self, ServiceError> {
        let login = Login::new(&options.url, options.password)?;
        Ok(Self {
            kind: options.kind,
            login,
            tool_dirs: options.tool_dirs,
            patience: Patience::default(),
            replication_only: false,
        })
    }

    /// Waits for other times than the usual ones.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Captures by replication even where the server's files are within reach.
    #[must_use]
    pub fn by_replication(mut self) -> Self {
        self.replication_only = true;
        self
    }

    /// The server's program, for the auxiliary server of a restore.
    fn server_program(&self) -> Result<PathBuf, ServiceError> {
        let names = match self.kind {
            "valkey" => ["valkey-server", "redis-server"],
            _ => ["redis-server", "valkey-server"],
        };
        crate::programs::find(names, &self.tool_dirs, names[0])
    }
}

impl Driver for Redis {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn prepare(&self) -> Result<Box<dyn Prepared>, ServiceError> {
        Ok(Box::new(prepared::PreparedRedis::new(self)?))
    }

    fn restore(&self) -> Box<dyn Restore> {
        Box::new(restore::RedisRestore::new(self.clone()))
    }

    fn examine(&self) -> Vec<Finding> {
        rights::examine(self)
    }
}
