//! Polynomials over GF(2), as bits of an integer: what the chunker of the format is keyed with.
//!
//! Stock clients refuse a repository whose polynomial is reducible, so [`Polynomial::random`] gives
//! irreducible ones of degree 53 only.

use crate::crypto;

/// A polynomial over GF(2); bit `i` is the coefficient of `x^i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Polynomial(pub(crate) u64);

/// The degree that the format's chunker works with. It is prime, which the test below relies on.
pub(crate) const DEGREE: u32 = 53;

impl Polynomial {
    /// A random irreducible polynomial of degree 53. About one of 53 candidates is.
    pub(crate) fn random() -> Self {
        loop {
            let bits = u64::from_le_bytes(crypto::random()) & ((1 << DEGREE) - 1);
            let candidate = Self(bits | 1 << DEGREE | 1);
            if candidate.is_irreducible() {
                return candidate;
            }
        }
    }

    /// The degree; 0 for constants.
    pub(crate) fn degree(self) -> u32 {
        self.0.checked_ilog2().unwrap_or(0)
    }

    /// The remainder of `value` (up to 128 bits) divided by `self`.
    pub(crate) fn reduce(self, mut value: u128) -> u64 {
        let degree = self.degree();
        while let Some(top) = value.checked_ilog2() {
            if top < degree {
                break;
            }
            value ^= u128::from(self.0) << (top - degree);
        }
        value as u64
    }

    fn square(self, value: u64) -> u64 {
        let mut spread = 0_u128;
        for bit in 0..u64::BITS {
            spread |= u128::from(value >> bit & 1) << (2 * bit);
        }
        self.reduce(spread)
    }

    /// Rabin's test for a prime degree `n`: irreducible exactly if `x^(2^n) = x` modulo the
    /// polynomial and it has no factor of degree one.
    pub(crate) fn is_irreducible(self) -> bool {
        // No constant term: divisible by x. An even number of terms: divisible by x + 1.
        if self.degree() != DEGREE || self.0 & 1 == 0 || self.0.count_ones().is_multiple_of(2) {
            return false;
        }
        let mut power = 2;
        for _ in 0..DEGREE {
            power = self.square(power);
        }
        power == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multiply(a: u64, b: u64) -> u64 {
        (0..64).filter(|bit| b >> bit & 1 == 1).fold(0, |sum, bit| sum ^ (a << bit))
    }

    #[test]
    fn polynomials_that_stock_clients_chose_are_irreducible() {
        for known in [0x25_b468_838d_cb75, 0x27_0035_6931_062b] {
            assert!(Polynomial(known).is_irreducible(), "{known:x}");
        }
    }

    #[test]
    fn products_are_reducible() {
        // Degrees 1 + 52, 2 + 51, 26 + 27, with odd constants so that the quick test alone does not
        // catch them all.
        for (a, b) in [
            (0b11, 1 << 52 | 1),
            (0b111, 1 << 51 | 0b111),
            (1 << 26 | 0b111, 1 << 27 | 0b100_1011),
            (0b1011, 1 << 50 | 0b1101),
        ] {
            let product = Polynomial(multiply(a, b));
            assert_eq!(product.degree(), DEGREE);
            assert!(!product.is_irreducible(), "{:x}", product.0);
        }
    }

    #[test]
    fn random_polynomials_are_irreducible_and_differ() {
        let (a, b) = (Polynomial::random(), Polynomial::random());
        assert!(a.is_irreducible() && b.is_irreducible());
        assert_ne!(a, b);
    }
}
