//! Exchanges a directory's children with another's, so that it can be finished or undone by
//! anyone at any moment.
//!
//! A mount's directory may be a mount point, or be held open: so its children change places, not
//! the directory itself. The plan is written down durably before the first one moves; each child's
//! inode tells afterwards whether it has moved already. Every step is one `renameat2`.

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Which children change places. Names are bytes: they need not be text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    moves: Vec<Move>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Move {
    name: Vec<u8>,
    /// Inode of the child on the live side before; none: it has no such child.
    live: Option<u64>,
    /// Inode of the child on the other side before.
    other: Option<u64>,
}

impl Plan {
    /// Every child of either directory, but for those of `live` that `keep` names.
    pub(super) fn make(
        live: &Path,
        other: &Path,
        keep: impl Fn(&Path) -> bool,
    ) -> io::Result<Self> {
        let mut children = children(live)?;
        children.retain(|name, _| !keep(Path::new(name)));
        let mut moves: BTreeMap<OsString, Move> = children
            .into_iter()
            .map(|(name, inode)| {
                let step = Move { name: name.as_bytes().to_vec(), live: Some(inode), other: None };
                (name, step)
            })
            .collect();
        for (name, inode) in self::children(other)? {
            let bytes = name.as_bytes().to_vec();
            let step = moves.entry(name).or_insert(Move { name: bytes, live: None, other: None });
            step.other = Some(inode);
        }
        Ok(Self { moves: moves.into_values().collect() })
    }

    /// Puts every child of the other side on the live one, and the other way round.
    pub(super) fn apply(&self, live: &Path, other: &Path) -> io::Result<()> {
        self.moves.iter().try_for_each(|step| step.go(live, other, step.other))
    }

    /// Puts every child back where it was before.
    pub(super) fn undo(&self, live: &Path, other: &Path) -> io::Result<()> {
        self.moves.iter().rev().try_for_each(|step| step.go(live, other, step.live))
    }
}

impl Move {
    /// Moves this child unless `wanted` (an inode, or none) is on the live side already.
    fn go(&self, live: &Path, other: &Path, wanted: Option<u64>) -> io::Result<()> {
        let name = OsString::from_vec(self.name.clone());
        let (live, other) = (live.join(&name), other.join(&name));
        let (here, there) = (inode(&live)?, inode(&other)?);
        if here == wanted {
            return Ok(());
        }
        let result = match (here, there) {
            (Some(_), Some(_)) => renameat_with(CWD, &live, CWD, &other, RenameFlags::EXCHANGE),
            (Some(_), None) => renameat_with(CWD, &live, CWD, &other, RenameFlags::NOREPLACE),
            (None, Some(_)) => renameat_with(CWD, &other, CWD, &live, RenameFlags::NOREPLACE),
            (None, None) => Err(rustix::io::Errno::NOENT),
        };
        result.map_err(|error| {
            io::Error::new(
                io::Error::from(error).kind(),
                format!("exchange {} with {}: {error}", live.display(), other.display()),
            )
        })
    }
}

fn inode(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn children(directory: &Path) -> io::Result<BTreeMap<OsString, u64>> {
    std::fs::read_dir(directory)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), entry.metadata()?.ino()))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]
mod tests {
    use super::*;
    use std::fs;

    fn tree(directory: &Path) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let what = if entry.path().is_dir() {
                format!("{:?}", tree(&entry.path()))
            } else {
                fs::read_to_string(entry.path()).unwrap()
            };
            all.push((name, what));
        }
        all.sort();
        all
    }

    fn two_directories() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let top = tempfile::tempdir().unwrap();
        let (live, other) = (top.path().join("live"), top.path().join("live/.aside"));
        fs::create_dir_all(live.join("both")).unwrap();
        fs::create_dir_all(other.join("both")).unwrap();
        for (path, text) in [
            (live.join("both/x"), "live"),
            (live.join("file"), "live"),
            (live.join("only-live"), "live"),
            (other.join("both/y"), "other"),
            (other.join("file"), "other"),
            (other.join("only-other"), "other"),
        ] {
            fs::write(path, text).unwrap();
        }
        (top, live, other)
    }

    fn keep(name: &Path) -> bool {
        name == Path::new(".aside")
    }

    #[test]
    fn every_child_changes_places_and_comes_back() {
        let (_top, live, other) = two_directories();
        let before = tree(&live);
        let wanted: Vec<_> = tree(&other);
        let plan = Plan::make(&live, &other, keep).unwrap();
        plan.apply(&live, &other).unwrap();
        let now: Vec<_> = tree(&live).into_iter().filter(|(name, _)| name != ".aside").collect();
        assert_eq!(now, wanted);
        plan.undo(&live, &other).unwrap();
        assert_eq!(tree(&live), before);
    }

    #[test]
    fn an_exchange_cut_off_after_any_step_can_be_finished_or_undone() {
        let (_top, live, other) = two_directories();
        let steps = Plan::make(&live, &other, keep).unwrap().moves.len();
        assert_eq!(steps, 4);
        for done in 0..=steps {
            for finish in [true, false] {
                let (_top, live, other) = two_directories();
                let before = tree(&live);
                let wanted = tree(&other);
                let plan = Plan::make(&live, &other, keep).unwrap();
                Plan { moves: plan.moves[..done].to_vec() }.apply(&live, &other).unwrap();
                // Twice, since who finishes may be cut off as well.
                for _ in 0..2 {
                    if finish { plan.apply(&live, &other) } else { plan.undo(&live, &other) }
                        .unwrap();
                }
                let mut now = tree(&live);
                if finish {
                    now.retain(|(name, _)| name != ".aside");
                    assert_eq!(now, wanted, "finished after {done}");
                } else {
                    assert_eq!(now, before, "undone after {done}");
                }
            }
        }
    }
}
