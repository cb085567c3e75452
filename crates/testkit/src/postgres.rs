//! A PostgreSQL server of a test's own.

use ::postgres::config::Config;
use ::postgres::{Client, NoTls};
use std::ops::Deref;
use stillpoint_runtimes::{ScratchOptions, ScratchPostgres};
use tempfile::TempDir;

/// A running server in a temporary directory; both end with this value.
#[derive(Debug)]
pub struct Postgres {
    // In this order: the server stops before its directory goes.
    server: ScratchPostgres,
    _dir: TempDir,
}

/// Starts a server with the default options: role and database `shop`, socket only.
///
/// # Panics
/// When PostgreSQL's server is not installed: tests need it (Debian: `postgresql`).
pub fn postgres() -> Postgres {
    postgres_with(&ScratchOptions::default())
}

/// Starts a server with options of the test's own.
pub fn postgres_with(options: &ScratchOptions) -> Postgres {
    let installation = ScratchPostgres::find()
        .expect("PostgreSQL's server is installed (Debian: apt-get install postgresql)");
    let dir = tempfile::Builder::new().prefix("pg").tempdir().expect("a temporary directory");
    let server =
        ScratchPostgres::start(&installation, dir.path(), options).expect("PostgreSQL starts");
    Postgres { server, _dir: dir }
}

impl Postgres {
    /// A session of the application's role in its own database.
    pub fn client(&self) -> Client {
        self.try_client_in(None).expect("the application's role connects")
    }

    /// A session of the application's role in `database`.
    pub fn client_in(&self, database: &str) -> Client {
        self.try_client_in(Some(database)).expect("the application's role connects")
    }

    /// The same, which may fail.
    pub fn try_client_in(&self, database: Option<&str>) -> Result<Client, ::postgres::Error> {
        let mut config: Config = self.url().parse().expect("the server's url is valid");
        config.password(self.password());
        if let Some(database) = database {
            config.dbname(database);
        }
        config.connect(NoTls)
    }

    /// A session of the superuser, in `database`. For fixtures only.
    pub fn superuser_in(&self, database: &str) -> Client {
        let mut config: Config = self.superuser_url().parse().expect("the server's url is valid");
        config.dbname(database).connect(NoTls).expect("the superuser connects")
    }
}

impl Deref for Postgres {
    type Target = ScratchPostgres;
    fn deref(&self) -> &ScratchPostgres {
        &self.server
    }
}
