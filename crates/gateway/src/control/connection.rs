//! Lines over the control socket, with a limit to every wait.

use super::ControlError;
use crate::wire::{Ask, LONGEST_LINE, Tell};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a gateway has for an answer. It answers from memory; only a stopped one is this slow.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// A connection and what has been read of the next line.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// Bytes that have been read and not been used.
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// A second handle for writing, beside this one for reading.
    pub(super) fn writer(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Tell, ControlError> {
        send(&mut self.stream, ask)?;
        self.answer(ANSWER)
    }

    pub(super) fn answer(&mut self, wait: Duration) -> Result<Tell, ControlError> {
        self.next(wait)?.ok_or(ControlError::NoAnswer { waited: wait })
    }

    /// The next message, or none if none was complete in this time.
    pub(super) fn next(&mut self, wait: Duration) -> Result<Option<Tell>, ControlError> {
        let until = Instant::now() + wait;
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|_| {
                    let said = String::from_utf8_lossy(&line[..end.min(200)]).into_owned();
                    ControlError::Unexpected { said }
                });
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(ControlError::Unexpected { said: "an endless line".to_owned() });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut bytes = [0_u8; 4096];
            let lost = |source| ControlError::Lost { source };
            self.stream.set_read_timeout(Some(left)).map_err(lost)?;
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => self.buffer.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(source) => return Err(lost(source)),
            }
        }
    }
}

pub(super) fn send(stream: &mut UnixStream, ask: &Ask) -> Result<(), ControlError> {
    let mut line = serde_json::to_vec(ask)
        .map_err(|error| ControlError::Lost { source: io::Error::other(error) })?;
    line.push(b'\n');
    stream.write_all(&line).map_err(|source| ControlError::Lost { source })
}
