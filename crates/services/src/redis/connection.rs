//! Sessions in a server.
//!
//! Every session has time limits, so that a server that hangs cannot hold a still point.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use redis::{
    Client, Cmd, Connection, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisError,
};

use super::address::{Address, Login};
use crate::ServiceError;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a command may take in prepare, at the mark and in the capture.
pub(super) const QUICK: Duration = Duration::from_secs(20);
/// How long one batch of a restore may take.
pub(super) const PATIENT: Duration = Duration::from_mins(5);

impl Login {
    /// A session whose commands may each take `limit`.
    pub(super) fn connect(&self, limit: Duration) -> Result<Session, ServiceError> {
        let doing = || ServiceError::new(format!("connect to the Redis at {}", self.address));
        let mut settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let address = match &self.address {
            Address::Socket(path) => ConnectionAddr::Unix(path.clone()),
            Address::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
        };
        let connected = address
            .into_connection_info()
            .and_then(|info| Client::open(info.set_redis_settings(settings)))
            .and_then(|client| client.get_connection_with_timeout(CONNECT))
            .and_then(|connection| {
                connection.set_read_timeout(Some(limit))?;
                connection.set_write_timeout(Some(limit))?;
                Ok(connection)
            });
        connected.map(|connection| Session { connection }).map_err(|error| {
            let refused = error.kind() == ErrorKind::AuthenticationFailed
                || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"));
            let hint = if refused {
                "check the user in the url, and the password in the variable that password_env names"
            } else {
                "is it a Redis or Valkey server, running, at this very address?"
            };
            doing().because(error).hint(hint)
        })
    }

    /// A bare stream to the server, logged in, for what no client library does.
    pub(super) fn connect_raw(&self) -> io::Result<Raw> {
        let raw = match &self.address {
            Address::Socket(path) => Raw::Unix(UnixStream::connect(path)?),
            Address::Tcp(host, port) => {
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                let mut found = None;
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, CONNECT) {
                        Ok(stream) => {
                            found = Some(stream);
                            break;
                        }
                        Err(error) => last = error,
                    }
                }
                Raw::Tcp(found.ok_or(last)?)
            }
        };
        raw.set_timeout(Some(QUICK))?;
        Ok(raw)
    }
}

/// A bare stream.
pub(super) enum Raw {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Raw {
    pub(super) fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(limit)?;
                stream.set_write_timeout(limit)
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(limit)?;
                stream.set_write_timeout(limit)
            }
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// Ends it for everyone who reads it.
    pub(super) fn shutdown(&self) {
        let both = std::net::Shutdown::Both;
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(both),
            Self::Tcp(stream) => stream.shutdown(both),
        };
    }
}

impl io::Read for Raw {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }
}

impl io::Write for Raw {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(from),
            Self::Tcp(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A session in a server.
pub(super) struct Session {
    pub(super) connection: Connection,
}

impl Session {
    /// Sends a command of plain words.
    pub(super) fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> Result<T, RedisError> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query(&mut self.connection)
    }

    /// The same, with the command as the words of the error.
    pub(super) fn run<T: FromRedisValue>(&mut self, words: &[&str]) -> Result<T, ServiceError> {
        self.ask(words)
            .map_err(|e| ServiceError::new(format!("run {}", words.join(" "))).because(e))
    }
}

/// Commands that are run all together, or not at all where the server refuses one beforehand.
#[derive(Default)]
pub(super) struct Transaction(Vec<Cmd>);

impl Transaction {
    pub(super) fn add(&mut self, words: &[&str]) -> &mut Cmd {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        self.0.push(command);
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    /// Runs them. An error tells of every command that was refused; one that fails within does not
    /// undo the others.
    pub(super) fn run(self, session: &mut Session) -> Result<(), RedisError> {
        let mut pipe = redis::pipe();
        pipe.cmd("MULTI").ignore();
        for command in self.0 {
            pipe.add_command(command).ignore();
        }
        pipe.cmd("EXEC");
        let (replies,): (Vec<redis::Value>,) = pipe.query(&mut session.connection)?;
        for reply in replies {
            reply.extract_error()?;
        }
        Ok(())
    }
}
