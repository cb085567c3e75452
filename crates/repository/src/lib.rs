//! The repository engine: restic's repository format, version 2, on any [`Store`].
//!
//! What must never break: a snapshot file is written last, after every pack and index file that it
//! rests on is durable and its whole closure was found indexed; nothing read from a store is given
//! out before its hash was found right; a restore never writes outside its target.
//!
//! A [`Repository`] is opened with a password. From it come a [`Writer`] (adds blobs, publishes one
//! snapshot), a [`Reader`] (lists, opens, restores, verifies), [`Repository::check`], and
//! [`Repository::backup`], which is a file system walk over a `Writer`. `docs/repository.md` says
//! how all this maps to the format.

mod backup;
mod check;
mod chunker;
mod config;
mod crypto;
mod deletion;
mod error;
mod format;
mod host;
mod id;
mod index;
mod keyfile;
mod locations;
mod lock;
mod polynomial;
mod read;
mod repository;
mod store;
mod write;

pub use backup::{BackupOptions, BackupReport, Found};
pub use check::{CheckOptions, CheckReport};
pub use error::RepositoryError;
pub use format::node::{Content, ExtendedAttribute, Node, NodeKind};
pub use format::snapshot::Snapshot;
pub use format::tree::Tree;
pub use id::{BlobId, InvalidId, SnapshotId};
pub use locations::{Copies, Healed, HealedLocation, LocationState, Locations, Member};
pub use lock::LockFiles;
pub use read::{BlobReader, Difference, Reader, RestoreOptions, RestoreReport};
pub use repository::{Repository, SnapshotList};
pub use store::{FileId, FileKind, LocalStore, Store};
pub use write::{WriteStats, Writer, WriterOptions};
