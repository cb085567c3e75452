//! The words of Stillpoint as types: ids, the manifest of a backup and its evidence, the
//! configuration file, progress. No I/O happens here, so every other crate may depend on it.

pub mod config;
pub mod ids;
pub mod manifest;
pub mod progress;
pub mod route;
pub mod step;
