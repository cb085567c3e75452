//! `FastCDC` with a gear table of this repository's own.
//!
//! The table comes from the secret polynomial by SHA-256: with a public table the sizes of chunks
//! would give known files away to whoever sees the packs.

use super::{AVERAGE, MAX, MIN};
use crate::polynomial::Polynomial;
use fastcdc::v2020::{self, Normalization};
use sha2::{Digest, Sha256};

pub(crate) struct Gear {
    table: Vec<u64>,
    shifted: Vec<u64>,
    strict: u64,
    relaxed: u64,
}

impl Gear {
    pub(crate) fn new(polynomial: Polynomial) -> Self {
        let mut table = Vec::with_capacity(256);
        for block in 0_u8..64 {
            let mut hash = Sha256::new();
            hash.update(b"stillpoint gear table 1");
            hash.update(polynomial.0.to_be_bytes());
            hash.update([block]);
            for word in hash.finalize().as_chunks::<8>().0 {
                table.push(u64::from_be_bytes(*word));
            }
        }
        let shifted = table.iter().map(|word| word << 1).collect();
        let (strict, relaxed) = v2020::select_masks(AVERAGE, Normalization::Level1);
        Self { table, shifted, strict, relaxed }
    }

    pub(crate) fn cut(&self, data: &[u8]) -> usize {
        let (_, length) = v2020::cut_gear(
            data,
            MIN,
            AVERAGE,
            MAX,
            self.strict,
            self.relaxed,
            self.strict << 1,
            self.relaxed << 1,
            &self.table,
            &self.shifted,
        );
        length
    }
}
