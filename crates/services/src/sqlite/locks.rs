//! Proof that the locks of a mark still stand.
//!
//! SQLite's locks are POSIX locks: they belong to the process, and any closing of the file by that
//! process drops all of them, silently. What is then read can be half of one instant and half of
//! another. The kernel lists which locks there are; a copy counts only if those of its mark are
//! still among them when it is done.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::files::beside;

/// Which of a database's files, and the first byte that is locked.
type Lock = (&'static str, u64);

/// The locks that this process has on a database. Empty where the kernel does not list them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Locks(BTreeSet<Lock>);

impl Locks {
    pub(super) fn of(database: &Path) -> Self {
        let listed = fs::read_to_string("/proc/locks").unwrap_or_default();
        let mut locks = BTreeSet::new();
        for suffix in ["", "-shm"] {
            // Looked at by its name: opening and closing it would drop what is to be proven.
            let Ok(found) = fs::metadata(beside(database, suffix)) else { continue };
            locks.extend(
                listed
                    .lines()
                    .filter_map(|line| first_byte(line, std::process::id(), found.ino()))
                    .map(|first| (suffix, first)),
            );
        }
        Self(locks)
    }

    /// What a mark must keep: all on the database, and those on its index that came with the mark.
    pub(super) fn since(self, before: &Self) -> Self {
        let kept = |lock: &Lock| lock.0.is_empty() || !before.0.contains(lock);
        Self(self.0.into_iter().filter(kept).collect())
    }

    pub(super) fn stand_in(&self, now: &Self) -> bool {
        self.0.is_subset(&now.0)
    }
}

/// Of a line such as `1: POSIX  ADVISORY  READ 4711 08:01:1234 123 123`.
fn first_byte(line: &str, process: u32, inode: u64) -> Option<u64> {
    let parts: Vec<&str> = line.split_whitespace().collect();
    let [_, "POSIX", _, "READ", pid, file, first, _] = parts.as_slice() else { return None };
    let same = pid.parse() == Ok(process)
        && file.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode);
    if same { first.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_process_and_this_file_count() {
        let line = "1: POSIX  ADVISORY  READ 4711 08:01:1234 123 123";
        assert_eq!(first_byte(line, 4711, 1234), Some(123));
        assert_eq!(first_byte(line, 4712, 1234), None);
        assert_eq!(first_byte(line, 4711, 1235), None);
        assert_eq!(
            first_byte("2: -> POSIX  ADVISORY  READ 4711 08:01:1234 123 123", 4711, 1234),
            None
        );
        assert_eq!(first_byte("3: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF", 4711, 1234), None);
    }
}
