//! Encryption as the format has it: AES-256-CTR, then Poly1305-AES over the ciphertext.
//!
//! Layout: `IV (16) || ciphertext || MAC (16)`. Invariant: nothing is decrypted before its MAC was
//! found right. Keys are wiped from memory when dropped.

use aes::cipher::{BlockCipherEncrypt, KeyInit, KeyIvInit, StreamCipher};
use aes::{Aes128, Aes256};
use poly1305::Poly1305;
use poly1305::universal_hash::UniversalHash;
use zeroize::{Zeroize, ZeroizeOnDrop};

type Ctr = ctr::Ctr128BE<Aes256>;

/// How much longer an encrypted text is than the plain one.
pub(crate) const OVERHEAD: usize = 32;

/// The authentication did not match: a wrong key, or changed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its authentication code does not match")]
pub(crate) struct NotAuthentic;

/// A pair of keys: the repository's own, or one derived from a password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Key {
    pub(crate) encrypt: [u8; 32],
    pub(crate) mac_k: [u8; 16],
    pub(crate) mac_r: [u8; 16],
}

impl Key {
    /// A new key from the operating system's random source.
    pub(crate) fn random() -> Self {
        Self { encrypt: random(), mac_k: random(), mac_r: random() }
    }

    /// Splits 64 derived bytes.
    pub(crate) fn from_derived(bytes: &[u8; 64]) -> Self {
        let mut key = Self { encrypt: [0; 32], mac_k: [0; 16], mac_r: [0; 16] };
        key.encrypt.copy_from_slice(&bytes[..32]);
        key.mac_k.copy_from_slice(&bytes[32..48]);
        key.mac_r.copy_from_slice(&bytes[48..]);
        key
    }

    /// Appends the encrypted `plain` to `out`.
    pub(crate) fn encrypt_into(&self, plain: &[u8], out: &mut Vec<u8>) {
        let iv: [u8; 16] = random();
        out.reserve(plain.len() + OVERHEAD);
        out.extend_from_slice(&iv);
        let start = out.len();
        out.extend_from_slice(plain);
        Ctr::new(&self.encrypt.into(), &iv.into()).apply_keystream(&mut out[start..]);
        let mac = self.mac(&iv, &out[start..]);
        out.extend_from_slice(&mac);
    }

    /// The encrypted form of `plain`.
    pub(crate) fn encrypt(&self, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.encrypt_into(plain, &mut out);
        out
    }

    /// The plain form of what [`Key::encrypt`] gave, if it is authentic.
    pub(crate) fn decrypt(&self, sealed: &[u8]) -> Result<Vec<u8>, NotAuthentic> {
        let (iv, rest) = sealed.split_first_chunk::<16>().ok_or(NotAuthentic)?;
        let (ciphertext, mac) = rest.split_last_chunk::<16>().ok_or(NotAuthentic)?;
        let differs = self
            .mac(iv, ciphertext)
            .iter()
            .zip(mac)
            .fold(0, |all, (ours, theirs)| all | (ours ^ theirs));
        if differs != 0 {
            return Err(NotAuthentic);
        }
        let mut plain = ciphertext.to_vec();
        Ctr::new(&self.encrypt.into(), &(*iv).into()).apply_keystream(&mut plain);
        Ok(plain)
    }

    fn mac(&self, nonce: &[u8; 16], ciphertext: &[u8]) -> [u8; 16] {
        let mut pad = (*nonce).into();
        Aes128::new(&self.mac_k.into()).encrypt_block(&mut pad);
        let mut one_time = [0; 32];
        one_time[..16].copy_from_slice(&self.mac_r);
        one_time[16..].copy_from_slice(&pad);
        let mut poly = Poly1305::new(&one_time.into());
        one_time.zeroize();
        // Whole blocks take the parallel path; the rest is authenticated without padding.
        let (blocks, rest) = poly1305::Block::slice_as_chunks(ciphertext);
        poly.update(blocks);
        poly.compute_unpadded(rest).into()
    }
}

/// Random bytes from the operating system.
///
/// # Panics
/// When the operating system has none to give: nothing safe can be done then.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encrypted_decrypts_and_any_changed_byte_is_noticed() {
        let key = Key::random();
        for length in [0, 1, 15, 16, 17, 64, 1000] {
            let plain = vec![7_u8; length];
            let sealed = key.encrypt(&plain);
            assert_eq!(sealed.len(), length + OVERHEAD);
            assert_eq!(key.decrypt(&sealed), Ok(plain));
            for place in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[place] ^= 1;
                assert_eq!(key.decrypt(&changed), Err(NotAuthentic));
            }
            assert_eq!(key.decrypt(&sealed[..sealed.len() - 1]), Err(NotAuthentic));
        }
        assert_eq!(key.decrypt(b""), Err(NotAuthentic));
    }
}
