//! A MariaDB and a Redis of a test's own.

use std::ops::Deref;
use std::process::Command;
use stillpoint_runtimes::{MariadbOptions, RedisOptions, ScratchMariadb, ScratchRedis};
use tempfile::TempDir;

/// A running MariaDB in a temporary directory; both end with this value.
#[derive(Debug)]
pub struct Mariadb {
    // In this order: the server stops before its directory goes.
    server: ScratchMariadb,
    _dir: TempDir,
}

/// Starts a server with the default options: account and database `shop`, socket only.
///
/// # Panics
/// When MariaDB's server is not installed: tests need it (Debian: `mariadb-server`).
pub fn mariadb() -> Mariadb {
    let installation = ScratchMariadb::find()
        .expect("MariaDB's server is installed (Debian: apt-get install mariadb-server)");
    let dir = tempfile::Builder::new().prefix("my").tempdir().expect("a temporary directory");
    let server = ScratchMariadb::start(&installation, dir.path(), &MariadbOptions::default())
        .expect("MariaDB starts");
    Mariadb { server, _dir: dir }
}

impl Mariadb {
    /// Runs statements as the application in its database; what it answers, tab-separated.
    pub fn sql(&self, statements: &str) -> String {
        let output = Command::new(self.client())
            .args(["--no-defaults", "--batch", "--skip-column-names", "-u", self.user(), "-S"])
            .arg(self.socket())
            .args([self.database(), "-e", statements])
            .env("MYSQL_PWD", self.password())
            .output()
            .expect("MariaDB's client runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statements}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Deref for Mariadb {
    type Target = ScratchMariadb;
    fn deref(&self) -> &ScratchMariadb {
        &self.server
    }
}

/// A running Redis in a temporary directory; both end with this value.
#[derive(Debug)]
pub struct Redis {
    server: ScratchRedis,
    _dir: TempDir,
}

/// Starts a server with the default options: account `shop`, socket only.
///
/// # Panics
/// When Redis is not installed: tests need it (Debian: `redis-server`).
pub fn redis() -> Redis {
    let installation = ScratchRedis::find()
        .expect("Redis's server is installed (Debian: apt-get install redis-server)");
    let dir = tempfile::Builder::new().prefix("re").tempdir().expect("a temporary directory");
    let server = ScratchRedis::start(&installation, dir.path(), &RedisOptions::default())
        .expect("Redis starts");
    Redis { server, _dir: dir }
}

impl Redis {
    /// Runs a command as the application; what it answers.
    pub fn ask(&self, words: &[&str]) -> String {
        let output = Command::new(self.client())
            .args(["-e", "-s"])
            .arg(self.socket())
            .args(["--user", self.user()])
            .args(words)
            .env("REDISCLI_AUTH", self.password())
            .output()
            .expect("Redis's client runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Deref for Redis {
    type Target = ScratchRedis;
    fn deref(&self) -> &ScratchRedis {
        &self.server
    }
}
