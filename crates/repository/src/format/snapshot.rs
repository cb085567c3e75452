//! A snapshot: which tree was saved, of what, when, by whom.

use super::time;
use crate::host;
use crate::id::{BlobId, SnapshotId};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

/// What a snapshot file says. The order of the fields is the format's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The moment that the backup stands for.
    #[serde(with = "time::text")]
    pub time: Timestamp,
    /// The snapshot that unchanged files were taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// The root of what was saved.
    pub tree: BlobId,
    /// What was backed up.
    #[serde(default, deserialize_with = "nullable")]
    pub paths: Vec<String>,
    /// The machine it was saved on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// The user who saved it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// That user's number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// That user's group's number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Patterns of what was left out.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub excludes: Vec<String>,
    /// Labels.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The snapshot that this one was made from by changing its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<SnapshotId>,
}

impl Snapshot {
    /// A snapshot by this user on this machine.
    pub fn new(tree: BlobId, paths: Vec<String>, tags: Vec<String>, time: Timestamp) -> Self {
        Self {
            time,
            parent: None,
            tree,
            paths,
            hostname: host::name(),
            username: host::user(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            excludes: Vec::new(),
            tags,
            original: None,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Go writes an absent list as `null`.
pub(crate) fn nullable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
