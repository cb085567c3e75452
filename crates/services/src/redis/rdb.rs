//! The head of an RDB file: its version, and what the server wrote about itself.
//!
//! The format: nine bytes of name and version, then fields (`0xFA`, name, value) before the data.
//! See "Redis RDB Dump File Format" and the servers' own `rdb.c`; only these first fields are read
//! here. A file that ends early is refused: the last nine bytes are `0xFF` and a checksum.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// The opcode of a field about the server.
const AUX: u8 = 0xFA;
/// The opcode of the end, before the checksum.
const END: u8 = 0xFF;
/// Fields are short; whatever claims to be longer is no RDB.
const LONGEST: u32 = 64 * 1024;

/// What the head says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) version: u32,
    pub(super) fields: BTreeMap<String, String>,
}

impl Head {
    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut magic = [0; 9];
        from.read_exact(&mut magic)?;
        let text = String::from_utf8_lossy(&magic).into_owned();
        let digits = text.strip_prefix("REDIS").or_else(|| text.strip_prefix("VALKEY"));
        let version = digits
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| wrong("it does not begin as an RDB file does"))?;
        let mut fields = BTreeMap::new();
        while byte(from)? == AUX {
            let name = string(from)?;
            fields.insert(name, string(from)?);
        }
        Ok(Self { version, fields })
    }

    /// A field that is a number.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.fields.get(name)?.parse().ok()
    }
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

fn byte(from: &mut impl Read) -> io::Result<u8> {
    let mut one = [0];
    from.read_exact(&mut one)?;
    Ok(one[0])
}

fn string(from: &mut impl Read) -> io::Result<String> {
    let first = byte(from)?;
    let low = u32::from(first & 0x3F);
    let length = match (first >> 6, low) {
        (0, _) => low,
        (1, _) => (low << 8) | u32::from(byte(from)?),
        (2, 0) => {
            let mut four = [0; 4];
            from.read_exact(&mut four)?;
            u32::from_be_bytes(four)
        }
        (3, 0) => return Ok(byte(from)?.cast_signed().to_string()),
        (3, 1) => {
            let mut two = [0; 2];
            from.read_exact(&mut two)?;
            return Ok(i16::from_le_bytes(two).to_string());
        }
        (3, 2) => {
            let mut four = [0; 4];
            from.read_exact(&mut four)?;
            return Ok(i32::from_le_bytes(four).to_string());
        }
        _ => return Err(wrong("a field of its head is in an unknown form")),
    };
    if length > LONGEST {
        return Err(wrong("a field of its head is too long"));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads an RDB through, and knows afterwards what went by.
pub(super) struct Passing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
    /// The last nine bytes, the oldest first.
    tail: Vec<u8>,
}

impl<R: Read> Passing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0, tail: Vec::new() }
    }

    /// Bytes and hash; an error where the file had no end.
    pub(super) fn finish(self) -> io::Result<(u64, String)> {
        if self.tail.len() < 9 || self.tail[0] != END {
            return Err(wrong("the RDB ends before its end"));
        }
        let mut hash = String::new();
        for byte in self.hash.finalize() {
            // A string takes everything.
            let _ = write!(hash, "{byte:02x}");
        }
        Ok((self.bytes, hash))
    }
}

impl<R: Read> Read for Passing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        let new = &into[..read];
        self.hash.update(new);
        self.bytes += read as u64;
        self.tail.extend_from_slice(&new[read.saturating_sub(9)..]);
        let surplus = self.tail.len().saturating_sub(9);
        self.tail.drain(..surplus);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x05ctime\xc2\xf1\x45\x06\x6b\
        \xfa\x0brepl-offset\xc0\x00\xfe\x00";

    #[test]
    fn the_head_says_version_and_fields() {
        let head = Head::read(&mut &HEAD[..]).unwrap();
        assert_eq!(head.version, 10);
        assert_eq!(head.fields["redis-ver"], "7.0.15");
        assert_eq!(head.number("ctime"), Some(0x6b06_45f1));
        assert_eq!(head.number("repl-offset"), Some(0));
    }

    #[test]
    fn what_is_no_rdb_or_is_cut_off_is_refused() {
        assert!(Head::read(&mut &b"SQLite format 3"[..]).is_err());
        for length in 0..HEAD.len() - 2 {
            assert!(Head::read(&mut &HEAD[..length]).is_err(), "{length} bytes");
        }
        let read_through = |bytes: &[u8]| {
            let mut passing = Passing::new(bytes);
            io::copy(&mut passing, &mut io::sink()).unwrap();
            passing.finish()
        };
        let whole = [HEAD, b"\xff12345678"].concat();
        assert_eq!(read_through(&whole).unwrap().0, whole.len() as u64);
        assert!(read_through(&whole[..whole.len() - 1]).is_err());
        assert!(read_through(b"").is_err());
    }
}
