//! Activities: listed, shown, followed to their end, cancelled.

use super::{Session, Trouble, cell, list, segment};
use crate::arguments::{ActivityCommand, Global};
use crate::failure::Failure;
use crate::output::put;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

/// How long a lost server is looked for.
const PATIENCE: Duration = Duration::from_secs(120);

/// `activity:*`.
pub(crate) fn run(global: &Global, command: &ActivityCommand) -> Result<(), Failure> {
    let session = Session::new(global)?;
    match command {
        ActivityCommand::List { limit } => {
            let path = format!("/activities?count={limit}");
            let path = match &global.environment {
                Some(name) => session.environment_path(name, &path),
                None => session.path(&path),
            };
            let heading = ["id", "created", "type", "environment", "state", "result", "text"];
            session.print(&session.client.get(&path)?, &heading, |activity| {
                vec![
                    cell(&activity["id"]),
                    cell(&activity["created_at"]),
                    cell(&activity["type"]),
                    cell(&activity["environments"][0]),
                    cell(&activity["state"]),
                    cell(&activity["result"]),
                    cell(&activity["text"]),
                ]
            })
        }
        ActivityCommand::Get { id } => {
            let activity = session.client.get(&one(&session, id))?;
            put(&format!("{activity:#}"))
        }
        ActivityCommand::Log { id } => {
            follow(&session, id, &mut |line| put(line))?;
            Ok(())
        }
        ActivityCommand::Cancel { id } => {
            let id = match id {
                Some(id) => id.clone(),
                None => newest_open(&session)?,
            };
            session.client.post(&format!("{}/cancel", one(&session, &id)), &Value::Null)?;
            session.terminal.say(&format!(
                "activity {id} was asked to stop; `stillpoint activity:log {id}` shows its end"
            ));
            Ok(())
        }
    }
}

fn one(session: &Session<'_>, id: &str) -> String {
    session.path(&format!("/activities/{}", segment(id)))
}

fn newest_open(session: &Session<'_>) -> Result<String, Failure> {
    let open = session.client.get(&session.path("/activities?state=pending&state=in_progress"))?;
    let newest = list(&open).first().and_then(|activity| activity["id"].as_str());
    newest.map(str::to_owned).ok_or_else(|| Failure::new("no activity is under way"))
}

/// Waits for the activity of an answer, showing its log, and gives its last state.
pub(crate) fn wait(session: &Session<'_>, answer: &Value) -> Result<Value, Failure> {
    let activity = &answer["_embedded"]["activities"][0];
    let Some(id) = activity["id"].as_str() else {
        return Err(Failure::new("the server started no activity"));
    };
    let terminal = &session.terminal;
    terminal.say(&format!("activity {id}"));
    let ended = follow(session, id, &mut |line| {
        terminal.status(line);
        // What passes by on a bar is gone; a warning must stay.
        if !terminal.draws() || line.starts_with("warning: ") {
            terminal.say(line);
        }
        Ok(())
    })?;
    terminal.clear();
    match (ended["result"].as_str(), ended["state"].as_str()) {
        (Some("success"), _) => Ok(ended),
        (_, Some("cancelled")) => Err(Failure::cancelled(format!("activity {id} was cancelled"))),
        _ => {
            let reason = ended["failure_reason"].as_str().unwrap_or("the activity failed");
            let (reason, hint) = match reason.split_once("\nhint: ") {
                Some((reason, hint)) => (reason, Some(hint)),
                None => (reason, None),
            };
            let mut lines = reason.lines();
            let mut failure = Failure::new(lines.next().unwrap_or_default());
            for line in lines {
                failure = failure.and(line.strip_prefix("because: ").unwrap_or(line));
            }
            Err(failure.hint(hint.map_or_else(
                || format!("`stillpoint activity:log {id}` shows all of it"),
                str::to_owned,
            )))
        }
    }
}

/// Reads an activity's log to its seal, from another connection where one breaks, and gives its
/// last state.
fn follow(
    session: &Session<'_>,
    id: &str,
    act: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<Value, Failure> {
    let mut next = 0_usize;
    let mut lost_since: Option<Instant> = None;
    loop {
        match read_log(session, id, &mut next, act) {
            Ok(true) => match session.client.try_get(&one(session, id)) {
                Ok(activity) => return Ok(activity),
                Err(Trouble::Refused(failure)) => return Err(failure),
                Err(Trouble::Lost(_)) => {}
            },
            Ok(false) => lost_since = None,
            Err(Trouble::Refused(failure)) => return Err(failure),
            Err(Trouble::Lost(error)) => {
                let since = *lost_since.get_or_insert_with(|| {
                    session.terminal.say("the server does not answer; trying again");
                    Instant::now()
                });
                if since.elapsed() > PATIENCE {
                    return Err(session
                        .client
                        .explain(Trouble::Lost(error))
                        .hint(format!("the activity goes on: `stillpoint activity:log {id}`")));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Reads what one connection gives; true if that ended with the seal.
fn read_log(
    session: &Session<'_>,
    id: &str,
    next: &mut usize,
    act: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<bool, Trouble> {
    let log = session.client.stream(&format!("{}/log?start_at={next}", one(session, id)))?;
    for line in BufReader::new(log).lines() {
        // A connection that breaks is opened again, from the line that is missing.
        let Ok(line) = line else { return Ok(false) };
        let Ok(item) = serde_json::from_str::<Value>(&line) else { return Ok(false) };
        if item["seal"] == true {
            return Ok(true);
        }
        let message = item["data"]["message"].as_str().unwrap_or_default();
        act(message.trim_end_matches('\n')).map_err(Trouble::Refused)?;
        *next += 1;
    }
    Ok(false)
}
