//! Lock files, as stock clients write and honour them.
//!
//! Writers take a shared lock: it keeps prune, which locks exclusively, from removing blobs that a
//! writer relies on. Invariants: our lock is in the store before anything is read for deduplication,
//! and never older than the 30 minutes after which others may take it for dead; if it disappears,
//! nothing may be published any more ([`Lock::verify`]). The file's name is known, and told to
//! `on_lock`, before the file exists: a watchdog can then remove it after a kill.

use crate::crypto::Key;
use crate::error::{RepositoryError, file_name};
use crate::format::{time, unpacked};
use crate::host;
use crate::id::FileId;
use crate::store::{FileKind, Store};
use crossbeam_channel::{RecvTimeoutError, Sender};
use jiff::{SignedDuration, Timestamp};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The absolute paths of the lock files that a writer owns at a moment.
pub type LockFiles = Vec<PathBuf>;

/// Told of every change to the set of lock files.
pub(crate) type OnLock = Arc<dyn Fn(&LockFiles) + Send + Sync>;

const REFRESH: Duration = Duration::from_secs(5 * 60);
/// Others may remove a lock of this age.
const STALE: SignedDuration = SignedDuration::from_mins(30);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LockFile {
    #[serde(with = "time::text")]
    time: Timestamp,
    exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: i32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    gid: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl LockFile {
    fn ours() -> Self {
        Self {
            time: Timestamp::now(),
            exclusive: false,
            hostname: host::name(),
            username: host::user(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        }
    }

    /// Whether whoever wrote it is gone.
    fn is_stale(&self) -> bool {
        if age(self.time) > STALE {
            return true;
        }
        self.hostname == host::name()
            && Pid::from_raw(self.pid)
                .is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
    }

    fn owner(&self) -> String {
        format!(
            "process {} of {} on {} since {}",
            self.pid,
            if self.username.is_empty() { "an unknown user" } else { &self.username },
            if self.hostname.is_empty() { "an unknown host" } else { &self.hostname },
            time::encode(self.time)
        )
    }
}

fn age(time: Timestamp) -> SignedDuration {
    Timestamp::now().duration_since(time)
}

/// A shared lock, held and refreshed until released.
pub(crate) struct Lock {
    state: Arc<State>,
    stop: Option<Sender<()>>,
    refresher: Option<JoinHandle<()>>,
    ended: bool,
}

struct State {
    store: Arc<dyn Store>,
    key: Arc<Key>,
    on_lock: Option<OnLock>,
    held: Mutex<Held>,
}

struct Held {
    id: FileId,
    time: Timestamp,
    /// Why the lock is not to be trusted any more.
    lost: Option<String>,
}

impl Lock {
    /// Takes a shared lock, or says who has an exclusive one. Shared locks of the dead are removed.
    pub(crate) fn shared(
        store: Arc<dyn Store>,
        key: Arc<Key>,
        on_lock: Option<OnLock>,
    ) -> Result<Self, RepositoryError> {
        refuse_exclusive(store.as_ref(), &key, None)?;
        let file = LockFile::ours();
        let (id, bytes) = unpacked::encode(&key, &file)?;
        let held = Held { id, time: file.time, lost: None };
        let state = Arc::new(State { store, key, on_lock, held: Mutex::new(held) });
        state.tell(&[id]);
        let mut lock = Self { state, stop: None, refresher: None, ended: false };
        lock.state
            .store
            .write(FileKind::Lock, &id, &bytes)
            .map_err(RepositoryError::store("write our lock"))?;
        // Whoever wrote an exclusive lock after our first look sees ours, or we see theirs now.
        refuse_exclusive(lock.state.store.as_ref(), &lock.state.key, Some(&id))?;
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let state = lock.state.clone();
        let refresher =
            std::thread::Builder::new().name("repository lock".into()).spawn(move || {
                while stopped.recv_timeout(REFRESH) == Err(RecvTimeoutError::Timeout) {
                    state.refresh();
                }
            });
        lock.stop = Some(stop);
        lock.refresher =
            Some(refresher.map_err(RepositoryError::store("start the thread for our lock"))?);
        Ok(lock)
    }

    /// That our lock still stands and nobody may have taken it for dead.
    pub(crate) fn verify(&self) -> Result<(), RepositoryError> {
        let held = self.state.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.verify(&held)
    }

    /// Replaces the lock file by a younger one, now.
    #[cfg(test)]
    pub(crate) fn refresh(&self) {
        self.state.refresh();
    }

    /// Ends the lock. Also done on drop, where errors have nowhere to go.
    pub(crate) fn release(mut self) -> Result<(), RepositoryError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), RepositoryError> {
        self.ended = true;
        self.stop = None;
        if let Some(refresher) = self.refresher.take() {
            let _ = refresher.join();
        }
        let held = self.state.held.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = match self.state.store.remove(FileKind::Lock, &held.id) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        self.state.tell(&[]);
        removed.map_err(RepositoryError::store("remove our lock"))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

impl State {
    fn tell(&self, ids: &[FileId]) {
        if let Some(on_lock) = &self.on_lock {
            let paths = ids.iter().flat_map(|id| self.store.paths(FileKind::Lock, id)).collect();
            on_lock(&paths);
        }
    }

    fn verify(&self, held: &Held) -> Result<(), RepositoryError> {
        if let Some(why) = &held.lost {
            return Err(RepositoryError::LockLost(why.clone()));
        }
        if age(held.time) > STALE {
            return Err(RepositoryError::LockLost("could not be refreshed for too long".into()));
        }
        match self.store.stands(FileKind::Lock, &held.id) {
            Ok(true) => Ok(()),
            Ok(false) => Err(RepositoryError::LockLost("was removed or changed".into())),
            Err(error) => Err(RepositoryError::store("read our lock")(error)),
        }
    }

    /// A failure here is no loss yet: the next round tries again, and publishing looks at the age.
    fn refresh(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(RepositoryError::LockLost(why)) = self.verify(&held) {
            held.lost = Some(why);
            return;
        }
        let file = LockFile::ours();
        let Ok((id, bytes)) = unpacked::encode(&self.key, &file) else { return };
        self.tell(&[held.id, id]);
        if self.store.write(FileKind::Lock, &id, &bytes).is_err() {
            let _ = self.store.remove(FileKind::Lock, &id);
            self.tell(&[held.id]);
            return;
        }
        // Had the old one been removed meanwhile, the new one would hide that.
        if let Err(RepositoryError::LockLost(why)) = self.verify(&held) {
            held.lost = Some(why);
        }
        let _ = self.store.remove(FileKind::Lock, &held.id);
        held.id = id;
        held.time = file.time;
        self.tell(&[id]);
    }
}

/// Removes shared locks of the dead; refuses if there is an exclusive one. That one is left to a
/// person, however dead its owner looks: a process in another PID namespace, as in a container, of
/// a host of the same name, cannot be seen from here, and may be removing packs.
fn refuse_exclusive(
    store: &dyn Store,
    key: &Key,
    ours: Option<&FileId>,
) -> Result<(), RepositoryError> {
    let locks = store.list(FileKind::Lock).map_err(RepositoryError::store("list the locks"))?;
    for (id, _) in locks.iter().filter(|(id, _)| Some(id) != ours) {
        let lock: LockFile = match unpacked::read(store, key, FileKind::Lock, id) {
            Ok(lock) => lock,
            // Released while we looked.
            Err(RepositoryError::Store { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                continue;
            }
            Err(RepositoryError::Damaged { why, .. }) => {
                return Err(RepositoryError::Locked(format!(
                    "an unreadable lock ({}: {why})",
                    file_name(FileKind::Lock, id)
                )));
            }
            Err(error) => return Err(error),
        };
        if lock.exclusive {
            return Err(RepositoryError::Locked(lock.owner()));
        }
        if lock.is_stale() {
            match store.remove(FileKind::Lock, id) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(RepositoryError::store("remove the lock of a dead process")(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;

    struct Place {
        _directory: tempfile::TempDir,
        store: Arc<dyn Store>,
        key: Arc<Key>,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(directory.path().join("repo")).unwrap();
        store.create().unwrap();
        Place { _directory: directory, store: Arc::new(store), key: Arc::new(Key::random()) }
    }

    impl Place {
        fn put(&self, change: impl FnOnce(&mut LockFile)) -> FileId {
            let mut file = LockFile::ours();
            change(&mut file);
            let (id, bytes) = unpacked::encode(&self.key, &file).unwrap();
            self.store.write(FileKind::Lock, &id, &bytes).unwrap();
            id
        }

        fn lock(&self, on_lock: Option<OnLock>) -> Result<Lock, RepositoryError> {
            Lock::shared(self.store.clone(), self.key.clone(), on_lock)
        }

        fn exists(&self, id: &FileId) -> bool {
            self.store.exists(FileKind::Lock, id).unwrap()
        }
    }

    /// The number of a process that has ended and was waited for.
    fn dead() -> i32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id().cast_signed()
    }

    #[test]
    fn an_exclusive_lock_of_a_living_process_refuses_us_and_a_shared_one_does_not() {
        let place = place();
        place.put(|_| ());
        place.lock(None).unwrap().release().unwrap();
        place.put(|lock| lock.exclusive = true);
        let error = place.lock(None).err().unwrap();
        assert!(matches!(error, RepositoryError::Locked(_)));
        assert!(error.hint().unwrap().contains("restic unlock"));
        assert_eq!(place.store.list(FileKind::Lock).unwrap().len(), 2, "we left none");
    }

    #[test]
    fn an_exclusive_lock_is_never_removed_however_dead_its_owner_looks() {
        let changes: [fn(&mut LockFile); 2] = [
            |lock| lock.pid = dead(),
            |lock| lock.time = Timestamp::now() - SignedDuration::from_hours(48),
        ];
        for change in changes {
            let place = place();
            let id = place.put(|lock| {
                lock.exclusive = true;
                change(lock);
            });
            let error = place.lock(None).err().unwrap();
            assert!(error.hint().unwrap().contains("restic unlock"));
            assert!(place.exists(&id));
        }
    }

    #[test]
    fn shared_locks_of_the_dead_are_removed_and_a_distant_hosts_young_one_stays() {
        let place = place();
        let dead = place.put(|lock| lock.pid = dead());
        let old = place.put(|lock| {
            lock.hostname = "elsewhere".into();
            lock.time = Timestamp::now() - SignedDuration::from_mins(31);
        });
        let young = place.put(|lock| lock.hostname = "elsewhere".into());
        place.lock(None).unwrap().release().unwrap();
        assert!(!place.exists(&dead) && !place.exists(&old));
        assert!(place.exists(&young));
    }

    #[test]
    fn an_unreadable_lock_refuses_us() {
        let place = place();
        place.store.write(FileKind::Lock, &FileId::of(b"x"), b"x").unwrap();
        assert!(matches!(place.lock(None), Err(RepositoryError::Locked(_))));
    }

    #[test]
    fn every_lock_file_is_announced_before_it_exists_and_after_it_is_gone() {
        let place = place();
        let told = Arc::new(Mutex::new(Vec::new()));
        let on_lock: OnLock = {
            let told = told.clone();
            Arc::new(move |paths: &LockFiles| {
                let present = paths.iter().map(|path| path.exists()).collect::<Vec<_>>();
                told.lock().unwrap().push((paths.clone(), present));
            })
        };
        let lock = place.lock(Some(on_lock)).unwrap();
        lock.refresh();
        lock.verify().unwrap();
        assert_eq!(place.store.list(FileKind::Lock).unwrap().len(), 1);
        lock.release().unwrap();
        let told = told.lock().unwrap();
        let present: Vec<&[bool]> = told.iter().map(|(_, present)| present.as_slice()).collect();
        assert_eq!(present, [&[false][..], &[true, false], &[true], &[]]);
        assert_eq!(told[0].0[0], told[1].0[0]);
        assert_eq!(told[1].0[1], told[2].0[0]);
    }

    #[test]
    fn a_lock_that_was_removed_is_lost_for_good() {
        let place = place();
        let lock = place.lock(None).unwrap();
        for (id, _) in place.store.list(FileKind::Lock).unwrap() {
            place.store.remove(FileKind::Lock, &id).unwrap();
        }
        assert!(matches!(lock.verify(), Err(RepositoryError::LockLost(_))));
        lock.refresh();
        assert!(matches!(lock.verify(), Err(RepositoryError::LockLost(_))), "also after a refresh");
        lock.release().unwrap();
    }
}
