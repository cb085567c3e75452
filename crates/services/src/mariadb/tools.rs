//! The server's version, and the stock programs: found, asked for theirs, and refused where they
//! do not fit. An older dump program leaves out what it does not know, and says nothing.

use std::path::PathBuf;
use std::process::Command;

use mysql::Conn;
use mysql::prelude::Queryable;

use super::Mariadb;
use crate::ServiceError;

/// A version in its own words, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) text: String,
    pub(super) mariadb: bool,
    pub(super) release: (u32, u32),
}

impl Version {
    /// Reads `10.11.19-MariaDB-0+deb12u1` and `8.0.36`.
    pub(super) fn new(text: &str) -> Self {
        // Old clients are told a 5.5.5 before the true one.
        let number = text.strip_prefix("5.5.5-").unwrap_or(text);
        let mut parts = number.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        let release = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        Self { text: text.to_owned(), mariadb: text.contains("MariaDB"), release }
    }

    /// The server's.
    pub(super) fn of_server(session: &mut Conn) -> Result<Self, ServiceError> {
        let text: Option<String> = session
            .query_first("SELECT VERSION()")
            .map_err(|e| ServiceError::new("read the server's version").because(e))?;
        Ok(Self::new(&text.unwrap_or_default()))
    }

    /// A program's, from what it says to `--version`:
    /// `mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for ...`,
    /// `mariadb-dump from 11.4.2-MariaDB, client 10.19 for ...`,
    /// `mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)`.
    pub(super) fn of_program(said: &str) -> Option<Self> {
        let mut words = said.split_whitespace();
        let marked = said.split_whitespace().find(|word| word.contains("-MariaDB"));
        let version = marked.or_else(|| {
            words.by_ref().find(|word| *word == "Ver")?;
            words.next()
        })?;
        Some(Self::new(version.trim_end_matches(',')))
    }

    /// Whether history of system-versioned tables can be dumped and loaded.
    pub(super) fn knows_history(&self) -> bool {
        self.mariadb && self.release >= (10, 11)
    }
}

/// The dump program.
#[derive(Debug, Clone)]
pub(super) struct Dumper {
    pub(super) path: PathBuf,
    pub(super) version: Version,
}

impl Mariadb {
    /// The first of `names` in any of the tool directories.
    pub(super) fn tool(&self, names: [&str; 2]) -> Result<PathBuf, ServiceError> {
        crate::programs::find(names, &self.tool_dirs, "mariadb-client")
    }

    /// The dump program, refused unless it fits `server`.
    pub(super) fn dumper(&self, server: &Version) -> Result<Dumper, ServiceError> {
        let names = ["mariadb-dump", "mysqldump"];
        let path = self.tool(if server.mariadb { names } else { [names[1], names[0]] })?;
        let doing = || ServiceError::new(format!("use {}", path.display()));
        let output = Command::new(&path)
            .args(["--no-defaults", "--version"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .output()
            .map_err(|e| doing().because(e))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let version = Version::of_program(&said)
            .ok_or_else(|| doing().because(format!("its version is not known: {said}")))?;
        let family = |version: &Version| if version.mariadb { "MariaDB" } else { "MySQL" };
        let (major, minor) = server.release;
        let hint = format!("install the client programs of {} {major}.{minor}", family(server));
        if version.mariadb != server.mariadb {
            let why = format!("it is {}'s, the server is {}", family(&version), server.text);
            return Err(doing().because(why).hint(hint));
        }
        if version.release < server.release {
            let why = format!("its version {} is older than the server's", version.text);
            return Err(doing().because(format!("{why}, {}", server.text)).hint(hint));
        }
        Ok(Dumper { path, version })
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_of_servers_and_programs_are_read() {
        let server = Version::new("10.11.19-MariaDB-0+deb12u1-log");
        assert!(server.mariadb && server.release == (10, 11) && server.knows_history());
        assert_eq!(Version::new("5.5.5-10.3.1-MariaDB").release, (10, 3));
        assert!(!Version::new("8.0.36").mariadb);
        let told = |said: &str| Version::of_program(said).map(|v| (v.mariadb, v.release));
        let old = "mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)";
        assert_eq!(told(old), Some((true, (10, 11))));
        let new = "mariadb-dump from 11.4.2-MariaDB, client 10.19 for Linux (x86_64)";
        assert_eq!(told(new), Some((true, (11, 4))));
        let other = "mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)";
        assert_eq!(told(other), Some((false, (8, 0))));
        assert_eq!(told("no idea"), None);
    }
}
