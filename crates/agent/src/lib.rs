//! A host's process: it holds the passwords and keys of this host's parts, and runs backups and
//! restores on a server's order, each in a process of its own.
//!
//! Below the order, the rooms are: where an environment's things are on this host ([`place`]), its
//! parts as participants and restore steps ([`parts`]), where its backups are kept ([`vault`]) and
//! what is there ([`stored`]), and the two flows ([`backup`], [`restore`]). Nothing here prints or asks.

pub mod backup;
mod crons;
mod failure;
mod heal;
pub mod parts;
pub mod place;
pub mod protocol;
pub mod restore;
mod serve;
pub mod stored;
pub mod task;
pub mod vault;

pub use failure::{Failure, FailureKind};
pub use serve::{AgentOptions, Stop, serve, server_socket};
