//! Processes and the directory of a bench, each of which ends with its value.
//!
//! A bench that is killed runs no destructors, and a server that it left behind would disturb
//! every later measurement: so each is started with a signal that the kernel sends it when its
//! parent dies (`setpriv --pdeathsig`).

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A command that gets SIGTERM when this process dies. To be started from the main thread: the
/// kernel watches the thread.
pub(crate) fn bound_to_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// A server; told to end, and waited for, when dropped.
pub(crate) struct Server {
    what: &'static str,
    child: Child,
}

impl Server {
    pub(crate) fn start(what: &'static str, command: &mut Command) -> Result<Self, String> {
        let child = command.spawn().map_err(|error| format!("start {what}: {error}"))?;
        Ok(Self { what, child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says on a piped standard output.
    pub(crate) fn stdout(&mut self) -> Result<std::process::ChildStdout, String> {
        self.child.stdout.take().ok_or_else(|| format!("{} says nothing", self.what))
    }

    /// Waits until it accepts connections.
    pub(crate) fn await_open(&mut self, address: SocketAddr) -> Result<(), String> {
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("{} ended with {status} at once", self.what));
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} does not answer at {address}", self.what));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The processor time that it and its children have used so far.
    pub(crate) fn cpu(&self) -> Result<Duration, String> {
        let own = self.id();
        let children =
            fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let mut ticks = 0;
        for pid in std::iter::once(own).chain(children) {
            let path = format!("/proc/{pid}/stat");
            let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
            ticks += cpu_ticks(&text).ok_or_else(|| format!("{path}: cannot be read"))?;
        }
        // Linux shows them to programs at 100 a second, whatever it counts in.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Its resident memory now, and the most that it ever was, in MiB.
    pub(crate) fn memory_mib(&self) -> Result<(f64, f64), String> {
        let path = format!("/proc/{}/status", self.id());
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let kib = |name| status_kib(&text, name).ok_or_else(|| format!("{path} has no {name}"));
        Ok((kib("VmRSS:")? as f64 / 1024.0, kib("VmHWM:")? as f64 / 1024.0))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By SIGTERM: an nginx that is killed leaves its workers behind.
        let told = Command::new("kill").args(["-TERM", &self.id().to_string()]).status();
        let begun = Instant::now();
        while told.as_ref().is_ok_and(std::process::ExitStatus::success)
            && begun.elapsed() < PATIENCE
        {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of `/proc/PID/stat`; the program's name may contain anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn status_kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A directory that is removed when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(what: &str) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("stillpoint-{what}-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.path(name);
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a file that need not survive a crash.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), String> {
    #[allow(clippy::disallowed_methods, reason = "removed when the bench ends")]
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}

/// An address that was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr, String> {
    let free = || -> io::Result<SocketAddr> { TcpListener::bind("127.0.0.1:0")?.local_addr() };
    free().map_err(|error| format!("find a free port: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_program_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 7 7 20 0 3 0 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("42 (cut off) S 1"), None);
    }

    #[test]
    fn a_process_can_be_measured_and_ends_with_its_value() {
        let mut command = bound_to_us(Path::new("sleep"));
        let server = Server::start("a sleeper", command.arg("600")).unwrap();
        let (now, most) = server.memory_mib().unwrap();
        assert!(now > 0.0 && most >= now);
        assert!(server.cpu().is_ok());
        let proc = PathBuf::from(format!("/proc/{}", server.id()));
        assert!(proc.exists());
        drop(server);
        assert!(!proc.exists());
    }

    #[test]
    fn a_server_that_ends_at_once_is_not_waited_for() {
        let mut server = Server::start("nothing", &mut bound_to_us(Path::new("true"))).unwrap();
        let why = server.await_open(free_address().unwrap()).unwrap_err();
        assert_eq!(why, "nothing ended with exit status: 0 at once");
    }
}
