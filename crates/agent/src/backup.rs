//! Takes a backup: this process is the coordinator.

use crate::failure::Failure;
use crate::parts;
use crate::place::{Activity, Place};
use crate::stored::Stored;
use std::sync::Arc;
use stillpoint_capture::restore::Journal;
use stillpoint_capture::watchdog::Guard;
use stillpoint_capture::{Backup, BackupOrder, Limits, back_up};
use stillpoint_model::config::OnPartial;
use stillpoint_model::ids::BackupId;
use stillpoint_model::progress::Monitor;

/// Takes a backup of the environment.
pub fn take(
    place: &Place,
    id: BackupId,
    live: bool,
    monitor: &dyn Monitor,
) -> Result<Backup, Failure> {
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
        monitor.warn(&format!("{failure}; everything is read again"));
        None
    });
    let last = last.as_ref().map(|last| (&reader, last));
    let participants = parts::participants(place, live, last, monitor)?;
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
    };
    let watchdog = Arc::new(watchdog);
    // After a failure there is no goodbye: should a lock be left, the watchdog removes it.
    let backup = back_up(&order, participants, &repository, &watchdog, monitor)?;
    if let Some(watchdog) = Arc::into_inner(watchdog) {
        take_leave(watchdog);
    }
    Ok(backup)
}

/// Nothing is held any more, and no lock is left: a watchdog that has gone by now is missed by
/// nobody.
pub fn take_leave(watchdog: Guard) {
    if let Err(error) = watchdog.goodbye() {
        tracing::debug!("the watchdog did not hear our goodbye: {error}");
    }
}

/// The strictest bounds that any of the environment's gateways sets.
pub fn limits(place: &Place) -> Limits {
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
pub fn watchdog(place: &Place, limits: &Limits) -> Result<Guard, Failure> {
    Guard::connect(&place.watchdog_socket()?, limits.silence).map_err(|e| {
        Failure::new("nothing is held without a watchdog")
            .because(&e)
            .hint("`stillpoint watchdog` starts one")
    })
}
