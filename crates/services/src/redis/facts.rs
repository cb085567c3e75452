//! `facts.json`: what was captured, for a restore to plan with and to compare with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ServiceError, Source};

/// The captured server.
pub(super) const RDB: &str = "dump.rdb";
/// What was captured.
pub(super) const FACTS: &str = "facts.json";
/// The newest form that this version reads and writes.
const FORMAT: u32 = 1;

/// A database at the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counted {
    /// All keys, also those that had expired and were not removed yet.
    pub(super) keys: u64,
    /// Those of them that expire.
    pub(super) expires: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) format: u32,
    /// `redis` or `valkey`.
    pub(super) server: String,
    pub(super) version: String,
    pub(super) rdb_version: u32,
    pub(super) rdb_bytes: u64,
    pub(super) sha256: String,
    /// `file` or `replication`.
    pub(super) way: String,
    pub(super) databases: BTreeMap<u32, Counted>,
    /// True where nobody wrote while the databases were counted: they are those of the instant.
    pub(super) counts_exact: bool,
    pub(super) functions: u64,
    /// What the data took in the server's memory.
    pub(super) memory_bytes: u64,
    pub(super) replication_id: String,
    pub(super) replication_offset: u64,
}

impl Facts {
    /// The form that is written now.
    pub(super) const fn format() -> u32 {
        FORMAT
    }

    pub(super) fn read(source: &dyn Source) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new(format!("read {FACTS} of the capture"));
        let file = source.open(FACTS).map_err(|e| doing().because(e))?;
        let facts: Self = serde_json::from_reader(file).map_err(|e| doing().because(e))?;
        if facts.format > FORMAT {
            return Err(doing()
                .because(format!("its form {} is newer than {FORMAT}", facts.format))
                .hint("use the version of Stillpoint that took the backup"));
        }
        Ok(facts)
    }
}
