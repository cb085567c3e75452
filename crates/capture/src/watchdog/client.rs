//! The holder's side: a connection, and a thread that beats for as long as the process runs.

use super::protocol::{FromHolder, FromWatchdog, PROTOCOL, Undo};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The watchdog cannot be had; nothing may be held without it.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// Nobody listens.
    #[error("reach the watchdog at {}", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke: it has ended, or was stopped.
    #[error("talk to the watchdog")]
    Lost(#[source] io::Error),
    /// It speaks another protocol, or could not do what was asked.
    #[error("the watchdog refused: {0}")]
    Refused(String),
}

/// A connection to the watchdog, under which this process may hold others up. Dropping it without
/// [`Guard::goodbye`] says nothing: the watchdog then waits for this process to end.
pub struct Guard {
    wire: Arc<Mutex<Wire>>,
    stop: Option<mpsc::Sender<()>>,
    beats: Option<JoinHandle<()>>,
}

struct Wire {
    out: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Wire {
    fn send(&mut self, message: &FromHolder) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.out.write_all(&line)
    }

    fn ask(&mut self, message: &FromHolder) -> Result<(), WatchdogError> {
        self.send(message).map_err(WatchdogError::Lost)?;
        let mut line = String::new();
        if self.answers.read_line(&mut line).map_err(WatchdogError::Lost)? == 0 {
            return Err(WatchdogError::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_str(&line).map_err(|e| WatchdogError::Lost(e.into()))? {
            FromWatchdog::Ok => Ok(()),
            FromWatchdog::Refused { why } => Err(WatchdogError::Refused(why)),
        }
    }
}

impl Guard {
    /// Connects, and beats from now on. `silence`: how long without a beat counts as silent.
    pub fn connect(socket: &Path, silence: Duration) -> Result<Self, WatchdogError> {
        let unreachable = |source| WatchdogError::Unreachable { socket: socket.to_owned(), source };
        let out = UnixStream::connect(socket).map_err(unreachable)?;
        out.set_read_timeout(Some(Duration::from_secs(10))).map_err(unreachable)?;
        let answers = BufReader::new(out.try_clone().map_err(unreachable)?);
        let mut wire = Wire { out, answers };
        wire.ask(&FromHolder::Hello {
            protocol: PROTOCOL,
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            silence_ms: u64::try_from(silence.as_millis()).unwrap_or(u64::MAX),
        })?;
        let wire = Arc::new(Mutex::new(wire));
        let (stop, stopped) = mpsc::channel::<()>();
        let beating = Arc::clone(&wire);
        let beats = std::thread::spawn(move || {
            while stopped.recv_timeout(silence / 4) == Err(RecvTimeoutError::Timeout) {
                let mut wire = beating.lock().expect("no holder of the wire panicked");
                if wire.send(&FromHolder::Beat).is_err() {
                    return; // The next registration reports that the watchdog is gone.
                }
            }
        });
        Ok(Self { wire, stop: Some(stop), beats: Some(beats) })
    }

    /// Replaces what is to be undone; returns once the watchdog knows. See
    /// [`FromHolder::Register`] for `within`.
    pub fn register(&self, undo: Vec<Undo>, within: Option<Duration>) -> Result<(), WatchdogError> {
        let within_ms = within.map(|w| u64::try_from(w.as_millis()).unwrap_or(u64::MAX));
        let mut wire = self.wire.lock().expect("no holder of the wire panicked");
        wire.ask(&FromHolder::Register { undo, within_ms })
    }

    /// All has ended well: nothing is to be undone.
    pub fn goodbye(mut self) -> Result<(), WatchdogError> {
        self.stop_beating();
        self.wire.lock().expect("no holder of the wire panicked").ask(&FromHolder::Goodbye)
    }

    fn stop_beating(&mut self) {
        self.stop = None;
        if let Some(beats) = self.beats.take() {
            // A panic there was already reported by the thread itself.
            drop(beats.join());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop_beating();
    }
}
