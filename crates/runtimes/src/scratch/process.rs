//! A scratch server's process: started in a group of its own, told of before it is ready, ended
//! with this value.
//!
//! The process becomes the server only when it is told to: should this one be killed before anybody
//! knows of it, there is no server that nobody ends.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::account::Account;
use crate::RuntimeError;

/// How long a server may take to get ready, or to stop, before it is given up.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// Told of a server's first process (its id) right after it was started, and before it is ready. On
/// an error the server is ended again. Called again where a start is tried again.
#[derive(Clone)]
pub struct OnSpawn(Arc<dyn Fn(u32) -> io::Result<()> + Send + Sync>);

impl OnSpawn {
    /// Calls `told`.
    pub fn new(told: impl Fn(u32) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }
}

impl std::fmt::Debug for OnSpawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnSpawn")
    }
}

/// What is to be run.
pub(super) struct Launch<'a> {
    /// The server's name, for messages.
    pub(super) name: &'static str,
    pub(super) program: &'a Path,
    pub(super) arguments: Vec<String>,
    pub(super) account: &'a Account,
    /// Its working directory and home.
    pub(super) dir: &'a Path,
    /// Where it says what it does.
    pub(super) log: PathBuf,
    /// The signals that ask it to stop, the gentlest first.
    pub(super) stop: &'static [Signal],
    pub(super) on_spawn: Option<&'a OnSpawn>,
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub(super) struct ServerProcess {
    name: &'static str,
    child: Child,
    log: PathBuf,
    stop: &'static [Signal],
}

impl ServerProcess {
    /// Starts it and waits until it is `ready`.
    pub(super) fn start(
        launch: &Launch<'_>,
        mut ready: impl FnMut() -> bool,
    ) -> Result<Self, RuntimeError> {
        let log_error = |source| io_error("open", &launch.log, source);
        let log = File::options().create(true).append(true).open(&launch.log).map_err(log_error)?;
        let log_too = log.try_clone().map_err(log_error)?;
        let child = tool(Path::new("/bin/sh"), launch.account, launch.dir)
            .args(["-c", "read -r go && exec \"$0\" \"$@\" </dev/null"])
            .arg(launch.program)
            .args(&launch.arguments)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(log_too)
            .process_group(0)
            .spawn()
            .map_err(|source| io_error("run a server in", launch.dir, source))?;
        let mut server =
            Self { name: launch.name, child, log: launch.log.clone(), stop: launch.stop };
        let told = launch.on_spawn.map_or(Ok(()), |OnSpawn(tell)| tell(server.child.id()));
        let stdin = server.child.stdin.take();
        let gone = told.and_then(|()| stdin.map_or(Ok(()), |mut stdin| stdin.write_all(b"go\n")));
        if let Err(source) = gone {
            server.kill();
            return Err(io_error("tell of the server in", launch.dir, source));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = server.child.try_wait();
            let ended = ended.map_err(|source| io_error("wait for", launch.dir, source))?;
            if ended.is_none() && ready() {
                return Ok(server);
            }
            if ended.is_some() || Instant::now() >= deadline {
                server.kill();
                let log = log_tail(&launch.log);
                return Err(RuntimeError::DidNotStart { name: launch.name, log });
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its first process, leader of its process group.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it: everything is written down.
    pub(super) fn stop(mut self) -> Result<(), RuntimeError> {
        self.shut_down();
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(status) => Err(RuntimeError::Tool {
                program: self.name,
                output: format!(
                    "{}\n{}",
                    status.map_or_else(|| "it did not end".to_owned(), |s| s.to_string()),
                    log_tail(&self.log)
                ),
            }),
            Err(source) => Err(io_error("wait for the server of", &self.log, source)),
        }
    }

    /// Gently, then harder, each given its time.
    fn shut_down(&mut self) {
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        for signal in self.stop {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            let _ = kill_process(pid, *signal);
            let _ = wait(&mut self.child, Instant::now() + PATIENCE / 2);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = self.child.wait();
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Waits for the end of `child`, at most until `deadline`.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A program that runs as `account`, with nothing of this machine's own variables and language.
pub(super) fn tool(program: &Path, account: &Account, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").env("HOME", dir);
    command.current_dir(dir).stdin(Stdio::null());
    account.apply(&mut command);
    command
}

fn log_tail(path: &Path) -> String {
    let log = fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

pub(super) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> RuntimeError {
    RuntimeError::Io { doing, path: path.to_owned(), source }
}

/// A password that nobody guesses.
pub(super) fn random_password() -> String {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    format!("{:032x}", u128::from_be_bytes(bytes))
}
