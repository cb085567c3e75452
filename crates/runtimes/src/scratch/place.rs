//! The directory of a scratch server: made, given to the account that the server runs as, and
//! reachable for it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::account::Account;
use super::process::io_error;
use crate::RuntimeError;

/// Prepares `dir` for a server whose data will be in `data` below it, which must not exist yet.
pub(super) fn prepare(dir: &Path, account: &Account) -> Result<PathBuf, RuntimeError> {
    let data_dir = dir.join("data");
    if data_dir.exists() {
        return Err(RuntimeError::InUse { path: data_dir });
    }
    fs::create_dir_all(dir).map_err(|source| io_error("create", dir, source))?;
    account.own(dir)?;
    let closed = account.closed_way_to(dir).map_err(|source| io_error("look at", dir, source))?;
    match closed {
        Some(path) => Err(RuntimeError::Unreachable { account: account.name.clone(), path }),
        None => Ok(data_dir),
    }
}

/// A file with secrets, which only the server's account can read.
pub(super) fn secret_file(
    path: &Path,
    content: &str,
    account: &Account,
) -> Result<(), RuntimeError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| io_error("create", path, source))?;
    writeln!(file, "{content}").map_err(|source| io_error("write", path, source))?;
    account.own(path)
}

/// Whether a name can stand in a server's statements without being quoted.
pub(super) fn check_name(what: &'static str, given: &str) -> Result<(), RuntimeError> {
    let first = given.bytes().next();
    let valid = given.len() <= 63
        && first.is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && given.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !["postgres", "root", "default"].contains(&given);
    if valid {
        return Ok(());
    }
    Err(RuntimeError::Option {
        what,
        given: given.to_owned(),
        rule: "lower-case letters, digits and `_`, beginning with a letter, and no server's own \
               account",
    })
}

/// A program in `PATH`, or where Debian has servers and an ordinary user's `PATH` does not lead.
pub(super) fn find(name: &str, path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    let own: Vec<PathBuf> =
        path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin"].map(PathBuf::from);
    own.into_iter().chain(usual).map(|dir| dir.join(name)).find(|program| program.is_file())
}
