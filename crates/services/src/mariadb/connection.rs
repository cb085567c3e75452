//! Where a server is, and sessions there. The password never reaches arguments or the
//! environment: programs read it from a file that only this account can read.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};

use crate::ServiceError;

/// Where the server listens.
#[derive(Clone)]
pub(super) enum Address {
    Socket(PathBuf),
    Tcp(String, u16),
}

/// Who logs in, and where.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Option<String>,
    pub(super) address: Address,
    pub(super) database: Option<String>,
}

impl Login {
    /// Reads `mysql://USER@HOST[:PORT][/DATABASE][?socket=/PATH]`.
    pub(super) fn new(url: &str, password: Option<String>) -> Result<Self, ServiceError> {
        let refuse = |why: &str| {
            ServiceError::new("read the url of the MariaDB service")
                .because(why.to_owned())
                .hint("write \"mysql://USER@HOST:PORT/DATABASE\"")
        };
        let rest = url
            .strip_prefix("mysql://")
            .or_else(|| url.strip_prefix("mariadb://"))
            .ok_or_else(|| refuse("it does not begin with mysql://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, rest) = rest.rsplit_once('@').ok_or_else(|| refuse("it names no user"))?;
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let address = if let Some(path) = query.strip_prefix("socket=") {
            Address::Socket(PathBuf::from(path))
        } else {
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && !port.contains(']') => {
                    (host, port.parse().map_err(|_| refuse("its port is not a number"))?)
                }
                _ => (authority, 3306),
            };
            if host.is_empty() {
                return Err(refuse("it names no host"));
            }
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Address::Tcp(host.to_owned(), port)
        };
        let database = (!database.is_empty()).then(|| database.to_owned());
        Ok(Self { user: user.to_owned(), password, address, database })
    }

    /// For messages.
    pub(super) fn shown(&self) -> String {
        match &self.address {
            Address::Socket(path) => format!("{}@{}", self.user, path.display()),
            Address::Tcp(host, port) => format!("{}@{host}:{port}", self.user),
        }
    }

    /// Opens a session whose timeouts do not end it while it waits.
    pub(super) fn connect(&self) -> Result<Conn, ServiceError> {
        let options = OptsBuilder::new()
            .user(Some(&self.user))
            .pass(self.password.as_ref())
            .prefer_socket(false)
            .tcp_connect_timeout(Some(Duration::from_secs(10)))
            .init(vec![
                "SET SESSION wait_timeout = 86400, net_write_timeout = 3600, sql_mode = ''",
            ]);
        let options = match &self.address {
            Address::Socket(path) => options.socket(path.to_str()),
            Address::Tcp(host, port) => options.ip_or_hostname(Some(host)).tcp_port(*port),
        };
        Conn::new(options)
            .map_err(|e| ServiceError::new(format!("connect to {}", self.shown())).because(e))
    }

    /// Writes an option file for the stock programs, which leads them to `socket`, or to the
    /// server itself.
    pub(super) fn write_options(
        &self,
        path: &Path,
        socket: Option<&Path>,
    ) -> Result<(), ServiceError> {
        let quoted = |text: &str| {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
        };
        let mut text = format!("[client]\nuser={}\n", quoted(&self.user));
        writeln!(text, "password={}", quoted(self.password.as_deref().unwrap_or("")))
            .expect("a string can be written to");
        let socket = socket.or(match &self.address {
            Address::Socket(path) => Some(path.as_path()),
            Address::Tcp(..) => None,
        });
        match (socket, &self.address) {
            (Some(socket), _) => {
                write!(text, "protocol=socket\nsocket={}\n", quoted(&socket.to_string_lossy()))
                    .expect("a string can be written to");
            }
            (None, Address::Tcp(host, port)) => {
                write!(text, "protocol=tcp\nhost={}\nport={port}\n", quoted(host))
                    .expect("a string can be written to");
            }
            (None, Address::Socket(_)) => {}
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| ServiceError::new(format!("write {}", path.display())).because(e))
    }
}

/// Runs a statement.
pub(super) fn run(session: &mut Conn, statement: &str) -> Result<(), ServiceError> {
    session.query_drop(statement).map_err(|e| {
        let shown: String = statement.chars().take(200).collect();
        ServiceError::new(format!("run {shown}")).because(e)
    })
}

/// An identifier, quoted.
pub(super) fn name(text: &str) -> String {
    format!("`{}`", text.replace('`', "``"))
}

/// A name of a database and one in it, quoted.
pub(super) fn name_in(database: &str, text: &str) -> String {
    format!("{}.{}", name(database), name(text))
}
