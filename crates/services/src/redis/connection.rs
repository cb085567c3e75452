//! Where a server is, and sessions there.
//!
//! Every session has time limits, so that a server that hangs cannot hold a still point. The
//! password is never part of the url, and never of an error's words.

use std::io;
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use redis::{
    Client, Cmd, Connection, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisError,
};

use crate::ServiceError;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a command may take in prepare, at the mark and in the capture.
pub(super) const QUICK: Duration = Duration::from_secs(20);
/// How long one batch of a restore may take.
pub(super) const PATIENT: Duration = Duration::from_mins(5);

const SHAPE: &str = "write \"redis://[USER@]HOST[:PORT]\" or \"redis+unix://[USER@]/PATH\"";

/// Where the server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    Socket(PathBuf),
    Tcp(String, u16),
}

impl Address {
    /// True where the server's files may be on this machine.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Tcp(host, _) => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Who logs in, and where.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) address: Address,
}

impl Login {
    pub(super) fn new(url: &str, password: Option<String>) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new("read the url of the Redis service");
        let refuse = |why: &str| doing().because(why.to_owned()).hint(SHAPE);
        if url.starts_with("rediss://") || url.starts_with("valkeys://") {
            return Err(doing()
                .because("rediss:// (TLS) is not supported yet")
                .hint("give the address of a listener without TLS, or a unix socket"));
        }
        let socket = ["redis+unix://", "valkey+unix://", "unix://"];
        let tcp = ["redis://", "valkey://"];
        let rest_after = |schemes: &[&str]| schemes.iter().find_map(|s| url.strip_prefix(s));
        let (rest, is_socket) = match (rest_after(&socket), rest_after(&tcp)) {
            (Some(rest), _) => (rest, true),
            (None, Some(rest)) => (rest, false),
            (None, None) => return Err(refuse("it does not begin with redis:// or redis+unix://")),
        };
        if rest.contains(['?', '#']) {
            return Err(refuse("it has options, and none is known"));
        }
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(doing()
                .because("it holds a password")
                .hint("leave the password out of the url, and name its variable: password_env"));
        }
        let user = user.filter(|user| !user.is_empty()).map(str::to_owned);
        let address = if is_socket {
            if !rest.starts_with('/') {
                return Err(refuse("it names no absolute path of a socket"));
            }
            Address::Socket(PathBuf::from(rest))
        } else {
            let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
            if !database.is_empty() {
                return Err(doing()
                    .because("it names a database, and the whole server is backed up")
                    .hint(format!("leave \"/{database}\" out of the url")));
            }
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) if !port.contains(']') => {
                    (host, port.parse().map_err(|_| refuse("its port is not a number"))?)
                }
                _ => (authority, 6379),
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if host.is_empty() {
                return Err(refuse("it names no host"));
            }
            Address::Tcp(host.to_owned(), port)
        };
        if user.is_some() && password.is_none() {
            return Err(doing()
                .because("it names a user, and there is no password")
                .hint("name the variable that holds it: password_env"));
        }
        Ok(Self { user, password, address })
    }

    /// The account's name, as the server's access lists know it.
    pub(super) fn account(&self) -> &str {
        self.user.as_deref().unwrap_or("default")
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        let error = Login::new(url, Some("secret".to_owned())).err().expect("it is refused");
        format!("{} {}", crate::chain(&error), error.advice().unwrap_or_default())
    }

    #[test]
    fn urls_say_user_and_address_and_nothing_else() {
        let read = |url: &str| {
            let login = Login::new(url, Some("secret".to_owned())).unwrap();
            (login.account().to_owned(), login.address.to_string())
        };
        assert_eq!(read("redis://h"), ("default".to_owned(), "h:6379".to_owned()));
        assert_eq!(
            read("redis://keeper@[::1]:7000/"),
            ("keeper".to_owned(), "::1:7000".to_owned())
        );
        assert_eq!(read("unix:///run/r.sock"), ("default".to_owned(), "/run/r.sock".to_owned()));
        assert_eq!(read("redis+unix://keeper@/r"), ("keeper".to_owned(), "/r".to_owned()));
        assert!(refusal("redis://keeper:secret@h").contains("password_env"));
        assert!(refusal("rediss://h").contains("rediss:// (TLS) is not supported yet"));
        assert!(refusal("redis://h/3").contains("leave \"/3\" out"));
        assert!(refusal("redis://h:x").contains("port"));
        assert!(refusal("http://h").contains("does not begin with"));
        let alone = Login::new("redis://keeper@h", None).err().expect("it is refused");
        assert!(alone.advice().unwrap().contains("password_env"));
    }

    #[test]
    fn only_loopback_and_sockets_are_local() {
        let local = |url: &str| Login::new(url, None).unwrap().address.is_local();
        assert!(local("redis://127.0.0.2") && local("redis://[::1]") && local("unix:///s"));
        assert!(!local("redis://10.0.0.1") && !local("redis://cache"));
    }
}
