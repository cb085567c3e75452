//! The file `config`: the repository's id and what its chunker is keyed with.
//!
//! The format has no place to say how content is cut, and stock clients drop fields that they do not
//! know when they rewrite the file. So a repository that this program created says it in its id: the
//! last eight of the 32 bytes, random for everyone else, are a hash over the rest and the polynomial.
//! By accident that happens once in 2^64 repositories, and then costs deduplication, nothing more.

use crate::crypto;
use crate::error::RepositoryError;
use crate::id::hex;
use crate::polynomial::{DEGREE, Polynomial};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The format's version that is written.
pub(crate) const VERSION: u32 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) chunker_polynomial: String,
}

impl Config {
    /// The config of a new repository of ours.
    pub(crate) fn new() -> Self {
        let chunker_polynomial = format!("{:x}", Polynomial::random().0);
        let id = hex(&crypto::random::<24>());
        let mark = mark(&id, &chunker_polynomial);
        Self { version: VERSION, id: id + &mark, chunker_polynomial }
    }

    /// Whether this program created the repository, and content is cut its way.
    pub(crate) fn is_ours(&self) -> bool {
        self.id.len() == 64
            && self.id.is_ascii()
            && self.id[48..] == mark(&self.id[..48], &self.chunker_polynomial)
    }

    pub(crate) fn polynomial(&self) -> Result<Polynomial, RepositoryError> {
        u64::from_str_radix(&self.chunker_polynomial, 16)
            .ok()
            .map(Polynomial)
            .filter(|polynomial| polynomial.degree() == DEGREE)
            .ok_or_else(|| {
                RepositoryError::damaged("config", "its chunker polynomial is not valid")
            })
    }
}

fn mark(random: &str, polynomial: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"stillpoint chunking 1\n");
    hash.update(random);
    hash.update(b"\n");
    hash.update(polynomial);
    hex(&hash.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_repositories_are_told_from_others() {
        let ours = Config::new();
        assert!(ours.is_ours());
        assert!(ours.polynomial().unwrap().is_irreducible());
        let mut other = ours.clone();
        other.chunker_polynomial = "25b468838dcb75".to_owned();
        assert!(!other.is_ours(), "a copy of the id alone is not enough");
        other = ours;
        other.id = "5956a3f67a6230d4a92cefb29529f10196c7d92582ec305fd71ff6d331d6271b".to_owned();
        assert!(!other.is_ours());
    }

    #[test]
    fn a_polynomial_of_another_degree_is_refused() {
        for bad in ["", "zz", "3", "ffffffffffffffff", "-1"] {
            let config =
                Config { version: 2, id: String::new(), chunker_polynomial: bad.to_owned() };
            assert!(config.polynomial().is_err(), "{bad}");
        }
    }
}
