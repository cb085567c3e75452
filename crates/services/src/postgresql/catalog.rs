//! `catalog.json`: what a capture holds, and what a restore compares with.
//!
//! Versioned; a reader refuses a version that it does not know rather than guess.

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::{ServiceError, Source};

/// Where it is in a capture.
pub(super) const PATH: &str = "catalog.json";
/// The version that is written here.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Catalog {
    version: u32,
    /// As in `server_version_num`.
    pub(super) server_version: u32,
    pub(super) databases: Vec<Database>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Database {
    pub(super) name: String,
    /// The directory of its files in the capture.
    pub(super) directory: String,
    pub(super) properties: Properties,
    /// Owners of objects in it; who restores must be a member of each.
    pub(super) owners: Vec<String>,
    /// Other roles that its objects mention, in grants and policies.
    pub(super) mentioned: Vec<String>,
    pub(super) extensions: Vec<String>,
    /// False where the schema `public`, which every new database has, was dropped.
    pub(super) has_public: bool,
    /// How many there were.
    #[serde(default)]
    pub(super) large_objects: i64,
    /// Where they are. None where there were none, and in captures made before they were taken.
    #[serde(default)]
    pub(super) large_object_statements: Option<Statements>,
    /// Captured as definitions: their data is another server's.
    pub(super) foreign_tables: Vec<String>,
    pub(super) tables: Vec<Table>,
    pub(super) sequences: Vec<Sequence>,
}

/// What belongs to a database rather than to anything in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Properties {
    pub(super) owner: String,
    pub(super) encoding: String,
    pub(super) collate: String,
    pub(super) ctype: String,
    /// `c` libc, `i` ICU, `b` builtin; none before PostgreSQL 15.
    pub(super) provider: Option<String>,
    /// The locale of a provider other than libc.
    pub(super) locale: Option<String>,
    /// None for the server's default.
    #[serde(default)]
    pub(super) tablespace: Option<String>,
    pub(super) connection_limit: i32,
    pub(super) comment: Option<String>,
    /// None where nothing was ever granted or revoked.
    pub(super) grants: Option<Vec<Grant>>,
    pub(super) settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    /// None for PUBLIC.
    pub(super) role: Option<String>,
    pub(super) privilege: String,
    pub(super) grantable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setting {
    /// None where it holds for every role.
    pub(super) role: Option<String>,
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    /// The file with its rows, as COPY's text in UTF-8 (or in the server's bytes, for `SQL_ASCII`).
    pub(super) path: String,
    /// Those with values of their own: without generated ones.
    pub(super) columns: Vec<String>,
    /// Which rows, for a table that an extension fills in part.
    pub(super) condition: Option<String>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// The sum of the rows' SHA-256 (see `rows.rs`).
    pub(super) rows_sum: String,
}

/// A file of statements, one a line (see `large_objects.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Statements {
    pub(super) path: String,
    /// The sum of the lines' SHA-256 (see `rows.rs`).
    pub(super) lines_sum: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sequence {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) last_value: i64,
    pub(super) is_called: bool,
}

impl Catalog {
    pub(super) fn new(server_version: u32, databases: Vec<Database>) -> Self {
        Self { version: VERSION, server_version, databases }
    }

    pub(super) fn read(source: &dyn Source) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new(format!("read {PATH} of the captured service"));
        let mut text = String::new();
        source
            .open(PATH)
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|e| doing().because(e))?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| doing().because(e))?;
        if value["version"] != VERSION {
            return Err(doing()
                .because(format!("its version is {}, known is {VERSION}", value["version"]))
                .hint("restore it with a newer Stillpoint"));
        }
        serde_json::from_value(value).map_err(|e| doing().because(e))
    }
}
