//! An opened repository: its store, its key, its config. Cheap to clone.

use crate::chunker::Chunking;
use crate::config::{self, Config};
use crate::crypto::Key;
use crate::deletion;
use crate::error::RepositoryError;
use crate::format::pack::{self, BlobKind};
use crate::format::snapshot::Snapshot;
use crate::format::unpacked;
use crate::id::{BlobId, FileId, SnapshotId};
use crate::index::Index;
use crate::keyfile;
use crate::lock::Lock;
use crate::read::Reader;
use crate::store::{FileKind, Store};
use crate::write::{Writer, WriterOptions};
use std::io;
use std::sync::Arc;

/// A repository that a password has opened.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    key: Arc<Key>,
    config: Config,
    chunking: Chunking,
}

/// The snapshots of a repository.
#[derive(Debug, Default)]
pub struct SnapshotList {
    /// Those that can be read, the oldest first.
    pub snapshots: Vec<(SnapshotId, Snapshot)>,
    /// Those that cannot, each with the reason.
    pub damaged: Vec<(SnapshotId, RepositoryError)>,
}

/// The config's id is not used: there is one per repository.
pub(crate) const CONFIG: FileId = FileId([0; 32]);

impl Repository {
    /// Creates a repository. The config is written last, and never over another.
    pub fn init(store: Arc<dyn Store>, password: &str) -> Result<Self, RepositoryError> {
        let place = store.describe();
        if password.is_empty() {
            return Err(RepositoryError::Refused("an empty password protects nothing".into()));
        }
        if store
            .exists(FileKind::Config, &CONFIG)
            .map_err(RepositoryError::store(format!("look for a repository in {place}")))?
        {
            return Err(RepositoryError::AlreadyInitialized(place));
        }
        store.create().map_err(RepositoryError::store(format!("create {place}")))?;
        store.prepare_write().map_err(RepositoryError::store(format!("write to {place}")))?;
        let config = Config::new();
        let key = Key::random();
        let wrapped = keyfile::wrap(&key, password)?;
        store
            .write(FileKind::Key, &FileId::of(&wrapped), &wrapped)
            .map_err(RepositoryError::store("write the key"))?;
        let text = serde_json::to_vec(&config).expect("plain strings become JSON");
        store.write(FileKind::Config, &CONFIG, &key.encrypt(&text)).map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                RepositoryError::AlreadyInitialized(place)
            } else {
                RepositoryError::store("write the config")(error)
            }
        })?;
        Self::with(store, key, config)
    }

    /// Opens a repository.
    pub fn open(store: Arc<dyn Store>, password: &str) -> Result<Self, RepositoryError> {
        let sealed = store.read(FileKind::Config, &CONFIG).map_err(|error| {
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                RepositoryError::NotARepository(store.describe())
            } else {
                RepositoryError::store(format!("read the config of {}", store.describe()))(error)
            }
        })?;
        let key = keyfile::open(store.as_ref(), password)?;
        let text =
            key.decrypt(&sealed).map_err(|error| RepositoryError::damaged("config", error))?;
        let config: Config = serde_json::from_slice(&text)
            .map_err(|error| RepositoryError::damaged("config", error))?;
        if !(1..=config::VERSION).contains(&config.version) {
            return Err(RepositoryError::Unsupported(format!(
                "it is of version {}; known are 1 and 2",
                config.version
            )));
        }
        Self::with(store, key, config)
    }

    fn with(store: Arc<dyn Store>, key: Key, config: Config) -> Result<Self, RepositoryError> {
        let chunking = Chunking::of(&config)?;
        Ok(Self { inner: Arc::new(Inner { store, key: Arc::new(key), config, chunking }) })
    }

    /// The repository's own id: 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.inner.config.id
    }

    /// Locks the repository for writing, loads its index, and starts the threads that write.
    #[allow(clippy::needless_pass_by_value, reason = "options are made for one writer")]
    pub fn writer(&self, options: WriterOptions) -> Result<Writer, RepositoryError> {
        if self.inner.config.version < config::VERSION {
            return Err(RepositoryError::Unsupported(
                "it is of version 1, which is only read; `restic migrate upgrade_repo_v2` \
                 makes it version 2"
                    .into(),
            ));
        }
        Writer::new(self.clone(), &options)
    }

    /// Lists the snapshots, then loads the index: in that order, so that every listed snapshot's
    /// blobs are found. No lock is taken: a prune at the same time can make reading fail, but
    /// never give wrong data.
    pub fn reader(&self) -> Result<Reader, RepositoryError> {
        let snapshots = self.list_snapshots()?;
        Ok(Reader::new(self.clone(), snapshots, self.load_index()?))
    }

    /// All snapshots, the oldest first; a damaged one is an error.
    pub fn snapshots(&self) -> Result<Vec<(SnapshotId, Snapshot)>, RepositoryError> {
        let SnapshotList { snapshots, damaged } = self.list_snapshots()?;
        damaged.into_iter().next().map_or(Ok(snapshots), |(_, error)| Err(error))
    }

    /// All snapshots, and those that cannot be read beside them.
    pub fn list_snapshots(&self) -> Result<SnapshotList, RepositoryError> {
        let listed = self
            .store()
            .list(FileKind::Snapshot)
            .map_err(RepositoryError::store("list the snapshots"))?;
        // A record that cannot be read must not keep every snapshot from being restored: what it
        // deleted may show again, and `check` names it.
        let (records, _) = deletion::read(self.store(), self.key())?;
        let deleted = deletion::deleted(&records);
        let mut list = SnapshotList::default();
        let listed = listed.into_iter().map(|(id, _)| SnapshotId(id.0));
        for id in listed.filter(|id| !deleted.contains(id)) {
            match self.snapshot(&id) {
                Ok(snapshot) => list.snapshots.push((id, snapshot)),
                // Removed by another process since it was listed.
                Err(RepositoryError::Store { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                // One that is damaged must not keep the others from being restored.
                Err(error) => list.damaged.push((id, error)),
            }
        }
        list.snapshots.sort_by_key(|(id, snapshot)| (snapshot.time, *id));
        Ok(list)
    }

    /// Removes snapshots, and nothing that they refer to: what only they needed stays until a prune.
    /// Those that are not there are fine. A shared lock is enough, since no data goes: who reads
    /// one of them at the same time still finds it all. That they are deleted is written down
    /// first, so that a location that is away now does not bring them back.
    pub fn forget(&self, snapshots: &[SnapshotId]) -> Result<(), RepositoryError> {
        let prepared = self.store().prepare_write();
        prepared.map_err(RepositoryError::store("prepare the repository for writing"))?;
        let lock = Lock::shared(self.shared_store(), self.shared_key(), None)?;
        deletion::record(self.store(), self.key(), snapshots)?;
        for id in snapshots {
            match self.store().remove(FileKind::Snapshot, &FileId(id.0)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(RepositoryError::store(format!("remove snapshot {id}"))(error));
                }
                _ => {}
            }
        }
        lock.release()
    }

    pub(crate) fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot, RepositoryError> {
        unpacked::read(self.store(), self.key(), FileKind::Snapshot, &FileId(id.0))
    }

    pub(crate) fn load_index(&self) -> Result<Index, RepositoryError> {
        Index::load(self.store(), self.key())
    }

    /// A blob's plain content, verified; from another pack if the first has it damaged.
    pub(crate) fn blob(
        &self,
        index: &Index,
        kind: BlobKind,
        id: &BlobId,
    ) -> Result<Vec<u8>, RepositoryError> {
        let name = || format!("{} blob {}", kind.word(), id.short());
        let mut failure = None;
        for place in index.locate(kind, id) {
            let pack_name = place.pack.short();
            let mut bad = Vec::new();
            for copy in self.store().copies() {
                let (offset, length) = (place.offset.into(), place.length as usize);
                let sealed =
                    self.store().read_range_of(copy, FileKind::Pack, &place.pack, offset, length);
                let missing =
                    matches!(&sealed, Err(error) if error.kind() == io::ErrorKind::NotFound);
                let opened = sealed
                    .map_err(RepositoryError::store(format!(
                        "read {} from pack {pack_name}",
                        name()
                    )))
                    .and_then(|sealed| {
                        pack::open_blob(self.key(), &sealed, place.uncompressed, id).map_err(
                            |why| {
                                let what = format!("{} in pack {pack_name}", name());
                                RepositoryError::damaged(what, why)
                            },
                        )
                    });
                match opened {
                    Ok(plain) => {
                        for copy in bad {
                            self.store().mend(copy, FileKind::Pack, &place.pack);
                        }
                        return Ok(plain);
                    }
                    Err(error) => {
                        failure.get_or_insert(error);
                    }
                }
                // What a location does not have yet is given to it by healing.
                if !missing {
                    bad.push(copy);
                }
            }
        }
        Err(failure.unwrap_or_else(|| RepositoryError::Missing(name())))
    }

    pub(crate) fn store(&self) -> &dyn Store {
        self.inner.store.as_ref()
    }

    pub(crate) fn shared_store(&self) -> Arc<dyn Store> {
        self.inner.store.clone()
    }

    pub(crate) fn key(&self) -> &Key {
        &self.inner.key
    }

    pub(crate) fn shared_key(&self) -> Arc<Key> {
        self.inner.key.clone()
    }

    pub(crate) fn chunking(&self) -> &Chunking {
        &self.inner.chunking
    }
}
