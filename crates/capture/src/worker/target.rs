//! What exactly is frozen: one enum over the ways, since it is written down for the watchdog.

use super::cgroup::{self, Cgroup};
use super::commands::Commands;
use super::container::{self, Container};
use super::group::{self, Group};
use super::unit::{self, Unit};
use super::{Standing, Still};
use crate::CaptureError;
use serde::{Deserialize, Serialize};
use std::time::Instant;
use stillpoint_model::config::Freezer;

use super::Shell;

/// Something that can be made to stand still, by one of the ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Target {
    /// Signals.
    Group(Group),
    /// The kernel's freezer.
    Cgroup(Cgroup),
    /// A container engine.
    Container(Container),
    /// systemd.
    Unit(Unit),
    /// The user's commands.
    Commands(Commands),
}

/// What there is to be frozen at the moment.
#[derive(Debug)]
pub struct Aimed {
    /// None: it does not run.
    pub target: Option<Target>,
    /// What speaks against that, in words.
    pub doubt: Option<String>,
}

impl Aimed {
    /// It does not run.
    pub fn nothing() -> Self {
        Self { target: None, doubt: None }
    }

    pub(super) fn at(target: Target) -> Self {
        Self { target: Some(target), doubt: None }
    }

    pub(super) fn doubted(self, doubt: String) -> Self {
        Self { doubt: Some(doubt), ..self }
    }
}

/// Looks up what a configured freezer leads to. `shell` makes a command of the user's words.
pub(super) fn aim(
    freezer: &Freezer,
    shell: impl Fn(&str) -> Shell,
    until: Instant,
) -> Result<Aimed, CaptureError> {
    match freezer {
        Freezer::Pidfile(file) => group::named_by(file),
        Freezer::Cgroup(directory) => cgroup::at(directory),
        Freezer::Container { name, engine } => container::named(name, *engine, until),
        Freezer::Systemd(name) => unit::named(name, until),
        Freezer::Commands { freeze, thaw } => {
            let (freeze, thaw) = (shell(freeze), shell(thaw));
            Ok(Aimed::at(Target::Commands(Commands { freeze, thaw })))
        }
    }
}

impl Target {
    fn still(&self) -> &dyn Still {
        match self {
            Self::Group(group) => group,
            Self::Cgroup(cgroup) => cgroup,
            Self::Container(container) => container,
            Self::Unit(unit) => unit,
            Self::Commands(commands) => commands,
        }
    }

    pub(super) fn describe(&self) -> String {
        self.still().describe()
    }

    pub(super) fn permitted(&self) -> Result<(), CaptureError> {
        self.still().permitted()
    }

    pub(super) fn freeze(&self, until: Instant) -> Result<(), CaptureError> {
        self.still().freeze(until)
    }

    pub(super) fn standing(&self) -> Result<Standing, CaptureError> {
        self.still().standing()
    }

    pub(super) fn thaw(&self, until: Instant) -> Result<(), CaptureError> {
        self.still().thaw(until)
    }
}
