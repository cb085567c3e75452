//! `environment:*` and `location:list`.

use super::activities::wait;
use super::{Session, cell};
use crate::arguments::{EnvironmentCommand, Global, LocationCommand};
use crate::failure::Failure;
use crate::output::put;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// `environment:*`.
pub(crate) fn run(global: &Global, command: &EnvironmentCommand) -> Result<(), Failure> {
    let session = Session::new(global)?;
    match command {
        EnvironmentCommand::List => {
            let heading = ["name", "title", "type", "status", "busy", "last backup"];
            let all = session.client.get(&session.path("/environments"))?;
            session.print(&all, &heading, |environment| {
                vec![
                    cell(&environment["name"]),
                    cell(&environment["title"]),
                    cell(&environment["type"]),
                    cell(&environment["status"]),
                    cell(&environment["is_dirty"]),
                    cell(&environment["last_backup_at"]),
                ]
            })
        }
        EnvironmentCommand::Info { property, value } => {
            let name = session.environment(None)?;
            let path = session.environment_path(&name, "");
            match (property, value) {
                (None, _) => put(&format!("{:#}", session.client.get(&path)?)),
                (Some(property), None) => {
                    let environment = session.client.get(&path)?;
                    let found = environment.get(property).ok_or_else(|| {
                        Failure::usage(format!("an environment has no property `{property}`"))
                    })?;
                    put(&cell(found))
                }
                (Some(property), Some(value)) => {
                    let answer =
                        session.client.patch(&path, &json!({ property.as_str(): value }))?;
                    let set = cell(&answer["_embedded"]["entity"][property]);
                    session.terminal.say(&format!("Property {property} set to: {set}"));
                    Ok(())
                }
            }
        }
        EnvironmentCommand::Activate { name } => change(&session, name.as_deref(), "activate"),
        EnvironmentCommand::Deactivate { name } => change(&session, name.as_deref(), "deactivate"),
    }
}

fn change(session: &Session<'_>, name: Option<&str>, action: &str) -> Result<(), Failure> {
    let name = session.environment(name)?;
    let path = session.environment_path(&name, &format!("/{action}"));
    let answer = session.client.post(&path, &Value::Null)?;
    wait(session, &answer)?;
    session.terminal.say(&format!("environment `{name}` was {action}d"));
    Ok(())
}

/// `location:*`.
pub(crate) fn locations(global: &Global, command: &LocationCommand) -> Result<(), Failure> {
    let session = Session::new(global)?;
    match command {
        LocationCommand::List => {
            let all = session.client.get(&session.path("/locations"))?;
            print_locations(&session, &all)
        }
        LocationCommand::Heal { replaced } => heal(&session, replaced.as_deref()),
    }
}

fn print_locations(session: &Session<'_>, all: &Value) -> Result<(), Failure> {
    session.print(all, &["name", "url", "health", "missing", "why", "warning"], |location| {
        ["name", "url", "health", "missing", "why", "warning"]
            .map(|key| cell(&location[key]))
            .into()
    })
}

/// How often to ask how healing goes.
const HEALING: Duration = Duration::from_millis(200);

fn heal(session: &Session<'_>, replaced: Option<&str>) -> Result<(), Failure> {
    let body = json!({ "replaced": replaced });
    let answer = session.client.post(&session.path("/locations/heal"), &body)?;
    if session.global.no_wait {
        session.terminal.say("healing was asked for; `stillpoint location:list` tells how it goes");
        return Ok(());
    }
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let asked = time(&answer["asked_at"]);
    let all = loop {
        let all = session.client.get(&session.path("/locations"))?;
        let locations = all.as_array().map(Vec::as_slice).unwrap_or_default();
        let looked_at = |l: &Value| time(&l["checked_at"]) > asked && l["health"] != "healing";
        if locations.iter().all(looked_at) {
            break all;
        }
        std::thread::sleep(HEALING);
    };
    print_locations(session, &all)?;
    let whole = |location: &Value| location["health"] == "healthy";
    if all.as_array().is_some_and(|all| all.iter().all(whole)) {
        return Ok(());
    }
    Err(Failure::partial(
        "not every location is whole; what they lack is copied once they can be used",
    ))
}
