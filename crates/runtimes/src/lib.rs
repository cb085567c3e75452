//! How the parts of an environment are started and stopped.
//!
//! Only the [`scratch`] runtime exists so far: real servers of one's own in a directory, for the
//! demo and for tests. It touches no server that it did not start itself.

mod error;
pub mod scratch;

pub use error::RuntimeError;
pub use scratch::{
    Installation, MariadbInstallation, MariadbOptions, OnSpawn, RedisInstallation, RedisOptions,
    ScratchMariadb, ScratchOptions, ScratchPostgres, ScratchRedis,
};
