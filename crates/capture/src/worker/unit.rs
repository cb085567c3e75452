//! A systemd unit: through its control group where this process may write that, else by `systemctl
//! freeze` and `thaw` (systemd 246 or later, with control groups of version 2).

use super::shell::{CommandError, run};
use super::target::Aimed;
use super::{Standing, Still, Target, cgroup};
use crate::CaptureError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const SYSTEMCTL: &str = "systemctl";

/// A running unit, frozen by systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    name: String,
    /// A new start has another.
    invocation: String,
}

/// The unit of this name; nothing if it is not active.
pub(super) fn named(name: &str, until: Instant) -> Result<Aimed, CaptureError> {
    let properties = show(name, until)?;
    let property = |key: &str| properties.get(key).map_or("", String::as_str);
    if property("LoadState") != "loaded" {
        return Err(CaptureError::new(format!("find the unit `{name}`"))
            .because(format!("systemd says that it is {}", property("LoadState")))
            .hint("`systemctl list-units` lists them"));
    }
    if property("ControlGroup").is_empty() {
        return Ok(Aimed::nothing());
    }
    if let Some(directory) = directory(property("ControlGroup")) {
        let aimed = cgroup::at(&directory)?;
        if aimed.target.as_ref().is_none_or(|target| target.permitted().is_ok()) {
            return Ok(aimed);
        }
    }
    let invocation = property("InvocationID").to_owned();
    Ok(Aimed::at(Target::Unit(Unit { name: name.to_owned(), invocation })))
}

/// Where the unit's control group can be frozen, if anywhere.
fn directory(group: &str) -> Option<PathBuf> {
    // Version 2 alone, and beside version 1.
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().find_map(|mount| {
        let directory = Path::new(mount).join(group.trim_start_matches('/'));
        directory.join("cgroup.freeze").exists().then_some(directory)
    })
}

fn show(unit: &str, until: Instant) -> Result<BTreeMap<String, String>, CaptureError> {
    let mut command = Command::new(SYSTEMCTL);
    command.args(["show", "--no-pager", "--property"]);
    command.arg("LoadState,ControlGroup,InvocationID,FreezerState").arg("--").arg(unit);
    let said = run(&mut command, until).map_err(|e| {
        let failed = CaptureError::new(format!("ask systemd for `{unit}`"));
        match e {
            CommandError::Io(_) => failed.because(e).hint("`systemctl` must be in PATH"),
            other => failed.because(other),
        }
    })?;
    let pairs = said.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

impl Unit {
    fn act(&self, verb: &str, until: Instant) -> Result<(), CaptureError> {
        let mut command = Command::new(SYSTEMCTL);
        command.args([verb, "--no-ask-password", "--", &self.name]);
        run(&mut command, until).map(drop).map_err(|e| {
            CaptureError::new(format!("{verb} {}", self.describe())).because(e).hint(
                "the agent must run as root, or be allowed to manage units; freezing needs control \
                 groups of version 2",
            )
        })
    }

    fn standing_by(&self, until: Instant) -> Result<Standing, CaptureError> {
        let properties = show(&self.name, until)?;
        let property = |key: &str| properties.get(key).map_or("", String::as_str);
        if property("InvocationID") != self.invocation || property("ControlGroup").is_empty() {
            return Ok(Standing::Gone);
        }
        let frozen = property("FreezerState") == "frozen";
        Ok(if frozen { Standing::Still } else { Standing::Working })
    }
}

impl Still for Unit {
    fn describe(&self) -> String {
        format!("unit {}", self.name)
    }

    fn permitted(&self) -> Result<(), CaptureError> {
        if rustix::process::geteuid().is_root() {
            return Ok(());
        }
        Err(CaptureError::new(format!("freeze {}", self.describe()))
            .because("this process may not write its control group, and is not root")
            .hint("run the agent as root, or use `freeze:` and `thaw:` commands"))
    }

    fn freeze(&self, until: Instant) -> Result<(), CaptureError> {
        self.act("freeze", until)
    }

    fn standing(&self) -> Result<Standing, CaptureError> {
        self.standing_by(Instant::now() + super::frozen::LOOK_WITHIN)
    }

    fn thaw(&self, until: Instant) -> Result<(), CaptureError> {
        let thawed = self.act("thaw", until);
        if thawed.is_err() && self.standing_by(until)? != Standing::Still {
            return Ok(());
        }
        thawed
    }
}
