//! Restore: every part aside and verified, then all swapped in one hold, then the old removed.
//!
//! The order of the steps is the safety of it:
//! 1. plan all: everything that can be refused is refused before anything was changed;
//! 2. journal, then load and verify all, beside the live data;
//! 3. hold the gateways, and from the moment the journal says `swapping` on, a lost or silent
//!    coordinator makes them refuse requests instead of letting them into a half-swapped state;
//! 4. swap all, journal `swapped`, release, finish all, remove the journal.
//!
//! Cut off anywhere, [`recover`] goes on from the journal: back before `swapped`, forward after.

mod interruptible;
mod journal;

pub use journal::{Journal, JournalPart, Phase};

use interruptible::Interruptible;

use crate::gateways::GatewayParticipant;
use crate::gentle::gently;
use crate::participant::Participant;
use crate::watchdog::{Guard, Undo, WatchdogError};
use crate::{CaptureError, Limits};
use std::path::PathBuf;
use std::time::Instant;
use stillpoint_gateway::control::{Control, ControlError};
use stillpoint_model::ids::{BackupId, PartName};
use stillpoint_model::manifest::Role;
use stillpoint_model::progress::Monitor;
use stillpoint_services::{Restore, ServiceError, Source};

/// One part that is restored.
pub struct RestorePart<'a> {
    /// Its name.
    pub name: PartName,
    /// A service or a mount.
    pub role: Role,
    /// Its driver's steps.
    pub steps: Box<dyn Restore>,
    /// Its data. Mounts bring their own.
    pub source: Box<dyn Source + 'a>,
}

/// What is restored, and where the restore keeps its journal.
pub struct RestoreOrder {
    /// The backup.
    pub backup: BackupId,
    /// Unique to this restore, `[a-z0-9]+`.
    pub token: String,
    /// The journal's file.
    pub journal: PathBuf,
    /// Arguments with which this program recovers the restore, for the watchdog.
    pub recovery: Vec<String>,
    /// The bounds of the hold.
    pub limits: Limits,
}

/// What a restore took.
#[derive(Debug)]
pub struct Restored {
    /// First request parked to release, in milliseconds; none where there is no gateway.
    pub hold_ms: Option<f64>,
    /// The parts that were put back.
    pub parts: Vec<PartName>,
}

/// Restores all `parts`, or none.
pub fn restore(
    order: &RestoreOrder,
    mut parts: Vec<RestorePart<'_>>,
    mut gateways: Vec<GatewayParticipant>,
    watchdog: &Guard,
    monitor: &dyn Monitor,
) -> Result<Restored, CaptureError> {
    if let Some(open) = Journal::read(&order.journal)? {
        return Err(CaptureError::new(format!(
            "restore {}: an earlier restore of {} has not ended",
            order.backup, open.backup
        ))
        .hint("`stillpoint recover` finishes it or undoes it"));
    }
    for gateway in &mut gateways {
        gateway.reach()?;
    }
    monitor.begin("plan", None);
    let mut journal =
        Journal::new(order.backup.clone(), order.token.clone(), order.recovery.clone());
    for part in &mut parts {
        let aside = part
            .steps
            .plan(&order.token, part.source.as_ref())
            .map_err(|e| of(&part.name, "restore", e))?;
        let (name, role) = (part.name.clone(), part.role);
        journal.parts.push(JournalPart { name, role, aside });
    }
    let undo = Undo::Run { arguments: order.recovery.clone() };
    watchdog.register(vec![undo.clone()], None).map_err(watchdog_lost)?;
    journal.write(&order.journal)?;
    let mut closed = None;
    let loaded = gently(|| load(&mut parts, &journal, monitor)).flatten();
    let outcome = loaded.and_then(|()| {
        // It was told of this before the load, which may have taken hours.
        watchdog.register(vec![undo], None).map_err(watchdog_lost)?;
        for gateway in &mut gateways {
            gateway.reach()?;
        }
        swap(order, &mut parts, &mut gateways, &mut journal, &mut closed, monitor)
    });
    if let Some(closed) = closed {
        // The journal stays, or recovery would not know that a gateway refuses requests.
        return Err(
            closed.hint("a gateway refuses requests until `stillpoint recover` has opened it")
        );
    }
    match journal.phase {
        Phase::Swapped => {
            // Only once requests flow again, or recovery would not know that they do not.
            let hold_ms = outcome?;
            monitor.begin("finish", None);
            for (part, entry) in parts.iter_mut().zip(&journal.parts) {
                part.steps.finish(&entry.aside).map_err(|e| {
                    of(&part.name, "remove the old data of", e)
                        .hint("the restore itself is done; `stillpoint recover` tries again")
                })?;
            }
            Journal::remove(&order.journal)?;
            Ok(Restored { hold_ms, parts: parts.into_iter().map(|part| part.name).collect() })
        }
        Phase::Loading => {
            for (part, entry) in parts.iter_mut().zip(&journal.parts) {
                part.steps.discard(&entry.aside).map_err(|e| {
                    of(&part.name, "remove what was loaded for", e)
                        .hint("nothing was restored; `stillpoint recover` tries again")
                })?;
            }
            Journal::remove(&order.journal)?;
            outcome.and_then(|_| Err(CaptureError::new("the restore was not swapped in")))
        }
        // Not everything could be put back: the journal stays, for the watchdog and `recover`.
        Phase::Swapping => {
            outcome.and_then(|_| Err(CaptureError::new("the restore is half swapped in")))
        }
    }
}

fn watchdog_lost(source: WatchdogError) -> CaptureError {
    CaptureError::new("tell the watchdog of the restore")
        .because(source)
        .hint("`stillpoint watchdog` starts one")
}

fn of(name: &PartName, doing: &str, source: ServiceError) -> CaptureError {
    CaptureError::over(format!("{doing} `{name}`"), source)
}

fn load(
    parts: &mut [RestorePart<'_>],
    journal: &Journal,
    monitor: &dyn Monitor,
) -> Result<(), CaptureError> {
    for (part, entry) in parts.iter_mut().zip(&journal.parts) {
        go_on(monitor)?;
        monitor.begin(&format!("load {}", part.name), None);
        let source = &Interruptible { source: part.source.as_ref(), monitor };
        part.steps.load(&entry.aside, source).map_err(|e| of(&part.name, "load", e))?;
        monitor.begin(&format!("verify {}", part.name), None);
        part.steps.verify(&entry.aside, source).map_err(|e| of(&part.name, "verify", e))?;
    }
    go_on(monitor)
}

/// Stops here if that was asked for: nothing has been swapped in yet.
fn go_on(monitor: &dyn Monitor) -> Result<(), CaptureError> {
    if monitor.cancelled() { Err(CaptureError::new("cancelled")) } else { Ok(()) }
}

fn swap(
    order: &RestoreOrder,
    parts: &mut [RestorePart<'_>],
    gateways: &mut [GatewayParticipant],
    journal: &mut Journal,
    closed: &mut Option<CaptureError>,
    monitor: &dyn Monitor,
) -> Result<Option<f64>, CaptureError> {
    let hold = order.limits.hold(order.token.clone());
    // From here to the release nothing is said: a terminal that is stopped must stop nobody else.
    monitor.begin("hold and swap", None);
    let begun = Instant::now();
    let swapped = (|| {
        for gateway in gateways.iter_mut() {
            gateway.hold(&hold)?;
        }
        go_on(monitor)?;
        for gateway in gateways.iter_mut() {
            gateway.drain(&hold, monitor)?;
        }
        // The last moment at which it can be stopped.
        go_on(monitor)?;
        for gateway in gateways.iter_mut() {
            gateway.refuse_on_silence()?;
        }
        journal.advance(Phase::Swapping, &order.journal)?;
        for (part, entry) in parts.iter_mut().zip(&journal.parts) {
            part.steps.swap(&entry.aside).map_err(|e| of(&part.name, "swap in", e))?;
        }
        journal.advance(Phase::Swapped, &order.journal)
    })();
    let outcome = match swapped {
        Ok(()) => Ok(()),
        Err(error) => put_back(order, parts, journal).and(Err(error)),
    };
    if journal.phase == Phase::Swapping {
        // Half and half: the gateways must go on refusing, until recovery opens them.
        return Err(outcome.expect_err("only a failed swap stays in this phase"));
    }
    let took = begun.elapsed();
    for gateway in gateways.iter_mut() {
        if let Err(late) = gateway.release() {
            // The hold had ended before, and requests have been refused since.
            tracing::warn!("the restore's hold: {late}");
            if let Err(error) = gateway.reopen(&order.token) {
                *closed = Some(error);
            }
        }
    }
    monitor.begin("released", None);
    outcome.map(|()| (!gateways.is_empty()).then_some(took.as_secs_f64() * 1000.0))
}

/// Undoes the swaps, whole or half done. Afterwards the journal's phase says whether all is back.
fn put_back(
    order: &RestoreOrder,
    parts: &mut [RestorePart<'_>],
    journal: &mut Journal,
) -> Result<(), CaptureError> {
    if journal.phase == Phase::Loading {
        // The swap may have been written down, though an error said otherwise.
        return journal.advance(Phase::Loading, &order.journal);
    }
    // On disk it may say `swapped` by now, from which recovery would go forward.
    journal.advance(Phase::Swapping, &order.journal)?;
    for (part, entry) in parts.iter_mut().zip(&journal.parts).rev() {
        part.steps.swap_back(&entry.aside).map_err(|e| {
            of(&part.name, "put back", e)
                .hint("requests are refused until `stillpoint recover` has put everything back")
        })?;
    }
    journal.advance(Phase::Loading, &order.journal)
}

/// What a recovery did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// The restore was undone: the data is as it was before.
    Back,
    /// The restore was finished: the data is the backup's.
    Forward,
}

/// Goes on from a journal that a restore left behind. `steps` gives a part's steps; gateways that
/// refuse requests are opened last.
pub fn recover(
    journal_file: &std::path::Path,
    mut steps: impl FnMut(&JournalPart) -> Result<Box<dyn Restore>, CaptureError>,
    gateways: &[PathBuf],
) -> Result<Option<(BackupId, Recovered)>, CaptureError> {
    let Some(mut journal) = Journal::read(journal_file)? else { return Ok(None) };
    // Read back though it may be, it need not be durable yet: whoever wrote it may have died first.
    journal.write(journal_file)?;
    let forward = journal.phase == Phase::Swapped;
    let mut parts = Vec::new();
    for entry in &journal.parts {
        parts.push((entry.clone(), steps(entry)?));
    }
    if journal.phase == Phase::Swapping {
        for (entry, steps) in parts.iter_mut().rev() {
            steps.swap_back(&entry.aside).map_err(|e| of(&entry.name, "put back", e))?;
        }
        journal.advance(Phase::Loading, journal_file)?;
    }
    for socket in gateways {
        let name = socket.display();
        match Control::connect(socket).and_then(|mut control| control.reopen(&journal.token)) {
            // One that is not running refuses nobody, and will not when it is started again.
            Ok(()) | Err(ControlError::Connect { .. }) => {}
            Err(e) => {
                return Err(CaptureError::new(format!("open the gateway at {name}")).because(e));
            }
        }
    }
    for (entry, steps) in &mut parts {
        let result = if forward { steps.finish(&entry.aside) } else { steps.discard(&entry.aside) };
        result.map_err(|e| of(&entry.name, "clean up after", e))?;
    }
    Journal::remove(journal_file)?;
    let how = if forward { Recovered::Forward } else { Recovered::Back };
    Ok(Some((journal.backup, how)))
}
