//! Index, snapshot and lock files: JSON, compressed from version 2 on, encrypted as a whole.

use crate::crypto::Key;
use crate::error::{RepositoryError, file_name};
use crate::id::FileId;
use crate::store::{FileKind, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read};

/// More than any such file can sensibly hold; guards memory against a compressed bomb.
const MOST_JSON: u64 = 512 << 20;
const COMPRESSED: u8 = 2;

/// The name and bytes of a file that says `value`.
pub(crate) fn encode<T: Serialize>(
    key: &Key,
    value: &T,
) -> Result<(FileId, Vec<u8>), RepositoryError> {
    let json = serde_json::to_vec(value).expect("our own structures become JSON");
    let mut plain = vec![COMPRESSED];
    plain.extend(zstd::bulk::compress(&json, 0).map_err(RepositoryError::store("compress"))?);
    let sealed = key.encrypt(&plain);
    Ok((FileId::of(&sealed), sealed))
}

/// Reads a file: its name, its authenticity and its JSON are checked.
pub(crate) fn read<T: DeserializeOwned>(
    store: &dyn Store,
    key: &Key,
    kind: FileKind,
    id: &FileId,
) -> Result<T, RepositoryError> {
    let name = file_name(kind, id);
    let sealed = store.read(kind, id).map_err(RepositoryError::store(format!("read {name}")))?;
    decode(key, &name, id, &sealed)
}

fn decode<T: DeserializeOwned>(
    key: &Key,
    name: &str,
    id: &FileId,
    sealed: &[u8],
) -> Result<T, RepositoryError> {
    if FileId::of(sealed) != *id {
        return Err(RepositoryError::damaged(name, "its content does not match its name"));
    }
    let plain = key.decrypt(sealed).map_err(|error| RepositoryError::damaged(name, error))?;
    let json = match plain.split_first() {
        Some((&COMPRESSED, compressed)) => {
            decompress(compressed).map_err(|error| RepositoryError::damaged(name, error))?
        }
        Some((b'{' | b'[', _)) => plain,
        _ => return Err(RepositoryError::damaged(name, "its encoding is not known")),
    };
    serde_json::from_slice(&json).map_err(|error| RepositoryError::damaged(name, error))
}

fn decompress(compressed: &[u8]) -> io::Result<Vec<u8>> {
    let mut json = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
    if decoder.take(MOST_JSON + 1).read_to_end(&mut json)? as u64 > MOST_JSON {
        return Err(io::Error::other("it is larger than it may be"));
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_plain_text_makes_decoding_panic(plain in proptest::collection::vec(any::<u8>(), 0..64)) {
            let key = Key::random();
            let sealed = key.encrypt(&plain);
            let id = FileId::of(&sealed);
            let _ = decode::<crate::format::snapshot::Snapshot>(&key, "x", &id, &sealed);
        }
    }

    #[test]
    fn what_was_encoded_is_read_back_and_a_changed_byte_is_not() {
        let key = Key::random();
        let (id, mut sealed) = encode(&key, &vec![1, 2, 3]).unwrap();
        assert_eq!(decode::<Vec<u32>>(&key, "x", &id, &sealed).unwrap(), [1, 2, 3]);
        sealed[20] ^= 1;
        assert!(decode::<Vec<u32>>(&key, "x", &id, &sealed).is_err());
        assert!(decode::<Vec<u32>>(&key, "x", &FileId::of(&sealed), &sealed).is_err());
    }
}
