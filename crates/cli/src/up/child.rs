//! One supervised process.

use crate::output::tell;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long to wait before a process that died is started again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// One that ran for so long is started again as if for the first time.
const STABLE: Duration = Duration::from_secs(30);

/// What a process sees of our environment variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environment {
    /// All, passwords too.
    Whole,
    /// Only those that say how to run and log.
    Bare,
}

/// Variables that hold no secrets.
const HARMLESS: [&str; 8] =
    ["PATH", "LANG", "LC_ALL", "TZ", "HOME", "RUST_BACKTRACE", "STILLPOINT_LOG", "NO_COLOR"];

/// What is run.
pub(crate) struct Spec {
    /// Its name for people.
    pub name: String,
    /// Arguments of this program.
    pub arguments: Vec<OsString>,
    /// What it sees.
    pub environment: Environment,
}

/// A process that is started again whenever it dies.
pub(crate) struct Child {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    spec: Spec,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ending: bool,
    ended: bool,
    /// Ends the process when it is dropped.
    input: Option<ChildStdin>,
    pid: Option<u32>,
    /// What it said after `ready`, the last time it was.
    ready: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no supervisor panicked")
    }
}

impl Child {
    /// Starts it, now and ever again.
    pub(crate) fn start(spec: Spec) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { spec, state: Mutex::default(), changed: Condvar::default() });
        let supervised = Arc::clone(&shared);
        let supervisor = std::thread::Builder::new()
            .name(shared.spec.name.clone())
            .spawn(move || supervise(&supervised))?;
        Ok(Self { shared, supervisor: Mutex::new(Some(supervisor)) })
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.spec.name
    }

    /// What it said after `ready`, if it has been.
    pub(crate) fn ready(&self) -> Option<String> {
        self.shared.lock().ready.clone()
    }

    /// Tells it to end, and does not wait.
    pub(crate) fn close(&self) {
        let mut state = self.shared.lock();
        state.ending = true;
        state.input = None;
        self.shared.changed.notify_all();
    }

    /// Tells it to end and waits until it has. One that does not in time is killed.
    pub(crate) fn end(&self, patience: Duration) {
        self.close();
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, patience, |s| !s.ended);
        let (state, _) = waited.expect("no supervisor panicked");
        if !state.ended {
            tell(&format!("{} does not end: it is killed", self.name()));
            let pid = state.pid.and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                // It is our own child, not yet waited for, so the id is still its own.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap_or(());
            }
        }
        drop(state);
        if let Some(supervisor) = self.supervisor.lock().expect("nobody panicked").take() {
            // A panic there was reported by the thread itself.
            drop(supervisor.join());
        }
    }
}

fn supervise(shared: &Arc<Shared>) {
    let name = &shared.spec.name;
    let mut pause = PAUSES.0;
    loop {
        let begun = Instant::now();
        let how = match once(shared) {
            Ok(how) => how,
            Err(error) => format!("could not be started: {error}"),
        };
        let mut state = shared.lock();
        (state.input, state.pid) = (None, None);
        if state.ending {
            state.ended = true;
            shared.changed.notify_all();
            return;
        }
        if begun.elapsed() > STABLE {
            pause = PAUSES.0;
        }
        tell(&format!("{name} {how}; started again in {pause:?}"));
        let waited = shared.changed.wait_timeout_while(state, pause, |s| !s.ending);
        drop(waited.expect("nobody panicked"));
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Runs it once, and says how it ended.
fn once(shared: &Arc<Shared>) -> io::Result<String> {
    let spec = &shared.spec;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(&spec.arguments);
    if spec.environment == Environment::Bare {
        command.env_clear();
        for name in HARMLESS {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
    }
    // A group of its own: what a terminal sends to ours is for us alone.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = {
        let mut state = shared.lock();
        if state.ending {
            return Ok("was not started: everything ends".to_owned());
        }
        let mut child = command.spawn()?;
        state.input = child.stdin.take();
        state.pid = Some(child.id());
        child
    };
    if let Some(errors) = child.stderr.take() {
        let name = spec.name.clone();
        // Not waited for: what the process has started itself may go on saying things after it.
        std::thread::spawn(move || each_line(errors, |line| tell(&format!("{name}: {line}"))));
    }
    if let Some(output) = child.stdout.take() {
        each_line(output, |line| match line.strip_prefix("ready ") {
            Some(ready) => shared.lock().ready = Some(ready.to_owned()),
            None => tell(&format!("{}: {line}", spec.name)),
        });
    }
    let status = child.wait()?;
    Ok(format!("ended: {status}"))
}

fn each_line(from: impl Read, mut act: impl FnMut(&str)) {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        act(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}
