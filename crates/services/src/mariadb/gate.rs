//! The gate: a socket between a stock dump program and the server. It withholds the statement
//! that takes the dump's snapshot until the mark, so that all dumps see one instant.
//!
//! Packets of the client are read one by one; a command is one whose sequence number is 0. The
//! server's side passes unread, save for the first answer after the gate was opened.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::connection::Address;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Coming,
    Parked,
    Open,
    Passed,
    Failed,
}

/// One dump's gate.
#[derive(Clone)]
pub(super) struct Gate(Arc<(Mutex<Stage>, Condvar)>);

impl Gate {
    /// Listens at `path`, for one connection, and leads it to `server`.
    pub(super) fn listen(path: &Path, server: Address) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let gate = Self(Arc::new((Mutex::new(Stage::Coming), Condvar::new())));
        let of_thread = gate.clone();
        thread::Builder::new().name("mariadb gate".into()).spawn(move || {
            let carried =
                listener.accept().and_then(|(client, _)| of_thread.carry(client, &server));
            if carried.is_err() || of_thread.stage() != Stage::Passed {
                of_thread.set(Stage::Failed);
            }
        })?;
        Ok(gate)
    }

    fn stage(&self) -> Stage {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, stage: Stage) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.0.1.notify_all();
    }

    fn wait(&self, long: Duration, wanted: impl Fn(Stage) -> bool) -> Stage {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(guard, long, |stage| !wanted(*stage));
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits, in slices so that `alive` can end it, until the dump stands at the gate.
    pub(super) fn wait_parked(&self, long: Duration, mut alive: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + long;
        loop {
            let slice = Duration::from_millis(100);
            let stage = self.wait(slice, |s| matches!(s, Stage::Parked | Stage::Failed));
            if stage != Stage::Coming || Instant::now() > end || !alive() {
                return stage == Stage::Parked;
            }
        }
    }

    /// Lets the dump pass.
    pub(super) fn open(&self) {
        let mut stage = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *stage == Stage::Parked {
            *stage = Stage::Open;
        }
        drop(stage);
        self.0.1.notify_all();
    }

    /// Whether the server has given the dump its snapshot.
    pub(super) fn wait_passed(&self, long: Duration) -> bool {
        self.wait(long, |s| matches!(s, Stage::Passed | Stage::Failed)) == Stage::Passed
    }

    /// Ends what waits at the gate.
    pub(super) fn abandon(&self) {
        self.set(Stage::Failed);
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
        let back = thread::spawn(move || gate.answer(from, answers));
        let outcome = self.ask(&mut client, &mut to);
        let _ = end();
        let _ = client.shutdown(Shutdown::Both);
        let _ = back.join();
        outcome
    }

    fn ask(&self, client: &mut impl Read, server: &mut impl Write) -> io::Result<()> {
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
                self.set(Stage::Parked);
                let day = Duration::from_secs(86_400);
                if self.wait(day, |s| s != Stage::Parked) != Stage::Open {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            server.write_all(&packet)?;
            server.flush()?;
        }
    }

    fn answer(&self, mut server: impl Read, mut client: UnixStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = server.read(&mut buffer) {
            if self.stage() == Stage::Open {
                let granted = read > 4 && buffer[4] == 0;
                self.set(if granted { Stage::Passed } else { Stage::Failed });
            }
            if client.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    }
}

fn takes_snapshot(payload: &[u8]) -> bool {
    const QUERY: u8 = 3;
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
