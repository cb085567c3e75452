//! `backup:restore` and `recover`.

use crate::arguments::{Global, RestoreArgs};
use crate::backups::{LIVE_WARNING, Stored};
use crate::failure::Failure;
use crate::place::{Activity, Place};
use crate::terminal::Terminal;
use crate::{backups, create, environment};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use stillpoint_capture::restore::{Recovered, RestoreOrder, recover, restore};
use stillpoint_gateway::control::Purpose;
use stillpoint_model::ids::BackupId;
use stillpoint_model::manifest::{Completeness, Consistency, Manifest};

/// Restores a backup to the environment that it is of.
pub(crate) fn run(global: &Global, arguments: &RestoreArgs) -> Result<(), Failure> {
    let place = Place::find(global, None)?;
    let terminal = Terminal::new(global.quiet, global.verbose > 0);
    let reader = Arc::new(backups::open(&place)?);
    backups::warn_of_damaged(&reader, &terminal);
    let stored = match &arguments.id {
        Some(id) => Stored::one(&place, &reader, id)?,
        None => Stored::newest(&place, &reader)?.ok_or_else(|| {
            Failure::new(format!("environment `{}` has no backups yet", place.name))
        })?,
    };
    let manifest = &stored.manifest;
    for only in &arguments.only {
        if !manifest.parts.iter().any(|part| part.name.as_str() == only) {
            let names: Vec<&str> = manifest.parts.iter().map(|part| part.name.as_str()).collect();
            return Err(Failure::usage(format!("the backup holds no `{only}`"))
                .hint(format!("it holds: {}", names.join(", "))));
        }
    }
    if manifest.consistency == Consistency::Live {
        terminal.say(&format!("warning: {LIVE_WARNING}"));
    }
    if manifest.completeness == Completeness::Partial {
        terminal.say(&format!(
            "warning: the backup is partial: it lacks {} things",
            manifest.gaps.len()
        ));
    }
    let mut parts = Vec::new();
    for part in &manifest.parts {
        if arguments.only.is_empty() || arguments.only.iter().any(|o| o == part.name.as_str()) {
            let directory = stored.directory_of(&reader, part)?;
            parts.push(environment::restore_part(&place, &reader, part, directory)?);
        }
    }
    let question = format!(
        "Replace the data of `{}` with backup {} of {:.0}?",
        place.name, manifest.backup, manifest.created
    );
    if !global.yes && !confirm(&question)? {
        return Err(Failure::new("not restored: it was not confirmed"));
    }
    if !arguments.no_safety_backup {
        terminal.say("taking a safety backup of what is there now");
        let safety = create::take(&place, false, &terminal).map_err(|e| {
            e.hint("mend that, or restore without a safety backup: --no-safety-backup")
        })?;
        terminal.say(&format!("safety backup {}", safety.manifest.backup));
        if !is_safe(&safety.manifest, &terminal) {
            let question = "What it lacks cannot be had back. Restore all the same?";
            if !global.yes && !confirm(question)? {
                return Err(Failure::new("not restored: the safety backup is partial"));
            }
        }
    }
    let _busy = place.lock(Activity::Restore)?;
    let limits = create::limits(&place);
    let watchdog = create::watchdog(&place, &limits)?;
    let order = RestoreOrder {
        backup: manifest.backup.clone(),
        token: BackupId::random().as_str()[..12].to_owned(),
        journal: place.journal()?,
        recovery: recovery_arguments(&place),
        limits,
    };
    let gateways = environment::gateways(&place, Purpose::Restore)?;
    let restored = restore(&order, parts, gateways, &watchdog, &terminal)?;
    terminal.clear();
    create::take_leave(watchdog);
    let names: Vec<&str> =
        restored.parts.iter().map(stillpoint_model::ids::PartName::as_str).collect();
    terminal.say(&format!("restored {} from {}", names.join(", "), manifest.backup));
    if let Some(hold_ms) = restored.hold_ms {
        terminal.say(&format!("requests waited for {hold_ms:.0} ms"));
    }
    if let Some(code) = &manifest.code {
        terminal.say(&format!(
            "code is not part of a backup; it was at commit {}: git checkout {}",
            code.commit, code.commit
        ));
    }
    Ok(())
}

/// Says what a safety backup is worth; false if something is missing from it.
fn is_safe(manifest: &Manifest, terminal: &Terminal) -> bool {
    backups::tell_doubts(manifest, "warning: the safety backup", terminal);
    if manifest.completeness == Completeness::Complete {
        return true;
    }
    terminal.say(&format!(
        "warning: the safety backup is partial: it lacks {} things",
        manifest.gaps.len()
    ));
    for gap in manifest.gaps.iter().take(10) {
        terminal.say(&format!("  {}: {}: {}", gap.part, gap.what, gap.why));
    }
    false
}

/// How this program is called to recover a restore of this environment.
fn recovery_arguments(place: &Place) -> Vec<String> {
    [
        "recover".to_owned(),
        "--config".to_owned(),
        place.config_file.display().to_string(),
        "--data-dir".to_owned(),
        place.data.display().to_string(),
        "--environment".to_owned(),
        place.name.to_string(),
    ]
    .into()
}

fn confirm(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("this needs a yes").hint("--yes answers it"));
    }
    let fail = |e: io::Error| Failure::new("ask").because(&e);
    io::stderr().write_all(format!("{question} [y/N] ").as_bytes()).map_err(fail)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(fail)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Finishes or undoes a restore that was cut off.
pub(crate) fn run_recover(global: &Global) -> Result<(), Failure> {
    let place = Place::find(global, None)?;
    let terminal = Terminal::new(global.quiet, global.verbose > 0);
    let _busy = place.lock(Activity::Restore)?;
    let gateways = environment::gateway_sockets(&place)?;
    let steps = |part: &_| environment::recovery_steps(&place, part);
    match recover(&place.journal()?, steps, &gateways)? {
        None => terminal.say("nothing to recover: no restore was cut off"),
        Some((backup, Recovered::Back)) => {
            terminal.say(&format!("the restore of {backup} was undone: the data is as before it"));
        }
        Some((backup, Recovered::Forward)) => {
            terminal.say(&format!("the restore of {backup} was finished"));
        }
    }
    Ok(())
}
