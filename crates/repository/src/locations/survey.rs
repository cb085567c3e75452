//! How the locations are, told from names and sizes: without a key, and without reading a file,
//! unless sizes differ.

use super::Locations;
use crate::id::SnapshotId;
use crate::store::FileKind;
use std::collections::BTreeMap;
use std::io;

/// One location's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocationState {
    /// Its name.
    pub name: String,
    /// Why it cannot be used; none: it can.
    pub down: Option<String>,
    /// It holds no repository yet.
    pub empty: bool,
    /// Files that others have and it has not, or has cut short: snapshots, index files, keys, records of deletions,
    /// and, in a thorough survey, packs.
    pub missing: u64,
}

impl LocationState {
    /// Whether healing has something to do there, and can.
    pub fn can_be_healed(&self) -> bool {
        self.empty || (self.down.is_none() && self.missing > 0)
    }
}

/// At how many locations each snapshot is complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copies {
    /// Those that were counted.
    pub counts: BTreeMap<SnapshotId, usize>,
    /// Whether every location could be asked. If not, there may be more copies than were counted.
    pub all_asked: bool,
}

const NAMES: [FileKind; 4] =
    [FileKind::Snapshot, FileKind::Index, FileKind::Key, FileKind::Deletion];

impl Locations {
    /// Compares the locations. Packs are written before the index files that list them, so where
    /// index files are equal packs are too, unless some were lost since: `thorough` compares them.
    pub fn survey(&self, thorough: bool) -> Vec<LocationState> {
        let mut missing = vec![0_u64; self.members.len()];
        let kinds = NAMES.iter().chain(thorough.then_some(&FileKind::Pack));
        for kind in kinds {
            let mut listed = Vec::new();
            for member in &self.members {
                let names = member.used().map(|store| store.list(*kind));
                listed.push(match names {
                    Some(Ok(names)) => names,
                    Some(Err(error)) => {
                        member.fail(&error);
                        Vec::new()
                    }
                    None => Vec::new(),
                });
            }
            let all = self.true_sizes(*kind, &listed);
            for (missing, listed) in missing.iter_mut().zip(&listed) {
                let has = listed.iter().filter(|(id, size)| all.get(id) == Some(size)).count();
                *missing += (all.len() - has) as u64;
            }
        }
        let states = self.members.iter().zip(missing).map(|(member, missing)| LocationState {
            name: member.name.clone(),
            down: if member.is_empty() { None } else { member.why_down() },
            empty: member.is_empty(),
            missing,
        });
        states.collect()
    }

    /// Counts the copies of every snapshot: a snapshot is at a location only when all that it
    /// refers to is.
    pub fn count_snapshots(&self) -> io::Result<Copies> {
        let mut copies = Copies::default();
        let listed = self.each(|_, store| store.list(FileKind::Snapshot))?;
        let sizes = self.true_sizes(FileKind::Snapshot, &listed);
        for (id, size) in listed.into_iter().flatten() {
            let whole = sizes.get(&id) == Some(&size);
            *copies.counts.entry(SnapshotId(id.0)).or_default() += usize::from(whole);
        }
        copies.all_asked = self.all_asked();
        Ok(copies)
    }

    /// Whether what is listed is all that there is: every location answers, or holds nothing yet.
    pub fn all_asked(&self) -> bool {
        self.members.iter().all(|member| member.used().is_some() || member.is_empty())
    }
}
