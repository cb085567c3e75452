//! `backup:restore` and `recover`.

use crate::arguments::{Global, RestoreArgs};
use crate::backups::cron_run;
use crate::backups::{self, LIVE_WARNING};
use crate::failure::Failure;
use crate::remote::confirm;
use crate::terminal::Terminal;
use std::sync::Arc;
use stillpoint_agent::place::Place;
use stillpoint_agent::restore::{Plan, Wish, recover};
use stillpoint_agent::{backup, stored};
use stillpoint_capture::restore::Recovered;
use stillpoint_model::ids::{BackupId, PartName};
use stillpoint_model::manifest::{Completeness, Consistency, Manifest};

/// Restores a backup to the environment that it is of.
pub(crate) fn run(global: &Global, arguments: &RestoreArgs) -> Result<(), Failure> {
    let place = Place::find(&global.place(), None)?;
    let terminal = Arc::new(Terminal::new(global.quiet, global.verbose > 0));
    let backup = arguments.id.as_deref().map(backups::backup_id).transpose()?;
    let reader = Arc::new(stored::open(&place)?);
    backups::warn_of_damaged(&reader, &terminal);
    let wish = Wish { backup, from: None, only: arguments.only.clone(), asked_by: cron_run() };
    let plan = Plan::new(&place, reader, &wish)?;
    let manifest = plan.manifest();
    if manifest.consistency == Consistency::Live {
        terminal.say(&format!("warning: {LIVE_WARNING}"));
    }
    if manifest.completeness == Completeness::Partial {
        terminal.say(&format!(
            "warning: the backup is partial: it lacks {} things",
            manifest.gaps.len()
        ));
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
        let safety =
            backup::take(&place, BackupId::random(), false, cron_run().as_deref(), &terminal)
                .map_err(|e| {
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
    let restored = plan.run(&place, &*terminal)?;
    terminal.clear();
    let names: Vec<&str> = restored.parts.iter().map(PartName::as_str).collect();
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

/// Finishes or undoes a restore that was cut off.
pub(crate) fn run_recover(global: &Global) -> Result<(), Failure> {
    let place = Place::find(&global.place(), None)?;
    let terminal = Terminal::new(global.quiet, global.verbose > 0);
    match recover(&place)? {
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
