//! One order, in a process of its own: it reads the order, says what happens, and ends.
//!
//! What must never break: between hold and release nothing may wait for whoever reads the events.
//! So a thread of its own writes them, from a queue without bound (there are few), and when nobody
//! reads any more the work goes on or is cancelled, but never stands still.
//!
//! A line `cancel` or the end of the input asks to stop as soon as it is safe. A restore that has
//! begun to swap is finished.

use crate::failure::{Failure, FailureKind};
use crate::place::{Activity, Place, Where};
use crate::protocol::{BackupRecord, Event, Order, Outcome};
use crate::restore::{Plan, Wish};
use crate::{backup, restore, stored};
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stillpoint_capture::Backup;
use stillpoint_capture::restore::{Journal, Recovered};
use stillpoint_model::ids::{BackupId, PartName};
use stillpoint_model::manifest::{Completeness, Consistency};
use stillpoint_model::progress::Monitor;

/// How long to wait for others to be done with the environment.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often progress in bytes is said.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Runs the order that is the first line of `input`, and says its events to `output`.
pub fn run(
    place: &Where,
    mut input: impl BufRead + Send + 'static,
    mut output: impl Write + Send + 'static,
) -> Result<(), Failure> {
    let mut line = String::new();
    input.read_line(&mut line).map_err(|e| Failure::new("read the order").because(&e))?;
    let order: Order =
        serde_json::from_str(&line).map_err(|e| Failure::usage("read the order").because(&e))?;
    let (events, queue) = mpsc::channel::<Event>();
    let reporter = Arc::new(Reporter::new(events));
    let listening = Arc::clone(&reporter);
    std::thread::spawn(move || {
        let mut line = String::new();
        // Whatever ends the input ends the order too: nobody waits for it any more.
        while input.read_line(&mut line).is_ok_and(|read| read > 0) && line.trim() != "cancel" {
            line.clear();
        }
        listening.cancel();
    });
    let ended = Arc::clone(&reporter);
    let writing = std::thread::spawn(move || {
        for event in queue {
            let last = matches!(event, Event::Ended { .. });
            let written =
                serde_json::to_vec(&event).map_err(std::io::Error::from).and_then(|mut line| {
                    line.push(b'\n');
                    output.write_all(&line)?;
                    output.flush()
                });
            if written.is_err() {
                ended.cancel();
                return;
            }
            if last {
                return;
            }
        }
    });
    let outcome = carry_out(place, &order, &reporter);
    reporter.say(Event::Ended { outcome });
    // A panic there was reported by the thread itself; the agent sees that no end was told.
    drop(writing.join());
    Ok(())
}

fn carry_out(place: &Where, order: &Order, reporter: &Arc<Reporter>) -> Outcome {
    let done = Place::find(place, Some(order.environment().as_str())).and_then(|mut place| {
        // A task whose agent died may still be on its way out.
        place.patience = PATIENCE;
        match order {
            Order::Backup { backup, live, asked_by, .. } => {
                take(&place, backup, *live, asked_by.as_deref(), reporter)
            }
            Order::Restore { from, backup, only, safety, .. } => {
                let wish = Wish {
                    backup: Some(backup.clone()),
                    from: Some(from.clone()),
                    only: only.iter().map(PartName::to_string).collect(),
                    asked_by: None,
                };
                put_back(&place, &wish, safety.as_ref(), reporter)
            }
            Order::Delete { backups, .. } => delete(&place, backups, reporter),
            Order::Recover { .. } => recover(&place, reporter),
        }
    });
    match done {
        Ok(outcome) => outcome,
        Err(failure) if failure.kind() == FailureKind::Cancelled => Outcome::Cancelled,
        Err(failure) => Outcome::Failed {
            message: failure.lines().join("\nbecause: "),
            hint: failure.advice().map(str::to_owned),
        },
    }
}

/// What failed after it was asked to stop was stopped.
fn stopped(failure: Failure, reporter: &Reporter) -> Failure {
    if reporter.cancelled() && failure.lines().iter().any(|line| line == "cancelled") {
        Failure::cancelled("cancelled")
    } else {
        failure
    }
}

fn take(
    place: &Place,
    id: &BackupId,
    live: bool,
    asked_by: Option<&str>,
    reporter: &Arc<Reporter>,
) -> Result<Outcome, Failure> {
    let taken = backup::take(place, id.clone(), live, asked_by, reporter)
        .map_err(|failure| stopped(failure, reporter))?;
    Ok(published(place, &taken, reporter))
}

/// Says what a backup is worth, and brings it to the write quorum as far as that can be done.
fn published(place: &Place, taken: &Backup, reporter: &Reporter) -> Outcome {
    let manifest = taken.manifest.clone();
    if let Some(evidence) = &manifest.evidence {
        let held: u64 = evidence.gateways.iter().map(|g| g.held).sum();
        reporter.log(format!(
            "held {:.0} ms (drain {:.0}, mark {:.0}), {held} requests waited",
            evidence.hold_ms(),
            evidence.drain_ms(),
            evidence.mark_ms(),
        ));
    }
    if manifest.consistency == Consistency::CrashConsistent {
        reporter.log("the backup is crash-consistent only:".to_owned());
        for doubt in &manifest.doubts {
            reporter.log(format!("  {doubt}"));
        }
    }
    let partial = manifest.completeness == Completeness::Partial;
    if partial {
        reporter.log(format!("the backup is partial: it lacks {} things:", manifest.gaps.len()));
        for gap in manifest.gaps.iter().take(100) {
            reporter.log(format!("  {}: {}: {}", gap.part, gap.what, gap.why));
        }
    }
    let record = BackupRecord {
        bytes_captured: manifest.bytes_captured(),
        bytes_added: taken.stats.bytes_stored,
        copies: taken.stats.copies as u32,
        manifest,
    };
    reporter.say(Event::Published { backup: Box::new(record) });
    let mut at = taken.stats.copies;
    if let Some(copies) = backup::replicate(place, taken, reporter) {
        at = copies.of(&taken.manifest.backup).unwrap_or(at);
        reporter.say(Event::Copied { copies: copies.counts, all_asked: copies.all_asked });
    }
    let quorum = place.write_quorum();
    if at < quorum {
        reporter.warn(&backup::replicating(at, quorum));
    }
    if partial { Outcome::Partial } else { Outcome::Done }
}

fn put_back(
    place: &Place,
    wish: &Wish,
    safety: Option<&BackupId>,
    reporter: &Arc<Reporter>,
) -> Result<Outcome, Failure> {
    let reader = Arc::new(stored::open(place)?);
    for failure in stored::damaged(&reader) {
        reporter.warn(&failure.to_string());
    }
    let plan = Plan::new(place, reader, wish)?;
    if let Some(safety) = safety {
        reporter.log("taking a safety backup of what is there now".to_owned());
        let taken = backup::take(place, safety.clone(), false, None, reporter)
            .map_err(|failure| stopped(failure, reporter))
            .map_err(|failure| failure.hint("mend that, or restore without a safety backup"))?;
        let complete = taken.manifest.completeness == Completeness::Complete;
        published(place, &taken, reporter);
        if !complete {
            return Err(Failure::new(
                "not restored: what the safety backup lacks could not be had back",
            )
            .hint("mend that, or restore without a safety backup"));
        }
    }
    let restored = plan.run(place, &**reporter).map_err(|failure| {
        // With a journal left behind, what is there now is not what was there before.
        match place.journal().map(|journal| Journal::read(&journal)) {
            Ok(Ok(None)) => stopped(failure, reporter),
            _ => failure,
        }
    })?;
    let names: Vec<&str> = restored.parts.iter().map(PartName::as_str).collect();
    reporter.log(format!("restored {} from {}", names.join(", "), plan.manifest().backup));
    if let Some(hold_ms) = restored.hold_ms {
        reporter.log(format!("requests waited for {hold_ms:.0} ms"));
    }
    if let Some(code) = &plan.manifest().code {
        reporter.log(format!(
            "code is not part of a backup; it was at commit {}: git checkout {}",
            code.commit, code.commit
        ));
    }
    Ok(Outcome::Done)
}

fn delete(place: &Place, backups: &[BackupId], reporter: &Reporter) -> Result<Outcome, Failure> {
    // Alone: a backup that is on its way out must not publish what is deleted here.
    let _busy = place.lock(Activity::Restore)?;
    for id in stored::forget(place, backups)? {
        reporter.log(format!("backup {id} was deleted"));
    }
    Ok(Outcome::Done)
}

fn recover(place: &Place, reporter: &Reporter) -> Result<Outcome, Failure> {
    match restore::recover(place)? {
        None => reporter.log("nothing to recover".to_owned()),
        Some((backup, Recovered::Back)) => {
            reporter.log(format!("the restore of {backup} was undone: the data is as before it"));
        }
        Some((backup, Recovered::Forward)) => {
            reporter.log(format!("the restore of {backup} was finished"));
        }
    }
    Ok(Outcome::Done)
}

/// A monitor that says everything as events.
struct Reporter {
    events: Mutex<Sender<Event>>,
    cancelled: AtomicBool,
    bytes: AtomicU64,
    said: Mutex<Instant>,
}

impl Reporter {
    fn new(events: Sender<Event>) -> Self {
        Self {
            events: Mutex::new(events),
            cancelled: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            said: Mutex::new(Instant::now()),
        }
    }

    fn say(&self, event: Event) {
        let events = self.events.lock().expect("no sender of events panicked");
        if events.send(event).is_err() {
            // Nobody hears it any more, and the work was cancelled for that reason.
            self.cancel();
        }
    }

    fn log(&self, line: String) {
        self.say(Event::Log { line });
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Monitor for Reporter {
    fn begin(&self, phase: &str, total: Option<u64>) {
        self.bytes.store(0, Ordering::Relaxed);
        self.say(Event::Phase { phase: phase.to_owned(), total });
    }

    fn advance(&self, bytes: u64) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let Ok(mut said) = self.said.try_lock() else { return };
        if said.elapsed() >= PROGRESS_EVERY {
            *said = Instant::now();
            self.say(Event::Progress { bytes });
        }
    }

    fn note(&self, text: &str) {
        self.log(text.to_owned());
    }

    fn warn(&self, text: &str) {
        self.log(format!("warning: {text}"));
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
