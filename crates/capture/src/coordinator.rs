//! Leads the participants through a still point: prepare, hold, mark, release, capture, publish.
//!
//! What must never break:
//! - between hold and release nothing is done that can be done before or after;
//! - whatever fails, the release comes first, then the report;
//! - `consistent` is given only where counters and gateways show it, and a hold that ended by
//!   itself fails the backup;
//! - the snapshot is written last, and only if nothing that was asked for is silently missing.

use crate::CaptureError;
use crate::participant::{Account, HoldOrder, Participant, Rank};
use crate::watchdog::{Guard, Undo, WatchdogError};
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stillpoint_model::ids::{BackupId, EnvironmentName, ProjectId};
use stillpoint_model::manifest::{
    Code, Completeness, Consistency, Evidence, MANIFEST_VERSION, Manifest, Role,
};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{
    LockFiles, Node, Repository, Snapshot, SnapshotId, Tree, WriteStats, Writer, WriterOptions,
};

/// What is to be backed up, and how.
#[derive(Debug, Clone)]
pub struct BackupOrder {
    /// The id that the backup will have.
    pub backup: BackupId,
    /// Its project.
    pub project: ProjectId,
    /// Its environment.
    pub environment: EnvironmentName,
    /// `production`, `staging` or `development`.
    pub environment_type: String,
    /// The commit that the code is at.
    pub code: Option<Code>,
    /// Hold nothing: each service consistent in itself.
    pub live: bool,
    /// Fail rather than publish a backup that lacks something.
    pub fail_if_partial: bool,
    /// The bounds of the hold.
    pub limits: Limits,
}

/// The bounds of a hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long requests in flight may take to finish.
    pub drain_timeout: Duration,
    /// The longest hold in all.
    pub max_hold: Duration,
    /// How long the coordinator may fall silent before others act in its stead.
    pub silence: Duration,
    /// How long to wait for the services' counters to stand still after the drain.
    pub settle: Duration,
}

impl Limits {
    /// The order for a hold within these bounds; `id` says whose it is.
    pub(crate) fn hold(&self, id: String) -> HoldOrder {
        let Self { drain_timeout, max_hold, silence, .. } = *self;
        HoldOrder { id, drain_timeout, max_hold, silence }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(10),
            max_hold: Duration::from_secs(30),
            silence: Duration::from_secs(5),
            settle: Duration::from_millis(200),
        }
    }
}

/// A published backup.
#[derive(Debug)]
pub struct Backup {
    /// The snapshot that makes it visible.
    pub snapshot: SnapshotId,
    /// Its record.
    pub manifest: Manifest,
    /// What it cost.
    pub stats: WriteStats,
}

/// How often marks are taken again when writes are seen between them.
const MARK_ROUNDS: u32 = 2;
/// How long to wait between two readings of the counters.
const SETTLE_STEP: Duration = Duration::from_millis(2);

type Participants = [Box<dyn Participant>];

/// Takes one backup. On an error nothing is published, and everything that waited has been let go.
pub fn back_up(
    order: &BackupOrder,
    mut participants: Vec<Box<dyn Participant>>,
    repository: &Repository,
    watchdog: &Arc<Guard>,
    monitor: &dyn Monitor,
) -> Result<Backup, CaptureError> {
    if !order.live && !participants.iter().any(|p| p.rank() == Rank::Gateway) {
        return Err(CaptureError::new("hold: the environment has no gateway")
            .hint("add one to stillpoint.yaml, or take a live backup with --live"));
    }
    let created = Timestamp::now();
    let registry = Registry::new(watchdog);
    let writer = repository
        .writer(WriterOptions { on_lock: Some(registry.listener()), ..WriterOptions::default() })
        .map_err(|e| CaptureError::new("open the repository for writing").because(e))?;
    let outcome = (|| {
        registry.set(Vec::new(), None)?;
        monitor.begin("prepare", None);
        each(&mut participants, |p| p.prepare(&writer, monitor))?;
        go_on(monitor)?;
        let moment = if order.live {
            monitor.begin("mark", None);
            each(&mut participants, |p| p.mark())?;
            None
        } else {
            Some(still_point(order, &mut participants, &registry, monitor)?)
        };
        go_on(monitor)?;
        monitor.begin("capture", None);
        each(&mut participants, |p| p.capture(&writer, monitor))?;
        let accounts = participants.iter_mut().map(|p| p.account()).collect();
        let manifest = write_manifest(order, created, moment, accounts)?;
        Ok(manifest)
    })();
    // Whatever the participants still hold in the services is given up before the upload ends.
    drop(participants);
    match outcome {
        Ok((manifest, parts)) => publish(order, writer, manifest, &parts, monitor),
        Err(error) => match writer.abandon() {
            Ok(()) => Err(error),
            Err(also) => {
                tracing::warn!("the repository could not be left cleanly: {also}");
                Err(error)
            }
        },
    }
}

/// The hold's own times, as the coordinator saw them.
struct Moment {
    marked: Timestamp,
    settle_us: u64,
    mark_rounds: u32,
    unheld_writes: Vec<String>,
}

fn still_point(
    order: &BackupOrder,
    participants: &mut Participants,
    registry: &Registry,
    monitor: &dyn Monitor,
) -> Result<Moment, CaptureError> {
    let hold = order.limits.hold(order.backup.to_string());
    let undo = participants.iter().flat_map(|p| p.undo()).collect();
    registry.set(undo, Some(order.limits.max_hold))?;
    monitor.begin("hold", None);
    let moment = hold_and_mark(&hold, order.limits.settle, participants, monitor);
    // Released before anything else is said or done, in every case.
    let released = each(participants, |p| p.release());
    monitor.begin("released", None);
    registry.set(Vec::new(), None)?;
    // Why the mark failed says more than that the hold then could not end well.
    let moment = moment?;
    released?;
    Ok(moment)
}

fn hold_and_mark(
    hold: &HoldOrder,
    settle: Duration,
    participants: &mut Participants,
    monitor: &dyn Monitor,
) -> Result<Moment, CaptureError> {
    each(participants, |p| p.hold(hold))?;
    go_on(monitor)?;
    each(participants, |p| p.drain(hold, monitor))?;
    go_on(monitor)?;
    let settling = Instant::now();
    let mut before = counters(participants)?;
    while settling.elapsed() < settle {
        std::thread::sleep(SETTLE_STEP);
        let again = counters(participants)?;
        let still = before == again;
        before = again;
        if still {
            break;
        }
    }
    let settle_us = u64::try_from(settling.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut mark_rounds = 0;
    loop {
        mark_rounds += 1;
        each(participants, |p| p.mark())?;
        let marked = Timestamp::now();
        let after = counters(participants)?;
        let unheld_writes: Vec<String> = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after)
            .map(|((name, before), (_, after))| {
                format!("{name}: its write counter went from {before} to {after}")
            })
            .collect();
        if unheld_writes.is_empty() || mark_rounds == MARK_ROUNDS {
            return Ok(Moment { marked, settle_us, mark_rounds, unheld_writes });
        }
        before = after;
    }
}

/// Stops here if that was asked for: nothing has been published yet.
fn go_on(monitor: &dyn Monitor) -> Result<(), CaptureError> {
    if monitor.cancelled() { Err(CaptureError::new("cancelled")) } else { Ok(()) }
}

/// Every counter that there is, with its participant's name.
fn counters(participants: &mut Participants) -> Result<Vec<(String, String)>, CaptureError> {
    let read = Mutex::new(Vec::new());
    each(participants, |p| {
        if let Some(counter) = p.counter()? {
            let reading = (p.name().to_string(), counter);
            read.lock().expect("no participant panicked").push(reading);
        }
        Ok(())
    })?;
    let mut read = read.into_inner().expect("no participant panicked");
    read.sort();
    Ok(read)
}

/// One step of all participants at once. All of them take it, even where one fails; the first
/// error in the participants' order is returned.
fn each(
    participants: &mut Participants,
    step: impl Fn(&mut dyn Participant) -> Result<(), CaptureError> + Sync,
) -> Result<(), CaptureError> {
    let step = &step;
    std::thread::scope(|scope| {
        let threads: Vec<_> = participants
            .iter_mut()
            .map(|participant| scope.spawn(move || step(participant.as_mut())))
            .collect();
        let mut first = Ok(());
        for thread in threads {
            let result = thread.join().unwrap_or_else(|_| {
                Err(CaptureError::new("a participant's thread panicked; this is a bug"))
            });
            first = first.and(result);
        }
        first
    })
}

fn write_manifest(
    order: &BackupOrder,
    created: Timestamp,
    moment: Option<Moment>,
    accounts: Vec<Account>,
) -> Result<(Manifest, Vec<(Role, Node)>), CaptureError> {
    let (mut gateways, mut parts, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gaps, mut doubts) = (Vec::new(), Vec::new());
    for account in accounts {
        gateways.extend(account.gateway);
        gaps.extend(account.gaps);
        doubts.extend(account.doubts);
        if let Some((part, node)) = account.part {
            nodes.push((part.role, node));
            parts.push(part);
        }
    }
    let evidence = moment.map(|moment| gather(moment, gateways)).transpose()?;
    if let Some(evidence) = &evidence {
        doubts.extend(evidence.unheld_writes.iter().cloned());
    }
    let consistency = match &evidence {
        None => Consistency::Live,
        Some(_) if doubts.is_empty() => Consistency::Consistent,
        Some(_) => Consistency::CrashConsistent,
    };
    let completeness = if gaps.is_empty() { Completeness::Complete } else { Completeness::Partial };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        written_by: concat!("stillpoint ", env!("CARGO_PKG_VERSION")).to_owned(),
        backup: order.backup.clone(),
        project: order.project.clone(),
        environment: order.environment.clone(),
        environment_type: order.environment_type.clone(),
        created,
        consistency,
        completeness,
        doubts,
        gaps,
        evidence,
        parts,
        code: order.code.clone(),
    };
    Ok((manifest, nodes))
}

fn gather(
    moment: Moment,
    gateways: Vec<stillpoint_model::manifest::GatewayEvidence>,
) -> Result<Evidence, CaptureError> {
    let times = |pick: fn(&stillpoint_model::manifest::GatewayEvidence) -> Timestamp| {
        gateways.iter().map(pick)
    };
    let (Some(hold_begin), Some(drained), Some(hold_end)) =
        (times(|g| g.hold_begin).min(), times(|g| g.drained).max(), times(|g| g.hold_end).max())
    else {
        return Err(CaptureError::new("no gateway gave an account of the hold"));
    };
    // Every mark must lie where every gateway held.
    let earliest_end = times(|g| g.hold_end).min().unwrap_or(hold_end);
    if moment.marked > earliest_end || moment.marked < drained {
        return Err(CaptureError::new("the marks were not taken while all gateways held"));
    }
    let Moment { marked, settle_us, mark_rounds, unheld_writes } = moment;
    Ok(Evidence {
        hold_begin,
        drained,
        marked,
        hold_end,
        gateways,
        settle_us,
        mark_rounds,
        unheld_writes,
    })
}

fn publish(
    order: &BackupOrder,
    writer: Writer,
    manifest: Manifest,
    parts: &[(Role, Node)],
    monitor: &dyn Monitor,
) -> Result<Backup, CaptureError> {
    if order.fail_if_partial && manifest.completeness == Completeness::Partial {
        let gap = &manifest.gaps[0];
        let error = CaptureError::new(format!(
            "the backup would be partial: {}: {}: {} ({} in all)",
            gap.part,
            gap.what,
            gap.why,
            manifest.gaps.len()
        ));
        return match writer.abandon() {
            Ok(()) => Err(error.hint("mend it, exclude it, or set `on_partial: partial`")),
            Err(also) => Err(error.because(also)),
        };
    }
    if let Err(cancelled) = go_on(monitor) {
        return match writer.abandon() {
            Ok(()) => Err(cancelled),
            Err(also) => Err(cancelled.because(also)),
        };
    }
    monitor.begin("publish", None);
    let fail = |e| CaptureError::new("publish the backup").because(e);
    let when = manifest.created;
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| CaptureError::new("write the manifest").because(e))?;
    let stored = writer.save_data(&mut text.as_slice()).map_err(fail)?;
    let mut nodes = vec![Node::file("manifest.json", stored, when)];
    for (role, directory) in [(Role::Mount, "mounts"), (Role::Service, "services")] {
        let below: Vec<Node> =
            parts.iter().filter(|(of, _)| *of == role).map(|(_, node)| node.clone()).collect();
        if !below.is_empty() {
            let tree = writer.save_tree(&Tree { nodes: below }).map_err(fail)?;
            nodes.push(Node::directory(directory, tree, when));
        }
    }
    let tree = writer.save_tree(&Tree { nodes }).map_err(fail)?;
    let tags = vec![
        format!("project={}", order.project),
        format!("environment={}", order.environment),
        format!("backup={}", order.backup),
    ];
    let path = format!("/{}/{}", order.project, order.environment);
    let snapshot = Snapshot::new(tree, vec![path], tags, when);
    let (snapshot, stats) = writer.publish(snapshot).map_err(fail)?;
    Ok(Backup { snapshot, manifest, stats })
}

/// What the watchdog has to know, should this process die: the repository's lock files, which
/// come and go by themselves, and what the still point adds for as long as it lasts.
#[derive(Clone)]
struct Registry {
    watchdog: Arc<Guard>,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    locks: Vec<PathBuf>,
    undo: Vec<Undo>,
    deadline: Option<Instant>,
}

impl Registry {
    fn new(watchdog: &Arc<Guard>) -> Self {
        Self { watchdog: Arc::clone(watchdog), known: Arc::default() }
    }

    /// Told by the repository whenever its locks change.
    fn listener(&self) -> Arc<dyn Fn(&LockFiles) + Send + Sync> {
        let registry = self.clone();
        Arc::new(move |files| {
            let mut known = registry.known.lock().expect("no listener panicked");
            known.locks.clone_from(files);
            if let Err(error) = registry.tell(&known) {
                // Whoever holds next learns of it as well, and refuses.
                tracing::warn!("the watchdog does not know of the repository's lock: {error}");
            }
        })
    }

    /// For the time of the hold, `undo` as well, and silence is assumed after `within`.
    fn set(&self, undo: Vec<Undo>, within: Option<Duration>) -> Result<(), CaptureError> {
        let mut known = self.known.lock().expect("no listener panicked");
        known.undo = undo;
        known.deadline = within.map(|within| Instant::now() + within);
        self.tell(&known).map_err(|source| {
            CaptureError::new("keep the watchdog informed")
                .because(source)
                .hint("`stillpoint watchdog` starts one")
        })
    }

    fn tell(&self, known: &Known) -> Result<(), WatchdogError> {
        let mut all = known.undo.clone();
        if !known.locks.is_empty() {
            all.push(Undo::RemoveFiles { paths: known.locks.clone() });
        }
        let within = known.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        self.watchdog.register(all, within)
    }
}
