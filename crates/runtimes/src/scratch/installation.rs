//! Finding the programs of a PostgreSQL server.
//!
//! Debian keeps them out of `PATH`, in `/usr/lib/postgresql/MAJOR/bin`, and puts a wrapper script
//! for some of them into `/usr/bin`; so a directory counts only when it has the server itself.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One installed PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Where `postgres`, `initdb` and `psql` are.
    pub bin_dir: PathBuf,
    /// Its version in full: `15.18`.
    pub version: String,
    /// Its major version: 15.
    pub major: u32,
}

impl Installation {
    /// The newest server in the directories of `path` (a `PATH`) and in Debian's own places.
    pub fn find_in(path: Option<&OsStr>) -> Option<Self> {
        let mut directories: Vec<PathBuf> =
            path.map(|p| std::env::split_paths(p).collect()).unwrap_or_default();
        if let Ok(entries) = fs::read_dir("/usr/lib/postgresql") {
            directories.extend(entries.flatten().map(|entry| entry.path().join("bin")));
        }
        let mut found: Vec<Self> =
            directories.iter().filter_map(|directory| Self::at(directory)).collect();
        found.sort_by_key(Self::version_key);
        found.pop()
    }

    /// The server in `bin_dir`, if there is a whole one.
    pub fn at(bin_dir: &Path) -> Option<Self> {
        if !["postgres", "initdb", "psql"].iter().all(|tool| bin_dir.join(tool).is_file()) {
            return None;
        }
        let output = Command::new(bin_dir.join("postgres")).arg("--version").output().ok()?;
        if !output.status.success() {
            return None;
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = version_in(&said)?;
        let major = version.split('.').next()?.parse().ok()?;
        Some(Self { bin_dir: bin_dir.to_owned(), version, major })
    }

    fn version_key(&self) -> Vec<u32> {
        self.version.split('.').map_while(|part| part.parse().ok()).collect()
    }
}

/// The version in what a tool answers to `--version`: `postgres (PostgreSQL) 15.18 (Debian ...)`.
fn version_in(said: &str) -> Option<String> {
    let word = said.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    Some(word[..end].to_owned()).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_tools_say() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(version_in(debian).as_deref(), Some("15.18"));
        assert_eq!(version_in("postgres (PostgreSQL) 19beta1\n").as_deref(), Some("19"));
        assert_eq!(version_in("something else"), None);
    }

    #[test]
    fn a_directory_without_a_server_is_no_installation() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Installation::at(empty.path()), None);
    }
}
