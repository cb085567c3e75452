//! What works by itself: the types of `workers`.

use std::path::PathBuf;
use std::time::Duration;

/// Something that works by itself beside the requests, and stands still in a still point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerPart {
    /// How it is made to stand still, and let go on.
    pub freezer: Freezer,
    /// A shell command that lets it finish its job and take no other; it is frozen after that.
    pub quiesce: Option<String>,
    /// A shell command that lets it take jobs again, once it is thawed. Only with `quiesce`.
    pub resume: Option<String>,
    /// Wherever it is stopped, what it has written is whole: it needs no `quiesce`.
    pub atomic: bool,
    /// How long standing still may take, and each of its commands.
    pub timeout: Duration,
}

impl WorkerPart {
    /// `timeout` where the file says nothing.
    pub const TIMEOUT: Duration = Duration::from_secs(5);
}

/// What makes a worker stand still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freezer {
    /// `pidfile`: SIGSTOP and SIGCONT to the process group of the process that the file names.
    Pidfile(PathBuf),
    /// `cgroup`: the freezer of a control group, by its directory, of version 1 or 2.
    Cgroup(PathBuf),
    /// `container`: its name or id, for `docker` or `podman`.
    Container {
        /// The container.
        name: String,
        /// `engine`; none: whichever of the two is there, `docker` first.
        engine: Option<Engine>,
    },
    /// `systemd`: the name of a unit.
    Systemd(String),
    /// `freeze` and `thaw`: shell commands.
    Commands {
        /// Makes it stand still, and returns once it does.
        freeze: String,
        /// Lets it go on. May be called again, and when nothing is frozen.
        thaw: String,
    },
}

/// A container engine's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// `docker`.
    Docker,
    /// `podman`.
    Podman,
}

impl Engine {
    /// Its command, and the word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}
