//! The gate: a socket between a stock dump program and the server. It withholds the statement
//! that takes the dump's snapshot until the mark, so that all dumps see one instant, and then its
//! answer until the capture: so the mark can be repeated in the same session, and no dump loads the
//! server while requests are held.
//!
//! Packets of the client are read one by one; a command is one whose sequence number is 0. The
//! server's side passes unread, save for the answers to what the gate itself sends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::connection::STEADY;
use super::login::Address;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The program has not come to its snapshot yet.
    Coming,
    /// The session is being made steady.
    Steadying,
    /// It stands at the gate, without a snapshot or with one that may be taken anew.
    Parked,
    /// A snapshot is wanted.
    Asked,
    /// The server is asked for it.
    Sent,
    /// It has given one.
    Granted,
    /// The program has been told, and works.
    Released,
    Failed,
}

struct State {
    stage: Stage,
    /// The server's answer, kept from the program until the release.
    answer: Vec<u8>,
    why: Option<String>,
}

/// One dump's gate.
#[derive(Clone)]
pub(super) struct Gate(Arc<(Mutex<State>, Condvar)>, PathBuf);

impl Gate {
    /// Listens at `path`, for one connection, and leads it to `server`.
    pub(super) fn listen(path: &Path, server: Address) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let state = State { stage: Stage::Coming, answer: Vec::new(), why: None };
        let gate = Self(Arc::new((Mutex::new(state), Condvar::new())), path.to_owned());
        let of_thread = gate.clone();
        thread::Builder::new().name("mariadb gate".into()).spawn(move || {
            let carried =
                listener.accept().and_then(|(client, _)| of_thread.carry(client, &server));
            if of_thread.stage() != Stage::Released {
                of_thread.fail(carried.err().map(|e| e.to_string()));
            }
        })?;
        Ok(gate)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stage(&self) -> Stage {
        self.lock().stage
    }

    fn fail(&self, why: Option<String>) {
        let mut state = self.lock();
        state.stage = Stage::Failed;
        state.why = state.why.take().or(why);
        drop(state);
        self.0.1.notify_all();
    }

    /// From one of `from` to `to`; false where it stood elsewhere.
    fn step(&self, from: &[Stage], to: Stage) -> bool {
        let mut state = self.lock();
        let may = from.contains(&state.stage);
        if may {
            state.stage = to;
            state.answer.clear();
        }
        drop(state);
        self.0.1.notify_all();
        may
    }

    fn wait(&self, long: Duration, wanted: impl Fn(Stage) -> bool) -> Stage {
        let waited = self.0.1.wait_timeout_while(self.lock(), long, |state| !wanted(state.stage));
        waited.unwrap_or_else(PoisonError::into_inner).0.stage
    }

    /// Waits, in slices so that `alive` can end it, until the dump stands at the gate.
    pub(super) fn wait_parked(&self, long: Duration, mut alive: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + long;
        loop {
            let slice = Duration::from_millis(100);
            let stage = self.wait(slice, |s| matches!(s, Stage::Parked | Stage::Failed));
            if matches!(stage, Stage::Parked | Stage::Failed) || Instant::now() > end || !alive() {
                return stage == Stage::Parked;
            }
        }
    }

    /// Has the server asked for a snapshot, the first one or another.
    pub(super) fn ask(&self) {
        self.step(&[Stage::Parked, Stage::Granted], Stage::Asked);
    }

    /// Whether the server has given it.
    pub(super) fn wait_granted(&self, long: Duration) -> bool {
        self.wait(long, |s| matches!(s, Stage::Granted | Stage::Failed)) == Stage::Granted
    }

    /// Lets the dump go on with the snapshot that it was given; false where it has none.
    pub(super) fn release(&self) -> bool {
        let mut state = self.lock();
        let may = state.stage == Stage::Granted;
        if may {
            state.stage = Stage::Released;
        }
        drop(state);
        self.0.1.notify_all();
        may
    }

    /// Ends what waits at the gate.
    pub(super) fn abandon(&self) {
        let came = self.stage() != Stage::Coming;
        self.fail(None);
        if !came {
            // Wakes the thread that waits for a program which may never come.
            let _ = UnixStream::connect(&self.1);
        }
    }

    /// What went wrong here.
    pub(super) fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }

    fn carry(&self, client: UnixStream, server: &Address) -> io::Result<()> {
        match server {
            Address::Socket(path) => {
                let to = UnixStream::connect(path)?;
                let from = to.try_clone()?;
                let end = to.try_clone()?;
                self.relay(client, to, from, move || end.shutdown(Shutdown::Both))
            }
            Address::Tcp(host, port) => {
                let to = TcpStream::connect((host.as_str(), *port))?;
                to.set_nodelay(true)?;
                let from = to.try_clone()?;
                let end = to.try_clone()?;
                self.relay(client, to, from, move || end.shutdown(Shutdown::Both))
            }
        }
    }

    fn relay(
        &self,
        mut client: UnixStream,
        mut to: impl Write,
        from: impl Read + Send + 'static,
        end: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let answers = client.try_clone()?;
        let gate = self.clone();
        let back = thread::spawn(move || gate.answers(from, answers));
        let outcome = self.asks(&mut client, &mut to);
        let _ = end();
        let _ = client.shutdown(Shutdown::Both);
        let _ = back.join();
        outcome
    }

    /// The way from the program to the server.
    fn asks(&self, client: &mut (impl Read + Write), server: &mut impl Write) -> io::Result<()> {
        let mut packet = Vec::new();
        loop {
            let mut header = [0; 4];
            if let Err(e) = client.read_exact(&mut header) {
                return if e.kind() == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(e) };
            }
            let length = u32::from_le_bytes([header[0], header[1], header[2], 0]);
            packet.clear();
            packet.extend_from_slice(&header);
            packet.resize(4 + length as usize, 0);
            client.read_exact(&mut packet[4..])?;
            if header[3] == 0 && takes_snapshot(&packet[4..]) && self.stage() == Stage::Coming {
                client.write_all(&self.withhold(&packet, server)?)?;
            } else {
                server.write_all(&packet)?;
                server.flush()?;
            }
        }
    }

    /// Sends `snapshot` as often as it is asked for, and gives the last answer at the release.
    fn withhold(&self, snapshot: &[u8], server: &mut impl Write) -> io::Result<Vec<u8>> {
        const WEEK: Duration = Duration::from_secs(604_800);
        self.step(&[Stage::Coming], Stage::Steadying);
        server.write_all(&command(STEADY)?)?;
        server.flush()?;
        loop {
            let next = |s| matches!(s, Stage::Asked | Stage::Released | Stage::Failed);
            match self.wait(WEEK, next) {
                Stage::Asked => {
                    self.step(&[Stage::Asked], Stage::Sent);
                    server.write_all(snapshot)?;
                    server.flush()?;
                }
                Stage::Released => return Ok(std::mem::take(&mut self.lock().answer)),
                _ => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// The way from the server to the program.
    fn answers(&self, mut server: impl Read, mut client: UnixStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = server.read(&mut buffer) {
            let passes = match self.stage() {
                Stage::Steadying => self.keep(&buffer[..read], Stage::Parked),
                Stage::Sent => self.keep(&buffer[..read], Stage::Granted),
                // Whoever stands at the gate has asked nothing: the server takes its leave.
                Stage::Parked | Stage::Asked | Stage::Granted => {
                    Err("the server ended the session".to_owned())
                }
                Stage::Coming | Stage::Released => Ok(true),
                Stage::Failed => break,
            };
            match passes {
                Ok(false) => {}
                Ok(true) if client.write_all(&buffer[..read]).is_ok() => {}
                Ok(true) => break,
                Err(why) => {
                    self.fail(Some(why));
                    break;
                }
            }
        }
        // A server that is gone is noticed at once, also by whoever waits at the gate.
        if self.stage() != Stage::Released {
            self.fail(Some("the server ended the session".to_owned()));
        }
        let _ = client.shutdown(Shutdown::Both);
    }

    /// Keeps an answer from the program, and goes to `granted` when it is whole and says yes.
    fn keep(&self, bytes: &[u8], granted: Stage) -> Result<bool, String> {
        let mut state = self.lock();
        state.answer.extend_from_slice(bytes);
        let [a, b, c, _, first, ..] = state.answer[..] else { return Ok(false) };
        if state.answer.len() < 4 + u32::from_le_bytes([a, b, c, 0]) as usize {
            return Ok(false);
        }
        if first != 0 {
            // An error: its number, then `#` and the SQL state, then words.
            let words = state.answer.get(13..).unwrap_or_default();
            return Err(String::from_utf8_lossy(words).into_owned());
        }
        state.stage = granted;
        drop(state);
        self.0.1.notify_all();
        Ok(false)
    }
}

/// A statement as a packet.
fn command(statement: &str) -> io::Result<Vec<u8>> {
    let length = u32::try_from(statement.len() + 1).map_err(io::Error::other)?.to_le_bytes();
    let mut packet = vec![length[0], length[1], length[2], 0, QUERY];
    packet.extend_from_slice(statement.as_bytes());
    Ok(packet)
}

const QUERY: u8 = 3;

fn takes_snapshot(payload: &[u8]) -> bool {
    let Some((&QUERY, text)) = payload.split_first() else { return false };
    let text = String::from_utf8_lossy(&text[..text.len().min(200)]).to_ascii_uppercase();
    text.trim_start().starts_with("START TRANSACTION") && text.contains("CONSISTENT SNAPSHOT")
}

#[cfg(test)]
mod tests {
    use super::takes_snapshot;

    #[test]
    fn only_the_statement_that_takes_the_snapshot_is_withheld() {
        assert!(takes_snapshot(b"\x03START TRANSACTION /*!40100 WITH CONSISTENT SNAPSHOT */"));
        assert!(!takes_snapshot(b"\x03START TRANSACTION"));
        assert!(!takes_snapshot(b"\x03SELECT 'START TRANSACTION WITH CONSISTENT SNAPSHOT'"));
        assert!(!takes_snapshot(b"\x16START TRANSACTION WITH CONSISTENT SNAPSHOT"));
        assert!(!takes_snapshot(b""));
    }
}
