//! The coordinator's own rules, with participants that do what a script says. The real ones are
//! tested where they live, and all together by the whole binary.

mod common;

use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stillpoint_capture::watchdog::Guard;
use stillpoint_capture::{
    Account, BackupOrder, CaptureError, HoldOrder, Limits, Participant, Rank, back_up,
};
use stillpoint_model::ids::{BackupId, PartName};
use stillpoint_model::manifest::{
    Completeness, Consistency, Gap, GatewayEvidence, Manifest, Marker, Part, Role,
};
use stillpoint_model::progress::{Monitor, Silent};
use stillpoint_repository::{LocalStore, Node, Repository, Tree, Writer};

type Log = Arc<Mutex<Vec<String>>>;
type Nice = Arc<Mutex<BTreeMap<&'static str, i32>>>;

/// A participant that does what it is told, and writes down what it was asked to do.
struct Scripted {
    name: PartName,
    rank: Rank,
    log: Log,
    counters: VecDeque<&'static str>,
    fails_in: Option<&'static str>,
    /// Hangs in this step until the other end is dropped.
    hangs_in: Option<(&'static str, Receiver<()>)>,
    gap: bool,
    /// Hours by which the clock is off when it holds, has drained, and releases.
    clock_is_off: [i64; 3],
    /// How nice its thread was in each step.
    nice: Nice,
    begun: Option<Timestamp>,
    drained: Option<Timestamp>,
    account: Account,
}

fn niceness() -> i32 {
    rustix::process::getpriority_process(None).unwrap()
}

impl Scripted {
    fn new(name: &str, rank: Rank, log: &Log) -> Self {
        Self {
            name: name.parse().unwrap(),
            rank,
            log: Arc::clone(log),
            counters: VecDeque::new(),
            fails_in: None,
            hangs_in: None,
            gap: false,
            clock_is_off: [0; 3],
            nice: Nice::default(),
            begun: None,
            drained: None,
            account: Account::default(),
        }
    }

    fn time(&self, reading: usize) -> Timestamp {
        Timestamp::now() + SignedDuration::from_hours(self.clock_is_off[reading])
    }

    fn step(&self, step: &'static str) -> Result<(), CaptureError> {
        self.log.lock().unwrap().push(format!("{step} {}", self.name));
        self.nice.lock().unwrap().insert(step, niceness());
        if let Some((_, until)) = self.hangs_in.as_ref().filter(|(at, _)| *at == step) {
            until.recv().unwrap_err();
        }
        if self.fails_in == Some(step) {
            return Err(CaptureError::new(format!("{} fails in {step}", self.name)));
        }
        Ok(())
    }
}

impl Participant for Scripted {
    fn name(&self) -> &PartName {
        &self.name
    }

    fn rank(&self) -> Rank {
        self.rank
    }

    fn prepare(&mut self, _: &Writer, _: &dyn Monitor) -> Result<(), CaptureError> {
        self.step("prepare")
    }

    fn hold(&mut self, _: &HoldOrder) -> Result<(), CaptureError> {
        self.begun = Some(self.time(0));
        self.step("hold")
    }

    fn drain(&mut self, _: &HoldOrder, _: &dyn Monitor) -> Result<(), CaptureError> {
        self.drained = Some(self.time(1));
        self.step("drain")
    }

    fn freeze(&mut self) -> Result<(), CaptureError> {
        self.step("freeze")
    }

    fn thaw(&mut self) -> Result<(), CaptureError> {
        self.step("thaw")
    }

    fn counter(&mut self) -> Result<Option<String>, CaptureError> {
        let last = self.counters.len() == 1;
        let next = if last { self.counters.front().copied() } else { self.counters.pop_front() };
        Ok(next.map(str::to_owned))
    }

    fn mark(&mut self) -> Result<(), CaptureError> {
        self.step("mark")
    }

    fn release(&mut self) -> Result<(), CaptureError> {
        if let (Rank::Gateway, Some(hold_begin), Some(drained)) =
            (self.rank, self.begun, self.drained)
        {
            self.account.gateway = Some(GatewayEvidence {
                gateway: self.name.clone(),
                hold_begin,
                drained,
                hold_end: self.time(2),
                in_flight_at_begin: 1,
                held: 2,
                refused: 0,
                excepted: 0,
                re_entrant: 0,
                endpoint: None,
            });
        }
        self.step("release")
    }

    fn capture(&mut self, writer: &Writer, _: &dyn Monitor) -> Result<(), CaptureError> {
        if self.rank == Rank::Data {
            let tree = writer.save_tree(&Tree { nodes: vec![] }).unwrap();
            let marker = Marker { at: Timestamp::now(), values: BTreeMap::new() };
            let part = Part {
                name: self.name.clone(),
                role: Role::Service,
                kind: "scripted".to_owned(),
                marker,
                facts: BTreeMap::new(),
                bytes: 0,
                items: 0,
            };
            let node = Node::directory(self.name.as_str(), tree, Timestamp::now());
            self.account.part = Some((part, node));
        }
        if self.gap {
            let (what, why) = ("a table".to_owned(), "it may not be read".to_owned());
            self.account.gaps.push(Gap { part: self.name.clone(), what, why });
        }
        self.step("capture")
    }

    fn account(&mut self) -> Account {
        std::mem::take(&mut self.account)
    }
}

struct Scene {
    top: tempfile::TempDir,
    repository: Repository,
    guard: Arc<Guard>,
    log: Log,
}

impl Scene {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let store = top.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let store = LocalStore::new(store).unwrap();
        let repository = Repository::init(Arc::new(store), "password").unwrap();
        let guard = Arc::new(common::guard(top.path()));
        Self { top, repository, guard, log: Log::default() }
    }

    fn gateway(&self) -> Scripted {
        Scripted::new("web", Rank::Gateway, &self.log)
    }

    fn service(&self, name: &str) -> Scripted {
        Scripted::new(name, Rank::Data, &self.log)
    }

    fn take(&self, participants: Vec<Scripted>) -> Result<Manifest, CaptureError> {
        self.take_as(false, false, participants)
    }

    fn take_as(
        &self,
        live: bool,
        fail_if_partial: bool,
        participants: Vec<Scripted>,
    ) -> Result<Manifest, CaptureError> {
        self.take_within(Limits::default(), live, fail_if_partial, participants)
    }

    fn take_within(
        &self,
        limits: Limits,
        live: bool,
        fail_if_partial: bool,
        participants: Vec<Scripted>,
    ) -> Result<Manifest, CaptureError> {
        let order = BackupOrder {
            backup: BackupId::random(),
            project: "test".parse().unwrap(),
            environment: "main".parse().unwrap(),
            environment_type: "production".to_owned(),
            code: None,
            live,
            fail_if_partial,
            limits,
            rate: None,
        };
        let participants =
            participants.into_iter().map(|p| Box::new(p) as Box<dyn Participant>).collect();
        let monitor: Arc<dyn Monitor> = Arc::new(Silent);
        back_up(&order, participants, &self.repository, &self.guard, &monitor)
            .map(|backup| backup.manifest)
    }

    /// The steps taken, without the names; equal neighbours once.
    fn steps(&self) -> Vec<String> {
        let mut steps: Vec<String> = self
            .log
            .lock()
            .unwrap()
            .iter()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        steps.dedup();
        steps
    }

    fn assert_nothing_is_left(&self) {
        assert!(self.repository.snapshots().unwrap().is_empty());
        let locks = self.top.path().join("store/locks");
        assert_eq!(std::fs::read_dir(locks).unwrap().count(), 0);
    }
}

#[test]
fn what_is_done_outside_of_the_hold_is_of_low_priority() {
    let scene = Scene::new();
    let service = scene.service("a");
    let nice = Arc::clone(&service.nice);
    let usual = niceness();
    scene.take(vec![scene.gateway(), service]).unwrap();
    let nice = nice.lock().unwrap();
    for step in ["prepare", "capture"] {
        assert!(nice[step] > usual, "{step}: {} is not nicer than {usual}", nice[step]);
    }
    for step in ["hold", "drain", "mark", "release"] {
        assert_eq!(nice[step], usual, "{step}");
    }
    assert_eq!(niceness(), usual);
}

#[test]
fn the_steps_are_taken_in_order_by_all_and_release_comes_before_capture() {
    let scene = Scene::new();
    let manifest =
        scene.take(vec![scene.gateway(), scene.service("a"), scene.service("b")]).unwrap();
    assert_eq!(scene.steps(), ["prepare", "hold", "drain", "mark", "release", "capture"]);
    assert_eq!(manifest.consistency, Consistency::Consistent);
    assert_eq!(manifest.completeness, Completeness::Complete);
    let evidence = manifest.evidence.unwrap();
    assert!(evidence.hold_begin <= evidence.drained);
    assert!(evidence.drained <= evidence.marked && evidence.marked <= evidence.hold_end);
    assert_eq!((evidence.mark_rounds, evidence.gateways.len()), (1, 1));
}

#[test]
fn a_write_between_the_marks_means_one_more_mark() {
    let scene = Scene::new();
    let mut service = scene.service("a");
    // Settled at 1; 2 after the first mark; still 2 after the second.
    service.counters = ["1", "1", "2", "2"].into();
    let manifest = scene.take(vec![scene.gateway(), service]).unwrap();
    let evidence = manifest.evidence.unwrap();
    assert_eq!(evidence.mark_rounds, 2);
    assert_eq!(manifest.consistency, Consistency::Consistent);
    assert!(evidence.unheld_writes.is_empty());
}

#[test]
fn writes_that_nobody_holds_cost_the_label() {
    let scene = Scene::new();
    let mut service = scene.service("a");
    service.counters = ["1", "1", "2", "3"].into();
    let manifest = scene.take(vec![scene.gateway(), service]).unwrap();
    assert_eq!(manifest.consistency, Consistency::CrashConsistent);
    assert_eq!(manifest.doubts, ["a: its write counter went from 2 to 3"]);
}

#[test]
fn whatever_fails_in_the_hold_all_are_released_and_nothing_is_published() {
    for step in ["hold", "drain", "mark"] {
        let scene = Scene::new();
        let mut failing = scene.gateway();
        failing.fails_in = Some(step);
        let error = scene.take(vec![failing, scene.service("a")]).unwrap_err();
        assert_eq!(error.to_string(), format!("web fails in {step}"));
        let log = scene.log.lock().unwrap().clone();
        for name in ["web", "a"] {
            assert!(log.contains(&format!("release {name}")), "{step}: {log:?}");
        }
        assert!(!log.iter().any(|line| line.starts_with("capture")), "{step}: {log:?}");
        scene.assert_nothing_is_left();
    }
}

#[test]
fn a_hold_that_had_ended_before_its_release_fails_the_backup() {
    let scene = Scene::new();
    let mut gateway = scene.gateway();
    gateway.fails_in = Some("release");
    assert!(scene.take(vec![gateway, scene.service("a")]).is_err());
    scene.assert_nothing_is_left();
}

#[test]
fn a_clock_that_is_set_back_in_the_hold_fails_the_backup() {
    for clock_is_off in [[1, 0, 0], [1, 1, 0], [0, 0, -1]] {
        let scene = Scene::new();
        let gateway = Scripted { clock_is_off, ..scene.gateway() };
        let error = scene.take(vec![gateway, scene.service("a")]).unwrap_err();
        assert!(error.advice().unwrap().contains("clock"), "{clock_is_off:?}: {error}");
        scene.assert_nothing_is_left();
    }
}

#[test]
fn whoever_hangs_in_the_hold_is_left_behind_and_all_others_are_released() {
    let limits = Limits { step: Duration::from_secs(1), ..Limits::default() };
    for step in ["hold", "freeze", "mark", "thaw", "release"] {
        let scene = Scene::new();
        let (let_go, until) = mpsc::channel();
        let worker = Scripted::new("mailer", Rank::Worker, &scene.log);
        let mut hanging = scene.service("a");
        hanging.hangs_in = Some((step, until));
        let participants = vec![scene.gateway(), worker, scene.service("b"), hanging];
        let error = scene.take_within(limits.clone(), false, false, participants).unwrap_err();
        let told = format!("{step} `a`: no answer in time; everything was released without it");
        assert_eq!(error.to_string(), told);
        assert!(error.advice().unwrap().contains("1s for each step"), "{error:?}");
        let log = scene.log.lock().unwrap().clone();
        for line in ["release web", "thaw mailer", "release mailer", "release b"] {
            assert!(log.iter().any(|other| other == line), "{step}: {line} is not in {log:?}");
        }
        assert!(!log.iter().any(|line| line.starts_with("capture")), "{step}: {log:?}");
        scene.assert_nothing_is_left();
        drop(let_go);
    }
}

#[test]
fn a_participant_that_panics_fails_the_backup_and_nothing_stays_held() {
    let scene = Scene::new();
    let mut panicking = scene.service("a");
    let (let_go, until) = mpsc::channel();
    let_go.send(()).unwrap();
    panicking.hangs_in = Some(("mark", until));
    let error = scene.take(vec![scene.gateway(), panicking]).unwrap_err();
    assert_eq!(error.to_string(), "a participant panicked; this is a bug");
    assert!(scene.log.lock().unwrap().contains(&"release web".to_owned()));
    scene.assert_nothing_is_left();
}

#[test]
fn workers_are_frozen_once_all_is_drained_and_thawed_before_requests_flow() {
    let scene = Scene::new();
    let worker = Scripted::new("mailer", Rank::Worker, &scene.log);
    scene.take(vec![scene.gateway(), worker, scene.service("a")]).unwrap();
    let steps = ["prepare", "hold", "drain", "freeze", "mark", "thaw", "release", "capture"];
    assert_eq!(scene.steps(), steps);
}

#[test]
fn a_failure_in_prepare_holds_nothing() {
    let scene = Scene::new();
    let mut service = scene.service("a");
    service.fails_in = Some("prepare");
    assert!(scene.take(vec![scene.gateway(), service]).is_err());
    assert_eq!(scene.steps(), ["prepare"]);
    scene.assert_nothing_is_left();
}

#[test]
fn without_a_gateway_there_is_no_hold_to_speak_of() {
    let scene = Scene::new();
    let error = scene.take(vec![scene.service("a")]).unwrap_err();
    assert!(error.advice().unwrap().contains("--live"));
    assert!(scene.steps().is_empty(), "nothing is prepared in vain");
    let manifest = scene.take_as(true, false, vec![scene.service("a")]).unwrap();
    assert_eq!(manifest.consistency, Consistency::Live);
    assert!(manifest.evidence.is_none());
}

#[test]
fn a_gap_makes_it_partial_or_fails_it_as_the_user_wants() {
    let scene = Scene::new();
    let with_gap = || {
        let mut service = scene.service("a");
        service.gap = true;
        vec![scene.gateway(), service]
    };
    let error = scene.take_as(false, true, with_gap()).unwrap_err();
    assert!(error.to_string().contains("a table: it may not be read"), "{error}");
    scene.assert_nothing_is_left();
    let manifest = scene.take(with_gap()).unwrap();
    assert_eq!(manifest.completeness, Completeness::Partial);
    assert_eq!(manifest.gaps.len(), 1);
}
