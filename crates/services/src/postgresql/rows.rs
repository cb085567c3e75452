//! A table's content as a number that does not depend on the order of its rows.
//!
//! The rows of a restored table need not lie in the order in which they were captured: the server
//! puts a row wherever there is room. So every row of COPY's text (a line; a line break inside a
//! value is escaped) is hashed with SHA-256, and the hashes are added as 256-bit numbers. Lost,
//! doubled and changed rows all change the sum.

use std::fmt;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// Counts and sums the rows that go by.
#[derive(Default)]
pub(super) struct RowSum {
    sum: [u64; 4],
    rows: u64,
    bytes: u64,
    /// The row that has begun and not ended.
    partial: Option<Sha256>,
}

impl RowSum {
    pub(super) fn update(&mut self, mut data: &[u8]) {
        self.bytes += data.len() as u64;
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let mut hasher = self.partial.take().unwrap_or_default();
            hasher.update(&data[..end]);
            self.add(&hasher.finalize().into());
            data = &data[end + 1..];
        }
        if !data.is_empty() {
            self.partial.get_or_insert_default().update(data);
        }
    }

    fn add(&mut self, hash: &[u8; 32]) {
        self.rows += 1;
        let mut carry = 0_u128;
        for (limb, bytes) in self.sum.iter_mut().zip(hash.chunks_exact(8)) {
            let mut word = [0_u8; 8];
            word.copy_from_slice(bytes);
            let total = u128::from(*limb) + u128::from(u64::from_le_bytes(word)) + carry;
            *limb = total as u64;
            carry = total >> 64;
        }
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True when the last row had its end.
    pub(super) fn is_whole(&self) -> bool {
        self.partial.is_none()
    }
}

impl fmt::Display for RowSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for limb in self.sum.iter().rev() {
            write!(f, "{limb:016x}")?;
        }
        Ok(())
    }
}

/// Sums what is read through it.
pub(super) struct Summed<R> {
    inner: R,
    pub(super) sum: RowSum,
}

impl<R: Read> Summed<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, sum: RowSum::default() }
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sum.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(chunks: &[&str]) -> RowSum {
        let mut sum = RowSum::default();
        for chunk in chunks {
            sum.update(chunk.as_bytes());
        }
        sum
    }

    #[test]
    fn neither_the_order_of_rows_nor_the_chunks_matter() {
        let one = sum(&["a\tb\n", "c\n", "\n"]);
        assert_eq!(one.to_string(), sum(&["\nc", "\na", "\tb", "\n"]).to_string());
        assert_eq!((one.rows(), one.bytes()), (3, 7));
        assert!(one.is_whole());
    }

    #[test]
    fn a_lost_a_doubled_and_a_changed_row_show() {
        let one = sum(&["a\nb\n"]).to_string();
        for other in ["a\n", "a\nb\nb\n", "a\nB\n", "ab\n\n"] {
            assert_ne!(one, sum(&[other]).to_string(), "{other:?}");
        }
        assert!(!sum(&["a\nb"]).is_whole());
    }
}
