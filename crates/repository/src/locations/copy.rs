//! Copying what a location lacks, and finding out what that is: by names alone, without a key.

use super::{Locations, Member, file};
use crate::repository::CONFIG;
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

/// What a snapshot may rest on: packs with their size, and the index files that list them.
pub(super) struct Whole {
    packs: BTreeMap<FileId, u64>,
    indexes: BTreeMap<FileId, u64>,
}

impl Whole {
    /// `indexes` are those that were read, and `packs` all that they list. Index files that have
    /// come since are not among them: their packs may not be either, and a location that got the
    /// one without the other would not be whole. Of `packs` only those count that are anywhere:
    /// what is lost everywhere nobody can be given. An index file that has gone since it was read, as
    /// with a location that goes away, is an error: the index is to be read again.
    pub(super) fn of(
        locations: &Locations,
        packs: &[FileId],
        indexes: &[FileId],
    ) -> io::Result<Self> {
        let sizes = locations.sizes(FileKind::Index)?;
        let indexes = indexes.iter().map(|id| Some((*id, *sizes.get(id)?)));
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the index changed meanwhile");
        let indexes = indexes.collect::<Option<_>>().ok_or_else(gone)?;
        let stored = locations.sizes(FileKind::Pack)?;
        let packs = packs.iter().filter_map(|id| Some((*id, *stored.get(id)?))).collect();
        Ok(Self { packs, indexes })
    }

    /// How many packs there are.
    pub(super) fn packs(&self) -> usize {
        self.packs.len()
    }

    /// What `store` lacks of it, also where it has a file that is cut short.
    pub(super) fn lacking(&self, store: &dyn Store) -> io::Result<Lacking> {
        let has: BTreeMap<FileId, u64> = store.list(FileKind::Pack)?.into_iter().collect();
        let index: BTreeMap<FileId, u64> = store.list(FileKind::Index)?.into_iter().collect();
        let lacks = |(id, size): &(&FileId, &u64)| has.get(*id) != Some(*size);
        let lacks_index = |(id, size): &(&FileId, &u64)| index.get(*id) != Some(*size);
        Ok(Lacking {
            packs: self.packs.iter().filter(lacks).map(|(id, size)| (*id, *size)).collect(),
            indexes: self.indexes.iter().filter(lacks_index).map(|(id, _)| *id).collect(),
        })
    }
}

/// Told of every file that is copied: its bytes, or why nobody has it good. May stop the copying.
pub(super) type Step<'a> = dyn FnMut(FileKind, &FileId, io::Result<u64>) -> io::Result<()> + 'a;

impl Locations {
    /// Finds out which locations lack what a new snapshot may refer to; they get no snapshot. Where
    /// all lack something, the one that lacks least is completed here and now: otherwise the
    /// snapshot could appear nowhere.
    pub(super) fn find_lacking(&self, packs: &[FileId], indexes: &[FileId]) -> io::Result<()> {
        if self.members.len() < 2 {
            return Ok(());
        }
        let whole = Whole::of(self, packs, indexes)?;
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
            match self.complete(store.as_ref(), &lacking, &mut |_, _, read| read.map(drop)) {
                Ok(()) => {
                    member.lacking.store(false, Relaxed);
                    return Ok(());
                }
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        Err(failure.unwrap_or_else(|| self.none_left()))
    }

    /// Gives `store` what it lacks, packs before the index files that list them.
    pub(super) fn complete(
        &self,
        store: &dyn Store,
        lacking: &Lacking,
        step: &mut Step<'_>,
    ) -> io::Result<()> {
        for (id, _) in &lacking.packs {
            step(FileKind::Pack, id, self.copy(store, FileKind::Pack, id)?)?;
        }
        for id in &lacking.indexes {
            step(FileKind::Index, id, self.copy(store, FileKind::Index, id)?)?;
        }
        Ok(())
    }

    /// Copies one file from wherever it is good. The inner error: it could be read nowhere; the
    /// outer one: it could not be written.
    pub(super) fn copy(
        &self,
        to: &dyn Store,
        kind: FileKind,
        id: &FileId,
    ) -> io::Result<io::Result<u64>> {
        match self.read_good(kind, id, None) {
            Ok(bytes) => to.write(kind, id, &bytes).map(|()| Ok(bytes.len() as u64)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Why a file that is listed could not be read, if that is the file's own damage, and not that
    /// it was removed meanwhile or that a location went away.
    pub(super) fn damage(&self, error: io::Error) -> io::Result<io::Error> {
        if error.kind() == io::ErrorKind::NotFound {
            return Err(error);
        }
        let there = self
            .used()
            .all(|(_, store)| store.exists(FileKind::Config, &CONFIG).is_ok_and(|there| there));
        if there { Ok(error) } else { Err(error) }
    }

    /// All files of a kind, with the size that they should have: where sizes differ, that of the
    /// good copy.
    pub(super) fn sizes(&self, kind: FileKind) -> io::Result<BTreeMap<FileId, u64>> {
        let listed = self.each(|_, store| store.list(kind))?;
        Ok(self.true_sizes(kind, &listed))
    }

    /// The same, of what the locations listed.
    pub(super) fn true_sizes(
        &self,
        kind: FileKind,
        listed: &[Vec<(FileId, u64)>],
    ) -> BTreeMap<FileId, u64> {
        let mut sizes = BTreeMap::new();
        let mut differing = BTreeSet::new();
        for (id, size) in listed.iter().flatten() {
            let largest = sizes.entry(*id).or_insert(*size);
            if *largest != *size {
                differing.insert(*id);
                *largest = (*largest).max(*size);
            }
        }
        for id in differing {
            // Where none is good, the largest: the others were cut short.
            if let Ok(bytes) = self.read_good(kind, &id, None) {
                sizes.insert(id, bytes.len() as u64);
            }
        }
        sizes
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
                // That one location lacks it does not say why another one cannot give it.
                Err(error) => match &failure {
                    Some(before) if before.kind() != io::ErrorKind::NotFound => {}
                    _ => failure = Some(error),
                },
            }
        }
        Err(failure.unwrap_or_else(|| self.none_left()))
    }

    /// Writes a file anew whose copy at `place` is missing or damaged.
    pub(super) fn mend_with(&self, place: usize, kind: FileKind, id: &FileId, good: &[u8]) {
        let Some(member) = self.members.get(place).filter(|m| m.is_mendable()) else { return };
        let Some(store) = member.used() else { return };
        let what = file(kind, id);
        self.note(match store.write(kind, id, good) {
            Ok(()) => format!("{what} of location {} was bad and is mended", member.name),
            Err(error) => {
                member.unmendable.store(true, Relaxed);
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
