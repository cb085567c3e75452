//! A store that fails when it is told to: full after some writes, unreadable in part, gone
//! altogether, or interrupted by the test at the moment of a read or a write.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use stillpoint_repository::{FileId, FileKind, Store};

type Hook = Box<dyn FnMut(FileKind) + Send>;

pub(crate) struct Shaky {
    inner: Arc<dyn Store>,
    /// What the limit is for; none: everything.
    kind: Option<FileKind>,
    /// Writes until it fails.
    left: AtomicUsize,
    gone: AtomicBool,
    slow: AtomicBool,
    before_write: Mutex<Option<Hook>>,
    before_read: Mutex<Option<Hook>>,
    /// Kinds of files that cannot be read, whole or in part.
    unreadable: Mutex<Vec<FileKind>>,
    read_only: AtomicBool,
    pub(crate) reads: AtomicUsize,
    pub(crate) writes: AtomicUsize,
}

impl Shaky {
    pub(crate) fn sound(inner: Arc<dyn Store>) -> Arc<Self> {
        Self::full_after(inner, None, usize::MAX)
    }

    /// Its disk is full after so many writes of a kind.
    pub(crate) fn full_after(
        inner: Arc<dyn Store>,
        kind: Option<FileKind>,
        left: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            kind,
            left: AtomicUsize::new(left),
            gone: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            before_write: Mutex::default(),
            before_read: Mutex::default(),
            unreadable: Mutex::default(),
            read_only: AtomicBool::new(false),
            reads: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
        })
    }

    /// From now on nothing can be done with it.
    pub(crate) fn go(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    /// From now on every read takes its time, as over a long line.
    pub(crate) fn slow_down(&self) {
        self.slow.store(true, Ordering::SeqCst);
    }

    /// Called before each write.
    pub(crate) fn before_write(&self, hook: impl FnMut(FileKind) + Send + 'static) {
        *self.before_write.lock().unwrap() = Some(Box::new(hook));
    }

    /// Called before a whole file is read.
    pub(crate) fn before_read(&self, hook: impl FnMut(FileKind) + Send + 'static) {
        *self.before_read.lock().unwrap() = Some(Box::new(hook));
    }

    /// From now on files of this kind are listed and cannot be read: sectors are bad.
    pub(crate) fn cannot_read(&self, kind: FileKind) {
        self.unreadable.lock().unwrap().push(kind);
    }

    /// From now on nothing can be written.
    pub(crate) fn becomes_read_only(&self) {
        self.read_only.store(true, Ordering::SeqCst);
    }

    fn readable(&self, kind: FileKind) -> io::Result<()> {
        if self.unreadable.lock().unwrap().contains(&kind) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn there(&self) -> io::Result<&dyn Store> {
        if self.gone.load(Ordering::SeqCst) {
            return Err(io::Error::other("the location is gone"));
        }
        Ok(self.inner.as_ref())
    }

    fn one_less(&self, kind: FileKind) -> io::Result<()> {
        let counted = self.kind.is_none_or(|only| only == kind);
        let less = |left: usize| left.checked_sub(1);
        if counted && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Store for Shaky {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn create(&self) -> io::Result<()> {
        self.there()?.create()
    }
    fn prepare_write(&self) -> io::Result<()> {
        self.there()?.prepare_write()
    }
    fn read(&self, kind: FileKind, id: &FileId) -> io::Result<Vec<u8>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if let Some(hook) = self.before_read.lock().unwrap().as_mut() {
            hook(kind);
        }
        self.readable(kind)?;
        self.there()?.read(kind, id)
    }
    fn read_range(
        &self,
        kind: FileKind,
        id: &FileId,
        offset: u64,
        length: usize,
    ) -> io::Result<Vec<u8>> {
        if self.slow.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        self.readable(kind)?;
        self.there()?.read_range(kind, id, offset, length)
    }
    fn write(&self, kind: FileKind, id: &FileId, content: &[u8]) -> io::Result<()> {
        if let Some(hook) = self.before_write.lock().unwrap().as_mut() {
            hook(kind);
        }
        if self.read_only.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.one_less(kind)?;
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.there()?.write(kind, id, content)
    }
    fn remove(&self, kind: FileKind, id: &FileId) -> io::Result<()> {
        self.there()?.remove(kind, id)
    }
    fn list(&self, kind: FileKind) -> io::Result<Vec<(FileId, u64)>> {
        self.there()?.list(kind)
    }
    fn exists(&self, kind: FileKind, id: &FileId) -> io::Result<bool> {
        self.there()?.exists(kind, id)
    }
    fn paths(&self, kind: FileKind, id: &FileId) -> Vec<PathBuf> {
        self.inner.paths(kind, id)
    }
}
