//! Freezers against real processes. That something stands still is seen by its state, and by what it
//! writes; nothing is timed.

#![allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]

use super::frozen::Frozen;
use super::participant::WorkerParticipant;
use super::process::{self, Stat};
use super::target::{self, Target};
use super::{Process, Shell, Standing, container, group};
use crate::participant::Participant;
use crate::watchdog::{Undo, started};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use stillpoint_model::config::{Freezer, WorkerPart};
use stillpoint_model::progress::Silent;

const LONG: Duration = Duration::from_secs(60);

/// A worker that writes without end, with a child that does so too.
pub(crate) struct Writing {
    child: Child,
    pub(crate) directory: tempfile::TempDir,
}

const PROGRAM: &str = "(while :; do printf x >> child; done) & while :; do printf x >> own; done";

impl Writing {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new("/bin/sh")
            .args(["-c", PROGRAM])
            .current_dir(directory.path())
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let writing = Self { child, directory };
        fs::write(writing.pidfile(), format!("{}\n", writing.pid())).unwrap();
        writing.goes_on();
        writing
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn pidfile(&self) -> PathBuf {
        self.directory.path().join("pid")
    }

    fn written(&self) -> [u64; 2] {
        let length = |name| fs::metadata(self.directory.path().join(name)).map_or(0, |m| m.len());
        [length("own"), length("child")]
    }

    /// Waits until both have written more than before.
    pub(crate) fn goes_on(&self) {
        let before = self.written();
        await_that("the worker goes on", || {
            let now = self.written();
            now[0] > before[0] && now[1] > before[1]
        });
    }

    pub(crate) fn freeze(&self) {
        self.target().freeze(until()).unwrap();
    }

    /// Nothing is written any more.
    pub(crate) fn stands(&self) {
        let members = process::all(|stat| stat.group == self.pid() && !stat.has_ended()).unwrap();
        assert_eq!(members.len(), 2, "it and its child");
        for member in members {
            assert!(process::is_stopped(member.pid).unwrap(), "{member:?}");
        }
        let before = self.written();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(self.written(), before);
    }

    fn stat(&self) -> Stat {
        process::stat(self.pid()).unwrap().unwrap()
    }

    pub(crate) fn target(&self) -> Target {
        let aimed = group::named_by(&self.pidfile()).unwrap();
        assert_eq!(aimed.doubt, None);
        aimed.target.unwrap()
    }

    fn kill(&mut self) {
        for member in process::all(|stat| stat.group == self.pid()).unwrap() {
            process::signal(&member, Signal::KILL).unwrap();
        }
        self.child.wait().unwrap();
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.kill();
    }
}

#[track_caller]
pub(crate) fn await_that(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < until, "not seen: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn until() -> Instant {
    Instant::now() + LONG
}

/// One that may be frozen, as the watchdog is told of it.
pub(crate) fn frozen(target: Target) -> Frozen {
    let (worker, timeout_ms) = ("mailer".parse().unwrap(), 5000);
    Frozen { worker, target, resume: None, timeout_ms }
}

pub(crate) fn shell(command: &str, directory: &Path) -> Shell {
    let (command, directory) = (command.to_owned(), directory.to_owned());
    Shell { command, directory, environment: BTreeMap::new() }
}

#[test]
fn a_process_group_stands_still_with_its_children_and_goes_on() {
    let writing = Writing::new();
    let target = writing.target();
    target.permitted().unwrap();
    assert_eq!(target.standing().unwrap(), Standing::Working);
    target.freeze(until()).unwrap();
    writing.stands();
    assert_eq!(target.standing().unwrap(), Standing::Still);
    target.thaw(until()).unwrap();
    target.thaw(until()).unwrap();
    writing.goes_on();
    assert_eq!(target.standing().unwrap(), Standing::Working);
}

#[test]
fn a_worker_that_dies_while_it_stands_still_is_gone_and_may_be_thawed() {
    let writing = Writing::new();
    let target = writing.target();
    target.freeze(until()).unwrap();
    // Its child was stopped in a group that nobody is left to continue: the kernel hangs it up.
    process::signal(&writing.stat(), Signal::KILL).unwrap();
    await_that("it ended", || writing.stat().has_ended());
    assert_eq!(target.standing().unwrap(), Standing::Gone);
    target.thaw(until()).unwrap();
}

#[test]
fn a_process_that_has_the_number_of_a_dead_worker_is_not_touched() {
    let writing = Writing::new();
    let target = writing.target();
    // The file was written before the process began that has its number now.
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options()
        .write(true)
        .open(writing.pidfile())
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let aimed = group::named_by(&writing.pidfile()).unwrap();
    assert_eq!(aimed.target, None);
    assert!(aimed.doubt.unwrap().contains("is older than process"));
    // The same for who was aimed at before it was reused: it began at another time.
    let began = started(writing.pid()).unwrap();
    let own = Process::new(writing.pid()).unwrap();
    assert!(own.is_alive() && own.aim().unwrap().target.is_some());
    let other = serde_json::to_string(&own).unwrap();
    let other = other.replace(&format!(":{began}"), &format!(":{}", began + 1));
    let other: Process = serde_json::from_str(&other).unwrap();
    assert!(!other.is_alive());
    assert_eq!(other.aim().unwrap().target, None);
    let text = serde_json::to_string(&target).unwrap();
    let reused = text.replace(&format!(":{began}"), &format!(":{}", began - 1));
    assert_ne!(text, reused);
    let reused: Target = serde_json::from_str(&reused).unwrap();
    reused.freeze(until()).unwrap();
    writing.goes_on();
    assert_eq!(reused.standing().unwrap(), Standing::Gone);
}

#[test]
fn the_group_of_this_very_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pidfile = directory.path().join("pid");
    fs::write(&pidfile, std::process::id().to_string()).unwrap();
    let error = group::named_by(&pidfile).unwrap_err();
    assert!(error.to_string().contains("which cannot be stopped"), "{error}");
    assert!(error.advice().unwrap().contains("setsid"));
}

#[test]
fn a_pid_file_that_is_missing_means_nothing_runs_and_a_strange_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pidfile = directory.path().join("pid");
    assert_eq!(group::named_by(&pidfile).unwrap().target, None);
    for text in ["", "abc", "-1", "0", "1", "12 13"] {
        fs::write(&pidfile, text).unwrap();
        assert!(group::named_by(&pidfile).is_err(), "{text:?}");
    }
}

/// Makes a control group below `mount`, if the kernel and this container allow it.
fn control_group(mount: &str, file: &str) -> Option<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix("stillpoint-test-").tempdir_in(mount);
    match made {
        Ok(directory) if directory.path().join(file).exists() => Some(directory),
        Ok(_) => {
            eprintln!("SKIPPED: {mount} has groups, but no {file} in them");
            None
        }
        Err(error) => {
            eprintln!("SKIPPED: no control group can be made in {mount}: {error}");
            None
        }
    }
}

fn by_cgroup(mounts: &[&str], file: &str) {
    let Some(group) = mounts.iter().find_map(|mount| control_group(mount, file)) else { return };
    let freezer = Freezer::Cgroup(group.path().to_owned());
    let aim = || target::aim(&freezer, |text| shell(text, Path::new("/")), until()).unwrap().target;
    assert_eq!(aim(), None, "nothing is in it");
    let writing = Writing::new();
    for member in process::all(|stat| stat.group == writing.pid()).unwrap() {
        fs::write(group.path().join("cgroup.procs"), member.pid.to_string()).unwrap();
    }
    let target = aim().unwrap();
    target.permitted().unwrap();
    assert_eq!(target.standing().unwrap(), Standing::Working);
    target.freeze(until()).unwrap();
    let before = writing.written();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(writing.written(), before);
    assert_eq!(target.standing().unwrap(), Standing::Still);
    target.thaw(until()).unwrap();
    target.thaw(until()).unwrap();
    writing.goes_on();
    // Once it is gone there is nothing to thaw.
    let pid = writing.pid();
    drop(writing);
    await_that("the group is empty", || {
        process::all(|stat| stat.group == pid).unwrap().is_empty() && aim().is_none()
    });
    let path = group.keep();
    await_that("the group is removed", || fs::remove_dir(&path).is_ok());
    target.thaw(until()).unwrap();
    assert_eq!(target.standing().unwrap(), Standing::Gone);
}

#[test]
fn a_control_group_of_version_1_stands_still() {
    by_cgroup(&["/sys/fs/cgroup/freezer"], "freezer.state");
}

#[test]
fn a_control_group_of_version_2_stands_still() {
    by_cgroup(&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], "cgroup.freeze");
}

fn worker(freezer: Freezer, change: impl FnOnce(&mut WorkerPart), at: &Path) -> WorkerParticipant {
    let (quiesce, resume, atomic, timeout) = (None, None, false, LONG);
    let mut part = WorkerPart { freezer, quiesce, resume, atomic, timeout };
    change(&mut part);
    let at = at.to_owned();
    WorkerParticipant::new("mailer".parse().unwrap(), &part, move |text| shell(text, &at))
}

/// Through all steps of a still point.
fn stand_still(worker: &mut WorkerParticipant, meanwhile: impl FnOnce()) {
    worker.reach(&Silent).unwrap();
    worker.aim().unwrap();
    worker.freeze().unwrap();
    meanwhile();
    worker.thaw().unwrap();
    assert_eq!(worker.owed(), []);
}

#[test]
fn a_worker_costs_the_label_unless_it_is_atomic_or_finishes_its_job() {
    let writing = Writing::new();
    let at = writing.directory.path();
    let pidfile = || Freezer::Pidfile(writing.pidfile());
    let mut plain = worker(pidfile(), |_| {}, at);
    stand_still(&mut plain, || writing.stands());
    let account = plain.account();
    assert!(account.doubts[0].starts_with("mailer: it was frozen where it stood"));
    let evidence = account.worker.unwrap();
    assert_eq!(evidence.by, format!("process group {}", writing.pid()));
    assert!(evidence.frozen <= evidence.thawed);
    let mut atomic = worker(pidfile(), |part| part.atomic = true, at);
    stand_still(&mut atomic, || writing.stands());
    assert_eq!(atomic.account().doubts, Vec::<String>::new());
    let quiesced = |part: &mut WorkerPart| {
        part.quiesce = Some("echo quiesce >> told".to_owned());
        part.resume = Some("echo resume >> told".to_owned());
    };
    let mut quiesced = worker(pidfile(), quiesced, at);
    stand_still(&mut quiesced, || {
        assert_eq!(fs::read_to_string(at.join("told")).unwrap(), "quiesce\n");
        writing.stands();
    });
    assert_eq!(quiesced.account().doubts, Vec::<String>::new());
    assert_eq!(fs::read_to_string(at.join("told")).unwrap(), "quiesce\nresume\n");
    writing.goes_on();
}

#[test]
fn a_worker_that_was_restarted_since_prepare_is_found_anew() {
    let (first, second) = (Writing::new(), Writing::new());
    let pidfile = first.pidfile();
    let mut worker = worker(Freezer::Pidfile(pidfile.clone()), |_| {}, first.directory.path());
    worker.reach(&Silent).unwrap();
    fs::write(&pidfile, second.pid().to_string()).unwrap();
    worker.aim().unwrap();
    let [Undo::Thaw { frozen: told, .. }] = &worker.undo()[..] else { panic!("one thaw") };
    assert_eq!(**told, Frozen { timeout_ms: told.timeout_ms, ..frozen(second.target()) });
    worker.freeze().unwrap();
    second.stands();
    first.goes_on();
    worker.thaw().unwrap();
    second.goes_on();
}

#[test]
fn a_worker_that_was_let_go_by_somebody_else_fails_the_still_point() {
    let writing = Writing::new();
    let mut worker = worker(Freezer::Pidfile(writing.pidfile()), |_| {}, Path::new("/"));
    worker.aim().unwrap();
    worker.freeze().unwrap();
    frozen(writing.target()).let_go().unwrap();
    writing.goes_on();
    let error = worker.thaw().unwrap_err();
    assert_eq!(error.to_string(), "keep an eye on worker `mailer`");
    assert!(error.advice().unwrap().contains("watchdog"));
}

#[test]
fn a_worker_that_died_or_was_started_in_between_costs_the_label() {
    let writing = Writing::new();
    let other = Writing::new();
    let atomic = |part: &mut WorkerPart| part.atomic = true;
    let mut worker = worker(Freezer::Pidfile(writing.pidfile()), atomic, Path::new("/"));
    stand_still(&mut worker, || {
        process::signal(&writing.stat(), Signal::KILL).unwrap();
        await_that("it ended", || writing.stat().has_ended());
        fs::write(writing.pidfile(), other.pid().to_string()).unwrap();
    });
    let doubts = worker.account().doubts;
    let gone = format!("mailer: process group {} ended while it stood still", writing.pid());
    assert_eq!(doubts, [&gone, "mailer: it was started while it should stand still"]);
}

#[test]
fn what_hangs_or_fails_in_freezing_is_thawed_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    for (freeze, told) in [("sleep 600", "in time"), ("echo no >&2; exit 1", "it said: no")] {
        let (freeze, thaw) = (freeze.to_owned(), "echo thawed >> told".to_owned());
        let hasty = |part: &mut WorkerPart| part.timeout = Duration::from_millis(300);
        let mut worker = worker(Freezer::Commands { freeze, thaw }, hasty, at);
        worker.aim().unwrap();
        let error = worker.freeze().unwrap_err();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        assert!(text.starts_with("freeze worker `mailer`: run `"), "{text}");
        assert!(text.contains(told), "{text}");
        worker.thaw().unwrap();
        assert_eq!(fs::read_to_string(at.join("told")).unwrap(), "thawed\n");
        fs::remove_file(at.join("told")).unwrap();
    }
}

#[test]
fn a_thaw_that_fails_is_owed_and_one_that_was_never_frozen_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (freeze, thaw) = ("true".to_owned(), "exit 1".to_owned());
    let mut worker = worker(Freezer::Commands { freeze, thaw }, |_| {}, directory.path());
    worker.aim().unwrap();
    worker.thaw().unwrap();
    assert_eq!(worker.owed(), []);
    worker.aim().unwrap();
    let undo = worker.undo();
    worker.freeze().unwrap();
    assert!(worker.thaw().is_err());
    assert_eq!(worker.owed(), undo);
}

#[test]
fn a_participant_that_is_dropped_lets_its_worker_go() {
    let writing = Writing::new();
    let mut worker = worker(Freezer::Pidfile(writing.pidfile()), |_| {}, Path::new("/"));
    worker.aim().unwrap();
    worker.freeze().unwrap();
    writing.stands();
    drop(worker);
    writing.goes_on();
}

/// A Docker daemon of its own, with an image of one file, where that is possible.
struct Docker {
    daemon: Child,
    directory: tempfile::TempDir,
}

impl Docker {
    fn start() -> Option<Self> {
        let has = |program: &str| {
            let found = Command::new("which").arg(program).stdout(Stdio::null()).status().unwrap();
            found.success()
        };
        if let Some(lacking) = ["dockerd", "docker", "busybox"].iter().find(|name| !has(name)) {
            eprintln!("SKIPPED: there is no {lacking} here");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let socket = format!("unix://{}", at("d.sock").display());
        let daemon = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--host", &socket])
            .args(["--storage-driver=vfs", "--data-root"])
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        fs::write(at("docker"), format!("#!/bin/sh\nexec docker -H {socket} \"$@\"\n")).unwrap();
        fs::set_permissions(at("docker"), PermissionsExt::from_mode(0o755)).unwrap();
        let mut docker = Self { daemon, directory };
        let until = until();
        while docker.run(&["version"]).is_err() {
            if docker.daemon.try_wait().unwrap().is_some() || Instant::now() > until {
                let log = fs::read_to_string(docker.directory.path().join("log")).unwrap();
                eprintln!("SKIPPED: no Docker daemon can be run here: {log}");
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let image = format!(
            "mkdir -p {0}/bin && cp $(which busybox) {0}/bin/sh && tar -C {0} -c . | {1} import - box",
            docker.directory.path().join("root").display(),
            docker.engine().display()
        );
        assert!(Command::new("/bin/sh").args(["-c", &image]).status().unwrap().success());
        Some(docker)
    }

    fn engine(&self) -> PathBuf {
        self.directory.path().join("docker")
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(self.engine()).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let started = self.run(&["ps", "-aq"]).unwrap_or_default();
        for container in started.lines() {
            self.run(&["rm", "-f", container]).ok();
        }
        let pid = self.daemon.id().cast_signed();
        if let Some(daemon) = process::stat(pid).ok().flatten() {
            process::signal(&daemon, Signal::TERM).ok();
        }
        self.daemon.wait().ok();
    }
}

#[test]
fn a_container_stands_still_and_one_that_is_unknown_or_ended_is_told_apart() {
    let Some(docker) = Docker::start() else { return };
    let shared = docker.directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let volume = format!("{}:/shared", shared.display());
    let program = "while :; do echo x >> /shared/own; done";
    let arguments = ["run", "-d", "--name", "mailer", "--network", "none", "-v", &volume, "box"];
    docker.run(&[&arguments[..], &["/bin/sh", "-c", program]].concat()).unwrap();
    let written = || fs::metadata(shared.join("own")).map_or(0, |found| found.len());
    let goes_on = || {
        let before = written();
        await_that("the container goes on", || written() > before);
    };
    let aim = |name: &str| container::of(docker.engine(), name, until());
    let target = aim("mailer").unwrap().target.unwrap();
    assert_eq!(target.standing().unwrap(), Standing::Working);
    goes_on();
    target.freeze(until()).unwrap();
    assert_eq!(target.standing().unwrap(), Standing::Still);
    let before = written();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(written(), before);
    assert!(aim("mailer").unwrap_err().advice().unwrap().contains("unpause mailer"));
    target.thaw(until()).unwrap();
    target.thaw(until()).unwrap();
    goes_on();
    docker.run(&["restart", "-t", "0", "mailer"]).unwrap();
    assert_eq!(target.standing().unwrap(), Standing::Gone);
    assert_ne!(aim("mailer").unwrap().target.unwrap(), target);
    docker.run(&["kill", "mailer"]).unwrap();
    assert_eq!(aim("mailer").unwrap().target, None);
    target.thaw(until()).unwrap();
    docker.run(&["rm", "mailer"]).unwrap();
    assert!(aim("mailer").is_err());
    target.thaw(until()).unwrap();
}
