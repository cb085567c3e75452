//! A container, by `docker pause` or `podman pause`.

use super::shell::{CommandError, run};
use super::target::Aimed;
use super::{Standing, Still, Target};
use crate::CaptureError;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use stillpoint_model::config::Engine;

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    engine: PathBuf,
    name: String,
    /// The container's own: another one of the same name has another.
    id: String,
    /// A new start of the same container has another.
    started: String,
}

/// The container of this name; nothing if it does not run.
pub(super) fn named(
    name: &str,
    engine: Option<Engine>,
    until: Instant,
) -> Result<Aimed, CaptureError> {
    of(find(engine)?, name, until)
}

/// The same by this very command.
pub(super) fn of(engine: PathBuf, name: &str, until: Instant) -> Result<Aimed, CaptureError> {
    let Some(state) = inspect(&engine, name, until)? else {
        return Err(CaptureError::new(format!("find the container `{name}`"))
            .because(format!("{} knows none of this name", engine.display()))
            .hint(format!("`{} ps -a` lists them", engine.display())));
    };
    match state.status.as_str() {
        "running" => {
            let State { id, started, .. } = state;
            let name = name.to_owned();
            Ok(Aimed::at(Target::Container(Container { engine, name, id, started })))
        }
        "paused" => Err(CaptureError::new(format!("freeze the container `{name}`"))
            .because("somebody has paused it already")
            .hint(format!("`{} unpause {name}` lets it go on", engine.display()))),
        _ => Ok(Aimed::nothing()),
    }
}

fn find(engine: Option<Engine>) -> Result<PathBuf, CaptureError> {
    let names = match engine {
        Some(engine) => vec![engine.as_str()],
        None => vec![Engine::Docker.as_str(), Engine::Podman.as_str()],
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    names
        .iter()
        .find_map(|name| {
            std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
        })
        .ok_or_else(|| {
            CaptureError::new("find the container engine's command")
                .because(format!("there is no `{}` in PATH", names.join("` and no `")))
                .hint("install its client where the agent runs")
        })
}

struct State {
    status: String,
    id: String,
    started: String,
}

/// None: there is no such container.
fn inspect(
    engine: &PathBuf,
    container: &str,
    until: Instant,
) -> Result<Option<State>, CaptureError> {
    let mut command = Command::new(engine);
    command.args(["inspect", "--type", "container", "--format"]);
    command.arg("{{.State.Status}} {{.Id}} {{.State.StartedAt}}").arg(container);
    let fail = |error: CommandError| {
        CaptureError::new(format!("ask {} for `{container}`", engine.display()))
            .because(error)
            .hint("the agent's user must be allowed to use the engine's socket")
    };
    let said = match run(&mut command, until) {
        Err(CommandError::Failed { output, .. })
            if output.to_lowercase().contains("no such container") =>
        {
            return Ok(None);
        }
        said => said.map_err(fail)?,
    };
    let mut words = said.trim().splitn(3, ' ').map(str::to_owned);
    match (words.next(), words.next(), words.next()) {
        (Some(status), Some(id), Some(started)) => Ok(Some(State { status, id, started })),
        _ => Err(fail(CommandError::Io(std::io::Error::other(format!(
            "its answer is not understood: {said}"
        ))))),
    }
}

impl Container {
    fn act(&self, verb: &str, until: Instant) -> Result<(), CaptureError> {
        run(Command::new(&self.engine).args([verb, &self.id]), until).map(drop).map_err(|e| {
            CaptureError::new(format!("{verb} {}", self.describe()))
                .because(e)
                .hint("the agent's user must be allowed to use the engine's socket")
        })
    }

    fn state(&self, until: Instant) -> Result<Option<State>, CaptureError> {
        let state = inspect(&self.engine, &self.id, until)?;
        Ok(state.filter(|state| state.started == self.started))
    }
}

impl Still for Container {
    fn describe(&self) -> String {
        format!("container {}", self.name)
    }

    fn permitted(&self) -> Result<(), CaptureError> {
        // Whoever may ask the engine may pause as well.
        Ok(())
    }

    fn freeze(&self, until: Instant) -> Result<(), CaptureError> {
        self.act("pause", until)
    }

    fn standing(&self) -> Result<Standing, CaptureError> {
        let state = self.state(Instant::now() + super::frozen::LOOK_WITHIN)?;
        Ok(match state.as_ref().map(|state| state.status.as_str()) {
            Some("paused") => Standing::Still,
            Some("running") => Standing::Working,
            _ => Standing::Gone,
        })
    }

    fn thaw(&self, until: Instant) -> Result<(), CaptureError> {
        let thawed = self.act("unpause", until);
        if thawed.is_err() && self.state(until)?.is_none_or(|state| state.status != "paused") {
            return Ok(());
        }
        thawed
    }
}
