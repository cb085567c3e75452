//! Where the bank's books are: three servers of its own, a database file, a directory.

use super::{BoxError, books, receipts};
use crate::{Mariadb, Postgres, Redis, mariadb, postgres, redis};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// How to reach one server. Written to a file that only this account can read.
#[derive(Clone, Serialize, Deserialize)]
pub struct Login {
    /// As in `stillpoint.yaml`, without a password.
    pub url: String,
    /// The application's password.
    pub password: String,
}

/// How to reach all five parts, in the order of [`super::PARTS`].
#[derive(Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// PostgreSQL.
    pub db: Login,
    /// MariaDB.
    pub ledger: Login,
    /// Redis.
    pub cache: Login,
    /// SQLite's file.
    pub local: PathBuf,
    /// The mount.
    pub receipts: PathBuf,
}

/// Five parts that are running. All end with this value.
pub struct Site {
    // Before the directory: they end first.
    _servers: (Postgres, Mariadb, Redis),
    directory: TempDir,
    addresses: Addresses,
}

impl Site {
    /// Starts fresh servers, with the accounts that the documentation asks for and no more. The
    /// database file has no tables, the directory no files.
    pub fn empty() -> Self {
        let (db, ledger, cache) = std::thread::scope(|scope| {
            let (db, ledger) = (scope.spawn(postgres), scope.spawn(mariadb));
            let cache = redis();
            (db.join().expect("PostgreSQL starts"), ledger.join().expect("MariaDB starts"), cache)
        });
        let directory = tempfile::Builder::new().prefix("bank").tempdir().expect("a directory");
        let addresses = Addresses {
            db: Login { url: db.url(), password: db.password().to_owned() },
            ledger: Login { url: ledger.url(), password: ledger.password().to_owned() },
            cache: Login { url: cache.url(), password: cache.password().to_owned() },
            local: directory.path().join("local.db"),
            receipts: directory.path().join("receipts"),
        };
        std::fs::create_dir(&addresses.receipts).expect("the mount can be made");
        books::connect(&addresses).expect("every service can be reached");
        Self { _servers: (db, ledger, cache), directory, addresses }
    }

    /// The same with the bank's opening books.
    pub fn opened() -> Self {
        let site = Self::empty();
        site.open().expect("the books can be opened");
        site
    }

    fn open(&self) -> Result<(), BoxError> {
        for mut book in books::connect(&self.addresses)? {
            book.open()?;
        }
        Ok(receipts::open(&self.addresses.receipts)?)
    }

    /// How to reach the parts.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// A directory for whatever belongs to it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}
