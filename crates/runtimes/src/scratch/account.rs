//! The account that a server runs as: this process's own, or, for root, one without rights.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::RuntimeError;

/// An account to run programs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its ids, if a program must be switched to them; `None` for this process's own account.
    pub switch_to: Option<(u32, u32)>,
}

impl Account {
    /// Where a server may run: this process's own account, or, for root, `postgres` or `nobody`.
    pub fn for_servers() -> Self {
        let own = rustix::process::geteuid();
        let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
        if !own.is_root() {
            let name = name_of(&accounts, own.as_raw()).unwrap_or_else(|| own.as_raw().to_string());
            return Self { name, switch_to: None };
        }
        for name in ["postgres", "nobody"] {
            if let Some(ids) = ids_of(&accounts, name).filter(|ids| ids.0 != 0) {
                return Self { name: name.to_owned(), switch_to: Some(ids) };
            }
        }
        Self { name: "65534".to_owned(), switch_to: Some((65534, 65534)) }
    }

    /// Makes `command` run as this account. The standard library clears the supplementary groups
    /// when root sets a user.
    pub fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.switch_to {
            command.gid(gid).uid(uid);
        }
    }

    /// Gives `path` to this account.
    pub fn own(&self, path: &Path) -> Result<(), RuntimeError> {
        let Some((uid, gid)) = self.switch_to else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(|source| RuntimeError::Io {
            doing: "change the owner of",
            path: path.to_owned(),
            source,
        })
    }

    /// The first directory on the way to `path` that this account may not pass through.
    pub fn closed_way_to(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let Some((uid, gid)) = self.switch_to else { return Ok(None) };
        for directory in path.canonicalize()?.ancestors() {
            let found = fs::metadata(directory)?;
            let bit = if found.uid() == uid {
                0o100
            } else if found.gid() == gid {
                0o010
            } else {
                0o001
            };
            if found.mode() & bit == 0 {
                return Ok(Some(directory.to_owned()));
            }
        }
        Ok(None)
    }
}

/// The fields of each line of a passwd file: name, uid, gid.
fn lines(accounts: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    accounts.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some((name, uid, gid))
    })
}

fn ids_of(accounts: &str, name: &str) -> Option<(u32, u32)> {
    lines(accounts).find(|line| line.0 == name).map(|(_, uid, gid)| (uid, gid))
}

fn name_of(accounts: &str, uid: u32) -> Option<String> {
    lines(accounts).find(|line| line.1 == uid).map(|(name, ..)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_by_name_and_names_by_id() {
        let accounts = "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:,,,:/var:/bin/sh\n";
        assert_eq!(ids_of(accounts, "postgres"), Some((101, 104)));
        assert_eq!(ids_of(accounts, "nobody"), None);
        assert_eq!(name_of(accounts, 0).as_deref(), Some("root"));
    }
}
