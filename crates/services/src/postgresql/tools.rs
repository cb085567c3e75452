//! Finding `pg_dump` and `pg_dumpall`, and running them.
//!
//! The password reaches them by their environment, never by their arguments, which every account
//! of the machine can read. The rest of our environment does not reach them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::connection::Login;
use crate::ServiceError;

/// Where `pg_dump` may be: the directories of `path_env` (a `PATH`), then those that Debian and
/// the PostgreSQL project's own packages use.
pub fn default_tool_dirs(path_env: Option<&OsStr>) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> =
        path_env.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    for (base, inside) in [("/usr/lib/postgresql", "bin"), ("/usr", "bin")] {
        let Ok(entries) = fs::read_dir(base) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
            if base == "/usr/lib/postgresql" || name.starts_with("pgsql-") {
                directories.push(path.join(inside));
            }
        }
    }
    directories
}

/// A `pg_dump` that fits the server.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    dir: PathBuf,
    /// As it says itself: `15.18`.
    pub(super) version: String,
}

impl Tools {
    /// The newest `pg_dump` in `directories` that is not older than the server.
    pub(super) fn find(directories: &[PathBuf], server: u32) -> Result<Self, ServiceError> {
        let wanted = server / 10_000;
        let mut found: Vec<(Vec<u32>, bool, Self)> = Vec::new();
        for dir in directories {
            let Some(version) = version_of(&dir.join("pg_dump")) else { continue };
            // Debian's wrapper chooses a version by itself: take a real program where there is one.
            let real = fs::canonicalize(dir.join("pg_dump"))
                .is_ok_and(|path| path.file_name() != Some(OsStr::new("pg_wrapper")));
            let key = version.split('.').map_while(|part| part.parse().ok()).collect();
            found.push((key, real, Self { dir: dir.clone(), version }));
        }
        found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let newest = found.pop().map(|(key, _, tools)| (key, tools));
        match newest {
            Some((key, tools)) if key.first().is_some_and(|major| *major >= wanted) => Ok(tools),
            Some((_, tools)) => Err(ServiceError::new(format!(
                "pg_dump {} in {} is older than the server, which is PostgreSQL {wanted}",
                tools.version,
                tools.dir.display()
            ))
            .hint(format!("install the Debian package postgresql-client-{wanted}"))),
            None => Err(ServiceError::new(format!(
                "no pg_dump in any of {}",
                directories
                    .iter()
                    .map(|dir| dir.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            ))
            .hint(format!("install the Debian package postgresql-client-{wanted}"))),
        }
    }

    /// The version of another tool beside it, if that is there and runs.
    pub(super) fn beside(&self, tool: &str) -> Option<String> {
        version_of(&self.dir.join(tool))
    }

    /// Runs one of the tools on `database` and returns what it printed, and its warnings.
    pub(super) fn run(
        &self,
        tool: &'static str,
        login: &Login,
        database: &str,
        arguments: &[&str],
    ) -> Result<(String, Vec<String>), ServiceError> {
        let doing = || format!("run {tool} on {}", login.shown(database));
        let mut command = Command::new(self.dir.join(tool));
        command
            .args(arguments)
            .args(["--no-password"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("PGHOST", login.host())
            .env("PGPORT", login.port().to_string())
            .env("PGUSER", login.user())
            .env("PGDATABASE", database)
            .env("PGAPPNAME", "stillpoint")
            .env("PGCONNECT_TIMEOUT", "10")
            .stdin(Stdio::null());
        if let Some(password) = login.password() {
            command.env("PGPASSWORD", OsStr::from_bytes(password));
        }
        if login.without_tls() {
            command.env("PGSSLMODE", "disable");
        }
        let output = command.output().map_err(|e| ServiceError::new(doing()).because(e))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(ServiceError::new(doing()).because(said.trim().to_owned()));
        }
        let warnings = said.lines().map(str::trim).filter(|line| !line.is_empty());
        let warnings = warnings.map(str::to_owned).collect();
        let text = String::from_utf8(output.stdout)
            .map_err(|e| ServiceError::new(doing()).because(e).hint("its output is not UTF-8"))?;
        Ok((text, warnings))
    }
}

fn version_of(program: &Path) -> Option<String> {
    if !program.is_file() {
        return None;
    }
    let output = Command::new(program).arg("--version").env("LC_ALL", "C").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = said.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    Some(word[..end].to_owned()).filter(|version| output.status.success() && !version.is_empty())
}
