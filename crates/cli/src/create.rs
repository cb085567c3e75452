//! `backup:create`: this process is the coordinator.

use crate::arguments::{CreateArgs, Format, Global};
use crate::backups::{LIVE_WARNING, Stored, object, tell_doubts};
use crate::environment;
use crate::failure::Failure;
use crate::output::put;
use crate::place::{Activity, Place};
use crate::terminal::Terminal;
use indicatif::HumanBytes;
use std::sync::Arc;
use stillpoint_capture::restore::Journal;
use stillpoint_capture::watchdog::Guard;
use stillpoint_capture::{Backup, BackupOrder, Limits, back_up};
use stillpoint_model::config::OnPartial;
use stillpoint_model::ids::BackupId;
use stillpoint_model::manifest::Completeness;

/// Takes a backup and prints its id.
pub(crate) fn run(global: &Global, arguments: &CreateArgs) -> Result<(), Failure> {
    let place = Place::find(global, arguments.name.as_deref())?;
    let terminal = Terminal::new(global.quiet, global.verbose > 0);
    if arguments.live {
        terminal.say(&format!("warning: {LIVE_WARNING}"));
    }
    let backup = take(&place, arguments.live, &terminal)?;
    terminal.clear();
    let manifest = &backup.manifest;
    if global.format == Format::Json {
        put(&format!("{:#}", object(manifest)))?;
    } else {
        put(manifest.backup.as_str())?;
    }
    summarise(&backup, &terminal);
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

/// Takes a backup of the environment.
pub(crate) fn take(place: &Place, live: bool, terminal: &Terminal) -> Result<Backup, Failure> {
    let _busy = place.lock(Activity::Backup)?;
    if let Some(open) = Journal::read(&place.journal()?)? {
        return Err(Failure::new(format!(
            "back up `{}`: a restore of {} has not ended",
            place.name, open.backup
        ))
        .hint("`stillpoint recover` finishes it or undoes it"));
    }
    let limits = limits(place);
    let watchdog = watchdog(place, &limits)?;
    let repository = place.repository(true)?;
    let reader =
        repository.reader().map_err(|e| Failure::new("read the repository's index").because(&e))?;
    // What the last backup holds only saves reading: one that is damaged must not stop this one.
    let last = Stored::newest(place, &reader).unwrap_or_else(|failure| {
        terminal.say(&format!("warning: {failure}; everything is read again"));
        None
    });
    let last = last.as_ref().map(|last| (&reader, last));
    let participants = environment::participants(place, live, last, terminal)?;
    drop(reader);
    let environment = place.environment();
    let order = BackupOrder {
        backup: BackupId::random(),
        project: place.config.project.clone(),
        environment: place.name.clone(),
        environment_type: environment.kind.to_string(),
        code: environment::code(place),
        live,
        fail_if_partial: environment.on_partial == OnPartial::Fail,
        limits,
    };
    let watchdog = Arc::new(watchdog);
    // After a failure there is no goodbye: should a lock be left, the watchdog removes it.
    let backup = back_up(&order, participants, &repository, &watchdog, terminal)?;
    if let Some(watchdog) = Arc::into_inner(watchdog) {
        take_leave(watchdog);
    }
    Ok(backup)
}

/// Nothing is held any more, and no lock is left: a watchdog that has gone by now is missed by
/// nobody.
pub(crate) fn take_leave(watchdog: Guard) {
    if let Err(error) = watchdog.goodbye() {
        tracing::debug!("the watchdog did not hear our goodbye: {error}");
    }
}

/// The strictest bounds that any of the environment's gateways sets.
pub(crate) fn limits(place: &Place) -> Limits {
    let gateways = || place.environment().gateways.values();
    let default = Limits::default();
    let max_hold = gateways().map(|g| g.max_hold).min().unwrap_or(default.max_hold);
    Limits {
        drain_timeout: gateways().map(|g| g.drain_timeout).min().unwrap_or(default.drain_timeout),
        max_hold,
        silence: default.silence.min(max_hold),
        ..default
    }
}

/// Connects to the watchdog of this host.
pub(crate) fn watchdog(place: &Place, limits: &Limits) -> Result<Guard, Failure> {
    Guard::connect(&place.watchdog_socket()?, limits.silence).map_err(|e| {
        Failure::new("nothing is held without a watchdog")
            .because(&e)
            .hint("`stillpoint watchdog` starts one")
    })
}

fn summarise(backup: &Backup, terminal: &Terminal) {
    let manifest = &backup.manifest;
    let captured: u64 = manifest.parts.iter().map(|part| part.bytes).sum();
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
