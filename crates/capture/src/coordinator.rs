//! Leads the participants through a still point: prepare, hold, mark, release, capture, publish.
//!
//! What must never break:
//! - between hold and release nothing is done that can be done before or after;
//! - whatever fails, the release comes first, then the report;
//! - `consistent` is given only where counters and gateways show it, and a hold that ended by
//!   itself fails the backup;
//! - the snapshot is written last, and only if nothing that was asked for is silently missing.

use crate::CaptureError;
use crate::crew::{Answer, Crew};
use crate::gentle::gently;
use crate::participant::{Account, HoldOrder, Participant, Rank};
use crate::still_point::{Bounds, Ending, Failure, Moved, Next, Reply, Step, StillPoint};
use crate::watchdog::{Guard, Undo, WatchdogError};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
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
    /// No more than this is read in a second, in bytes, from all parts together.
    pub rate: Option<NonZeroU64>,
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
    /// How long each participant may take for any other step: to hold, to freeze, to mark, to let
    /// go.
    pub step: Duration,
}

impl Limits {
    /// The order for a hold within these bounds; `id` says whose it is.
    pub(crate) fn hold(&self, id: String) -> HoldOrder {
        let Self { drain_timeout, max_hold, silence, .. } = *self;
        HoldOrder { id, drain_timeout, max_hold, silence }
    }

    fn bounds(&self) -> Bounds {
        let Self { drain_timeout: drain, step, settle, max_hold, .. } = *self;
        Bounds { drain, step, settle, max_hold }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(10),
            max_hold: Duration::from_secs(30),
            silence: Duration::from_secs(5),
            settle: Duration::from_millis(200),
            step: Duration::from_secs(10),
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

/// How often a still point looks whether it is asked to stop.
const LOOK: Duration = Duration::from_millis(20);

/// Takes one backup. On an error nothing is published, and everything that waited has been let go.
pub fn back_up(
    order: &BackupOrder,
    participants: Vec<Box<dyn Participant>>,
    repository: &Repository,
    watchdog: &Arc<Guard>,
    monitor: &Arc<dyn Monitor>,
) -> Result<Backup, CaptureError> {
    if !order.live && !participants.iter().any(|p| p.rank() == Rank::Gateway) {
        return Err(CaptureError::new("hold: the environment has no gateway")
            .hint("add one to stillpoint.yaml, or take a live backup with --live"));
    }
    let created = Timestamp::now();
    // Before the repository is locked: what fails here has nothing to leave.
    let mut crew = Crew::new(participants)?;
    let registry = Registry::new(watchdog);
    let options = WriterOptions {
        on_lock: Some(registry.listener()),
        rate: order.rate,
        ..WriterOptions::default()
    };
    let writer = gently(|| repository.writer(options))?
        .map_err(|e| CaptureError::new("open the repository for writing").because(e))?;
    let writer = Arc::new(writer);
    let outcome = (|| {
        registry.set(Vec::new(), None)?;
        monitor.begin("prepare", None);
        let (by, to) = (Arc::clone(monitor), Arc::clone(&writer));
        crew.all(move |p| gently(|| p.prepare(&to, &*by))?)?;
        go_on(&**monitor)?;
        let moment = if order.live {
            monitor.begin("mark", None);
            crew.all(|p| p.mark())?;
            None
        } else {
            Some(still_point(order, &mut crew, &registry, monitor)?)
        };
        go_on(&**monitor)?;
        monitor.begin("capture", None);
        let (by, to) = (Arc::clone(monitor), Arc::clone(&writer));
        crew.all(move |p| gently(|| p.capture(&to, &*by))?)?;
        let accounts = crew.all(|p| Ok(p.account()))?;
        write_manifest(order, created, moment, accounts)
    })();
    // Whatever the participants still hold in the services is given up before the upload ends.
    crew.dismiss();
    let writer = Arc::into_inner(writer).expect("no step outlives its answer");
    match outcome {
        Ok((manifest, parts)) => publish(order, writer, manifest, &parts, &**monitor),
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
    crew: &mut Crew,
    registry: &Registry,
    monitor: &Arc<dyn Monitor>,
) -> Result<Moment, CaptureError> {
    let undo = crew.all(|p| Ok(p.undo()))?;
    registry.set(undo.concat(), Some(order.limits.max_hold))?;
    monitor.begin("hold", None);
    let hold = order.limits.hold(order.backup.to_string());
    let (ending, mut errors, marked) = hold_and_mark(&hold, &order.limits, crew, monitor);
    monitor.begin("released", None);
    if crew.is_whole() {
        registry.set(Vec::new(), None)?;
    }
    // Otherwise the watchdog goes on to answer for those who have not come back.
    if let Some(failure) = ending.failure {
        return Err(explain(failure, crew, &order.limits, &mut errors));
    }
    let unheld_writes = ending
        .moved
        .into_iter()
        .map(|Moved { who, from, to }| {
            let [from, to] = [from, to].map(|count| count.unwrap_or_else(|| "none".to_owned()));
            format!("{}: its write counter went from {from} to {to}", crew.name(who))
        })
        .collect();
    Ok(Moment {
        marked,
        settle_us: u64::try_from(ending.settled.as_micros()).unwrap_or(u64::MAX),
        mark_rounds: ending.mark_rounds,
        unheld_writes,
    })
}

/// Does what the state machine says until everything is let go: how it ended, what went wrong for
/// whom, and when the last mark was seen.
fn hold_and_mark(
    hold: &HoldOrder,
    limits: &Limits,
    crew: &mut Crew,
    monitor: &Arc<dyn Monitor>,
) -> (Ending, Errors, Timestamp) {
    let (tell, answers) = mpsc::channel();
    // The time for people goes on by the clock that never jumps, as the gateways' does.
    let (began_at, began) = (Timestamp::now(), Instant::now());
    let now = || began_at.checked_add(began.elapsed()).unwrap_or(began_at);
    let (mut machine, first) = StillPoint::begin(limits.bounds(), &crew.ranks());
    let mut next = Next::Ask(first);
    let mut errors = Errors::new();
    let mut marked = began_at;
    loop {
        next = match next {
            Next::Over(ending) => return (*ending, errors, marked),
            Next::Ask(ask) => {
                std::thread::sleep(ask.pause);
                let (hold, by) = (hold.clone(), Arc::clone(monitor));
                crew.ask(ask.number, &tell, move |p| {
                    if began.elapsed() >= ask.until {
                        let what = format!("{} `{}`", ask.step.verb(), p.name());
                        return Err(CaptureError::new(what).because("it is too late for that"));
                    }
                    take(ask.step, p, &hold, &*by)
                });
                Next::Wait
            }
            Next::Wait => {
                let left = machine.due().saturating_sub(began.elapsed());
                if let Ok(Answer { who, number, result }) = answers.recv_timeout(left.min(LOOK)) {
                    if machine.step() == Step::Mark {
                        marked = now();
                    }
                    let reply = result.unwrap_or_else(|error| {
                        errors.entry(who).or_insert(error);
                        Reply::Failed
                    });
                    machine.answer(began.elapsed(), who, number, reply)
                } else {
                    let next = machine.look(began.elapsed(), monitor.cancelled());
                    crew.leave_behind(|who| machine.is_late(who));
                    next
                }
            }
        }
    }
}

/// The first error of each participant.
type Errors = BTreeMap<usize, CaptureError>;

/// One participant's step.
fn take(
    step: Step,
    participant: &mut dyn Participant,
    hold: &HoldOrder,
    monitor: &dyn Monitor,
) -> Result<Reply, CaptureError> {
    match step {
        Step::Hold => participant.hold(hold)?,
        Step::Drain => participant.drain(hold, monitor)?,
        Step::Freeze => participant.freeze()?,
        Step::Count => return participant.counter().map(Reply::Counted),
        Step::Mark => participant.mark()?,
        Step::Thaw => participant.thaw()?,
        Step::Release => participant.release()?,
    }
    Ok(Reply::Done)
}

/// The failure in words.
fn explain(failure: Failure, crew: &Crew, limits: &Limits, errors: &mut Errors) -> CaptureError {
    match failure {
        Failure::Failed { who, step } => errors
            .remove(&who)
            .unwrap_or_else(|| CaptureError::new(format!("{} `{}`", step.verb(), crew.name(who)))),
        Failure::Late { who, step } => CaptureError::new(format!(
            "{} `{}`: no answer in time; everything was released without it",
            step.verb(),
            crew.name(who)
        ))
        .hint(format!(
            "each participant has {:?} for each step of a hold (`limits: {{ step: ... }}`), and the \
             whole hold {:?}: see what keeps it busy or has stopped it",
            limits.step, limits.max_hold
        )),
        Failure::Cancelled => CaptureError::new("cancelled"),
    }
}

/// Stops here if that was asked for: nothing has been published yet.
fn go_on(monitor: &dyn Monitor) -> Result<(), CaptureError> {
    if monitor.cancelled() { Err(CaptureError::new("cancelled")) } else { Ok(()) }
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
    if drained < hold_begin || moment.marked > earliest_end || moment.marked < drained {
        return Err(CaptureError::new("the marks were not taken while all gateways held")
            .hint("if the host's clock was set back meanwhile, take the backup again"));
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
