//! `doctor`: what works here and what is missing, for backup and for restore. It changes nothing.

use crate::arguments::{Format, Global};
use crate::failure::Failure;
use crate::output::{put, rows};
use crate::remote::Client;
use serde_json::json;
use std::os::unix::net::UnixStream;
use stillpoint_agent::parts;
use stillpoint_agent::place::{Place, read_config};
use stillpoint_capture::worker::examine;
use stillpoint_services::{Finding, NeededFor};

/// Looks into every environment, or into the one that is named.
pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let at = global.place();
    let (config, _) = read_config(&at)?;
    let mut found = Vec::new();
    for name in config.environments.keys() {
        if global.environment.as_deref().is_none_or(|wanted| wanted == name.as_str()) {
            let place = Place::find(&at, Some(name.as_str()))?;
            look_into(&place, &mut found);
        }
    }
    found.push(("server".to_owned(), server(global)));
    show(global, &found)?;
    let missing = found.iter().filter(|(_, finding)| finding.problem.is_some()).count();
    if missing > 0 {
        return Err(Failure::new(format!(
            "{missing} of {} things are not as they must be",
            found.len()
        )));
    }
    Ok(())
}

fn look_into(place: &Place, found: &mut Vec<(String, Finding)>) {
    let environment = place.environment();
    for (name, service) in &environment.services {
        let part = format!("{}/{name}", place.name);
        match parts::driver(service) {
            Ok(driver) => {
                found.extend(driver.examine().into_iter().map(|finding| (part.clone(), finding)));
            }
            Err(error) => {
                let failure = Failure::from(error);
                found.push((part, finding("its configuration", Err(failure))));
            }
        }
    }
    for (name, mount) in &environment.mounts {
        let read = std::fs::read_dir(&mount.path)
            .map(drop)
            .map_err(|e| Failure::new(format!("look into {}", mount.path.display())).because(&e));
        found.push((format!("{}/{name}", place.name), finding("the directory", read)));
    }
    for (name, worker) in &environment.workers {
        let findings = examine(worker).into_iter();
        found.extend(findings.map(|finding| (format!("{}/{name}", place.name), finding)));
    }
    for name in environment.gateways.keys() {
        let reached = place.gateway_socket(name).and_then(|socket| {
            UnixStream::connect(&socket).map(drop).map_err(|e| {
                Failure::new("it does not run")
                    .because(&e)
                    .hint(format!("`stillpoint up` starts it, or `stillpoint gateway {name}`"))
            })
        });
        found.push((format!("{}/{name}", place.name), finding("the gateway", reached)));
    }
    let watched = place.watchdog_socket().and_then(|socket| {
        UnixStream::connect(&socket).map(drop).map_err(|e| {
            Failure::new("it does not run")
                .because(&e)
                .hint("`stillpoint up` starts it, or `stillpoint watchdog`")
        })
    });
    found.push((place.name.to_string(), finding("the watchdog", watched)));
    let opened = place
        .vault()
        .and_then(|vault| vault.is_known())
        .and_then(|known| if known { place.repository(false).map(drop) } else { Ok(()) });
    let what = "the repository, if there have been backups";
    found.push((place.name.to_string(), finding(what, opened)));
}

fn server(global: &Global) -> Finding {
    let asked = Client::new(global).and_then(|client| client.get("/users/me").map(drop));
    finding("the API and our token for it", asked)
}

fn finding(what: &str, result: Result<(), Failure>) -> Finding {
    let (problem, hint) = match result {
        Ok(()) => (None, None),
        Err(failure) => (Some(failure.lines().join(": ")), failure.advice().map(str::to_owned)),
    };
    Finding { what: what.to_owned(), needed_for: NeededFor::Backup, problem, hint }
}

fn show(global: &Global, found: &[(String, Finding)]) -> Result<(), Failure> {
    let needed_for = |finding: &Finding| match finding.needed_for {
        NeededFor::Backup => "backup",
        NeededFor::Restore => "restore",
    };
    if global.format == Format::Json {
        let objects: Vec<_> = found
            .iter()
            .map(|(part, finding)| {
                json!({
                    "part": part, "what": finding.what, "needed_for": needed_for(finding),
                    "ok": finding.problem.is_none(), "problem": finding.problem,
                    "hint": finding.hint,
                })
            })
            .collect();
        return put(&format!("{:#}", serde_json::Value::from(objects)));
    }
    let lines: Vec<Vec<String>> = found
        .iter()
        .map(|(part, finding)| {
            vec![
                part.clone(),
                finding.what.clone(),
                needed_for(finding).to_owned(),
                finding.problem.clone().unwrap_or_else(|| "ok".to_owned()),
                finding.hint.clone().unwrap_or_default(),
            ]
        })
        .collect();
    rows(global.format, &["part", "what", "needed for", "state", "what to do"], &lines)
}
