//! `stillpoint.yaml`: the truth for an environment's parts. Parsed from text; reading the file is
//! the caller's.
//!
//! Nothing in the file is ignored: a key that is unknown, misspelt, given twice, or known to the
//! format but not to this version is an error that names the file, the line, the key and what
//! would be right. A backup that silently left out a part because of a typing error is the failure
//! this guards against, which is why the file is read into a tree with places first (`node`), and
//! each table then accounts for every one of its keys (`reader`): serde's derived readers stop at
//! the first error and lose the place in tagged enums. All errors are reported at once.

mod cron;
mod error;
mod node;
mod read;
mod read_cron;
mod read_worker;
mod reader;
#[cfg(test)]
mod tests;
mod values;
mod worker;

pub use cron::{CronPart, CronSpec};
pub use error::{ConfigError, ConfigErrors};
pub use worker::{Engine, Freezer, WorkerPart};

use crate::ids::{EnvironmentName, LocationName, PartName, ProjectId, RegionName};
use crate::route::Route;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The project.
    pub project: ProjectId,
    /// Its environments, at least one.
    pub environments: BTreeMap<EnvironmentName, Environment>,
    /// Where backups are stored. May be empty: a command can name a repository itself.
    pub regions: BTreeMap<RegionName, Region>,
}

/// One environment: all that is backed up together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Key `type`.
    pub kind: EnvironmentKind,
    /// Where the application's code is checked out, if it is.
    pub code: Option<Code>,
    /// What holds requests. Without one, only live backups can be taken.
    pub gateways: BTreeMap<PartName, GatewayPart>,
    /// Services. Their names and those of the mounts are unique among both.
    pub services: BTreeMap<PartName, ServicePart>,
    /// Directories.
    pub mounts: BTreeMap<PartName, MountPart>,
    /// What works by itself, and is frozen in a still point.
    pub workers: BTreeMap<PartName, WorkerPart>,
    /// What the agent runs at set times. Their names and those of the workers are unique among both.
    pub crons: BTreeMap<PartName, CronPart>,
    /// What becomes of a backup from which something is missing.
    pub on_partial: OnPartial,
    /// Bounds of a backup.
    pub limits: Limits,
}

/// An environment's type. Roles and repositories are separate by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EnvironmentKind {
    /// Real users' data.
    Production,
    /// The last step before production.
    Staging,
    /// Everything else.
    Development,
}

impl EnvironmentKind {
    /// The word in the configuration and in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Staging => "staging",
            Self::Development => "development",
        }
    }
}

impl fmt::Display for EnvironmentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the application's code is. It is not backed up; its commit is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// A directory inside a Git work tree.
    pub path: PathBuf,
}

/// A gateway: it stands before the application and holds requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayPart {
    /// Where it accepts requests; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The application, `http://HOST[:PORT]`.
    pub upstream: String,
    /// How long requests in flight may take to end before the backup is given up. Less than
    /// `max_hold`.
    pub drain_timeout: Duration,
    /// The longest that a request waits, whatever becomes of the backup.
    pub max_hold: Duration,
    /// No more requests wait than this; further ones are answered 503.
    pub max_held: usize,
    /// Requests that are never held, nor waited for: health checks, which write nothing.
    pub pass: Vec<Route>,
    /// Where a proxy asks whether a request may begin, if one does.
    pub endpoint: Option<EndpointPart>,
}

/// A gateway's hold endpoint: a proxy that cannot send its requests through the gateway asks here
/// whether each may begin (`auth_request` of nginx, `forward_auth` of Caddy).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPart {
    /// Where it is asked.
    pub listen: SocketAddr,
    /// How it hears that requests have ended. Without it nothing is better than crash-consistent.
    pub completions: Option<CompletionsPart>,
}

/// A proxy's access log, sent by syslog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletionsPart {
    /// Where it is sent to.
    pub syslog: SyslogAddress,
    /// A request that is not reported to have ended in this time is not waited for any longer, and
    /// costs the label. Less than the gateway's `drain_timeout`.
    pub within: Duration,
}

impl CompletionsPart {
    /// `within` where the file says nothing.
    pub const WITHIN: Duration = Duration::from_secs(5);
}

/// Where datagrams of syslog are received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogAddress {
    /// `unixgram:/PATH`.
    Unix(PathBuf),
    /// `udp:ADDRESS:PORT`.
    Udp(SocketAddr),
}

impl fmt::Display for SyslogAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unixgram:{}", path.display()),
            Self::Udp(address) => write!(f, "udp:{address}"),
        }
    }
}

impl GatewayPart {
    /// `drain_timeout` where the file says nothing.
    pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
    /// `max_hold` where the file says nothing.
    pub const MAX_HOLD: Duration = Duration::from_secs(30);
    /// `max_held` where the file says nothing.
    pub const MAX_HELD: usize = 10_000;
}

/// A service, by its `type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServicePart {
    /// `type: postgresql`.
    Postgresql {
        /// `postgres://USER@HOST[:PORT][/DATABASE]`, never with a password.
        url: String,
        /// The environment variable that holds the password.
        password_env: Option<String>,
        /// The databases to back up. Empty: the one in `url`.
        databases: Vec<String>,
    },
    /// `type: mariadb` or `mysql`.
    Mariadb {
        /// Which of the two it was called.
        flavour: Mariadb,
        /// `mysql://USER@HOST[:PORT][/DATABASE][?socket=/PATH]`, never with a password.
        url: String,
        /// The environment variable that holds the password.
        password_env: Option<String>,
        /// The databases to back up. Empty: the one in `url`.
        databases: Vec<String>,
    },
    /// `type: redis` or `valkey`: a whole server.
    Redis {
        /// Which of the two it was called.
        flavour: Redis,
        /// `redis://[USER@]HOST[:PORT]` or `redis+unix://[USER@]/PATH`, never with a password.
        url: String,
        /// The environment variable that holds the password.
        password_env: Option<String>,
    },
    /// `type: etcd`: a whole server or cluster.
    Etcd {
        /// `http://[USER@]HOST[:PORT]`, never with a password.
        url: String,
        /// The environment variable that holds the password.
        password_env: Option<String>,
    },
    /// `type: sqlite`.
    Sqlite {
        /// The database file.
        path: PathBuf,
    },
}

impl ServicePart {
    /// Its `type` in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Postgresql { .. } => "postgresql",
            Self::Mariadb { flavour, .. } => flavour.as_str(),
            Self::Redis { flavour, .. } => flavour.as_str(),
            Self::Etcd { .. } => "etcd",
            Self::Sqlite { .. } => "sqlite",
        }
    }
}

/// What a server of the MariaDB family was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mariadb {
    /// `mariadb`.
    Mariadb,
    /// `mysql`.
    Mysql,
}

impl Mariadb {
    /// The word in the configuration and in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mariadb => "mariadb",
            Self::Mysql => "mysql",
        }
    }
}

/// What a server of the Redis family was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redis {
    /// `redis`.
    Redis,
    /// `valkey`.
    Valkey,
}

impl Redis {
    /// The word in the configuration and in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Valkey => "valkey",
        }
    }
}

/// A directory whose files are backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPart {
    /// The directory.
    pub path: PathBuf,
    /// Patterns of what to leave out; without a `/` they match a name at any depth.
    pub exclude: Vec<String>,
}

/// What becomes of a backup from which something is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPartial {
    /// It fails, and nothing is published.
    Fail,
    /// It is published as `partial`, with the list of what is missing.
    #[default]
    Partial,
}

/// What a backup may take of the environment that it is taken of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// No more than this is read in a second, in bytes, from all parts together. None: as fast as
    /// it can be stored.
    pub rate: Option<NonZeroU64>,
    /// How long each part has for each step of a hold; none: 10 s.
    pub step: Option<Duration>,
}

/// A named set of locations. A backup is stored at all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// The stores, at least one.
    pub locations: BTreeMap<LocationName, Location>,
    /// How many complete copies make a backup done: 1 up to the number of locations. Where the
    /// file says nothing: 2, or 1 if there is but one location.
    pub write_quorum: usize,
}

/// One data centre's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `url: file:///PATH`.
    Directory {
        /// An absolute path.
        path: PathBuf,
    },
}

/// Reads a configuration. `file_name` is only for the errors.
///
/// # Errors
/// All that is wrong with the text, in the order of its lines.
pub fn parse(file_name: &str, text: &str) -> Result<Config, ConfigErrors> {
    read::config(file_name, text)
}

impl Config {
    /// Makes every relative path absolute: it is meant from `dir`, the configuration file's own
    /// directory.
    pub fn resolve_against(&mut self, dir: &Path) {
        // `join` leaves an absolute path as it is; `components` drops the `.` of `./data`.
        let resolve = |path: &mut PathBuf| *path = dir.join(&*path).components().collect();
        for environment in self.environments.values_mut() {
            if let Some(code) = &mut environment.code {
                resolve(&mut code.path);
            }
            for service in environment.services.values_mut() {
                match service {
                    ServicePart::Sqlite { path } => resolve(path),
                    ServicePart::Postgresql { .. }
                    | ServicePart::Mariadb { .. }
                    | ServicePart::Redis { .. }
                    | ServicePart::Etcd { .. } => {}
                }
            }
            for mount in environment.mounts.values_mut() {
                resolve(&mut mount.path);
            }
            for worker in environment.workers.values_mut() {
                match &mut worker.freezer {
                    Freezer::Pidfile(path) | Freezer::Cgroup(path) => resolve(path),
                    Freezer::Container { .. } | Freezer::Systemd(_) | Freezer::Commands { .. } => {}
                }
            }
        }
    }
}
