//! `demo-clean`: removes the directory of a database server whose demo was killed. The watchdog
//! runs it, once the server has ended.
//!
//! It takes a path and removes what is there, so it is narrow: a real directory, directly in the
//! system's temporary one, with a name that only the demo gives.

use crate::failure::Failure;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How the name of PostgreSQL's directory begins.
pub(super) const POSTGRESQL: &str = "stillpoint-pg-";
/// The same of `MariaDB`.
pub(super) const MARIADB: &str = "stillpoint-demo-mariadb-";
/// The same of Redis.
pub(super) const REDIS: &str = "stillpoint-demo-redis-";

/// Of `demo-clean`.
#[derive(Debug, clap::Args)]
pub(crate) struct CleanArgs {
    directory: PathBuf,
}

/// How this program is called to remove `directory`.
pub(super) fn arguments(directory: &Path) -> Vec<String> {
    vec!["demo-clean".to_owned(), directory.display().to_string()]
}

/// Removes the directory. One that is missing is fine.
pub(crate) fn run(arguments: &CleanArgs) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let fail = |e: io::Error| Failure::new(format!("remove {}", directory.display())).because(&e);
    let found = match fs::symlink_metadata(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(fail)?,
    };
    let named = directory.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        [POSTGRESQL, MARIADB, REDIS].iter().any(|prefix| name.starts_with(prefix))
    });
    let above = directory.parent().unwrap_or(Path::new("/")).canonicalize().map_err(fail)?;
    let temporary = std::env::temp_dir().canonicalize().map_err(fail)?;
    if !named || !found.is_dir() || above != temporary {
        return Err(Failure::usage(format!(
            "{} is not a directory that a demo has left",
            directory.display()
        )));
    }
    fs::remove_dir_all(directory).map_err(fail)
}
