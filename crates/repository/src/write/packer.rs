//! Packs in the making: one for data, one for trees, in memory until they are full.

use crate::chunker::MAX;
use crate::format::pack::{BlobKind, PackEntry};
use crate::id::BlobId;

/// More entries make a pack's header unwieldy: 40 bytes each.
const MOST_ENTRIES: usize = 50_000;

/// A pack that lacks its trailer only.
pub(super) struct Finished {
    pub(super) bytes: Vec<u8>,
    pub(super) entries: Vec<PackEntry>,
}

#[derive(Default)]
pub(super) struct PackBuilder {
    bytes: Vec<u8>,
    entries: Vec<PackEntry>,
}

impl PackBuilder {
    /// Adds a blob; gives the pack once it is large enough.
    pub(super) fn push(
        &mut self,
        kind: BlobKind,
        id: BlobId,
        sealed: &[u8],
        uncompressed: u32,
        pack_size: usize,
    ) -> Option<Finished> {
        if self.bytes.capacity() == 0 {
            // Room for a last large blob and the trailer: growing would copy, and take twice the
            // memory. Pages that are never written to cost nothing.
            self.bytes.reserve(pack_size + MAX + (1 << 20));
        }
        let offset = self.bytes.len() as u32;
        let length = sealed.len() as u32;
        self.bytes.extend_from_slice(sealed);
        self.entries.push(PackEntry { kind, id, offset, length, uncompressed });
        let full = self.bytes.len() >= pack_size || self.entries.len() >= MOST_ENTRIES;
        if full { self.take() } else { None }
    }

    /// The pack as it is, if anything is in it.
    pub(super) fn take(&mut self) -> Option<Finished> {
        if self.entries.is_empty() {
            return None;
        }
        let taken = std::mem::take(self);
        Some(Finished { bytes: taken.bytes, entries: taken.entries })
    }
}
