//! Which blob is where: read from index files, held as sorted arrays, written as index files.
//!
//! 48 bytes a blob. A blob may be in several packs; readers try each, so one damaged pack costs
//! nothing that another still has.

use crate::crypto::Key;
use crate::error::RepositoryError;
use crate::format::pack::{self, BlobKind, PackEntry};
use crate::format::snapshot::nullable;
use crate::format::unpacked;
use crate::id::{BlobId, FileId};
use crate::store::{FileKind, Store};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Where a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) pack: FileId,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    /// 0 if stored without compression.
    pub(crate) uncompressed: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    id: BlobId,
    pack: u32,
    offset: u32,
    length: u32,
    uncompressed: u32,
}

/// All blobs of a repository, as its index files listed them.
#[derive(Default)]
pub(crate) struct Index {
    files: Vec<FileId>,
    packs: Vec<FileId>,
    data: Vec<Entry>,
    tree: Vec<Entry>,
}

impl Index {
    /// Reads every index file.
    pub(crate) fn load(store: &dyn Store, key: &Key) -> Result<Self, RepositoryError> {
        let mut index = Self::default();
        let mut places = HashMap::new();
        let listed =
            || store.list(FileKind::Index).map_err(RepositoryError::store("list the index files"));
        let mut read = std::collections::HashSet::new();
        let mut files = listed()?;
        while let Some((id, _)) = files.pop() {
            if !read.insert(id) {
                continue;
            }
            match unpacked::read::<IndexFile>(store, key, FileKind::Index, &id) {
                Ok(file) => {
                    index.files.push(id);
                    index.add(file, &mut places);
                }
                // Another client merged index files while we listed them: list again.
                Err(RepositoryError::Store { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    files = listed()?;
                }
                Err(error) => return Err(error),
            }
        }
        index.sort();
        Ok(index)
    }

    /// `places` says where in `packs` a pack is: several index files may list it.
    fn add(&mut self, file: IndexFile, places: &mut HashMap<FileId, u32>) {
        for pack in file.packs {
            let place = *places.entry(pack.id).or_insert_with(|| {
                self.packs.push(pack.id);
                self.packs.len() as u32 - 1
            });
            for blob in pack.blobs {
                let entry = Entry {
                    id: blob.id,
                    pack: place,
                    offset: blob.offset,
                    length: blob.length,
                    uncompressed: blob.uncompressed_length,
                };
                match blob.kind {
                    Kind::Data => self.data.push(entry),
                    Kind::Tree => self.tree.push(entry),
                }
            }
        }
    }

    fn sort(&mut self) {
        for entries in [&mut self.data, &mut self.tree] {
            entries.sort_unstable_by_key(|entry| {
                (entry.id, entry.pack, entry.offset, entry.length, entry.uncompressed)
            });
            entries.dedup();
            entries.shrink_to_fit();
        }
    }

    /// Forgets the blobs of packs that are not `stored` (names and sizes), or are shorter than what
    /// the index says is in them: writers would otherwise take for stored what is lost. How many
    /// such packs there are.
    pub(crate) fn forget_lost(&mut self, stored: &[(FileId, u64)]) -> usize {
        let stored: HashMap<FileId, u64> = stored.iter().copied().collect();
        let mut needed = vec![pack::trailer_length(&[]); self.packs.len()];
        for entry in self.data.iter().chain(&self.tree) {
            needed[entry.pack as usize] +=
                u64::from(entry.length) + pack::listed_length(entry.uncompressed != 0);
        }
        let lost: Vec<bool> = self
            .packs
            .iter()
            .zip(needed)
            .map(|(id, needed)| stored.get(id).is_none_or(|size| *size < needed))
            .collect();
        for entries in [&mut self.data, &mut self.tree] {
            entries.retain(|entry| !lost[entry.pack as usize]);
        }
        lost.into_iter().filter(|lost| *lost).count()
    }

    /// The index files that were read.
    pub(crate) fn files(&self) -> &[FileId] {
        &self.files
    }

    /// Every pack that is listed.
    pub(crate) fn packs(&self) -> &[FileId] {
        &self.packs
    }

    fn of(&self, kind: BlobKind) -> &[Entry] {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.tree,
        }
    }

    /// Everywhere the blob is.
    pub(crate) fn locate(
        &self,
        kind: BlobKind,
        id: &BlobId,
    ) -> impl Iterator<Item = Location> + use<'_> {
        let id = *id;
        let entries = self.of(kind);
        let first = entries.partition_point(|entry| entry.id < id);
        entries[first..].iter().take_while(move |entry| entry.id == id).map(|entry| Location {
            pack: self.packs[entry.pack as usize],
            offset: entry.offset,
            length: entry.length,
            uncompressed: entry.uncompressed,
        })
    }

    pub(crate) fn contains(&self, kind: BlobKind, id: &BlobId) -> bool {
        self.of(kind).binary_search_by_key(id, |entry| entry.id).is_ok()
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.data.len() + self.tree.len()
    }

    /// Every pack with its blobs, by the index files.
    pub(crate) fn by_pack(&self) -> std::collections::BTreeMap<FileId, Vec<PackEntry>> {
        let mut packs: std::collections::BTreeMap<FileId, Vec<PackEntry>> =
            self.packs.iter().map(|id| (*id, Vec::new())).collect();
        for kind in [BlobKind::Data, BlobKind::Tree] {
            for entry in self.of(kind) {
                let pack = packs.entry(self.packs[entry.pack as usize]).or_default();
                let entry = PackEntry {
                    kind,
                    id: entry.id,
                    offset: entry.offset,
                    length: entry.length,
                    uncompressed: entry.uncompressed,
                };
                if !pack.contains(&entry) || pack.len() > 4096 {
                    pack.push(entry);
                }
            }
        }
        for entries in packs.values_mut() {
            entries.sort_by_key(|entry| (entry.offset, entry.id));
            entries.dedup();
        }
        packs
    }
}

/// An index file's text.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    #[serde(default, deserialize_with = "nullable")]
    packs: Vec<IndexPack>,
}

#[derive(Serialize, Deserialize)]
struct IndexPack {
    id: FileId,
    #[serde(default, deserialize_with = "nullable")]
    blobs: Vec<IndexBlob>,
}

#[derive(Serialize, Deserialize)]
struct IndexBlob {
    id: BlobId,
    #[serde(rename = "type")]
    kind: Kind,
    offset: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uncompressed_length: u32,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Data,
    Tree,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl IndexFile {
    /// Adds a pack that is durably stored.
    pub(crate) fn push(&mut self, pack: FileId, entries: &[PackEntry]) {
        let blobs = entries.iter().map(|entry| IndexBlob {
            id: entry.id,
            kind: match entry.kind {
                BlobKind::Data => Kind::Data,
                BlobKind::Tree => Kind::Tree,
            },
            offset: entry.offset,
            length: entry.length,
            uncompressed_length: entry.uncompressed,
        });
        self.packs.push(IndexPack { id: pack, blobs: blobs.collect() });
    }

    /// About the size of its text; the format wants index files below 8 MiB.
    pub(crate) fn is_full(&self) -> bool {
        const BYTES_A_BLOB: usize = 170;
        let blobs: usize = self.packs.iter().map(|pack| pack.blobs.len()).sum();
        (blobs + self.packs.len()) * BYTES_A_BLOB > 7 << 20
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }
}
