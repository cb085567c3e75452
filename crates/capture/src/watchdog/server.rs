//! The watchdog's side: one thread a holder, each waiting for its next word, its death, or the
//! moment when its silence has lasted too long. It ends for no error that may pass: whoever relies
//! on it cannot start another one.

use super::protocol::{EndSignal, FromHolder, FromWatchdog, PROTOCOL, Undo};
use super::vigil::Vigil;
use crate::worker::Frozen;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

/// How long an ended process gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// How long to leave alone what cannot be done at the moment, and how often holders' ends are
/// looked for.
const PAUSE: Duration = Duration::from_millis(200);

/// Between the tries of a thaw that failed: the first, and the longest.
const THAW_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How long a recovery that failed waits before it is tried again: for about 10 minutes, since a
/// database may have to be started first.
fn pauses() -> Vec<Duration> {
    [1, 2, 4, 8, 16, 32].into_iter().chain([60; 9]).map(Duration::from_secs).collect()
}

/// How a watchdog runs.
#[derive(Debug, Clone)]
pub struct WatchdogOptions {
    /// Its unix socket, created with mode 0600.
    pub socket: PathBuf,
    /// The program that [`Undo::Run`] runs.
    pub program: PathBuf,
    /// End once the last holder has gone, if there has been one. Who connects and does not greet
    /// is none.
    pub until_idle: bool,
}

/// A watchdog that listens.
pub struct Watchdog {
    listener: UnixListener,
    options: WatchdogOptions,
    runner: Runner,
    recoveries: Vec<Vec<String>>,
    ending: Arc<AtomicBool>,
}

/// What a thread tells the main one.
enum News {
    /// It serves a holder that has greeted.
    Greeted,
    /// Another one was begun, by one that has not ended yet.
    Begun,
    /// It has ended, however it did.
    Ended,
}

impl Watchdog {
    /// Binds the socket. One that a dead watchdog left is replaced; a live one is not.
    pub fn bind(options: WatchdogOptions) -> io::Result<Self> {
        if UnixStream::connect(&options.socket).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("a watchdog already listens at {}", options.socket.display()),
            ));
        }
        match std::fs::remove_file(&options.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&options.socket)?;
        std::fs::set_permissions(&options.socket, std::fs::Permissions::from_mode(0o600))?;
        let runner = Runner { program: options.program.clone(), pauses: pauses() };
        let ending = Arc::default();
        Ok(Self { listener, options, runner, recoveries: Vec::new(), ending })
    }

    /// The same, with other pauses between the tries of an [`Undo::Run`].
    #[must_use]
    pub fn retrying(mut self, pauses: Vec<Duration>) -> Self {
        self.runner.pauses = pauses;
        self
    }

    /// The same, which first of all runs the program with each of these arguments, as if a holder
    /// had registered them and died: an earlier watchdog may have ended before it could.
    #[must_use]
    pub fn recovering(mut self, recoveries: Vec<Vec<String>>) -> Self {
        self.recoveries = recoveries;
        self
    }

    /// The same, which ends once it is told to by `ending` and nothing is left to be undone.
    #[must_use]
    pub fn ending_with(mut self, ending: Arc<AtomicBool>) -> Self {
        self.ending = ending;
        self
    }

    /// Serves holders until none is left (with `until_idle`), or it is told to end, or for ever.
    pub fn serve(mut self) -> io::Result<()> {
        let (tell, news) = mpsc::channel();
        let mut threads = 0_usize;
        let mut served = false;
        self.listener.set_nonblocking(true)?;
        for arguments in std::mem::take(&mut self.recoveries) {
            let runner = self.runner.clone();
            let run = move || {
                if let Err(error) = runner.run(&arguments) {
                    tracing::error!(?arguments, "could not be done: {error}");
                }
            };
            spawn(&tell, run);
            threads += 1;
        }
        loop {
            while let Ok(news) = news.try_recv() {
                match news {
                    News::Greeted => served = true,
                    News::Begun => threads += 1,
                    News::Ended => threads -= 1,
                }
            }
            let ending = self.ending.load(Ordering::Relaxed);
            if threads == 0 && (ending || self.options.until_idle && served) {
                return std::fs::remove_file(&self.options.socket);
            }
            // Threads end by themselves, so look for that a few times a second.
            let mut waiting = [PollFd::new(&self.listener, PollFlags::IN)];
            match poll(&mut waiting, Some(&timespec(PAUSE))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("waiting for holders: {error}");
                    std::thread::sleep(PAUSE);
                }
            }
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let (runner, greeted) = (self.runner.clone(), tell.clone());
                    let watch = move || match Holder::greet(stream, runner, greeted.clone()) {
                        Ok(holder) => {
                            // The main thread only goes away with the process.
                            greeted.send(News::Greeted).unwrap_or(());
                            holder.watch();
                        }
                        // Somebody looked whether a watchdog is there, as `doctor` does.
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            tracing::debug!("a connection ended before it said anything");
                        }
                        Err(error) => tracing::warn!("a holder could not be watched: {error}"),
                    };
                    spawn(&tell, watch);
                    threads += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Too many open files, or a client that has gone again: this passes.
                    tracing::error!("accepting a holder: {error}");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
}

/// Lets a worker go on, however often that has to be tried.
fn thaw(frozen: &Frozen) {
    let mut pause = THAW_AGAIN.0;
    while let Err(error) = frozen.let_go() {
        tracing::error!("{}; tried again in {pause:?}", chain(&error));
        std::thread::sleep(pause);
        pause = (pause * 2).min(THAW_AGAIN.1);
    }
    tracing::warn!("worker `{}` goes on", frozen.worker());
}

/// The same on a thread of its own: one that hangs must not keep others standing.
fn thaw_apart(tell: &Sender<News>, frozen: &Frozen) {
    // The main thread only goes away with the process.
    tell.send(News::Begun).unwrap_or(());
    let (ended, apart) = (Ended(tell.clone()), frozen.clone());
    let spawned = std::thread::Builder::new().spawn(move || {
        let _ended = ended;
        thaw(&apart);
    });
    if let Err(error) = spawned {
        tracing::error!("starting a thread: {error}");
        thaw(frozen);
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Starts a thread that tells of its end.
fn spawn(tell: &Sender<News>, work: impl FnOnce() + Send + 'static) {
    let ended = Ended(tell.clone());
    let spawned = std::thread::Builder::new().spawn(move || {
        let _ended = ended;
        work();
    });
    // A thread that could not be started tells of its end as well: what it would run is dropped.
    if let Err(error) = spawned {
        tracing::error!("starting a thread: {error}");
    }
}

/// Tells the main thread that a thread has ended, however it did.
struct Ended(Sender<News>);

impl Drop for Ended {
    fn drop(&mut self) {
        // The main thread only goes away with the process.
        self.0.send(News::Ended).unwrap_or(());
    }
}

/// Runs this program in a dead holder's stead.
#[derive(Clone)]
struct Runner {
    program: PathBuf,
    /// Between the tries.
    pauses: Vec<Duration>,
}

impl Runner {
    /// Runs it until it succeeds, or has been tried long enough.
    fn run(&self, arguments: &[String]) -> io::Result<()> {
        let mut pauses = self.pauses.iter();
        loop {
            let mut command = Command::new(&self.program);
            // Whoever reads our output may be gone; what is done must not depend on that.
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
            let error = match command.status() {
                Ok(status) if status.success() => return Ok(()),
                Ok(status) => io::Error::other(status.to_string()),
                Err(error) => error,
            };
            let Some(pause) = pauses.next() else { return Err(error) };
            tracing::warn!(?arguments, "{error}; tried again in {pause:?}");
            std::thread::sleep(*pause);
        }
    }
}

struct Holder {
    stream: UnixStream,
    process: OwnedFd,
    runner: Runner,
    tell: Sender<News>,
    received: Vec<u8>,
    undo: Vec<Undo>,
    began: Instant,
    vigil: Vigil,
}

enum Event {
    Word(FromHolder),
    Silent,
    Dead,
    /// The connection closed, or what came was not understood; the process may still live.
    Gone,
}

impl Holder {
    fn greet(stream: UnixStream, runner: Runner, tell: Sender<News>) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut received = Vec::new();
        let hello = loop {
            if let Some(word) = take_line(&mut received)? {
                break word;
            }
            if read_more(&stream, &mut received)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let FromHolder::Hello { protocol, pid, silence_ms } = hello else {
            return Err(io::Error::other("the first word was not a greeting"));
        };
        if protocol != PROTOCOL {
            let why = format!("this watchdog speaks protocol {PROTOCOL}, not {protocol}");
            answer(&stream, &FromWatchdog::Refused { why: why.clone() })?;
            return Err(io::Error::other(why));
        }
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("process id 0"))?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        answer(&stream, &FromWatchdog::Ok)?;
        let vigil = Vigil::new(Duration::from_millis(silence_ms));
        let began = Instant::now();
        Ok(Self { stream, process, runner, tell, received, undo: vec![], began, vigil })
    }

    fn watch(mut self) {
        loop {
            match self.next() {
                Event::Word(FromHolder::Goodbye) => {
                    // It may have hung up already; nothing is left to do either way.
                    answer(&self.stream, &FromWatchdog::Ok).unwrap_or(());
                    return;
                }
                Event::Word(FromHolder::Register { undo, within_ms }) => {
                    self.undo = undo;
                    let within = within_ms.map(Duration::from_millis);
                    self.vigil.register(self.began.elapsed(), within);
                    // If it cannot hear the answer it is dead or about to be: seen next round.
                    answer(&self.stream, &FromWatchdog::Ok).unwrap_or(());
                }
                Event::Word(FromHolder::Beat | FromHolder::Hello { .. }) => {
                    self.vigil.beat(self.began.elapsed());
                }
                Event::Silent => {
                    tracing::warn!("a holder fell silent, or its time ran out");
                    self.act(false);
                }
                Event::Gone => {
                    self.await_death();
                    self.act(true);
                    return;
                }
                Event::Dead => {
                    self.act(true);
                    return;
                }
            }
        }
    }

    fn next(&mut self) -> Event {
        loop {
            match take_line(&mut self.received) {
                Ok(Some(word)) => return Event::Word(word),
                Ok(None) => {}
                Err(_) => return Event::Gone,
            }
            let wait = self.vigil.due().map(|due| due.saturating_sub(self.began.elapsed()));
            let mut fds = [
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::new(&self.process, PollFlags::IN),
            ];
            match poll(&mut fds, wait.map(timespec).as_ref()) {
                // Only after the poll: words that wait unread, since this process was busy, count.
                Ok(0) if self.vigil.look(self.began.elapsed()) => return Event::Silent,
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Event::Gone,
                Ok(_) => {}
            }
            if !fds[0].revents().is_empty() {
                match read_more(&self.stream, &mut self.received) {
                    Ok(0) | Err(_) => return Event::Gone,
                    Ok(_) => {}
                }
            } else if !fds[1].revents().is_empty() {
                return Event::Dead;
            }
        }
    }

    /// Its connection is gone: it is dying, or was stopped in a way that only its end can cure.
    fn await_death(&self) {
        let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
        while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    }

    fn act(&self, dead: bool) {
        for undo in &self.undo {
            if !dead && !undo.when_silent() {
                continue;
            }
            tracing::warn!(?undo, dead, "acting in a holder's stead");
            if let Err(error) = self.act_one(undo, dead) {
                tracing::error!(?undo, "could not be done: {error}");
            }
        }
    }

    fn act_one(&self, undo: &Undo, dead: bool) -> io::Result<()> {
        match undo {
            Undo::EndHolder { .. } if dead => Ok(()),
            Undo::EndHolder { .. } => Ok(pidfd_send_signal(&self.process, Signal::KILL)?),
            Undo::RemoveFiles { paths } => paths.iter().try_for_each(|path| remove(path)),
            Undo::EndProcess { by, pid, started } => end_process(*by, *pid, *started),
            Undo::Run { arguments } => self.runner.run(arguments),
            Undo::Thaw { frozen, .. } => {
                thaw_apart(&self.tell, frozen);
                Ok(())
            }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The start time of a process, in clock ticks since boot: with the id, its identity.
pub fn started(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses and may hold anything.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let field = after.split_ascii_whitespace().nth(19);
    field
        .and_then(|f| f.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

fn end_process(by: EndSignal, pid: i32, since: u64) -> io::Result<()> {
    let Some(id) = Pid::from_raw(pid) else { return Ok(()) };
    let process = match pidfd_open(id, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other?,
    };
    // Compared after the pidfd was opened: from here on it cannot be another process.
    if started(pid).ok() != Some(since) {
        return Ok(());
    }
    let signal = match by {
        EndSignal::Terminate => Signal::TERM,
        EndSignal::Interrupt => Signal::INT,
    };
    pidfd_send_signal(&process, signal)?;
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    if poll(&mut fds, Some(&timespec(GRACE)))? == 0 {
        pidfd_send_signal(&process, Signal::KILL)?;
        poll(&mut fds, Some(&timespec(GRACE)))?;
    }
    Ok(())
}

fn answer(mut stream: &UnixStream, message: &FromWatchdog) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn read_more(mut stream: &UnixStream, received: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0_u8; 4096];
    let count = stream.read(&mut buffer)?;
    received.extend_from_slice(&buffer[..count]);
    if received.len() > 1 << 20 {
        return Err(io::Error::other("a message of over 1 MiB"));
    }
    Ok(count)
}

fn take_line(received: &mut Vec<u8>) -> io::Result<Option<FromHolder>> {
    let Some(end) = received.iter().position(|b| *b == b'\n') else { return Ok(None) };
    let line: Vec<u8> = received.drain(..=end).collect();
    Ok(Some(serde_json::from_slice(&line)?))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
