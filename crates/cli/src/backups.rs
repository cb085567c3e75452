//! The backups of an environment, as its repository holds them, and how they are shown.

use crate::arguments::{DeleteArgs, Format, GetArgs, Global, ListArgs};
use crate::failure::Failure;
use crate::output::{put, rows, tell};
use crate::remote::confirm;
use crate::terminal::Terminal;
use stillpoint_agent::place::Place;
use stillpoint_agent::stored::{Stored, damaged, forget, open};
use stillpoint_model::ids::BackupId;
use stillpoint_model::manifest::{Consistency, Manifest};
use stillpoint_repository::Reader;

/// The run of a cron that this command is part of, and that is not frozen by what it asks for.
pub(crate) fn cron_run() -> Option<String> {
    std::env::var("STILLPOINT_CRON_RUN").ok().filter(|run| !run.is_empty())
}

/// Says that there may be newer backups than those that can be seen.
pub(crate) fn warn_of_damaged(reader: &Reader, terminal: &Terminal) {
    for failure in damaged(reader) {
        terminal.say(&format!("warning: {failure}"));
    }
}

/// `backup:list`.
pub(crate) fn list(global: &Global, arguments: &ListArgs) -> Result<(), Failure> {
    let place = Place::find(&global.place(), arguments.name.as_deref())?;
    let (all, unreadable) = Stored::all(&place, &open(&place)?);
    print(&all, global.format)?;
    if all.iter().any(|backup| backup.manifest.consistency == Consistency::Live) && !global.quiet {
        tell(&format!("note: {LIVE_WARNING}"));
    }
    if unreadable.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = unreadable.iter().map(|why| format!("\n  {why}")).collect();
    let count = unreadable.len();
    Err(Failure::new(format!("{count} of the backups cannot be read:{}", lines.concat())))
}

/// `backup:get`.
pub(crate) fn get(global: &Global, arguments: &GetArgs) -> Result<(), Failure> {
    let place = Place::find(&global.place(), None)?;
    let stored = Stored::one(&place, &open(&place)?, &backup_id(&arguments.id)?)?;
    if global.format == Format::Json {
        return put(&format!("{:#}", object(&stored.manifest, stored.copies)));
    }
    print(std::slice::from_ref(&stored), global.format)?;
    for gap in &stored.manifest.gaps {
        put(&format!("missing: {}: {}: {}", gap.part, gap.what, gap.why))?;
    }
    for doubt in &stored.manifest.doubts {
        put(&format!("doubt: {doubt}"))?;
    }
    Ok(())
}

/// `backup:delete`.
pub(crate) fn delete(global: &Global, arguments: &DeleteArgs) -> Result<(), Failure> {
    let place = Place::find(&global.place(), None)?;
    let id = backup_id(&arguments.id)?;
    let question = format!("Delete backup {id} of `{}`? It cannot be had back.", place.name);
    if !global.yes && !confirm(&question)? {
        return Err(Failure::new("not deleted: it was not confirmed"));
    }
    if forget(&place, std::slice::from_ref(&id))?.is_empty() {
        return Err(Failure::new(format!("environment `{}` has no backup {id}", place.name))
            .hint("`stillpoint backup:list` shows what there is"));
    }
    tell(&format!("backup {id} was deleted"));
    Ok(())
}

/// Says what keeps a held backup from being consistent, if anything does.
pub(crate) fn tell_doubts(manifest: &Manifest, which: &str, terminal: &Terminal) {
    if manifest.consistency == Consistency::CrashConsistent {
        terminal.say(&format!("{which} is crash-consistent only:"));
        for doubt in manifest.doubts.iter().take(10) {
            terminal.say(&format!("  {doubt}"));
        }
    }
}

/// What a live backup is warned of, wherever it shows.
pub(crate) const LIVE_WARNING: &str =
    "a live backup is less reliable to restore: its services are not at one instant";

/// A backup as an object of the API: the same shape, so that scripts outlive this form.
pub(crate) fn object(manifest: &Manifest, copies: usize) -> serde_json::Value {
    let mut attributes = manifest.attributes();
    attributes.insert("copies".to_owned(), copies.to_string());
    serde_json::json!({
        "id": manifest.backup,
        "environment": manifest.environment,
        "status": "CREATED",
        "safe": manifest.consistency != Consistency::Live,
        "restorable": true,
        "automated": false,
        "index": null,
        "commit_id": manifest.code.as_ref().map(|code| code.commit.clone()),
        "created_at": format!("{:.6}", manifest.created),
        "updated_at": format!("{:.6}", manifest.created),
        "expires_at": null,
        "attributes": attributes,
        "gaps": manifest.gaps,
        "doubts": manifest.doubts,
        "evidence": manifest.evidence,
        "parts": manifest.parts,
    })
}

/// A backup's id, as a person gave it.
pub(crate) fn backup_id(given: &str) -> Result<BackupId, Failure> {
    given.parse().map_err(|e| Failure::usage(format!("{e}")))
}

/// Prints backups on stdout.
pub(crate) fn print(backups: &[Stored], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let objects: Vec<_> = backups.iter().map(|b| object(&b.manifest, b.copies)).collect();
        return put(&format!("{:#}", serde_json::Value::from(objects)));
    }
    let heading = ["id", "created", "consistency", "completeness", "hold ms", "bytes"];
    let lines: Vec<Vec<String>> = backups.iter().map(|b| row(&b.manifest).into()).collect();
    rows(format, &heading, &lines)
}

fn row(manifest: &Manifest) -> [String; 6] {
    let hold = manifest.evidence.as_ref().map(|e| format!("{:.1}", e.hold_ms()));
    [
        manifest.backup.to_string(),
        format!("{:.0}", manifest.created),
        manifest.consistency.as_str().to_owned(),
        manifest.completeness.as_str().to_owned(),
        hold.unwrap_or_else(|| "-".to_owned()),
        manifest.bytes_captured().to_string(),
    ]
}
