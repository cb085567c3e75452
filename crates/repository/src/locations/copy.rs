//! Copying what a location lacks, and finding out what that is: by names alone, without a key.

use super::{Locations, Member, file};
use crate::store::{FileId, FileKind, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering::Relaxed;

/// What a location lacks of the files that the repository rests on.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    pub(super) packs: Vec<(FileId, u64)>,
    pub(super) indexes: Vec<FileId>,
}

impl Lacking {
    pub(super) fn files(&self) -> usize {
        self.packs.len() + self.indexes.len()
    }
}

/// What all locations together have: packs with their size, and index files.
pub(super) struct Whole {
    packs: BTreeMap<FileId, u64>,
    indexes: BTreeSet<FileId>,
}

impl Whole {
    /// Of `packs` only those that are anywhere: what is lost everywhere nobody can be given.
    pub(super) fn of(locations: &Locations, packs: &[FileId]) -> io::Result<Self> {
        let wanted: BTreeSet<&FileId> = packs.iter().collect();
        // Index files first: whatever they list was there before them.
        let indexes = locations.list(FileKind::Index)?.into_iter().map(|(id, _)| id).collect();
        let stored = locations.list(FileKind::Pack)?;
        let packs = stored.into_iter().filter(|(id, _)| wanted.contains(id)).collect();
        Ok(Self { packs, indexes })
    }

    /// What `store` lacks of it, also where it has a file that is cut short.
    pub(super) fn lacking(&self, store: &dyn Store) -> io::Result<Lacking> {
        let has: BTreeMap<FileId, u64> = store.list(FileKind::Pack)?.into_iter().collect();
        let index: BTreeSet<FileId> =
            store.list(FileKind::Index)?.into_iter().map(|(id, _)| id).collect();
        let lacks = |(id, size): &(&FileId, &u64)| has.get(*id) != Some(*size);
        Ok(Lacking {
            packs: self.packs.iter().filter(lacks).map(|(id, size)| (*id, *size)).collect(),
            indexes: self.indexes.difference(&index).copied().collect(),
        })
    }
}

impl Locations {
    /// Finds out which locations lack what a new snapshot may refer to; they get no snapshot. Where
    /// all lack something, the one that lacks least is completed here and now: otherwise the
    /// snapshot could appear nowhere.
    pub(super) fn find_lacking(&self, packs: &[FileId]) -> io::Result<()> {
        if self.members.len() < 2 {
            return Ok(());
        }
        let whole = Whole::of(self, packs)?;
        let mut lacking = self.each(|member, store| {
            let lacking = whole.lacking(store)?;
            member.lacking.store(lacking.files() > 0, Relaxed);
            Ok((member.name.clone(), lacking))
        })?;
        if lacking.iter().any(|(_, lacking)| lacking.files() == 0) {
            return Ok(());
        }
        lacking.sort_by_key(|(_, lacking)| lacking.packs.iter().map(|(_, size)| size).sum::<u64>());
        let mut failure = None;
        for (name, lacking) in lacking {
            let member = self.members.iter().find(|member| member.name == name);
            let Some((member, store)) = member.and_then(|m| Some((m, m.used()?))) else { continue };
            match self.complete(store.as_ref(), &lacking, &mut |_| Ok(())) {
                Ok(()) => {
                    member.lacking.store(false, Relaxed);
                    return Ok(());
                }
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        Err(failure.unwrap_or_else(|| self.none_left()))
    }

    /// Gives `store` what it lacks, packs before the index files that list them. `step` is told of
    /// the bytes of each file, and may stop it.
    pub(super) fn complete(
        &self,
        store: &dyn Store,
        lacking: &Lacking,
        step: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        for (id, _) in &lacking.packs {
            step(self.copy(store, FileKind::Pack, id)?)?;
        }
        for id in &lacking.indexes {
            step(self.copy(store, FileKind::Index, id)?)?;
        }
        Ok(())
    }

    /// Copies one file from wherever it is good.
    pub(super) fn copy(&self, to: &dyn Store, kind: FileKind, id: &FileId) -> io::Result<u64> {
        let bytes = self.read_good(kind, id, None)?;
        to.write(kind, id, &bytes)?;
        Ok(bytes.len() as u64)
    }

    /// The file from a location where it is what its name says, other than `except`.
    pub(super) fn read_good(
        &self,
        kind: FileKind,
        id: &FileId,
        except: Option<usize>,
    ) -> io::Result<Vec<u8>> {
        let mut failure = None;
        for (place, member) in self.members.iter().enumerate() {
            let Some(store) = member.used().filter(|_| Some(place) != except) else { continue };
            match store.read(kind, id) {
                Ok(bytes) if FileId::of(&bytes) == *id => return Ok(bytes),
                Ok(_) => {
                    let why = format!("{} of location {} is damaged", file(kind, id), member.name);
                    failure = Some(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        Err(failure.unwrap_or_else(|| self.none_left()))
    }

    /// Writes a file anew whose copy at `place` is missing or damaged.
    pub(super) fn mend_with(&self, place: usize, kind: FileKind, id: &FileId, good: &[u8]) {
        let Some(member) = self.members.get(place) else { return };
        let Some(store) = member.used() else { return };
        let what = file(kind, id);
        self.note(match store.write(kind, id, good) {
            Ok(()) => format!("{what} of location {} was bad and is mended", member.name),
            Err(error) => {
                format!("{what} of location {} is bad and cannot be mended: {error}", member.name)
            }
        });
    }
}

impl Member {
    /// Its store for healing: also where it has no repository yet.
    pub(super) fn to_heal(&self) -> Result<&dyn Store, String> {
        match (&self.store, self.why_down()) {
            (Some(store), None) => Ok(store.as_ref()),
            (Some(store), Some(_)) if self.is_empty() => Ok(store.as_ref()),
            (_, why) => Err(why.unwrap_or_default()),
        }
    }
}
