//! A pack file: blobs, each encrypted by itself, then the encrypted list of them, then its length.

use crate::crypto::{Key, OVERHEAD};
use crate::id::BlobId;

/// Data and tree blobs are never in one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum BlobKind {
    Data,
    Tree,
}

impl BlobKind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Tree => "tree",
        }
    }
}

/// One blob in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackEntry {
    pub(crate) kind: BlobKind,
    pub(crate) id: BlobId,
    pub(crate) offset: u32,
    /// As stored.
    pub(crate) length: u32,
    /// Plain; 0 if it is stored without compression.
    pub(crate) uncompressed: u32,
}

/// The end of a pack, to be appended to its blobs.
pub(crate) fn trailer(key: &Key, entries: &[PackEntry]) -> Vec<u8> {
    let mut header = Vec::with_capacity(entries.len() * 41);
    for entry in entries {
        let compressed = entry.uncompressed != 0;
        header.push(match (entry.kind, compressed) {
            (BlobKind::Data, false) => 0,
            (BlobKind::Tree, false) => 1,
            (BlobKind::Data, true) => 2,
            (BlobKind::Tree, true) => 3,
        });
        header.extend_from_slice(&entry.length.to_le_bytes());
        if compressed {
            header.extend_from_slice(&entry.uncompressed.to_le_bytes());
        }
        header.extend_from_slice(entry.id.as_bytes());
    }
    let mut out = key.encrypt(&header);
    let length = out.len() as u32;
    out.extend_from_slice(&length.to_le_bytes());
    out
}

/// How many bytes of the pack the trailer takes.
pub(crate) fn trailer_length(entries: &[PackEntry]) -> u64 {
    let listed: u64 = entries.iter().map(|entry| listed_length(entry.uncompressed != 0)).sum();
    listed + (OVERHEAD + 4) as u64
}

/// How many bytes of the trailer one blob takes.
pub(crate) fn listed_length(compressed: bool) -> u64 {
    if compressed { 41 } else { 37 }
}

/// The blobs that a whole pack says it has; the reason if it says nothing sensible.
pub(crate) fn read(key: &Key, pack: &[u8]) -> Result<Vec<PackEntry>, String> {
    let (rest, length) = pack.split_last_chunk::<4>().ok_or("it is too short")?;
    let length = u32::from_le_bytes(*length) as usize;
    let start = rest.len().checked_sub(length).ok_or("its header's length is wrong")?;
    let header = key.decrypt(&rest[start..]).map_err(|error| format!("its header: {error}"))?;
    let mut entries = Vec::new();
    let mut offset = 0_u32;
    let mut left = header.as_slice();
    while let Some((&kind, after)) = left.split_first() {
        let (kind, compressed) = match kind {
            0 => (BlobKind::Data, false),
            1 => (BlobKind::Tree, false),
            2 => (BlobKind::Data, true),
            3 => (BlobKind::Tree, true),
            other => return Err(format!("its header has a blob of unknown type {other}")),
        };
        let cut_short = "its header is cut short";
        let (length, after) = after.split_first_chunk::<4>().ok_or(cut_short)?;
        let (uncompressed, after) = if compressed {
            let (length, after) = after.split_first_chunk::<4>().ok_or(cut_short)?;
            (u32::from_le_bytes(*length), after)
        } else {
            (0, after)
        };
        let (id, after) = after.split_first_chunk::<32>().ok_or(cut_short)?;
        let length = u32::from_le_bytes(*length);
        entries.push(PackEntry { kind, id: BlobId(*id), offset, length, uncompressed });
        offset = offset.checked_add(length).ok_or("its blobs are longer than a pack can be")?;
        left = after;
    }
    if offset as usize != start {
        return Err("its blobs do not fill it".to_owned());
    }
    Ok(entries)
}

/// Stock clients write none larger than this; a damaged length must not take all memory.
pub(crate) const MOST_BLOB: u32 = 1 << 30;

/// The plain content of a stored blob, checked against its name; the reason if it is not.
pub(crate) fn open_blob(
    key: &Key,
    sealed: &[u8],
    uncompressed: u32,
    id: &BlobId,
) -> Result<Vec<u8>, String> {
    let mut plain = key.decrypt(sealed).map_err(|error| error.to_string())?;
    if uncompressed != 0 {
        if uncompressed > MOST_BLOB {
            return Err("it is larger than a blob can be".to_owned());
        }
        plain = zstd::bulk::decompress(&plain, uncompressed as usize)
            .map_err(|error| format!("it cannot be decompressed: {error}"))?;
        // Offsets in restored files are sums of these lengths.
        if plain.len() != uncompressed as usize {
            return Err(format!("it has {} bytes instead of {uncompressed}", plain.len()));
        }
    }
    if BlobId::of(&plain) != *id {
        return Err("its content does not match its name".to_owned());
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_opens_only_with_the_length_that_is_listed() {
        let key = Key::random();
        let plain = [7; 1000];
        let sealed = key.encrypt(&zstd::bulk::compress(&plain, 3).unwrap());
        let id = BlobId::of(&plain);
        assert_eq!(open_blob(&key, &sealed, 1000, &id).unwrap(), plain);
        for wrong in [1, 999, 1001, 100_000, u32::MAX] {
            assert!(open_blob(&key, &sealed, wrong, &id).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pack_lists_what_is_in_it() {
        let key = Key::random();
        let mut pack = Vec::new();
        let mut entries = Vec::new();
        for (plain, uncompressed) in [(&b"one"[..], 0), (b"two", 0)] {
            let offset = pack.len() as u32;
            key.encrypt_into(plain, &mut pack);
            let length = pack.len() as u32 - offset;
            let id = BlobId::of(plain);
            entries.push(PackEntry { kind: BlobKind::Data, id, offset, length, uncompressed });
        }
        entries[1].uncompressed = 9;
        let blobs = pack.len() as u64;
        pack.extend(trailer(&key, &entries));
        assert_eq!(pack.len() as u64, blobs + trailer_length(&entries));
        assert_eq!(read(&key, &pack).unwrap(), entries);
        for length in 0..pack.len() {
            assert!(read(&key, &pack[..length]).is_err());
        }
        let mut longer = vec![0];
        longer.extend(pack);
        assert!(read(&key, &longer).is_err());
    }
}
