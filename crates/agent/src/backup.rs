//! Takes a backup: this process is the coordinator.

use crate::failure::Failure;
use crate::parts;
use crate::place::{Activity, Place};
use crate::stored::{self, Copies, Stored};
use crate::vault::Opened;
use std::sync::Arc;
use std::time::Duration;
use stillpoint_capture::restore::Journal;
use stillpoint_capture::watchdog::Guard;
use stillpoint_capture::{Backup, BackupOrder, Limits, back_up, gently};
use stillpoint_model::config::OnPartial;
use stillpoint_model::ids::BackupId;
use stillpoint_model::progress::Monitor;

/// Takes a backup of the environment.
pub fn take(
    place: &Place,
    id: BackupId,
    live: bool,
    asked_by: Option<&str>,
    monitor: &Arc<impl Monitor + 'static>,
) -> Result<Backup, Failure> {
    let monitor: Arc<dyn Monitor> = monitor.clone();
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
    let Opened { repository, locations } = gently(|| place.repository(true))??;
    let reader = gently(|| repository.reader())?
        .map_err(|e| Failure::new("read the repository's index").because(&e))?;
    // What the last backup holds only saves reading: one that is damaged must not stop this one.
    let last = gently(|| Stored::newest(place, &reader))?.unwrap_or_else(|failure| {
        monitor.warn(&format!("{failure}; everything is read again"));
        None
    });
    let last = last.as_ref().map(|last| (&reader, last));
    let participants = gently(|| parts::participants(place, live, asked_by, last, &*monitor))??;
    drop(reader);
    let environment = place.environment();
    let order = BackupOrder {
        backup: id,
        project: place.config.project.clone(),
        environment: place.name.clone(),
        environment_type: environment.kind.to_string(),
        code: parts::code(place),
        live,
        fail_if_partial: environment.on_partial == OnPartial::Fail,
        limits,
        rate: environment.limits.rate,
    };
    let watchdog = Arc::new(watchdog);
    // After a failure there is no goodbye: should a lock be left, the watchdog removes it.
    let backup = back_up(&order, participants, &repository, &watchdog, &monitor)?;
    if let Some(watchdog) = Arc::into_inner(watchdog) {
        take_leave(watchdog);
    }
    for note in locations.notes() {
        monitor.warn(&note);
    }
    Ok(backup)
}

/// Brings a published backup to as many locations as can be reached, unless the write quorum has it
/// already; then there is nothing to tell. Failures are told, and cost nothing: healing tries again.
pub fn replicate(place: &Place, backup: &Backup, monitor: &dyn Monitor) -> Option<Copies> {
    if backup.stats.copies >= place.write_quorum() {
        return None;
    }
    monitor.begin("replicate", None);
    let healed = place.vault().and_then(|vault| match vault.heal(monitor)? {
        Some(healing) => stored::copies(&healing.opened).map(Some),
        None => Ok(None),
    });
    healed.unwrap_or_else(|failure| {
        monitor.warn(&failure.lines().join(": "));
        None
    })
}

/// What a backup that the write quorum does not have yet is to be warned of.
pub fn replicating(copies: usize, quorum: usize) -> String {
    format!(
        "the backup can be restored, and is at {copies} of {quorum} locations: it is copied to the \
         others once they can be reached"
    )
}

/// Nothing is held any more, and no lock is left: a watchdog that has gone by now is missed by
/// nobody.
pub fn take_leave(watchdog: Guard) {
    if let Err(error) = watchdog.goodbye() {
        tracing::debug!("the watchdog did not hear our goodbye: {error}");
    }
}

/// The strictest bounds that any of the environment's gateways sets, and its own.
pub fn limits(place: &Place) -> Limits {
    let gateways = || place.environment().gateways.values();
    let default = Limits::default();
    let max_hold = gateways().map(|g| g.max_hold).min().unwrap_or(default.max_hold);
    Limits {
        drain_timeout: gateways().map(|g| g.drain_timeout).min().unwrap_or(default.drain_timeout),
        max_hold,
        silence: default.silence.min(max_hold),
        step: place
            .environment()
            .workers
            .values()
            // To quiesce and freeze, or to thaw and resume, and to say so.
            .map(|worker| 2 * worker.timeout + Duration::from_secs(1))
            .fold(place.environment().limits.step.unwrap_or(default.step), Duration::max),
        ..default
    }
}

/// Connects to the watchdog of this host.
pub fn watchdog(place: &Place, limits: &Limits) -> Result<Guard, Failure> {
    Guard::connect(&place.watchdog_socket()?, limits.silence).map_err(|e| {
        Failure::new("nothing is held without a watchdog")
            .because(&e)
            .hint("`stillpoint watchdog` starts one")
    })
}
