//! A repository in a directory, laid out as stock clients lay it out.
//!
//! A file is written to `tmp/`, synced, renamed to its name, and its directory synced, so that a
//! power cut leaves it whole or absent. A writer holds a `flock` on its temporary file for as long
//! as it lives; so leftovers can be told from files in the making, also among several processes.

use super::{FileKind, Store};
use crate::id::{FileId, hex};
use rustix::fs::{FlockOperation, RenameFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const TEMPORARY_PREFIX: &str = "stillpoint-";
const OPEN_PACKS: usize = 32;

/// A repository's directory.
pub struct LocalStore {
    root: PathBuf,
    /// Packs that were read last, still open: a small file's blob is a small part of its pack.
    open_packs: Mutex<VecDeque<(FileId, Arc<File>)>>,
}

impl LocalStore {
    /// The repository in `directory`, which need not exist yet.
    pub fn new(directory: impl AsRef<Path>) -> io::Result<Self> {
        let root = std::path::absolute(directory)?;
        Ok(Self { root, open_packs: Mutex::default() })
    }

    fn directory(&self, kind: FileKind, id: &FileId) -> PathBuf {
        match kind {
            FileKind::Config => self.root.clone(),
            FileKind::Pack => self.root.join("data").join(hex(&id.0[..1])),
            other => self.root.join(folder(other)),
        }
    }

    fn file(&self, kind: FileKind, id: &FileId) -> PathBuf {
        match kind {
            FileKind::Config => self.root.join("config"),
            _ => self.directory(kind, id).join(id.to_hex()),
        }
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn write_temporary(&self, content: &[u8]) -> io::Result<PathBuf> {
        loop {
            let name = format!("{TEMPORARY_PREFIX}{}", hex(&crate::crypto::random::<16>()));
            let path = self.temporary().join(name);
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                // A file system without locks: then nobody removes leftovers there either.
                Ok(()) | Err(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP) => {}
                Err(error) => {
                    let _ = fs::remove_file(&path);
                    return Err(error.into());
                }
            }
            // Between creating and locking, another process may have taken it for a leftover.
            if file.metadata()?.nlink() == 0 {
                continue;
            }
            return match file.write_all(content).and_then(|()| file.sync_all()) {
                Ok(()) => Ok(path),
                Err(error) => {
                    let _ = fs::remove_file(&path);
                    Err(error)
                }
            };
        }
    }

    /// A pack that is written anew or removed is another file now.
    fn close(&self, id: &FileId) {
        let mut open = self.open_packs.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(other, _)| other != id);
    }

    fn opened(&self, id: &FileId) -> io::Result<Arc<File>> {
        let mut open = self.open_packs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = open.iter().position(|(other, _)| other == id) {
            let entry = open.remove(place).expect("the place was just found");
            open.push_back(entry.clone());
            return Ok(entry.1);
        }
        let file = Arc::new(File::open(self.file(FileKind::Pack, id))?);
        if open.len() == OPEN_PACKS {
            open.pop_front();
        }
        open.push_back((*id, file.clone()));
        Ok(file)
    }
}

impl Store for LocalStore {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn create(&self) -> io::Result<()> {
        make_directory(&self.root)?;
        for kind in [FileKind::Key, FileKind::Lock, FileKind::Snapshot, FileKind::Index] {
            make_directory(&self.root.join(folder(kind)))?;
        }
        make_directory(&self.temporary())?;
        let data = self.root.join("data");
        make_directory(&data)?;
        for first in 0..=u8::MAX {
            make_directory(&data.join(hex(&[first])))?;
        }
        sync_directory(&data)?;
        sync_directory(&self.root)?;
        if let Some(parent) = self.root.parent() {
            sync_directory(parent)?;
        }
        Ok(())
    }

    fn prepare_write(&self) -> io::Result<()> {
        // Not the directories above it: where those are gone the disk is not mounted.
        match fs::DirBuilder::new().mode(0o700).create(self.temporary()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for entry in fs::read_dir(self.temporary())? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
                continue;
            }
            let leftover = match File::open(entry.path()) {
                Ok(file) => {
                    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                }
                Err(_) => false,
            };
            if leftover {
                match fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn read(&self, kind: FileKind, id: &FileId) -> io::Result<Vec<u8>> {
        fs::read(self.file(kind, id))
    }

    fn read_range(
        &self,
        kind: FileKind,
        id: &FileId,
        offset: u64,
        length: usize,
    ) -> io::Result<Vec<u8>> {
        let file = match kind {
            FileKind::Pack => self.opened(id)?,
            _ => Arc::new(File::open(self.file(kind, id))?),
        };
        // Before memory is taken: a damaged index may claim any length.
        if file.metadata()?.len() < offset.saturating_add(length as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write(&self, kind: FileKind, id: &FileId, content: &[u8]) -> io::Result<()> {
        let temporary = self.write_temporary(content)?;
        let path = self.file(kind, id);
        let directory = self.directory(kind, id);
        let named = if kind == FileKind::Config {
            rename_new(&temporary, &path)
        } else {
            fs::rename(&temporary, &path).or_else(|error| {
                // Stock clients create a pack's directory when they need it, and never ours.
                let made_late = matches!(kind, FileKind::Pack | FileKind::Deletion);
                if error.kind() != io::ErrorKind::NotFound || !made_late {
                    return Err(error);
                }
                make_directory(&directory)?;
                sync_directory(directory.parent().unwrap_or(&self.root))?;
                fs::rename(&temporary, &path)
            })
        };
        if let Err(error) = named {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        if kind == FileKind::Pack {
            self.close(id);
        }
        sync_directory(&directory)
    }

    fn remove(&self, kind: FileKind, id: &FileId) -> io::Result<()> {
        fs::remove_file(self.file(kind, id))?;
        if kind == FileKind::Pack {
            self.close(id);
        }
        sync_directory(&self.directory(kind, id))
    }

    fn list(&self, kind: FileKind) -> io::Result<Vec<(FileId, u64)>> {
        let mut found = Vec::new();
        match kind {
            FileKind::Config => {}
            FileKind::Pack => {
                for entry in fs::read_dir(self.root.join("data"))? {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        list_directory(&entry.path(), &mut found)?;
                    }
                }
            }
            FileKind::Deletion => match list_directory(&self.root.join(folder(kind)), &mut found) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            },
            other => list_directory(&self.root.join(folder(other)), &mut found)?,
        }
        found.sort_unstable();
        Ok(found)
    }

    fn exists(&self, kind: FileKind, id: &FileId) -> io::Result<bool> {
        self.file(kind, id).try_exists()
    }

    fn paths(&self, kind: FileKind, id: &FileId) -> Vec<PathBuf> {
        vec![self.file(kind, id)]
    }
}

fn folder(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Config => "",
        FileKind::Key => "keys",
        FileKind::Lock => "locks",
        FileKind::Snapshot => "snapshots",
        FileKind::Index => "index",
        FileKind::Pack => "data",
        FileKind::Deletion => "deletions",
    }
}

fn list_directory(directory: &Path, found: &mut Vec<(FileId, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => found.push((id, metadata.len())),
            Ok(_) => {}
            // Locks come and go while they are listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Renames, but never over something that is there.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, from, here, to, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag; a link does the same.
        Err(Errno::INVAL | Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests make files that need not last")]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, LocalStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(directory.path().join("repo")).unwrap();
        store.create().unwrap();
        store.prepare_write().unwrap();
        (directory, store)
    }

    #[test]
    fn what_was_written_is_listed_read_and_removed() {
        let (_directory, store) = store();
        for kind in [FileKind::Pack, FileKind::Index, FileKind::Lock, FileKind::Deletion] {
            assert_eq!(store.list(kind).unwrap(), []);
            let id = FileId::of(b"content");
            store.write(kind, &id, b"content").unwrap();
            assert_eq!(store.list(kind).unwrap(), [(id, 7)]);
            assert_eq!(store.read(kind, &id).unwrap(), b"content");
            assert_eq!(store.read_range(kind, &id, 3, 2).unwrap(), b"te");
            assert!(store.read_range(kind, &id, 3, 5).is_err());
            assert!(store.read_range(kind, &id, u64::MAX, usize::MAX).is_err());
            store.remove(kind, &id).unwrap();
            assert!(!store.exists(kind, &id).unwrap());
        }
    }

    #[test]
    fn leftovers_of_dead_writers_are_removed_and_those_of_living_ones_stay() {
        let (_directory, store) = store();
        let dead = store.temporary().join("stillpoint-dead");
        let living = store.temporary().join("stillpoint-living");
        let foreign = store.temporary().join("foreign");
        for path in [&dead, &living, &foreign] {
            fs::write(path, "x").unwrap();
        }
        let held = File::open(&living).unwrap();
        rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
        store.prepare_write().unwrap();
        assert!(!dead.exists());
        assert!(living.exists() && foreign.exists());
    }

    #[test]
    fn a_config_is_never_overwritten() {
        let (_directory, store) = store();
        let any = FileId::of(b"");
        store.write(FileKind::Config, &any, b"first").unwrap();
        let error = store.write(FileKind::Config, &any, b"second").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(store.read(FileKind::Config, &any).unwrap(), b"first");
        assert_eq!(fs::read_dir(store.temporary()).unwrap().count(), 0);
    }
}
