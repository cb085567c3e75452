//! Proof that the locks of a mark still stand.
//!
//! SQLite's locks are POSIX locks: they belong to the process, and any closing of the file by that
//! process drops all of them, silently. What is then read can be half of one instant and half of
//! another. The kernel lists which locks there are; a copy counts only if those of its mark are
//! still among them when it is done.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
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
        let mut locks = BTreeSet::new();
        for suffix in ["", "-shm"] {
            // Looked at by its name: opening and closing it would drop what is to be proven.
            let Ok(found) = fs::metadata(beside(database, suffix)) else { continue };
            let first = listed(&found).into_iter().map(|first| (suffix, first));
            locks.extend(first);
        }
        Self(locks)
    }

    /// What a mark must keep: all on the database, and those on its index that came with the mark.
    pub(super) fn since(self, before: &Self) -> Self {
        let kept = |lock: &Lock| lock.0.is_empty() || !before.0.contains(lock);
        Self(self.0.into_iter().filter(kept).collect())
    }

    /// Whether all of them are still there.
    pub(super) fn stand(&self, database: &Path) -> bool {
        self.0.is_subset(&Self::of(database).0)
    }
}

/// The first bytes of this process's locks on a file, as the kernel lists them for each of its own
/// descriptors: in one piece. The list of the whole host, `/proc/locks`, comes in pieces, between
/// which others' locks come and go, so that now and then one that stands is not in it.
fn listed(file: &Metadata) -> Vec<u64> {
    let mut found = Vec::new();
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return found };
    for descriptor in descriptors.map_while(Result::ok) {
        // One that has been closed by now has no locks.
        let Ok(open) = fs::metadata(descriptor.path()) else { continue };
        if (open.dev(), open.ino()) == (file.dev(), file.ino()) {
            let facts = Path::new("/proc/self/fdinfo").join(descriptor.file_name());
            let facts = fs::read_to_string(facts).unwrap_or_default();
            let locks = facts.lines().filter_map(|line| line.strip_prefix("lock:"));
            found.extend(locks.filter_map(|line| first_byte(line, std::process::id(), file.ino())));
        }
    }
    found
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;

    /// Takes and drops locks of its own for as long as it lives, so that the kernel's list is
    /// never the same twice.
    struct Churn {
        stop: Arc<AtomicBool>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Churn {
        fn start() -> Self {
            let stop = Arc::new(AtomicBool::new(false));
            let churn = || {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let files: Vec<_> = (0..100).map(|_| tempfile::tempfile().unwrap()).collect();
                    while !stop.load(Ordering::Relaxed) {
                        for file in &files {
                            file.lock().unwrap();
                        }
                        for file in &files {
                            file.unlock().unwrap();
                        }
                    }
                })
            };
            let threads = vec![churn(), churn()];
            Self { stop, threads }
        }
    }

    impl Drop for Churn {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        }
    }

    #[test]
    fn locks_that_stand_are_found_however_many_others_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.db");
        let reader = rusqlite::Connection::open(&path).unwrap();
        reader.pragma_update(None, "journal_mode", "wal").unwrap();
        reader.execute_batch("CREATE TABLE t (a)").unwrap();
        let before = Locks::of(&path);
        reader.execute_batch("BEGIN").unwrap();
        reader.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        let marked = Locks::of(&path).since(&before);
        assert!(!marked.0.is_empty(), "the kernel lists them");
        let _churn = Churn::start();
        for round in 0..200 {
            assert!(marked.stand(&path), "round {round}");
        }
        reader.execute_batch("ROLLBACK").unwrap();
        assert!(!marked.stand(&path));
    }

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
