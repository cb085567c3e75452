//! Content-defined chunking: where a stream is cut depends on its bytes and the repository's
//! secret, not on how it was read or by how many threads.
//!
//! Two ways to cut, both 512 KiB to 8 MiB with about 1 MiB as their aim: [`gear`] (fast) in
//! repositories that this program created, [`rabin`] (as stock clients cut) in all others, since
//! there everything would be stored a second time. [`Chunking::of`] tells them apart.

mod gear;
mod rabin;
mod stream;

pub(crate) use stream::Chunks;

use crate::config::Config;
use crate::error::RepositoryError;

pub(crate) const MIN: usize = 512 << 10;
pub(crate) const AVERAGE: usize = 1 << 20;
pub(crate) const MAX: usize = 8 << 20;

/// How a repository's content is cut.
pub(crate) enum Chunking {
    Gear(Box<gear::Gear>),
    Rabin(Box<rabin::Rabin>),
}

impl Chunking {
    /// The way to cut in this repository.
    pub(crate) fn of(config: &Config) -> Result<Self, RepositoryError> {
        let polynomial = config.polynomial()?;
        Ok(if config.is_ours() {
            Self::Gear(Box::new(gear::Gear::new(polynomial)))
        } else {
            Self::Rabin(Box::new(rabin::Rabin::new(polynomial)))
        })
    }

    /// The length of the first chunk of `data`, which must reach to the content's end or be at
    /// least [`MAX`] long.
    pub(crate) fn cut(&self, data: &[u8]) -> usize {
        if data.len() <= MIN {
            return data.len();
        }
        match self {
            Self::Gear(gear) => gear.cut(data),
            Self::Rabin(rabin) => rabin.cut(data),
        }
    }
}
