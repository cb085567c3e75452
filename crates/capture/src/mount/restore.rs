//! Puts a mount back: restored beside the live children, verified, exchanged, the old ones kept
//! until the restore has ended well.
//!
//! All of it lives in one staging directory inside the mount (`.stillpoint-TOKEN`), since only
//! there a rename is certain to stay on one file system: `new/` for what is loaded (after the swap:
//! for what was live), `exchange.json` for the plan of the swap.

use super::exchange::Plan;
use super::filter::{Filter, STAGING_PREFIX};
use super::resolved;
use rustix::fs::{Access, CWD, RenameFlags, access, renameat_with};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{BlobId, Node, Reader, RestoreOptions};
use stillpoint_services::{Aside, Restore, ServiceError, Source};

/// A mount's restore. Without what it is restored from it can still finish or undo.
pub struct MountRestore {
    root: PathBuf,
    filter: Filter,
    from: Option<(Arc<Reader>, Node)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Staging {
    root: PathBuf,
    directory: PathBuf,
    /// The mount's directory was missing: undoing removes it again.
    created: bool,
}

impl Staging {
    fn loaded(&self) -> PathBuf {
        self.directory.join("new")
    }

    fn plan(&self) -> PathBuf {
        self.directory.join("exchange.json")
    }
}

impl MountRestore {
    /// Restores what is below `node` to the directory `root`, which gets the node's owner and mode
    /// only if it has to be made. What the filter excludes is left where it is.
    pub fn new(root: PathBuf, filter: Filter, reader: Arc<Reader>, node: Node) -> Self {
        Self { root: resolved(root), filter, from: Some((reader, node)) }
    }

    /// Only to finish or undo a restore that was cut off.
    pub fn to_recover(root: PathBuf, filter: Filter) -> Self {
        Self { root: resolved(root), filter, from: None }
    }

    fn from(&self) -> Result<(&Reader, &Node, &BlobId), ServiceError> {
        let (reader, node) = self
            .from
            .as_ref()
            .ok_or_else(|| ServiceError::new("there is no backup to restore from"))?;
        let tree = node.subtree.as_ref().ok_or_else(|| ServiceError::new("it is no directory"))?;
        Ok((reader, node, tree))
    }

    fn staging(&self, aside: &Aside) -> Result<Staging, ServiceError> {
        let staging: Staging = serde_json::from_value(aside.0.clone())
            .map_err(|e| ServiceError::new("understand the journal").because(e))?;
        if staging.root != self.root {
            return Err(ServiceError::new(format!(
                "the journal is of {}, not of {}",
                staging.root.display(),
                self.root.display()
            )));
        }
        Ok(staging)
    }

    fn read_plan(staging: &Staging) -> Result<Option<Plan>, ServiceError> {
        match std::fs::read(staging.plan()) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| at("understand", &staging.plan(), e)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("read", &staging.plan(), error)),
        }
    }

    /// Removes what is aside, which holds the only copy of one state of the data: so only where
    /// the exchange is known to be where it should be.
    fn remove_staging(
        staging: &Staging,
        as_it_should_be: impl Fn(&Plan) -> bool,
    ) -> Result<(), ServiceError> {
        if let Some(plan) = Self::read_plan(staging)?
            && !as_it_should_be(&plan)
        {
            return Err(ServiceError::new(format!(
                "{} is kept: what is in {} is not what the restore left there",
                staging.directory.display(),
                staging.root.display()
            ))
            .hint("look at both, and remove the former by hand once nothing in it is needed"));
        }
        match std::fs::remove_dir_all(&staging.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(at("remove", &staging.directory, error))
            }
            _ => Ok(()),
        }
    }
}

fn at(
    doing: &str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ServiceError {
    ServiceError::new(format!("{doing} {}", path.display())).because(source)
}

impl Restore for MountRestore {
    fn plan(&mut self, token: &str, _: &dyn Source) -> Result<Aside, ServiceError> {
        let created = match std::fs::metadata(&self.root) {
            Ok(meta) if meta.is_dir() => false,
            Ok(_) => return Err(at("restore into", &self.root, "it is not a directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(at("look at", &self.root, error)),
        };
        let into = if created { self.root.parent().unwrap_or(Path::new("/")) } else { &self.root };
        access(into, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
            at("restore into", into, io::Error::from(error))
                .hint("the user that Stillpoint runs as needs to write there")
        })?;
        if let Some(below) = mounted_below(&self.root)? {
            return Err(at("restore into", &self.root, format!("{} is a file system of its own", below.display()))
                .hint("unmount it, or make it a mount of its own in stillpoint.yaml: a restore would carry it away"));
        }
        let directory = self.root.join(format!("{STAGING_PREFIX}{token}"));
        let staging = Staging { root: self.root.clone(), directory, created };
        let value = serde_json::to_value(staging)
            .map_err(|e| ServiceError::new("write the journal").because(e))?;
        Ok(Aside(value))
    }

    fn load(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let staging = self.staging(aside)?;
        // A first attempt may have been cut off.
        Self::remove_staging(&staging, |plan| plan.is_undone(&staging.root))?;
        if staging.created {
            let (_, node, _) = self.from()?;
            create_like(&staging.root, node).map_err(|e| at("create", &staging.root, e))?;
        }
        std::fs::create_dir(&staging.directory)
            .and_then(|()| {
                use std::os::unix::fs::PermissionsExt;
                let private = std::fs::Permissions::from_mode(0o700);
                std::fs::set_permissions(&staging.directory, private)
            })
            .map_err(|e| at("create", &staging.directory, e))?;
        try_exchange(&staging.directory)?;
        let (reader, _, tree) = self.from()?;
        let options = RestoreOptions::default();
        let report = reader
            .restore(tree, &staging.loaded(), &options, &Asked(source))
            .map_err(|e| at("restore into", &staging.loaded(), e))?;
        for (path, warning) in report.warnings.iter().take(10) {
            tracing::warn!("restoring {}: {}: {warning}", staging.root.display(), path.display());
        }
        if report.warnings.len() > 10 {
            tracing::warn!("... and {} more such warnings", report.warnings.len() - 10);
        }
        Ok(())
    }

    fn verify(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let staging = self.staging(aside)?;
        let (reader, _, tree) = self.from()?;
        let differences = reader
            .verify(tree, &staging.loaded(), &Asked(source))
            .map_err(|e| at("verify", &staging.loaded(), e))?;
        match differences.first() {
            None => Ok(()),
            Some(first) => Err(ServiceError::new(format!(
                "what was restored to {} differs from the backup in {} places, first: {first:?}",
                staging.loaded().display(),
                differences.len()
            ))),
        }
    }

    fn swap(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let staging = self.staging(aside)?;
        let plan = if let Some(plan) = Self::read_plan(&staging)? {
            plan
        } else {
            let plan = Plan::make(&staging.root, &staging.loaded(), &self.filter)
                .map_err(|e| at("plan the exchange of", &staging.root, e))?;
            let text = serde_json::to_vec(&plan)
                .map_err(|e| ServiceError::new("write the plan").because(e))?;
            crate::durable::write(&staging.plan(), &text)
                .map_err(|e| at("write", &staging.plan(), e))?;
            plan
        };
        plan.apply(&staging.root, &staging.loaded())
            .map_err(|e| at("exchange", &staging.root, e))?;
        sync(&staging.root)
    }

    fn swap_back(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let staging = self.staging(aside)?;
        if let Some(plan) = Self::read_plan(&staging)? {
            plan.undo(&staging.root, &staging.loaded())
                .map_err(|e| at("exchange", &staging.root, e))?;
            sync(&staging.root)?;
        }
        Ok(())
    }

    fn finish(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let staging = self.staging(aside)?;
        Self::remove_staging(&staging, |plan| plan.is_applied(&staging.root))
    }

    fn discard(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let staging = self.staging(aside)?;
        Self::remove_staging(&staging, |plan| plan.is_undone(&staging.root))?;
        if staging.created {
            // Only if it is still as empty as we made it.
            match std::fs::remove_dir(&staging.root) {
                Err(error)
                    if ![io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty]
                        .contains(&error.kind()) =>
                {
                    return Err(at("remove", &staging.root, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The repository's engine reads for itself: it is stopped by whoever would stop the streams.
struct Asked<'a>(&'a dyn Source);

impl Monitor for Asked<'_> {
    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }

    fn cancelled(&self) -> bool {
        self.0.stopped()
    }
}

/// Makes a directory with a node's mode and, where that is permitted, its owner.
fn create_like(directory: &Path, node: &Node) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    match std::os::unix::fs::chown(directory, Some(node.uid), Some(node.gid)) {
        // As with every other file of a restore: only root gives files away.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(node.mode & 0o7777);
    std::fs::set_permissions(directory, mode)
}

/// Fails where the file system cannot exchange two directories, before anything waits for it.
fn try_exchange(directory: &Path) -> Result<(), ServiceError> {
    let (a, b) = (directory.join("a"), directory.join("b"));
    let tried = std::fs::create_dir(&a).and_then(|()| std::fs::create_dir(&b)).and_then(|()| {
        renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE)?;
        std::fs::remove_dir(&a)?;
        std::fs::remove_dir(&b)
    });
    tried.map_err(|e| at("exchange directories in", directory, e))
}

/// A file system that is mounted somewhere below `root`: removing the old state would remove what
/// is in it.
fn mounted_below(root: &Path) -> Result<Option<PathBuf>, ServiceError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(table).map_err(|e| at("read", table, e))?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescaped)
        .find(|mounted| mounted != root && mounted.starts_with(root)))
}

/// A path as the kernel writes it in its tables: some bytes as `\ooo`.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\' && after.len() >= 3)
            .then(|| std::str::from_utf8(&after[..3]).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn sync(directory: &Path) -> Result<(), ServiceError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| at("sync", directory, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_below_is_found_and_the_one_that_it_is_on_is_not() {
        assert!(mounted_below(Path::new("/")).unwrap().is_some());
        assert!(mounted_below(Path::new("/proc")).unwrap().is_none_or(|m| m != Path::new("/proc")));
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(mounted_below(directory.path()).unwrap(), None);
    }

    #[test]
    fn the_kernels_escapes_are_read_back() {
        assert_eq!(unescaped(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescaped(b"/plain\\"), Path::new("/plain\\"));
    }
}
