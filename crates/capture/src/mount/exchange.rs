//! Exchanges a directory's children with another's, so that it can be finished or undone by
//! anyone at any moment.
//!
//! A mount's directory may be a mount point, or be held open: so its children change places, not
//! the directory itself. The plan is written down durably before the first one moves; each child's
//! inode tells afterwards whether it has moved already. Every step is one `renameat2`.

use super::filter::Filter;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Which children change places. Names are bytes: they need not be text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// What is excluded below the top and so is in no backup: it changes trees before the exchange
    /// and thereby stays where it is.
    carries: Vec<Carry>,
    moves: Vec<Move>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Carry {
    /// Below the top, on either side.
    path: Vec<u8>,
    inode: u64,
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
    /// Every child of either directory, but for those that `filter` excludes: they stay where they
    /// are, at the top and below it. Directories that `other` lacks for that are made in it.
    pub(super) fn make(live: &Path, other: &Path, filter: &Filter) -> io::Result<Self> {
        let mut carries = Vec::new();
        if !filter.is_empty() {
            let mut excluded = Vec::new();
            find_excluded(live, Path::new(""), filter, &mut excluded)?;
            for (path, inode) in excluded {
                // Those at the top need not move, and a name that both have stays the live one.
                if path.components().count() > 1 && make_way(live, other, &path)? {
                    carries.push(Carry { path: path.as_os_str().as_bytes().to_vec(), inode });
                }
            }
        }
        let mut moves: BTreeMap<OsString, Move> = BTreeMap::new();
        let new =
            |name: &OsString| Move { name: name.as_bytes().to_vec(), live: None, other: None };
        for (name, inode) in children(live)? {
            moves.entry(name.clone()).or_insert_with(|| new(&name)).live = Some(inode);
        }
        for (name, inode) in children(other)? {
            moves.entry(name.clone()).or_insert_with(|| new(&name)).other = Some(inode);
        }
        moves.retain(|name, _| !filter.excludes(Path::new(name)));
        Ok(Self { carries, moves: moves.into_values().collect() })
    }

    /// Puts every child of the other side on the live one, and the other way round.
    pub(super) fn apply(&self, live: &Path, other: &Path) -> io::Result<()> {
        for carry in &self.carries {
            if self.top_of(carry).is_none_or(|top| inode(&live.join(top.path())) == Ok(top.live)) {
                carry.go(live, other)?;
            }
        }
        self.moves.iter().try_for_each(|step| step.go(live, other, step.other))
    }

    /// Puts every child back where it was before.
    pub(super) fn undo(&self, live: &Path, other: &Path) -> io::Result<()> {
        self.moves.iter().rev().try_for_each(|step| step.go(live, other, step.live))?;
        self.carries.iter().rev().try_for_each(|carry| carry.go(other, live))
    }

    /// True if every child is where [`Plan::apply`] puts it.
    pub(super) fn is_applied(&self, live: &Path) -> bool {
        self.moves.iter().all(|step| inode(&live.join(step.path())) == Ok(step.other))
    }

    /// True if every child is where it was before.
    pub(super) fn is_undone(&self, live: &Path) -> bool {
        let carried = |c: &Carry| inode(&live.join(c.path())) == Ok(Some(c.inode));
        self.moves.iter().all(|step| inode(&live.join(step.path())) == Ok(step.live))
            && self.carries.iter().all(carried)
    }

    /// The move that takes a carried entry's topmost directory along.
    fn top_of(&self, carry: &Carry) -> Option<&Move> {
        let top = carry.path.split(|byte| *byte == b'/').next()?;
        self.moves.iter().find(|step| step.name == top)
    }
}

/// Everything below `live` that is excluded, topmost only, never beyond another file system.
fn find_excluded(
    live: &Path,
    below: &Path,
    filter: &Filter,
    found: &mut Vec<(PathBuf, u64)>,
) -> io::Result<()> {
    for entry in std::fs::read_dir(live.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let meta = entry.metadata()?;
        if filter.excludes(&path) {
            found.push((path, meta.ino()));
        } else if meta.is_dir() {
            find_excluded(live, &path, filter, found)?;
        }
    }
    Ok(())
}

/// Makes the directories above `path` in `other`, as `live` has them. False if something else is
/// in the way there.
fn make_way(live: &Path, other: &Path, path: &Path) -> io::Result<bool> {
    let above: Vec<&Path> = path.ancestors().skip(1).collect();
    for directory in above.into_iter().rev().filter(|d| !d.as_os_str().is_empty()) {
        let (from, to) = (live.join(directory), other.join(directory));
        match std::fs::symlink_metadata(&to) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let meta = std::fs::symlink_metadata(&from)?;
                std::fs::create_dir(&to)?;
                std::os::unix::fs::chown(&to, Some(meta.uid()), Some(meta.gid()))?;
                std::fs::set_permissions(&to, meta.permissions())?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(inode(&other.join(path)) == Ok(None))
}

impl Carry {
    fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }

    /// Moves the entry, unless it has been already.
    fn go(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.join(self.path()), to.join(self.path()));
        if inode(&from) != Ok(Some(self.inode)) {
            return Ok(());
        }
        renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)
            .map_err(|error| failed("move", &from, &to, error))
    }
}

impl Move {
    fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.name.clone()))
    }

    /// Moves this child unless `wanted` (an inode, or none) is on the live side already.
    fn go(&self, live: &Path, other: &Path, wanted: Option<u64>) -> io::Result<()> {
        let (live, other) = (live.join(self.path()), other.join(self.path()));
        let unseen = |error: rustix::io::Errno| failed("look at", &live, &other, error);
        let (here, there) = (inode(&live).map_err(unseen)?, inode(&other).map_err(unseen)?);
        if here == wanted {
            return Ok(());
        }
        let result = match (here, there) {
            (Some(_), Some(_)) => renameat_with(CWD, &live, CWD, &other, RenameFlags::EXCHANGE),
            (Some(_), None) => renameat_with(CWD, &live, CWD, &other, RenameFlags::NOREPLACE),
            (None, Some(_)) => renameat_with(CWD, &other, CWD, &live, RenameFlags::NOREPLACE),
            (None, None) => {
                // Somebody has removed it since: there is nothing left to be moved.
                tracing::warn!("{} has vanished in the middle of a restore", live.display());
                Ok(())
            }
        };
        result.map_err(|error| failed("exchange", &live, &other, error))
    }
}

fn failed(doing: &str, from: &Path, to: &Path, error: rustix::io::Errno) -> io::Error {
    let text = format!("{doing} {} and {}: {error}", from.display(), to.display());
    io::Error::new(io::Error::from(error).kind(), text)
}

/// The inode at `path`; none if there is nothing. Comparable, unlike `io::Error`.
fn inode(path: &Path) -> Result<Option<u64>, rustix::io::Errno> {
    match rustix::fs::lstat(path) {
        Ok(stat) => Ok(Some(stat.st_ino)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
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

    /// `.aside` at the top, and what is called so in the patterns.
    fn keep(patterns: &[&str]) -> Filter {
        let all: Vec<String> =
            patterns.iter().chain(&["/.aside"]).map(|p| (*p).to_owned()).collect();
        Filter::new(&all).unwrap()
    }

    #[test]
    fn every_child_changes_places_and_comes_back() {
        let (_top, live, other) = two_directories();
        let before = tree(&live);
        let wanted: Vec<_> = tree(&other);
        let plan = Plan::make(&live, &other, &keep(&[])).unwrap();
        plan.apply(&live, &other).unwrap();
        let now: Vec<_> = tree(&live).into_iter().filter(|(name, _)| name != ".aside").collect();
        assert_eq!(now, wanted);
        plan.undo(&live, &other).unwrap();
        assert_eq!(tree(&live), before);
    }

    #[test]
    fn an_exchange_cut_off_after_any_step_can_be_finished_or_undone() {
        let (_top, live, other) = two_directories();
        let steps = Plan::make(&live, &other, &keep(&[])).unwrap().moves.len();
        assert_eq!(steps, 4);
        for done in 0..=steps {
            for finish in [true, false] {
                let (_top, live, other) = two_directories();
                let before = tree(&live);
                let wanted = tree(&other);
                let plan = Plan::make(&live, &other, &keep(&[])).unwrap();
                Plan { carries: vec![], moves: plan.moves[..done].to_vec() }
                    .apply(&live, &other)
                    .unwrap();
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

    #[test]
    fn what_is_excluded_stays_where_it_is_whatever_becomes_of_the_rest() {
        for undone in [false, true] {
            let (_top, live, other) = two_directories();
            fs::create_dir_all(live.join("gone/deep")).unwrap();
            for path in ["both/keep", "gone/deep/keep", "keep"] {
                fs::write(live.join(path), format!("precious {path}")).unwrap();
            }
            let before = tree(&live);
            let plan = Plan::make(&live, &other, &keep(&["keep"])).unwrap();
            // As often as one likes, in any state.
            for _ in 0..2 {
                plan.apply(&live, &other).unwrap();
            }
            assert!(plan.is_applied(&live) && !plan.is_undone(&live));
            assert_eq!(fs::read_to_string(live.join("both/y")).unwrap(), "other");
            if undone {
                for _ in 0..2 {
                    plan.undo(&live, &other).unwrap();
                }
                assert!(plan.is_undone(&live) && !plan.is_applied(&live));
                let strip = |t: Vec<(String, String)>| -> Vec<_> {
                    t.into_iter().filter(|(name, _)| name != ".aside").collect()
                };
                assert_eq!(strip(tree(&live)), strip(before));
            }
            for path in ["both/keep", "gone/deep/keep", "keep"] {
                let kept = fs::read_to_string(live.join(path)).unwrap();
                assert_eq!(kept, format!("precious {path}"));
            }
        }
    }
}
