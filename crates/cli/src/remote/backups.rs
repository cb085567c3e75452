//! `backup:*` over the API.

use super::activities::wait;
use super::{Session, cell, list, segment};
use crate::arguments::{CreateArgs, DeleteArgs, Format, GetArgs, Global, ListArgs, RestoreArgs};
use crate::backups::{LIVE_WARNING, cron_run};
use crate::failure::Failure;
use crate::output::put;
use serde_json::{Value, json};

/// `backup:create`.
pub(crate) fn create(global: &Global, arguments: &CreateArgs) -> Result<(), Failure> {
    let session = Session::new(global)?;
    let name = session.environment(arguments.name.as_deref())?;
    if arguments.live {
        session.terminal.say(&format!("warning: {LIVE_WARNING}"));
    }
    let path = session.environment_path(&name, "/backup");
    let body = json!({ "safe": !arguments.live, "cron_run": cron_run() });
    let answer = session.client.post(&path, &body)?;
    let activity = &answer["_embedded"]["activities"][0];
    let id = activity["payload"]["backup_name"].as_str().unwrap_or_default();
    if global.no_wait {
        session.terminal.say(&format!("activity {}", cell(&activity["id"])));
        return put(id);
    }
    wait(&session, &answer)?;
    let backup = session.client.get(&one(&session, &name, id))?;
    if global.format == Format::Json {
        put(&format!("{backup:#}"))?;
    } else {
        put(id)?;
    }
    // Where there is no bar to draw, every line of the log was shown, and these with them.
    if session.terminal.draws() {
        tell(&session, &backup);
    }
    if backup["attributes"]["completeness"] == "partial" {
        let gaps: Vec<String> = list(&backup["gaps"])
            .iter()
            .take(10)
            .map(|gap| {
                format!("{}: {}: {}", cell(&gap["part"]), cell(&gap["what"]), cell(&gap["why"]))
            })
            .collect();
        return Err(Failure::partial(format!(
            "the backup lacks {} of what was asked for:\n  {}",
            list(&backup["gaps"]).len(),
            gaps.join("\n  ")
        )));
    }
    Ok(())
}

/// What a backup is worth, in words.
fn tell(session: &Session<'_>, backup: &Value) {
    let attribute = |name: &str| backup["attributes"][name].as_str();
    if let Some(hold) = attribute("hold_ms") {
        session.terminal.say(&format!(
            "held {hold} ms (drain {}, mark {}), {} requests waited",
            attribute("drain_ms").unwrap_or("-"),
            attribute("mark_ms").unwrap_or("-"),
            attribute("requests_held").unwrap_or("-"),
        ));
    }
    for doubt in list(&backup["doubts"]).iter().take(10) {
        session.terminal.say(&format!("crash-consistent only: {}", cell(doubt)));
    }
}

fn one(session: &Session<'_>, environment: &str, id: &str) -> String {
    session.environment_path(environment, &format!("/backups/{}", segment(id)))
}

/// `backup:list`.
pub(crate) fn list_all(global: &Global, arguments: &ListArgs) -> Result<(), Failure> {
    let session = Session::new(global)?;
    let name = session.environment(arguments.name.as_deref())?;
    let all = session.client.get(&session.environment_path(&name, "/backups"))?;
    let heading =
        ["id", "created", "consistency", "completeness", "hold ms", "bytes", "copies", "status"];
    session.print(&all, &heading, row)?;
    if list(&all).iter().any(|backup| backup["safe"] == false) {
        session.terminal.say(&format!("note: {LIVE_WARNING}"));
    }
    Ok(())
}

fn row(backup: &Value) -> Vec<String> {
    let attribute = |name: &str| cell(&backup["attributes"][name]);
    let replicating = backup["attributes"]["replication"] == "replicating";
    let status = if replicating { "replicating".to_owned() } else { cell(&backup["status"]) };
    vec![
        cell(&backup["id"]),
        cell(&backup["created_at"]),
        attribute("consistency"),
        attribute("completeness"),
        attribute("hold_ms"),
        attribute("bytes_captured"),
        attribute("copies"),
        status,
    ]
}

/// `backup:get`.
pub(crate) fn get(global: &Global, arguments: &GetArgs) -> Result<(), Failure> {
    let session = Session::new(global)?;
    let name = session.environment(None)?;
    let backup = session.client.get(&one(&session, &name, &arguments.id))?;
    if let Some(property) = &arguments.property {
        let found = if backup[property].is_null() {
            &backup["attributes"][property]
        } else {
            &backup[property]
        };
        if found.is_null() && backup.get(property).is_none() {
            return Err(Failure::usage(format!("a backup has no property `{property}`")));
        }
        return put(&cell(found));
    }
    if global.format == Format::Json {
        return put(&format!("{backup:#}"));
    }
    let heading =
        ["id", "created", "consistency", "completeness", "hold ms", "bytes", "copies", "status"];
    session.print(&json!([backup]), &heading, row)?;
    for gap in list(&backup["gaps"]) {
        let (part, what, why) = (cell(&gap["part"]), cell(&gap["what"]), cell(&gap["why"]));
        put(&format!("missing: {part}: {what}: {why}"))?;
    }
    for doubt in list(&backup["doubts"]) {
        put(&format!("doubt: {}", cell(doubt)))?;
    }
    Ok(())
}

/// `backup:delete`.
pub(crate) fn delete(global: &Global, arguments: &DeleteArgs) -> Result<(), Failure> {
    let session = Session::new(global)?;
    let name = session.environment(None)?;
    let path = one(&session, &name, &arguments.id);
    let backup = session.client.get(&path)?;
    session.confirm(&format!(
        "Delete backup {} of `{name}`, of {}? It cannot be had back.",
        arguments.id,
        cell(&backup["created_at"])
    ))?;
    let answer = session.client.delete(&path)?;
    if !global.no_wait {
        wait(&session, &answer)?;
        session.terminal.say(&format!("backup {} was deleted", arguments.id));
    }
    Ok(())
}

/// `backup:restore`.
pub(crate) fn restore(global: &Global, arguments: &RestoreArgs) -> Result<(), Failure> {
    let session = Session::new(global)?;
    let name = session.environment(None)?;
    let target = arguments.target.as_deref().unwrap_or(&name);
    let backup = if let Some(id) = &arguments.id {
        session.client.get(&one(&session, &name, id))?
    } else {
        let all = session.client.get(&session.environment_path(&name, "/backups"))?;
        let newest = list(&all).first().cloned();
        newest.ok_or_else(|| Failure::new(format!("environment `{name}` has no backups yet")))?
    };
    let id = cell(&backup["id"]);
    if backup["safe"] == false {
        session.terminal.say(&format!("warning: {LIVE_WARNING}"));
    }
    if backup["attributes"]["completeness"] == "partial" {
        session.terminal.say(&format!(
            "warning: the backup is partial: it lacks {} things",
            list(&backup["gaps"]).len()
        ));
    }
    session.confirm(&format!(
        "Replace the data of `{target}` with backup {id} of {}?",
        cell(&backup["created_at"])
    ))?;
    let mut body = json!({
        "environment_name": target,
        "only": arguments.only,
        "safety_backup": !arguments.no_safety_backup,
    });
    if let Some(parent) = &arguments.branch_from {
        body["branch_from"] = parent.clone().into();
    }
    if arguments.no_code {
        body["restore_code"] = false.into();
    }
    let answer = session.client.post(&format!("{}/restore", one(&session, &name, &id)), &body)?;
    if global.no_wait {
        let activity = &answer["_embedded"]["activities"][0];
        return put(&cell(&activity["id"]));
    }
    let ended = wait(&session, &answer)?;
    session.terminal.say(&format!("restored {id} to `{target}`"));
    if let Some(safety) = ended["payload"]["safety_backup"].as_str() {
        session.terminal.say(&format!("what was there before is in backup {safety}"));
    }
    if let Some(commit) = ended["payload"]["commit"].as_str() {
        session.terminal.say(&format!(
            "code is not part of a backup; it was at commit {commit}: git checkout {commit}"
        ));
    }
    Ok(())
}
