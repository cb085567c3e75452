//! `backup:create`: this process is the coordinator.

use crate::arguments::{CreateArgs, Format, Global};
use crate::backups::{LIVE_WARNING, cron_run, object, tell_doubts};
use crate::failure::Failure;
use crate::output::put;
use crate::terminal::Terminal;
use indicatif::HumanBytes;
use std::sync::Arc;
use stillpoint_agent::backup::{replicate, replicating, take};
use stillpoint_agent::place::Place;
use stillpoint_capture::Backup;
use stillpoint_model::ids::BackupId;
use stillpoint_model::manifest::Completeness;

/// Takes a backup and prints its id.
pub(crate) fn run(global: &Global, arguments: &CreateArgs) -> Result<(), Failure> {
    let place = Place::find(&global.place(), arguments.name.as_deref())?;
    let terminal = Arc::new(Terminal::new(global.quiet, global.verbose > 0));
    if arguments.live {
        terminal.say(&format!("warning: {LIVE_WARNING}"));
    }
    let backup =
        take(&place, BackupId::random(), arguments.live, cron_run().as_deref(), &terminal)?;
    let copies = replicate(&place, &backup, &*terminal)
        .and_then(|copies| copies.of(&backup.manifest.backup))
        .unwrap_or(backup.stats.copies);
    terminal.clear();
    let manifest = &backup.manifest;
    if global.format == Format::Json {
        put(&format!("{:#}", object(manifest, copies)))?;
    } else {
        put(manifest.backup.as_str())?;
    }
    summarise(&backup, &terminal);
    if copies < place.write_quorum() {
        terminal.say(&format!("warning: {}", replicating(copies, place.write_quorum())));
    }
    if manifest.completeness == Completeness::Partial {
        let gaps: Vec<String> = manifest
            .gaps
            .iter()
            .take(10)
            .map(|gap| format!("{}: {}: {}", gap.part, gap.what, gap.why))
            .collect();
        return Err(Failure::partial(format!(
            "the backup lacks {} of what was asked for:\n  {}",
            manifest.gaps.len(),
            gaps.join("\n  ")
        )));
    }
    Ok(())
}

fn summarise(backup: &Backup, terminal: &Terminal) {
    let manifest = &backup.manifest;
    let captured: u64 = manifest.bytes_captured();
    let sizes = format!(
        "{} captured, {} added to the repository",
        HumanBytes(captured),
        HumanBytes(backup.stats.bytes_stored)
    );
    match &manifest.evidence {
        Some(evidence) => terminal.say(&format!(
            "held {:.0} ms (drain {:.0}, mark {:.0}), {} requests waited; {sizes}",
            evidence.hold_ms(),
            evidence.drain_ms(),
            evidence.mark_ms(),
            evidence.gateways.iter().map(|g| g.held).sum::<u64>(),
        )),
        None => terminal.say(&sizes),
    }
    tell_doubts(manifest, "the backup", terminal);
}
