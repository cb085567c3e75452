//! One module per service driver: how a service is marked, captured and restored.
//!
//! A driver goes through three states, each its own type, so that nothing can be marked that was
//! not prepared: [`Driver`] (configured) → [`Prepared`] (locks and connections taken, may be
//! marked) → captured. Dropping a `Prepared` gives up everything that it holds in the server.
//! Restore is a list of idempotent steps ([`Restore`]), so that a journal can finish it or undo it
//! after the process that began it was killed.
//!
//! Drivers know nothing of repositories or gateways: data leaves through a [`Sink`] and comes back
//! from a [`Source`], as named streams.

pub mod etcd;
pub mod mariadb;
pub mod postgresql;
mod programs;
pub mod redis;
mod restore;
pub mod sqlite;
mod stream;

pub use restore::{Aside, Restore};
pub use stream::{Sink, Source};

use std::collections::BTreeMap;
use stillpoint_model::manifest::Marker;
use stillpoint_model::step::StepError;

/// A driver's refusal or failure.
pub type ServiceError = StepError;

/// A configured service. Nothing has been touched yet.
pub trait Driver: Send + Sync {
    /// The type as in the configuration: `postgresql`, `sqlite`.
    fn kind(&self) -> &'static str;

    /// Checks tools, versions, credentials and rights, and takes early what takes long: locks,
    /// connections. Every refusal that can be foreseen is given here, before any request waits.
    fn prepare(&self) -> Result<Box<dyn Prepared>, ServiceError>;

    /// The steps that put a captured state back.
    fn restore(&self) -> Box<dyn Restore>;

    /// What works and what is missing, for backup and for restore: tools, versions, every single
    /// right of the account. Changes nothing. What cannot be looked into is a finding as well.
    fn examine(&self) -> Vec<Finding> {
        let (problem, hint) = match self.prepare() {
            Ok(_) => (None, None),
            Err(error) => {
                let hint = error.advice().map(str::to_owned);
                (Some(chain(&error)), hint)
            }
        };
        let what = "everything that a backup needs".to_owned();
        vec![Finding { what, needed_for: NeededFor::Backup, problem, hint }]
    }
}

/// One thing that was looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What: `mariadb-dump 10.5 or later`, `the privilege RELOAD`.
    pub what: String,
    /// What cannot be done without it.
    pub needed_for: NeededFor,
    /// What is wrong; none where all is well.
    pub problem: Option<String>,
    /// What to do about it: the very statement or command.
    pub hint: Option<String>,
}

/// What something is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeededFor {
    /// Backups.
    Backup,
    /// Restores.
    Restore,
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A service that can be marked at any moment, quickly.
pub trait Prepared: Send {
    /// What was found: versions of the server and tools, for the manifest.
    fn facts(&self) -> BTreeMap<String, String>;

    /// What this driver will not capture, each as (what, why). Makes the backup partial.
    fn gaps(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// What speaks against `consistent`, in words: tables whose engine knows no snapshots. Asked
    /// for after the capture.
    fn doubts(&self) -> Vec<String> {
        Vec::new()
    }

    /// True when marking makes the service's own writers wait for as long as this process lives:
    /// the watchdog must then end a coordinator that fell silent in the mark.
    fn mark_blocks_writers(&self) -> bool {
        false
    }

    /// The service's own counter of writes, in its own words: equal readings mean that nothing was
    /// written in between. Cheap: it is read repeatedly during the hold.
    fn counter(&mut self) -> Result<String, ServiceError>;

    /// Fixes the instant. May be called again; the last call counts.
    fn mark(&mut self) -> Result<Marker, ServiceError>;

    /// Streams the marked state. Called once, after [`Prepared::mark`].
    fn capture(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError>;
}

/// What a capture amounted to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// Bytes streamed.
    pub bytes: u64,
    /// Tables, files or whatever the service counts in.
    pub items: u64,
    /// What turned out to be missing, each as (what, why). Makes the backup partial.
    pub gaps: Vec<(String, String)>,
}
