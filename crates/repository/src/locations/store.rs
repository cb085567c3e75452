//! The group as a [`Store`]: what is written to all, read from one, and listed from all.

use super::{Locations, Member, file};
use crate::repository::CONFIG;
use crate::store::{FileId, FileKind, Store};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long one location may take to write one file before the others go on without it. A disk or
/// network that hangs must not keep a backup waiting for ever.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a read that failed counts as having taken: another location is asked first from then on.
const FAILED_READ: Duration = Duration::from_secs(10);

impl Locations {
    /// Writes to all of `targets` at once. Those that fail are not used any more.
    fn spread(
        &self,
        targets: &[(&Member, &Arc<dyn Store>)],
        kind: FileKind,
        id: &FileId,
        content: &[u8],
    ) -> io::Result<()> {
        let outcomes = match targets {
            [] => return Err(self.none_left()),
            [(_, only)] => vec![only.write(kind, id, content)],
            _ => side_by_side(targets, kind, id, content)?,
        };
        // Another process has made a repository: whoever makes this one must know.
        let exists = |outcome: &io::Result<()>| matches!(outcome, Err(error) if error.kind() == io::ErrorKind::AlreadyExists);
        if kind == FileKind::Config && outcomes.iter().any(exists) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let members = targets.iter().map(|(member, _)| *member);
        self.settle(members.zip(outcomes).collect()).map(drop)
    }

    /// A location that failed in the middle may still have our lock, and may let go of it: a full
    /// disk does. Where not, whoever locks there next sees that its owner is dead.
    fn remove_where_failed(&self, kind: FileKind, id: &FileId) {
        for member in &self.members {
            if let Some(store) = &member.store
                && member.why_down().is_some()
                && !member.hangs.load(Relaxed)
            {
                store.remove(kind, id).unwrap_or(());
            }
        }
    }

    /// An index file that is good nowhere, though not every location has it: those which have it
    /// are left out, and the others, which are whole without it, go on. Whether there are such.
    fn go_on_without(&self, id: &FileId) -> bool {
        let have = |store: &dyn Store| store.exists(FileKind::Index, id);
        let (bad, others): (Vec<_>, Vec<_>) =
            self.used().partition(|(_, store)| !have(store.as_ref()).is_ok_and(|there| !there));
        if bad.is_empty() || others.is_empty() {
            return false;
        }
        for (member, _) in bad {
            let why = format!("{} cannot be read", file(FileKind::Index, id));
            member.fail(&io::Error::new(io::ErrorKind::InvalidData, why));
        }
        true
    }

    /// Used locations, the quickest reader first; one that nobody has read from yet is tried.
    fn in_order(&self) -> Vec<usize> {
        let used = |place: &usize| self.members[*place].used().is_some();
        let mut order: Vec<usize> = (0..self.members.len()).filter(used).collect();
        order.sort_by_key(|place| self.members[*place].latency.load(Relaxed));
        order
    }
}

fn side_by_side(
    targets: &[(&Member, &Arc<dyn Store>)],
    kind: FileKind,
    id: &FileId,
    content: &[u8],
) -> io::Result<Vec<io::Result<()>>> {
    let content: Arc<[u8]> = content.into();
    let (reply, replies) = crossbeam_channel::unbounded();
    for (place, (_, store)) in targets.iter().enumerate() {
        let (store, content, reply, id) = (Arc::clone(store), content.clone(), reply.clone(), *id);
        // Not a scoped thread: one that hangs is left behind.
        std::thread::Builder::new().name("location".into()).spawn(move || {
            let outcome = store.write(kind, &id, &content);
            // Nobody listens any more where this came too late.
            reply.send((place, outcome)).unwrap_or(());
        })?;
    }
    drop(reply);
    let until = Instant::now() + PATIENCE;
    let mut outcomes: Vec<Option<io::Result<()>>> = targets.iter().map(|_| None).collect();
    while outcomes.iter().any(Option::is_none) {
        let Ok((place, outcome)) = replies.recv_deadline(until) else { break };
        outcomes[place] = Some(outcome);
    }
    let late = || {
        let seconds = PATIENCE.as_secs();
        let why = format!("{} was not written within {seconds} s", file(kind, id));
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    };
    Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(late)).collect())
}

impl Store for Locations {
    fn describe(&self) -> String {
        let places: Vec<String> = self
            .members
            .iter()
            .map(|member| match &member.store {
                Some(store) => store.describe(),
                None => format!("location {}", member.name),
            })
            .collect();
        places.join(" and ")
    }

    fn create(&self) -> io::Result<()> {
        self.each(|_, store| store.create()).map(drop)
    }

    fn prepare_write(&self) -> io::Result<()> {
        self.each(|_, store| store.prepare_write()).map(drop)
    }

    /// The first copy that is what its name says. Bad ones that were met are mended.
    fn read(&self, kind: FileKind, id: &FileId) -> io::Result<Vec<u8>> {
        let mut bad = Vec::new();
        let mut failure: Option<io::Error> = None;
        let mut damaged = None;
        for place in self.in_order() {
            let Some(store) = self.members[place].used() else { continue };
            match store.read(kind, id) {
                Ok(bytes) if kind == FileKind::Config || FileId::of(&bytes) == *id => {
                    for place in bad {
                        self.mend_with(place, kind, id, &bytes);
                    }
                    return Ok(bytes);
                }
                Ok(bytes) => {
                    bad.push(place);
                    damaged = Some(bytes);
                }
                Err(error) => match &failure {
                    Some(before) if before.kind() != io::ErrorKind::NotFound => {}
                    _ => failure = Some(error),
                },
            }
        }
        if kind == FileKind::Index && self.go_on_without(id) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Whoever reads it compares it with its name, and says that it is damaged.
        damaged.ok_or_else(|| failure.unwrap_or_else(|| self.none_left()))
    }

    fn read_range(
        &self,
        kind: FileKind,
        id: &FileId,
        offset: u64,
        length: usize,
    ) -> io::Result<Vec<u8>> {
        let mut failure = None;
        for place in self.in_order() {
            match self.read_range_of(place, kind, id, offset, length) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        Err(failure.unwrap_or_else(|| self.none_left()))
    }

    fn write(&self, kind: FileKind, id: &FileId, content: &[u8]) -> io::Result<()> {
        let targets: Vec<_> = self
            .used()
            .filter(|(member, _)| kind != FileKind::Snapshot || member.is_complete())
            .collect();
        self.spread(&targets, kind, id, content)
    }

    fn remove(&self, kind: FileKind, id: &FileId) -> io::Result<()> {
        if kind == FileKind::Lock {
            self.remove_where_failed(kind, id);
        }
        let removed = self.each(|_, store| match store.remove(kind, id) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other.map(|()| true),
        })?;
        if removed.contains(&true) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// The union; of sizes that differ the largest, since a copy may have been cut short.
    fn list(&self, kind: FileKind) -> io::Result<Vec<(FileId, u64)>> {
        let mut all = BTreeMap::new();
        for listed in self.each(|_, store| store.list(kind))? {
            for (id, size) in listed {
                let largest = all.entry(id).or_insert(size);
                *largest = size.max(*largest);
            }
        }
        Ok(all.into_iter().collect())
    }

    fn exists(&self, kind: FileKind, id: &FileId) -> io::Result<bool> {
        Ok(self.each(|_, store| store.exists(kind, id))?.contains(&true))
    }

    fn paths(&self, kind: FileKind, id: &FileId) -> Vec<PathBuf> {
        self.used().flat_map(|(_, store)| store.paths(kind, id)).collect()
    }

    /// Where the whole repository is gone, so is the location: its disk was unmounted.
    fn stands(&self, kind: FileKind, id: &FileId) -> io::Result<bool> {
        let stands = self.each(|_, store| {
            let stands = store.stands(kind, id)?;
            if !stands && !store.exists(FileKind::Config, &CONFIG)? {
                let why = "there is no repository any more: is it mounted?";
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            }
            Ok(stands)
        })?;
        Ok(!stands.contains(&false))
    }

    fn copies(&self) -> Vec<usize> {
        self.in_order()
    }

    fn read_range_of(
        &self,
        copy: usize,
        kind: FileKind,
        id: &FileId,
        offset: u64,
        length: usize,
    ) -> io::Result<Vec<u8>> {
        let member = self.members.get(copy);
        let (member, store) = member
            .and_then(|member| Some((member, member.used()?)))
            .ok_or_else(|| self.none_left())?;
        let begun = Instant::now();
        let read = store.read_range(kind, id, offset, length);
        member.took(match &read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => FAILED_READ,
            _ => begun.elapsed(),
        });
        read
    }

    fn mend(&self, copy: usize, kind: FileKind, id: &FileId) {
        let mendable = self.members.get(copy).is_some_and(Member::is_mendable);
        if mendable && let Ok(bytes) = self.read_good(kind, id, Some(copy)) {
            self.mend_with(copy, kind, id, &bytes);
        }
    }

    fn rest_on(&self, packs: &[FileId], indexes: &[FileId]) -> io::Result<()> {
        self.find_lacking(packs, indexes)
    }

    fn count_copies(&self, kind: FileKind, id: &FileId) -> io::Result<usize> {
        let there = self.each(|_, store| store.exists(kind, id))?;
        Ok(there.into_iter().filter(|there| *there).count())
    }
}
