//! `environment:*` and `location:list`.

use super::activities::wait;
use super::{Session, cell};
use crate::arguments::{EnvironmentCommand, Global, LocationCommand};
use crate::failure::Failure;
use crate::output::put;
use serde_json::{Value, json};

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
            session.print(&all, &["name", "url", "health", "why"], |location| {
                vec![
                    cell(&location["name"]),
                    cell(&location["url"]),
                    cell(&location["health"]),
                    cell(&location["why"]),
                ]
            })
        }
    }
}
