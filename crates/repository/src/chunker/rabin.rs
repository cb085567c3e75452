//! Rabin fingerprints over a window of 64 bytes, cut where stock clients cut.
//!
//! A cut falls where the fingerprint of the last 64 bytes has its low 20 bits clear. The
//! fingerprint is the window, read as a polynomial over GF(2), modulo the repository's polynomial;
//! it is kept up to date byte by byte with two tables (Broder, "Some applications of Rabin's
//! fingerprinting method", 1993). A property test compares with the definition, another with what
//! the stock client itself stored.

use super::{MAX, MIN};
use crate::polynomial::Polynomial;

const WINDOW: usize = 64;
const MASK: u64 = (1 << 20) - 1;

pub(crate) struct Rabin {
    /// What a byte contributes at the moment it leaves the window.
    leaving: [u64; 256],
    /// Clears and folds back the eight bits that a shift pushes over the degree.
    folding: [u64; 256],
    top: u32,
}

impl Rabin {
    pub(crate) fn new(polynomial: Polynomial) -> Self {
        let degree = polynomial.degree();
        let mut leaving = [0; 256];
        let mut folding = [0; 256];
        for byte in 0..256_u64 {
            let mut value = byte;
            for _ in 1..WINDOW {
                value = polynomial.reduce(u128::from(value) << 8);
            }
            leaving[byte as usize] = value;
            let over = u128::from(byte) << degree;
            folding[byte as usize] = polynomial.reduce(over) | over as u64;
        }
        Self { leaving, folding, top: degree - 8 }
    }

    /// `data` is longer than [`MIN`].
    pub(crate) fn cut(&self, data: &[u8]) -> usize {
        let end = data.len().min(MAX);
        let mut digest = 0;
        for byte in &data[MIN - WINDOW..MIN] {
            digest = self.append(digest, *byte);
        }
        let mut length = MIN;
        for (out, byte) in data[MIN - WINDOW..].iter().zip(&data[MIN..end]) {
            if digest & MASK == 0 {
                return length;
            }
            digest ^= self.leaving[usize::from(*out)];
            digest = self.append(digest, *byte);
            length += 1;
        }
        length
    }

    #[inline]
    fn append(&self, digest: u64, byte: u8) -> u64 {
        let over = (digest >> self.top) as usize & 0xff;
        (digest << 8 | u64::from(byte)) ^ self.folding[over]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_rolling_fingerprint_is_the_windows_remainder(
            bytes in proptest::collection::vec(any::<u8>(), WINDOW..300)
        ) {
            let polynomial = Polynomial(0x25_b468_838d_cb75);
            let rabin = Rabin::new(polynomial);
            let mut digest = 0;
            for (place, byte) in bytes.iter().enumerate() {
                if place >= WINDOW {
                    digest ^= rabin.leaving[usize::from(bytes[place - WINDOW])];
                }
                digest = rabin.append(digest, *byte);
            }
            let mut expected = 0_u64;
            for byte in &bytes[bytes.len() - WINDOW..] {
                expected = polynomial.reduce(u128::from(expected) << 8 | u128::from(*byte));
            }
            prop_assert_eq!(digest, expected);
        }
    }
}
