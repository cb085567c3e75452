//! Adding to a repository: many blobs and trees from many threads, then one snapshot.
//!
//! Write order: packs, index, snapshot, each durable before the next. The first failure anywhere is
//! kept; every later call gives it, and nothing is published. A `Writer` that is dropped publishes
//! nothing either: what it stored is unreferenced, which the format allows and prune removes.

mod closure;
mod pace;
mod packer;
mod pipeline;

use crate::chunker::Chunks;
use crate::error::RepositoryError;
use crate::format::node::Content;
use crate::format::pack::BlobKind;
use crate::format::snapshot::Snapshot;
use crate::format::tree::Tree;
use crate::format::unpacked;
use crate::id::{BlobId, SnapshotId};
use crate::index::Index;
use crate::lock::{Lock, OnLock};
use crate::repository::Repository;
use crate::store::FileKind;
use crossbeam_channel::Sender;
use pace::Pace;
pub(crate) use pipeline::lock;
use pipeline::{Job, Shared};
use std::io::Read;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How a [`Writer`] works.
#[derive(Clone)]
pub struct WriterOptions {
    /// Called with the lock files that the writer owns: before one is created, with its future
    /// name, and after one was removed.
    pub on_lock: Option<OnLock>,
    /// Threads that hash, compress and encrypt; 0 for one per processor.
    pub workers: usize,
    /// zstd's level.
    pub compression_level: i32,
    /// Packs are closed once they are this large, in bytes.
    pub pack_size: usize,
    /// No more content than this is read in a second, in bytes, from all sources together.
    pub rate: Option<NonZeroU64>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { on_lock: None, workers: 0, compression_level: 3, pack_size: 16 << 20, rate: None }
    }
}

/// What a writer did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Content and trees that were given to it, in bytes.
    pub bytes_read: u64,
    /// Of these, what the repository did not have yet, plain.
    pub bytes_added: u64,
    /// What that takes in packs, compressed and encrypted.
    pub bytes_stored: u64,
    /// Blobs that the repository did not have yet.
    pub blobs_new: u64,
    /// Blobs that it had.
    pub blobs_known: u64,
    /// Pack files written.
    pub packs: u64,
    /// Packs that the index lists and that are gone or cut short: what they held is stored again
    /// where it is met.
    pub packs_lost: usize,
    /// At how many locations the published snapshot is complete.
    pub copies: usize,
    /// Why the lock file could not be removed afterwards, if it could not.
    pub lock_left: Option<String>,
}

/// Adds to a repository, from any number of threads.
pub struct Writer {
    shared: Arc<Shared>,
    work: Option<Sender<Job>>,
    upload: Option<Sender<packer::Finished>>,
    workers: Vec<JoinHandle<()>>,
    uploaders: Vec<JoinHandle<()>>,
    lock: Option<Lock>,
    buffers: Mutex<Vec<Vec<u8>>>,
    pace: Option<Pace>,
    packs_lost: usize,
}

impl Writer {
    pub(crate) fn new(
        repository: Repository,
        options: &WriterOptions,
    ) -> Result<Self, RepositoryError> {
        repository
            .store()
            .prepare_write()
            .map_err(RepositoryError::store("prepare the repository for writing"))?;
        let lock = Lock::shared(
            repository.shared_store(),
            repository.shared_key(),
            options.on_lock.clone(),
        )?;
        // After the lock: nothing that this index lists can be removed now.
        let (index, packs_lost) = Self::index(&repository)?;
        let shared = Arc::new(Shared::new(repository, index, options));
        let (work, jobs) = crossbeam_channel::bounded(2 * shared.workers);
        // Handed over, not queued: a waiting pack would only take memory.
        let (upload, finished) = crossbeam_channel::bounded(0);
        let mut writer = Self {
            shared: shared.clone(),
            work: Some(work),
            upload: Some(upload.clone()),
            workers: Vec::new(),
            uploaders: Vec::new(),
            lock: Some(lock),
            buffers: Mutex::default(),
            pace: options.rate.map(Pace::new),
            packs_lost,
        };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map_err(RepositoryError::store("start a thread of the repository"))
        };
        for _ in 0..shared.workers {
            let (shared, jobs, upload) = (shared.clone(), jobs.clone(), upload.clone());
            writer
                .workers
                .push(start("repository work", Box::new(move || shared.work(&jobs, &upload)))?);
        }
        for _ in 0..2 {
            let (shared, finished) = (shared.clone(), finished.clone());
            writer
                .uploaders
                .push(start("repository upload", Box::new(move || shared.upload(&finished)))?);
        }
        Ok(writer)
    }

    /// What is stored already, and how many packs of it are lost. Where a location goes away while
    /// it is read, what only that one had is not stored any more: it is read again.
    fn index(repository: &Repository) -> Result<(Index, usize), RepositoryError> {
        const TRIES: usize = 3;
        let store = repository.store();
        let mut tried = 1;
        loop {
            let mut index = repository.load_index()?;
            // After the index: every pack that it lists was there before it.
            let stored =
                store.list(FileKind::Pack).map_err(RepositoryError::store("list the packs"))?;
            let packs_lost = index.forget_lost(&stored);
            match store.rest_on(index.packs(), index.files()) {
                Ok(()) => return Ok((index, packs_lost)),
                Err(_) if tried < TRIES => tried += 1,
                Err(error) => return Err(RepositoryError::store("compare the locations")(error)),
            }
        }
    }

    /// Saves content: cuts it, and stores the pieces that the repository does not have. An error of
    /// `content` itself is [`RepositoryError::Source`] and leaves the writer usable.
    pub fn save_data(&self, content: &mut dyn Read) -> Result<Content, RepositoryError> {
        self.shared.check()?;
        let mut buffer =
            self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let saved = match &self.pace {
            Some(pace) => self.save_chunks(&mut pace.reader(content), &mut buffer),
            None => self.save_chunks(content, &mut buffer),
        };
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        saved
    }

    fn save_chunks(
        &self,
        content: &mut dyn Read,
        buffer: &mut Vec<u8>,
    ) -> Result<Content, RepositoryError> {
        let mut chunks = Chunks::new(content, self.shared.repository.chunking(), buffer);
        let (reply, replies) = crossbeam_channel::unbounded();
        let mut saved = Content::default();
        let mut count = 0;
        while let Some(chunk) = chunks.next().map_err(RepositoryError::Source)? {
            let data = chunk.to_vec();
            saved.size += data.len() as u64;
            if count == 0 && chunks.is_done() {
                // A small file: hashed here, which is quicker than to wait for another thread.
                saved.blobs.push(self.save_blob(BlobKind::Data, data)?);
                return Ok(saved);
            }
            self.send(Job::Chunk { data, place: count, reply: reply.clone() })?;
            count += 1;
        }
        drop(reply);
        let mut blobs = vec![None; count];
        for (place, id) in &replies {
            blobs[place] = Some(id);
        }
        // A missing reply: the workers gave up. Say why.
        saved.blobs = blobs.into_iter().collect::<Option<_>>().ok_or_else(|| self.gave_up())?;
        Ok(saved)
    }

    /// Saves a directory. Everything that it refers to must have been saved already.
    pub fn save_tree(&self, tree: &Tree) -> Result<BlobId, RepositoryError> {
        self.shared.check()?;
        let text = tree.encode().map_err(|why| {
            RepositoryError::Refused(format!("the directory cannot be saved: {why}"))
        })?;
        let id = BlobId::of(text.as_bytes());
        self.shared.check_references(&id, tree)?;
        self.save_hashed(BlobKind::Tree, id, text.into_bytes())?;
        Ok(id)
    }

    /// Saves any text as a tree: what a hostile writer would.
    #[cfg(test)]
    pub(crate) fn save_raw_tree(&self, text: &str) -> BlobId {
        let id = BlobId::of(text.as_bytes());
        self.shared.check_references(&id, &Tree::default()).unwrap();
        self.save_hashed(BlobKind::Tree, id, text.as_bytes().to_vec()).unwrap();
        id
    }

    fn save_blob(&self, kind: BlobKind, data: Vec<u8>) -> Result<BlobId, RepositoryError> {
        let id = BlobId::of(&data);
        self.save_hashed(kind, id, data)?;
        Ok(id)
    }

    fn save_hashed(
        &self,
        kind: BlobKind,
        id: BlobId,
        data: Vec<u8>,
    ) -> Result<(), RepositoryError> {
        if self.shared.claim(kind, id, data.len()) {
            self.send(Job::Store { kind, id, data })?;
        }
        Ok(())
    }

    fn send(&self, job: Job) -> Result<(), RepositoryError> {
        let work = self.work.as_ref().expect("a writer in use has its workers");
        work.send(job).map_err(|_| self.gave_up())?;
        self.shared.check()
    }

    fn gave_up(&self) -> RepositoryError {
        self.shared.check().err().unwrap_or(RepositoryError::Worker("store content"))
    }

    /// Whether the repository has the blob, or will have it once this writer publishes.
    pub fn contains(&self, blob: &BlobId) -> bool {
        self.shared.contains(BlobKind::Data, blob) || self.shared.contains(BlobKind::Tree, blob)
    }

    /// Makes the snapshot visible: packs, then index, then, if our lock still stands and everything
    /// reachable is indexed, the snapshot file.
    #[allow(clippy::needless_pass_by_value, reason = "it is published once")]
    pub fn publish(
        mut self,
        snapshot: Snapshot,
    ) -> Result<(SnapshotId, WriteStats), RepositoryError> {
        self.finish_packs()?;
        self.shared.save_index()?;
        self.shared.check_closure(&snapshot.tree)?;
        let (id, bytes) = unpacked::encode(self.shared.repository.key(), &snapshot)?;
        let lock = self.lock.take().expect("an unpublished writer has its lock");
        lock.verify()?;
        self.shared
            .repository
            .store()
            .write(FileKind::Snapshot, &id, &bytes)
            .map_err(RepositoryError::store("write the snapshot"))?;
        let mut stats = self.stats();
        // One that cannot be counted now is counted by the next healing.
        stats.copies =
            self.shared.repository.store().count_copies(FileKind::Snapshot, &id).unwrap_or(1);
        // The snapshot stands; that the lock stays behind must not make it look otherwise.
        stats.lock_left = lock.release().err().map(|error| error.to_string());
        Ok((SnapshotId(id.0), stats))
    }

    /// Ends the writer without a snapshot, and gives the lock back.
    pub fn abandon(mut self) -> Result<(), RepositoryError> {
        self.stop();
        self.lock.take().map_or(Ok(()), Lock::release)
    }

    /// What was done up to now.
    pub fn stats(&self) -> WriteStats {
        let counts = &self.shared.counts;
        WriteStats {
            bytes_read: counts.bytes_read.load(Relaxed),
            bytes_added: counts.bytes_added.load(Relaxed),
            bytes_stored: counts.bytes_stored.load(Relaxed),
            blobs_new: counts.blobs_new.load(Relaxed),
            blobs_known: counts.blobs_known.load(Relaxed),
            packs: counts.packs.load(Relaxed),
            packs_lost: self.packs_lost,
            copies: 0,
            lock_left: None,
        }
    }

    /// The repository that is written to.
    pub fn repository(&self) -> &Repository {
        &self.shared.repository
    }

    fn finish_packs(&mut self) -> Result<(), RepositoryError> {
        self.work = None;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| RepositoryError::Worker("store content"))?;
        }
        self.shared.check()?;
        if let Some(upload) = self.upload.take() {
            self.shared.flush(&upload)?;
        }
        for uploader in self.uploaders.drain(..) {
            uploader.join().map_err(|_| RepositoryError::Worker("write packs"))?;
        }
        self.shared.check()
    }

    /// Ends all threads, work undone.
    fn stop(&mut self) {
        self.shared.abandon();
        self.work = None;
        self.upload = None;
        for thread in self.workers.drain(..).chain(self.uploaders.drain(..)) {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}
