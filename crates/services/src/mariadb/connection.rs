//! Sessions at the server, of ours and of the stock programs. The password never reaches arguments
//! or the environment: programs read it from a file that only this account can read.
//!
//! Sessions wait long (a dump stands at its gate, a store is slow): none of the server's time-outs
//! may end them, so [`STEADY`] is the first thing that each of them says.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};

use super::login::{Address, Login};
use crate::ServiceError;

/// Turns off, for a session, whatever of the server's own settings could cut it off or change
/// what it does. A week for the times that have no "never".
pub(super) const STEADY: &str = "SET SESSION wait_timeout = 604800, net_read_timeout = 604800, \
    net_write_timeout = 604800, autocommit = 1, completion_type = 0 \
    /*M!100300 , max_statement_time = 0, idle_transaction_timeout = 0, \
    idle_readonly_transaction_timeout = 0, idle_write_transaction_timeout = 0 */ \
    /*!50708 , max_execution_time = 0 */";

/// Seconds that a statement of ours waits for a lock: in a hold everybody waits with it.
const LOCK_WAIT: u32 = 5;

impl Login {
    /// Opens a session.
    pub(super) fn connect(&self) -> Result<Conn, ServiceError> {
        let options = OptsBuilder::new()
            .user(Some(&self.user))
            .pass(self.password.as_ref())
            .prefer_socket(false)
            .tcp_connect_timeout(Some(Duration::from_secs(10)))
            .init(vec![
                STEADY.to_owned(),
                format!("SET SESSION sql_mode = '', lock_wait_timeout = {LOCK_WAIT}"),
                // Under a lower level the server ignores WITH CONSISTENT SNAPSHOT.
                "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ".to_owned(),
            ]);
        let options = match &self.address {
            Address::Socket(path) => options.socket(path.to_str()),
            Address::Tcp(host, port) => options.ip_or_hostname(Some(host)).tcp_port(*port),
        };
        Conn::new(options).map_err(|e| {
            let hint = match &e {
                mysql::Error::MySqlError(refusal) if refusal.code == 1045 => {
                    "check the user and the password; 'user'@'localhost' and 'user'@'%' are two accounts"
                }
                mysql::Error::MySqlError(refusal) if matches!(refusal.code, 1040 | 1203 | 1226) => {
                    "a backup opens two connections, and one for each database"
                }
                _ => "is the server running, and is this its address?",
            };
            ServiceError::new(format!("connect to {}", self.shown())).because(e).hint(hint)
        })
    }

    /// Writes an option file for the stock programs, which leads them to `socket`, or to the
    /// server itself.
    pub(super) fn write_options(
        &self,
        path: &Path,
        socket: Option<&Path>,
        mariadb: bool,
    ) -> Result<(), ServiceError> {
        let doing = || ServiceError::new(format!("write {}", path.display()));
        let user = quoted(&self.user);
        let password = quoted(self.password.as_deref().unwrap_or(""));
        // A program that talks TLS through the gate could not be read there.
        let plain = if mariadb { "skip-ssl" } else { "ssl-mode=DISABLED" };
        let mut text = format!("[client]\nuser={user}\npassword={password}\n{plain}\n");
        let socket = socket.or(match &self.address {
            Address::Socket(path) => Some(path.as_path()),
            Address::Tcp(..) => None,
        });
        let written = match (socket, &self.address) {
            (Some(socket), _) => {
                write!(text, "protocol=socket\nsocket={}\n", quoted(&socket.to_string_lossy()))
            }
            (None, Address::Tcp(host, port)) => {
                write!(text, "protocol=tcp\nhost={}\nport={port}\n", quoted(host))
            }
            (None, Address::Socket(_)) => Ok(()),
        };
        written.map_err(|e| doing().because(e))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| doing().because(e))
    }
}

/// A value in an option file.
fn quoted(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
        .replace('\t', "\\t");
    format!("\"{escaped}\"")
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

/// A question with each `?` replaced by one of `values` as a literal: one way to the server and
/// back, where a prepared statement takes two. Sessions of ours have backslash escapes.
pub(super) fn filled(question: &str, values: &[&str]) -> String {
    let mut parts = question.split('?');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for (part, value) in parts.zip(values) {
        text.push_str(&mysql::Value::from(*value).as_sql(false));
        text.push_str(part);
    }
    text
}
