//! What a server and an agent say to each other: JSON lines over a connection that the agent opens.
//!
//! The agent says [`FromAgent::Hello`] first. From then on the server orders work by activity, and
//! the agent answers with events of that activity, the last of which is [`Event::Ended`]: exactly
//! one for each [`FromServer::Run`]. When the connection is lost, the agent cancels whatever runs
//! (a restore past its point of no return is finished), since nobody would hear of its end; a
//! server that comes back fails what it had ordered, and orders the cleaning up.
//!
//! No password, key or row of data crosses this connection.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stillpoint_model::ids::{
    ActivityId, BackupId, EnvironmentName, LocationName, PartName, ProjectId, RegionName,
};
use stillpoint_model::manifest::Manifest;

/// The version of this protocol; both sides must speak the same.
pub const PROTOCOL: u32 = 3;

/// From the agent to the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum FromAgent {
    /// Who it is and what it has, first on every connection.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// The agent's name.
        name: String,
        /// What its configuration holds.
        inventory: Inventory,
    },
    /// Something happened in an activity.
    Event {
        /// Which one.
        activity: ActivityId,
        /// What happened.
        event: Event,
    },
    /// How the locations are: after each change, and once after the greeting.
    Locations {
        /// All of them.
        locations: Vec<LocationState>,
    },
    /// At how many locations backups are, after healing.
    Copies {
        /// Backup and number of complete copies.
        copies: Vec<(BackupId, u32)>,
        /// Whether every location could be asked; if not, there may be more copies.
        all_asked: bool,
    },
}

/// From the server to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum FromServer {
    /// The greeting was understood.
    Welcome,
    /// The connection ends.
    Refused {
        /// In words.
        why: String,
    },
    /// Do this. One at a time for each environment.
    Run {
        /// The activity that it is part of.
        activity: ActivityId,
        /// What to do.
        order: Order,
    },
    /// Stop that as soon as it is safe. Its `Ended` follows as ever.
    Cancel {
        /// Which one.
        activity: ActivityId,
    },
    /// Copy what is missing somewhere, now.
    Heal {
        /// A location whose disk is another one: it may be filled anew.
        replaced: Option<LocationName>,
    },
}

/// What an agent's configuration holds: names only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The project.
    pub project: ProjectId,
    /// Its environments.
    pub environments: Vec<EnvironmentSummary>,
    /// Where backups go, if anywhere.
    pub region: Option<RegionName>,
    /// How many complete copies make a backup done.
    pub write_quorum: u32,
}

/// One environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentSummary {
    /// Its name.
    pub name: EnvironmentName,
    /// `production`, `staging` or `development`.
    pub kind: String,
    /// Services and mounts, for people.
    pub parts: Vec<PartName>,
    /// The commit that the code is at.
    pub head_commit: Option<String>,
}

/// One location's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocationState {
    /// Its name.
    pub name: LocationName,
    /// Its URL, without secrets.
    pub url: String,
    /// `healthy`, `behind` (something is missing there, or was deleted elsewhere), `empty` (it holds
    /// nothing yet), `healing` or `down`.
    pub health: String,
    /// Why it is not healthy.
    pub why: Option<String>,
    /// Objects that are missing there.
    pub missing: u64,
    /// What else a person should know: it shares a file system with another one.
    pub warning: Option<String>,
    /// When it was looked at.
    pub checked_at: Timestamp,
}

/// What is to be done in an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Order {
    /// Take a backup.
    Backup {
        /// The environment.
        environment: EnvironmentName,
        /// The id that the backup will have.
        backup: BackupId,
        /// Hold nothing.
        live: bool,
        /// The run of a cron that asked for it, and may wait for it: it is not frozen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_by: Option<String>,
    },
    /// Put a backup back.
    Restore {
        /// Whose data is replaced.
        environment: EnvironmentName,
        /// The environment that the backup is of.
        from: EnvironmentName,
        /// The backup.
        backup: BackupId,
        /// Only these parts; empty: all.
        only: Vec<PartName>,
        /// Back up what is there first, under this id.
        safety: Option<BackupId>,
    },
    /// Remove backups, published or not; those that are not there are fine.
    Delete {
        /// The environment that they are of.
        environment: EnvironmentName,
        /// The backups.
        backups: Vec<BackupId>,
    },
    /// Finish or undo a restore that was cut off.
    Recover {
        /// The environment.
        environment: EnvironmentName,
    },
}

impl Order {
    /// The environment in which it acts.
    pub fn environment(&self) -> &EnvironmentName {
        match self {
            Self::Backup { environment, .. }
            | Self::Restore { environment, .. }
            | Self::Delete { environment, .. }
            | Self::Recover { environment } => environment,
        }
    }
}

/// Something that happened in an activity. A task says them on its standard output, one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A phase began.
    Phase {
        /// `prepare`, `hold`, `released`, `capture`, `publish`, `load db`, ...
        phase: String,
        /// Bytes to do, where known.
        total: Option<u64>,
    },
    /// Bytes done so far in this phase.
    Progress {
        /// How many.
        bytes: u64,
    },
    /// A line for people, without a newline at its end.
    Log {
        /// The line.
        line: String,
    },
    /// A backup can be seen and restored from now on, although not all copies are there yet: also
    /// a restore's safety backup.
    Published {
        /// What it is.
        backup: Box<BackupRecord>,
    },
    /// Backups have more copies now.
    Copied {
        /// Backup and number of complete copies.
        copies: Vec<(BackupId, u32)>,
        /// Whether every location could be asked; if not, there may be more copies.
        all_asked: bool,
    },
    /// The last one.
    Ended {
        /// How.
        outcome: Outcome,
    },
}

/// How an activity ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should.
    Done,
    /// Done, but less than was asked for: the published backup is partial.
    Partial,
    /// It was asked to stop, and has: nothing was changed or published.
    Cancelled,
    /// It could not be done; nothing is held any more.
    Failed {
        /// Why, in one or more lines.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// A published backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// Its record.
    pub manifest: Manifest,
    /// Bytes captured, before deduplication and compression.
    pub bytes_captured: u64,
    /// Bytes added to each location.
    pub bytes_added: u64,
    /// At how many locations it is complete.
    pub copies: u32,
}
