//! Connecting, and what every session of ours must have set.

use std::time::Duration;

use postgres::config::{Config, Host, SslMode};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

use crate::ServiceError;

/// How long one server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The oldest server that is known to work: sequences' parameters moved to a catalog in 10.
const OLDEST: u32 = 100_000;

/// Where and as whom to log in. Knows the password and never shows it.
#[derive(Clone)]
pub(super) struct Login {
    config: Config,
}

impl Login {
    pub(super) fn new(url: &str, password: Option<&str>) -> Result<Self, ServiceError> {
        // The parser's error may quote the url, and with it a password: it is not passed on.
        let mut config: Config = url.parse().map_err(|_| {
            ServiceError::new("the url of a PostgreSQL service is not valid").hint(
                "write postgres://user@host:5432/database, or \
                 postgres://user@/database?host=/directory/of/the/socket",
            )
        })?;
        if let Some(password) = password {
            config.password(password);
        }
        if config.get_hosts().is_empty() {
            return Err(ServiceError::new("the url of a PostgreSQL service names no host")
                .hint("add the host, or ?host=/directory/of/the/socket"));
        }
        if config.get_hosts().len() > 1 {
            return Err(ServiceError::new("the url of a PostgreSQL service names several hosts")
                .hint("name the one server that is to be backed up"));
        }
        if config.get_ssl_mode() == SslMode::Require {
            return Err(ServiceError::new(
                "the url of a PostgreSQL service asks for TLS (sslmode=require), which is not \
                 supported yet",
            )
            .hint(
                "connect by a Unix socket or over a trusted network without sslmode, or through \
                 a TLS tunnel; the connection is never made in plain text against your wish",
            ));
        }
        if config.get_user().is_none() {
            return Err(ServiceError::new("the url of a PostgreSQL service names no user")
                .hint("write postgres://user@host:5432/database"));
        }
        config.connect_timeout(CONNECT_TIMEOUT);
        config.application_name("stillpoint");
        Ok(Self { config })
    }

    pub(super) fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    pub(super) fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_else(|| self.user())
    }

    pub(super) fn host(&self) -> String {
        match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.to_string_lossy().into_owned(),
            None => String::new(),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.config.get_ports().first().copied().unwrap_or(5432)
    }

    pub(super) fn password(&self) -> Option<&[u8]> {
        self.config.get_password()
    }

    pub(super) fn without_tls(&self) -> bool {
        self.config.get_ssl_mode() == SslMode::Disable
    }

    /// The connection for people: without the password.
    pub(super) fn shown(&self, database: &str) -> String {
        let host = self.host();
        if host.starts_with('/') {
            format!("postgres://{}@/{database}?host={host}&port={}", self.user(), self.port())
        } else {
            format!("postgres://{}@{host}:{}/{database}", self.user(), self.port())
        }
    }

    /// Opens a session in `database`, with everything set that ours need.
    pub(super) fn connect(&self, database: &str) -> Result<Session, ServiceError> {
        let client = self
            .config
            .clone()
            .dbname(database)
            .connect(NoTls)
            .map_err(|source| self.explained(database, source))?;
        let mut session = Session { client, version: 0 };
        session.set_up().map_err(|source| {
            ServiceError::new(format!("set up a session at {}", self.shown(database)))
                .because(source)
        })?;
        if session.version < OLDEST {
            return Err(ServiceError::new(format!(
                "the server at {} is older than PostgreSQL 10",
                self.shown(database)
            )));
        }
        Ok(session)
    }

    fn explained(&self, database: &str, source: postgres::Error) -> ServiceError {
        let code = source.code().cloned();
        let error = ServiceError::new(format!("connect to {}", self.shown(database)));
        let hint = if code == Some(SqlState::INVALID_PASSWORD) {
            format!("the password of `{}` is wrong, or none was given", self.user())
        } else if code == Some(SqlState::INVALID_CATALOG_NAME) {
            format!("there is no database `{database}` on that server")
        } else if code == Some(SqlState::INVALID_AUTHORIZATION_SPECIFICATION) {
            format!("`{}` may not log in from here: see the server's pg_hba.conf", self.user())
        } else if code == Some(SqlState::INSUFFICIENT_PRIVILEGE) {
            format!("GRANT CONNECT ON DATABASE \"{database}\" TO \"{}\"", self.user())
        } else if code == Some(SqlState::TOO_MANY_CONNECTIONS) {
            "a backup needs up to six connections: raise the limit of the role or of the server"
                .to_owned()
        } else if code.is_none() && self.password().is_none() {
            "is the server running there? No password was given".to_owned()
        } else if code.is_none() {
            "is the server running there, and may it be reached from this host?".to_owned()
        } else {
            return error.because(source);
        };
        error.hint(hint).because(source)
    }
}

/// One session, set up.
pub(super) struct Session {
    pub(super) client: Client,
    /// As in `server_version_num`: 150018.
    pub(super) version: u32,
}

impl Session {
    fn set_up(&mut self) -> Result<(), postgres::Error> {
        // Values must read the same at capture and at verification; nothing may end a session
        // that waits for others; a policy must be an error, not missing rows.
        self.client.batch_execute(
            "SET statement_timeout = 0; SET lock_timeout = 0; \
             SET idle_in_transaction_session_timeout = 0; \
             SET default_transaction_read_only = off; SET row_security = off; \
             SET search_path = ''; SET synchronize_seqscans = off; \
             SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; \
             SET extra_float_digits = 3; SET bytea_output = 'hex'; SET xmloption = 'content'; \
             SET lc_monetary = 'C'; SET array_nulls = on; SET quote_all_identifiers = off; \
             SET standard_conforming_strings = on; SET client_min_messages = warning",
        )?;
        let version: String =
            self.client.query_one("SELECT current_setting('server_version_num')", &[])?.get(0);
        self.version = version.parse().unwrap_or(0);
        if self.version >= 140_000 {
            self.client.batch_execute("SET idle_session_timeout = 0")?;
        }
        if self.version >= 170_000 {
            self.client.batch_execute("SET transaction_timeout = 0")?;
        }
        Ok(())
    }

    pub(super) fn pid(&mut self) -> Result<i32, postgres::Error> {
        Ok(self.client.query_one("SELECT pg_backend_pid()", &[])?.get(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_asks_for_tls_is_refused_and_never_downgraded() {
        let error = Login::new("postgres://shop@db/shop?sslmode=require", None).err().unwrap();
        assert!(error.to_string().contains("TLS"), "{error}");
    }

    #[test]
    fn an_invalid_url_is_refused_without_showing_it() {
        let error = Login::new("postgres://shop:secret@db:port/shop", None).err().unwrap();
        assert!(!format!("{error:?}").contains("secret"));
        assert!(error.advice().unwrap().contains("postgres://user@host"));
    }

    #[test]
    fn the_shown_connection_has_no_password() {
        let login =
            Login::new("postgres://shop:secret@/shop?host=/run/pg&port=5433", None).unwrap();
        assert_eq!(login.shown("x"), "postgres://shop@/x?host=/run/pg&port=5433");
        assert_eq!(login.database(), "shop");
    }
}
