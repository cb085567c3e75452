//! What a writer's threads share: which blobs are claimed, what failed first, the packs in the
//! making. Queues are bounded, so memory is too: about two chunks a worker and five packs.

use super::WriterOptions;
use super::packer::{Finished, PackBuilder};
use crate::error::RepositoryError;
use crate::format::pack::{self, BlobKind, MOST_BLOB};
use crate::format::unpacked;
use crate::id::{BlobId, FileId};
use crate::index::{Index, IndexFile};
use crate::repository::Repository;
use crate::store::FileKind;
use crossbeam_channel::{Receiver, Sender};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub(super) enum Job {
    /// A piece of a larger content: hash it, store it if it is new, answer with its name.
    Chunk { data: Vec<u8>, place: usize, reply: Sender<(usize, BlobId)> },
    /// A blob that was claimed: store it.
    Store { kind: BlobKind, id: BlobId, data: Vec<u8> },
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_added: AtomicU64,
    pub(super) bytes_stored: AtomicU64,
    pub(super) blobs_new: AtomicU64,
    pub(super) blobs_known: AtomicU64,
    pub(super) packs: AtomicU64,
}

pub(super) struct Shared {
    pub(super) repository: Repository,
    pub(super) index: Index,
    pub(super) workers: usize,
    pub(super) counts: Counts,
    /// Blobs that this writer stores, or has stored.
    claimed: Mutex<HashSet<(BlobKind, BlobId)>>,
    /// Trees whose references were looked at, and subtrees yet to be.
    pub(super) trees: Mutex<super::closure::Trees>,
    failure: OnceLock<Arc<RepositoryError>>,
    abandoned: AtomicBool,
    builders: [Mutex<PackBuilder>; 2],
    index_file: Mutex<IndexFile>,
    level: i32,
    pack_size: usize,
}

impl Shared {
    pub(super) fn new(repository: Repository, index: Index, options: &WriterOptions) -> Self {
        let workers = match options.workers {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            chosen => chosen,
        };
        Self {
            repository,
            index,
            workers,
            counts: Counts::default(),
            claimed: Mutex::default(),
            trees: Mutex::default(),
            failure: OnceLock::new(),
            abandoned: AtomicBool::new(false),
            builders: [Mutex::default(), Mutex::default()],
            index_file: Mutex::default(),
            level: options.compression_level,
            pack_size: options.pack_size,
        }
    }

    /// The first failure, if there was one.
    pub(super) fn check(&self) -> Result<(), RepositoryError> {
        match self.failure.get() {
            Some(first) => Err(RepositoryError::Failed(first.clone())),
            None => Ok(()),
        }
    }

    fn fail(&self, error: RepositoryError) {
        let _ = self.failure.set(Arc::new(error));
    }

    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
    }

    fn is_over(&self) -> bool {
        self.abandoned.load(Relaxed) || self.failure.get().is_some()
    }

    fn claimed(&self) -> MutexGuard<'_, HashSet<(BlobKind, BlobId)>> {
        lock(&self.claimed)
    }

    pub(super) fn contains(&self, kind: BlobKind, id: &BlobId) -> bool {
        self.index.contains(kind, id) || self.claimed().contains(&(kind, *id))
    }

    /// Counts a blob; true if the caller is to store it: it is nowhere yet, and nobody else does.
    pub(super) fn claim(&self, kind: BlobKind, id: BlobId, length: usize) -> bool {
        self.counts.bytes_read.fetch_add(length as u64, Relaxed);
        let new = !self.index.contains(kind, &id) && self.claimed().insert((kind, id));
        if new {
            self.counts.blobs_new.fetch_add(1, Relaxed);
            self.counts.bytes_added.fetch_add(length as u64, Relaxed);
        } else {
            self.counts.blobs_known.fetch_add(1, Relaxed);
        }
        new
    }

    /// A worker's life. After a failure it goes on taking jobs, so that nobody waits for ever.
    pub(super) fn work(&self, jobs: &Receiver<Job>, upload: &Sender<Finished>) {
        let mut compressor = match zstd::bulk::Compressor::new(self.level) {
            Ok(compressor) => compressor,
            Err(error) => return self.fail(RepositoryError::store("start to compress")(error)),
        };
        for job in jobs {
            if self.is_over() {
                continue;
            }
            let stored = match job {
                Job::Chunk { data, place, reply } => {
                    let id = BlobId::of(&data);
                    let new = self.claim(BlobKind::Data, id, data.len());
                    // The content's reader may have given up; its other chunks do no harm.
                    let _ = reply.send((place, id));
                    if !new {
                        continue;
                    }
                    self.store(&mut compressor, BlobKind::Data, id, &data, upload)
                }
                Job::Store { kind, id, data } => {
                    self.store(&mut compressor, kind, id, &data, upload)
                }
            };
            if let Err(error) = stored {
                self.fail(error);
            }
        }
    }

    fn store(
        &self,
        compressor: &mut zstd::bulk::Compressor<'_>,
        kind: BlobKind,
        id: BlobId,
        data: &[u8],
        upload: &Sender<Finished>,
    ) -> Result<(), RepositoryError> {
        let length = u32::try_from(data.len())
            .ok()
            .filter(|length| *length <= MOST_BLOB)
            .ok_or_else(|| {
                RepositoryError::Refused(format!(
                    "a directory's list is too long to be stored ({} bytes)",
                    data.len()
                ))
            })?;
        let compressed =
            compress(compressor, data).map_err(RepositoryError::store("compress a blob"))?;
        let (plain, uncompressed) = match &compressed {
            Some(bytes) => (bytes.as_slice(), length),
            None => (data, 0),
        };
        let sealed = self.repository.key().encrypt(plain);
        // The only copy of the source may be gone tomorrow: what will be stored must open now.
        pack::open_blob(self.repository.key(), &sealed, uncompressed, &id).map_err(|why| {
            RepositoryError::damaged(
                "a blob that was just made (memory or processor at fault)",
                why,
            )
        })?;
        let finished = lock(&self.builders[kind as usize]).push(
            kind,
            id,
            &sealed,
            uncompressed,
            self.pack_size,
        );
        self.counts.bytes_stored.fetch_add(sealed.len() as u64, Relaxed);
        finished.map_or(Ok(()), |finished| Self::send(finished, upload))
    }

    fn send(finished: Finished, upload: &Sender<Finished>) -> Result<(), RepositoryError> {
        upload.send(finished).map_err(|_| RepositoryError::Worker("write packs"))
    }

    /// Sends the packs that are not full.
    pub(super) fn flush(&self, upload: &Sender<Finished>) -> Result<(), RepositoryError> {
        for builder in &self.builders {
            let finished = lock(builder).take();
            if let Some(finished) = finished {
                Self::send(finished, upload)?;
            }
        }
        Ok(())
    }

    /// An uploader's life: packs become durable, then are listed in an index file.
    pub(super) fn upload(&self, finished: &Receiver<Finished>) {
        for pack in finished {
            if self.is_over() {
                continue;
            }
            if let Err(error) = self.upload_one(pack) {
                self.fail(error);
            }
        }
    }

    fn upload_one(&self, mut finished: Finished) -> Result<(), RepositoryError> {
        let trailer = pack::trailer(self.repository.key(), &finished.entries);
        finished.bytes.extend_from_slice(&trailer);
        let id = FileId::of(&finished.bytes);
        self.repository
            .store()
            .write(FileKind::Pack, &id, &finished.bytes)
            .map_err(RepositoryError::store(format!("write pack {}", id.short())))?;
        self.counts.bytes_stored.fetch_add(trailer.len() as u64, Relaxed);
        self.counts.packs.fetch_add(1, Relaxed);
        let full = {
            let mut index_file = lock(&self.index_file);
            index_file.push(id, &finished.entries);
            index_file.is_full().then(|| std::mem::take(&mut *index_file))
        };
        full.map_or(Ok(()), |file| self.write_index(&file))
    }

    /// Writes the index file of all packs that are not yet in one.
    pub(super) fn save_index(&self) -> Result<(), RepositoryError> {
        let file = std::mem::take(&mut *lock(&self.index_file));
        if file.is_empty() { Ok(()) } else { self.write_index(&file) }
    }

    fn write_index(&self, file: &IndexFile) -> Result<(), RepositoryError> {
        let (id, bytes) = unpacked::encode(self.repository.key(), file)?;
        self.repository
            .store()
            .write(FileKind::Index, &id, &bytes)
            .map_err(RepositoryError::store(format!("write index {}", id.short())))
    }
}

/// The compressed form, if it is worth it. Large blobs are sampled first: trying to compress what
/// is compressed already costs more than all else together.
fn compress(
    compressor: &mut zstd::bulk::Compressor<'_>,
    data: &[u8],
) -> std::io::Result<Option<Vec<u8>>> {
    const PIECE: usize = 8 << 10;
    const PIECES: usize = 4;
    if data.len() >= 8 * PIECE * PIECES {
        let stride = data.len() / PIECES;
        let mut sample = Vec::with_capacity(PIECE * PIECES);
        for piece in 0..PIECES {
            sample.extend_from_slice(&data[piece * stride..][..PIECE]);
        }
        if zstd::bulk::compress(&sample, 1)?.len() > sample.len() / 100 * 98 {
            return Ok(None);
        }
    }
    let compressed = compressor.compress(data)?;
    Ok((compressed.len() < data.len()).then_some(compressed))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
