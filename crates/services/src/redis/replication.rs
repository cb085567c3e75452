//! The same data over the network: we ask for a full copy as a replica does.
//!
//! What it keeps, and what would break without it:
//! - The capability `eof` is not announced: a server with `repl-diskless-sync` would fork only
//!   after `repl-diskless-sync-delay`, seconds after the instant. Without it the server forks at
//!   once, and answers `+FULLRESYNC` after the fork.
//! - `rdb-only` is announced: the server then keeps no later writes for us, so that its memory
//!   does not grow while it saves.
//! - The stream is drained at full speed into a file without a name, however slow the store is. It
//!   goes with the process.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::address::Login;
use super::connection::Raw;
use crate::ServiceError;

/// The server says at least a newline each second while it saves.
const SILENCE: Duration = Duration::from_mins(1);
/// A line of the protocol is short.
const LONGEST_LINE: u64 = 1024;

/// A connection that is ready to ask for everything.
pub(super) struct Link {
    reader: BufReader<Raw>,
}

/// Where in the server's history the copy is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) id: String,
    pub(super) offset: u64,
}

impl Link {
    /// Logs in, and says what kind of replica this is.
    pub(super) fn open(login: &Login) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new("connect to the server for replication");
        let raw = login.connect_raw().map_err(|e| doing().because(e))?;
        let mut link = Self { reader: BufReader::with_capacity(1 << 20, raw) };
        if let Some(password) = &login.password {
            let mut words = vec!["AUTH"];
            words.extend(login.user.as_deref());
            words.push(password);
            link.order(&words).map_err(|e| doing().because(e))?;
        }
        link.order(&["REPLCONF", "rdb-only", "1"]).map_err(|e| doing().because(e))?;
        Ok(link)
    }

    fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            write!(bytes, "${}\r\n{word}\r\n", word.len())?;
        }
        self.reader.get_mut().write_all(&bytes)
    }

    /// A line without its end; empty lines keep the connection alive.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.reader).take(LONGEST_LINE).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        match line.strip_prefix('-') {
            Some(refusal) => Err(io::Error::other(refusal.to_owned())),
            None => Ok(line),
        }
    }

    fn order(&mut self, words: &[&str]) -> io::Result<()> {
        self.send(words)?;
        self.line().map(drop)
    }

    /// Asks for everything. The server has forked when this returns.
    pub(super) fn sync(
        mut self,
        spool: File,
        patience: Duration,
    ) -> Result<(Position, Stream), ServiceError> {
        let doing = || ServiceError::new("let the server fork for a copy of its data");
        let end = Instant::now() + patience;
        let mut ask = || -> io::Result<String> {
            self.reader.get_ref().set_timeout(Some(patience))?;
            self.send(&["PSYNC", "?", "-1"])?;
            loop {
                let line = self.line()?;
                if !line.is_empty() {
                    self.reader.get_ref().set_timeout(Some(SILENCE))?;
                    return Ok(line);
                }
                if Instant::now() >= end {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        };
        let line = ask().map_err(|e| {
            let hint = match e.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                    "another save or rewrite has begun meanwhile: try again"
                }
                _ if e.to_string().contains("BGSAVE failed") => COULD_NOT_FORK,
                _ => "the server's log says more",
            };
            doing().because(e).hint(hint)
        })?;
        let mut words = line.split(' ');
        let position = match (words.next(), words.next(), words.next()) {
            (Some("+FULLRESYNC"), Some(id), Some(offset)) => {
                offset.parse().ok().map(|offset| Position { id: id.to_owned(), offset })
            }
            _ => None,
        };
        let position = position.ok_or_else(|| doing().because(format!("it answers {line:?}")))?;
        let stop = self.reader.get_ref().try_clone().map_err(|e| doing().because(e))?;
        let drain = Some(thread::spawn(move || self.drain(spool)));
        Ok((position, Stream { drain, stop }))
    }

    fn drain(mut self, mut spool: File) -> io::Result<File> {
        let size: u64 = loop {
            let line = self.line()?;
            if line.is_empty() {
                continue;
            }
            let size = line.strip_prefix('$').and_then(|size| size.parse().ok());
            let wrong = || io::Error::other(format!("the server answers {line:?}"));
            break size.ok_or_else(wrong)?;
        };
        let copied = io::copy(&mut (&mut self.reader).take(size), &mut spool)?;
        if copied != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(spool)
    }
}

/// Why a server does not fork, and what to do.
pub(super) const COULD_NOT_FORK: &str = "the server could not fork: give it memory \
    (vm.overcommit_memory = 1) and processes (ulimit -u); its log says which. With \
    stop-writes-on-bgsave-error it refuses the application's writes until a BGSAVE succeeds";

/// The copy that is on its way.
pub(super) struct Stream {
    drain: Option<JoinHandle<io::Result<File>>>,
    stop: Raw,
}

impl Stream {
    /// The whole copy.
    pub(super) fn finish(mut self) -> io::Result<File> {
        let drained = self.drain.take().and_then(|thread| thread.join().ok());
        drained.unwrap_or_else(|| Err(io::Error::other("the copying thread is gone")))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.shutdown();
        if let Some(thread) = self.drain.take() {
            let _ = thread.join();
        }
    }
}
