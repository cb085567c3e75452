//! The bank with everything around it: gateway, watchdog, repository, and the processes of the
//! workload. Rounds are taken here: a backup while all work, a restore by the product's own flow
//! into fresh servers, and the checker's word.

use crate::broken::Clock;
use crate::common;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stillpoint_capture::mount::{Filter, MountParticipant, MountRestore};
use stillpoint_capture::restore::{RestoreOrder, RestorePart, restore};
use stillpoint_capture::watchdog::Guard;
use stillpoint_capture::{
    Backup, BackupOrder, CaptureError, GatewayParticipant, Limits, NoStreams, Participant, Rank,
    ServiceParticipant, TreeSource, back_up,
};
use stillpoint_gateway::control::Purpose;
use stillpoint_gateway::{Gateway, GatewayOptions};
use stillpoint_model::ids::{BackupId, PartName};
use stillpoint_model::manifest::{Manifest, Role};
use stillpoint_model::progress::{Monitor, Silent};
use stillpoint_repository::{LocalStore, Reader, Repository, Writer};
use stillpoint_services::Driver;
use stillpoint_services::mariadb::{Mariadb, MariadbOptions};
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_services::redis::{Redis, RedisOptions};
use stillpoint_services::sqlite::{Sqlite, SqliteOptions};
use stillpoint_testkit::workload::{
    self, Addresses, Books, Login, PARTS, Process, SERVICES, Site, Summary, Traffic, Violation,
    judge,
};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// The test that plays the workload's processes.
const PLAYER: &str = "plays_the_workload";

/// The password of the proof's repositories.
pub(crate) const PASSWORD: &str = "password";

/// Proofs of one program run one after the other: each keeps the machine busy.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // One that failed says nothing about the next.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bank at work.
pub(crate) struct Stage {
    // Ended in this order: clients and worker first, the servers last.
    clients: Process,
    worker: Process,
    gateway: RunningGateway,
    bank: Process,
    guard: Arc<Guard>,
    repository: Repository,
    top: tempfile::TempDir,
    site: Site,
}

/// A backup, restored and judged.
pub(crate) struct Round {
    pub(crate) manifest: Manifest,
    pub(crate) violations: Vec<Violation>,
    /// The highest order in what was restored.
    pub(crate) highest: u64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.manifest.consistency.as_str())?;
        if let Some(evidence) = &self.manifest.evidence {
            let [hold, drain, mark] = [evidence.hold_ms(), evidence.drain_ms(), evidence.mark_ms()];
            write!(f, ", hold {hold:.1} ms (drain {drain:.1}, mark {mark:.1})")?;
            let sum = |pick: fn(&_) -> u64| evidence.gateways.iter().map(pick).sum::<u64>();
            let flight = sum(|gateway: &stillpoint_model::manifest::GatewayEvidence| {
                gateway.in_flight_at_begin
            });
            let held = sum(|gateway| gateway.held);
            write!(f, ", {flight} in flight, {held} held, {} marks", evidence.mark_rounds)?;
        }
        write!(f, ", up to order {}, {} violations", self.highest, self.violations.len())?;
        let doubts = self.manifest.doubts.iter().map(|doubt| format!("\n  doubt: {doubt}"));
        let gaps = self.manifest.gaps.iter().map(|gap| format!("\n  gap: {gap:?}"));
        let wrong = self.violations.iter().map(|wrong| format!("\n  {wrong}"));
        doubts.chain(gaps).chain(wrong).try_for_each(|line| f.write_str(&line))
    }
}

impl Stage {
    /// Opens the bank, and lets everybody in.
    pub(crate) fn open(traffic: Traffic) -> Self {
        let top = tempfile::tempdir().expect("a temporary directory");
        let site = Site::opened();
        let store = top.path().join("repository");
        std::fs::create_dir(&store).expect("the repository has a directory");
        let store = LocalStore::new(store).expect("the repository's directory is one");
        let repository = Repository::init(Arc::new(store), PASSWORD).expect("a repository");
        let guard = Arc::new(common::guard(top.path()));
        let bank = Process::bank(PLAYER, &site);
        let gateway = RunningGateway::start(top.path(), bank.address());
        let clients = Process::clients(PLAYER, top.path(), gateway.address, traffic);
        let worker = Process::worker(PLAYER, &site);
        let stage = Self { clients, worker, gateway, bank, guard, repository, top, site };
        if traffic.orders > 0 {
            // All are at it.
            stage.clock().pass(100);
        }
        stage
    }

    /// Lets the clients and the worker finish; what became of them.
    pub(crate) fn close(self) -> (Summary, u64) {
        (self.clients.summary(), self.worker.jobs())
    }

    /// The repository's directory.
    pub(crate) fn repository(&self) -> PathBuf {
        self.top.path().join("repository")
    }

    pub(crate) fn clock(&self) -> Clock {
        Clock(self.bank.address())
    }

    /// A held backup, restored and judged.
    pub(crate) fn held_round(&self) -> Round {
        self.round_of(|participant| participant)
    }

    /// The same with participants that are not what they were.
    pub(crate) fn round_of(
        &self,
        change: impl Fn(Box<dyn Participant>) -> Box<dyn Participant>,
    ) -> Round {
        let mut all = self.parts();
        let web = name("web");
        all.push(Box::new(GatewayParticipant::new(web, self.gateway.control(), Purpose::Backup)));
        all.push(Box::new(Worker::of(&self.site)));
        self.round(false, all.into_iter().map(change).collect())
    }

    /// A live backup, restored and judged.
    pub(crate) fn live_round(&self) -> Round {
        self.round(true, self.parts())
    }

    fn parts(&self) -> Vec<Box<dyn Participant>> {
        let mut all: Vec<Box<dyn Participant>> = Vec::new();
        for (part, driver) in PARTS.iter().zip(drivers(self.site.addresses())) {
            all.push(Box::new(ServiceParticipant::new(name(part), driver)));
        }
        let mount = self.site.addresses().receipts.clone();
        all.push(Box::new(MountParticipant::new(name(PARTS[SERVICES]), mount, everything())));
        all
    }

    fn round(&self, live: bool, participants: Vec<Box<dyn Participant>>) -> Round {
        // What was answered before the backup begins must be in there.
        let confirmed = self.clock().now();
        let order = BackupOrder {
            backup: BackupId::random(),
            project: "bank".parse().expect("a project's id"),
            environment: "main".parse().expect("an environment's name"),
            environment_type: "production".to_owned(),
            code: None,
            live,
            fail_if_partial: true,
            limits: Limits::default(),
            rate: None,
        };
        let monitor: Arc<dyn Monitor> = Arc::new(Silent);
        let backup = back_up(&order, participants, &self.repository, &self.guard, &monitor)
            .unwrap_or_else(|error| panic!("the backup failed: {}", whole(&error)));
        let fresh = Site::empty();
        self.restore(&backup, &fresh)
            .unwrap_or_else(|error| panic!("the restore failed: {}", whole(&error)));
        let books = Books::read(fresh.addresses()).expect("what was restored can be read");
        let violations = judge(&books, confirmed);
        Round { manifest: backup.manifest, violations, highest: books.highest() }
    }

    /// Puts a backup into other services, by the product's own flow.
    fn restore(&self, backup: &Backup, fresh: &Site) -> Result<(), CaptureError> {
        let reader = Arc::new(self.repository.reader().expect("the repository can be read"));
        let mut parts = Vec::new();
        for part in &backup.manifest.parts {
            parts.push(restore_part(&reader, backup, &part.name, part.role, fresh.addresses()));
        }
        let directory = fresh.directory();
        let order = RestoreOrder {
            backup: backup.manifest.backup.clone(),
            token: BackupId::random().as_str()[..12].to_owned(),
            journal: directory.join("journal.json"),
            recovery: vec!["recover".to_owned()],
            limits: Limits::default(),
        };
        restore(&order, parts, Vec::new(), &common::guard(directory), &Silent).map(drop)
    }
}

fn restore_part<'a>(
    reader: &'a Arc<Reader>,
    backup: &Backup,
    part: &PartName,
    role: Role,
    into: &Addresses,
) -> RestorePart<'a> {
    let mut snapshots = reader.snapshots().iter();
    let (_, snapshot) =
        snapshots.find(|(id, _)| *id == backup.snapshot).expect("a published backup is there");
    let folder = if role == Role::Mount { "mounts" } else { "services" };
    let node = reader
        .lookup(&snapshot.tree, &format!("{folder}/{part}"))
        .expect("the backup has the part's directory");
    let name = part.clone();
    if role == Role::Mount {
        let steps =
            MountRestore::new(into.receipts.clone(), everything(), Arc::clone(reader), node);
        return RestorePart { name, role, steps: Box::new(steps), source: Box::new(NoStreams) };
    }
    let tree = node.subtree.expect("a directory has a tree");
    let source = TreeSource::new(reader, &tree).expect("the part's tree can be read");
    let place = PARTS.iter().position(|known| *known == part.as_str()).expect("it is ours");
    let driver = drivers(into).swap_remove(place);
    RestorePart { name, role, steps: driver.restore(), source: Box::new(source) }
}

/// The services' drivers, in the order of [`PARTS`].
fn drivers(at: &Addresses) -> Vec<Box<dyn Driver>> {
    let path = std::env::var_os("PATH");
    let tool_dirs: Vec<PathBuf> = path.iter().flat_map(std::env::split_paths).collect();
    let login = |login: &Login| (login.url.clone(), Some(login.password.clone()));
    let (url, password) = login(&at.db);
    let db = PostgresOptions {
        url,
        password,
        databases: Vec::new(),
        tool_dirs: default_tool_dirs(path.as_deref()),
    };
    let (url, password) = login(&at.ledger);
    let databases = Vec::new();
    let ledger =
        MariadbOptions { kind: "mariadb", url, password, databases, tool_dirs: tool_dirs.clone() };
    let (url, password) = login(&at.cache);
    let cache = RedisOptions { kind: "redis", url, password, tool_dirs };
    let local = SqliteOptions { path: at.local.clone() };
    vec![
        Box::new(Postgres::new(db).expect("PostgreSQL's options are good")),
        Box::new(Mariadb::new(ledger).expect("MariaDB's options are good")),
        Box::new(Redis::new(cache).expect("Redis's options are good")),
        Box::new(Sqlite::new(local).expect("SQLite's options are good")),
    ]
}

fn everything() -> Filter {
    Filter::new(&[]).expect("no patterns are good patterns")
}

fn name(name: &str) -> PartName {
    name.parse().expect("a part's name")
}

/// An error with all its causes and its hint.
fn whole(error: &CaptureError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    format!("{text} ({})", error.advice().unwrap_or("no hint"))
}

/// A gateway of the product, which serves until dropped.
struct RunningGateway {
    address: SocketAddr,
    control: PathBuf,
    _end: oneshot::Sender<()>,
    _runtime: Runtime,
}

impl RunningGateway {
    fn start(directory: &Path, upstream: SocketAddr) -> Self {
        let control = directory.join("web.sock");
        let options = GatewayOptions {
            name: name("web"),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            upstream: format!("http://{upstream}").parse().expect("an upstream"),
            max_hold: Duration::from_secs(30),
            max_held: 10_000,
            pass: Vec::new(),
            endpoint: None,
            control: control.clone(),
        };
        let runtime = Runtime::new().expect("a runtime");
        let gateway = runtime.block_on(Gateway::bind(options)).expect("the gateway starts");
        let address = gateway.address();
        let (end, ended) = oneshot::channel::<()>();
        runtime.spawn(gateway.serve(async move {
            // Dropped is ended.
            let _ = ended.await;
        }));
        Self { address, control, _end: end, _runtime: runtime }
    }

    fn control(&self) -> PathBuf {
        self.control.clone()
    }
}

/// The bank's worker, asked to pause by its own commands.
struct Worker {
    name: PartName,
    quiesce: String,
    resume: String,
}

impl Worker {
    fn of(site: &Site) -> Self {
        let [quiesce, resume] = workload::worker_commands(site);
        Self { name: name("worker"), quiesce, resume }
    }

    fn tell(&self, command: &str) -> Result<(), CaptureError> {
        let status = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            other => Err(CaptureError::new(format!("tell `{}`: {other:?}", self.name))),
        }
    }
}

impl Participant for Worker {
    fn name(&self) -> &PartName {
        &self.name
    }

    fn rank(&self) -> Rank {
        Rank::Worker
    }

    fn prepare(&mut self, _: &Writer, _: &dyn Monitor) -> Result<(), CaptureError> {
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), CaptureError> {
        self.tell(&self.quiesce)
    }

    fn thaw(&mut self) -> Result<(), CaptureError> {
        self.tell(&self.resume)
    }

    fn account(&mut self) -> stillpoint_capture::Account {
        stillpoint_capture::Account::default()
    }
}
