//! Prepare, mark and capture: a revision's number, and then its keys.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use stillpoint_model::manifest::Marker;

use super::client::{CallError, Client, OUT_OF_RANGE, PERMISSION_DENIED, number};
use super::examine::try_reading;
use super::pages::Pages;
use crate::{Captured, Prepared, ServiceError, Sink, Source};

pub(super) const KEYS: &str = "keys.jsonl";
pub(super) const LEASES: &str = "leases.jsonl";
const FACTS: &str = "facts.json";
/// The version that is written here.
const VERSION: u32 = 1;

/// `facts.json`: what a capture holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    version: u32,
    /// The server's.
    pub(super) server: String,
    pub(super) revision: i64,
    pub(super) keys: u64,
    pub(super) leases: u64,
    /// Of all keys and values.
    pub(super) bytes: u64,
    /// SHA-256 of `keys.jsonl`, in hexadecimal.
    pub(super) sha256: String,
}

impl Facts {
    pub(super) fn read(source: &dyn Source) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new(format!("read {FACTS} of the captured service"));
        let mut text = String::new();
        let read = source.open(FACTS).and_then(|mut file| file.read_to_string(&mut text));
        read.map_err(|e| doing().because(e))?;
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

/// A server that may be marked.
pub(super) struct PreparedEtcd {
    client: Client,
    /// Leases and the seconds that each was granted for: those that there were in prepare, and
    /// what the capture learns. No revision tells of them.
    leases: BTreeMap<i64, i64>,
    /// The marked revision.
    mark: Option<i64>,
}

/// The statement that lets a role read everything.
pub(super) const READ_ALL: &str =
    "etcdctl role grant-permission ROLE --prefix=true read \"\", for a role of the user's";

pub(super) fn prepare(mut client: Client) -> Result<PreparedEtcd, ServiceError> {
    let shown = client.login.shown();
    try_reading(&mut client).map_err(|e| {
        let denied = e.has_code(PERMISSION_DENIED);
        let error = ServiceError::new(format!("read all keys of {shown}")).because(e);
        if denied { error.hint(READ_ALL) } else { error }
    })?;
    let leases = live_leases(&mut client)
        .map_err(|e| ServiceError::new(format!("read the leases of {shown}")).because(e))?;
    Ok(PreparedEtcd { client, leases, mark: None })
}

fn live_leases(client: &mut Client) -> Result<BTreeMap<i64, i64>, CallError> {
    let answer = client.call("/v3/lease/leases", &json!({}))?;
    let listed = answer["leases"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut leases = BTreeMap::new();
    for lease in listed {
        let id = number(&lease["ID"]).ok_or(CallError::Strange("a lease"))?;
        if let Some(granted) = granted(client, id)? {
            leases.insert(id, granted);
        }
    }
    Ok(leases)
}

/// The seconds that a lease was granted for; none where it has ended.
fn granted(client: &mut Client, id: i64) -> Result<Option<i64>, CallError> {
    let answer = client.call("/v3/lease/timetolive", &json!({ "ID": id.to_string() }))?;
    Ok(number(&answer["grantedTTL"]).filter(|ttl| *ttl > 0))
}

impl PreparedEtcd {
    fn failed(&self, doing: &str, error: CallError) -> ServiceError {
        let doing = format!("{doing} {}", self.client.login.shown());
        ServiceError::new(doing).because(error)
    }

    /// The leases that keys belong to, each as the gateway's `lease/grant` takes it.
    fn lease_lines(&mut self, ids: &BTreeSet<i64>) -> Result<String, CallError> {
        let mut lines = String::new();
        for id in ids {
            let known = self.leases.get(id).copied();
            // One that came after prepare and has ended already was short: the shortest there is.
            let found = if known.is_some() { known } else { granted(&mut self.client, *id)? };
            let ttl = found.unwrap_or(1);
            let line = json!({ "ID": id.to_string(), "TTL": ttl.to_string() });
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        Ok(lines)
    }
}

impl Prepared for PreparedEtcd {
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("server".to_owned(), format!("etcd {}", self.client.version)),
            ("users_and_roles".to_owned(), "not captured".to_owned()),
        ])
    }

    fn counter(&mut self) -> Result<String, ServiceError> {
        match self.client.revision() {
            Ok(revision) => Ok(revision.to_string()),
            Err(e) => Err(self.failed("read the revision of", e)),
        }
    }

    fn mark(&mut self) -> Result<Marker, ServiceError> {
        let revision = self.client.revision().map_err(|e| self.failed("mark", e))?;
        self.mark = Some(revision);
        Ok(Marker {
            at: Timestamp::now(),
            values: BTreeMap::from([("revision".to_owned(), revision.to_string())]),
        })
    }

    fn capture(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        let shown = self.client.login.shown();
        let doing = || ServiceError::new(format!("capture {shown}"));
        let revision = self.mark.take().ok_or_else(|| doing().because("not marked"))?;
        let mut lines = Lines::new(&mut self.client, revision);
        let stored = sink.write(KEYS, &mut lines);
        let compacted = lines.compacted;
        let mut written = stored.map_err(|e| {
            let error = doing().because(e);
            if !compacted {
                return error;
            }
            error.hint(
                "the revision of the mark was compacted while it was read: keep revisions for \
                 longer than a backup takes (--auto-compaction-retention), and let nothing else \
                 compact meanwhile",
            )
        })?;
        let Lines { hash, keys, bytes, leases, .. } = lines;
        let lease_lines =
            self.lease_lines(&leases).map_err(|e| self.failed("read the leases of", e))?;
        let facts = Facts {
            version: VERSION,
            server: self.client.version.clone(),
            revision,
            keys,
            leases: leases.len() as u64,
            bytes,
            sha256: hex(&hash.finalize()),
        };
        let facts = serde_json::to_string_pretty(&facts).map_err(|e| doing().because(e))?;
        for (path, text) in [(LEASES, lease_lines), (FACTS, facts)] {
            written += sink
                .write(path, &mut Cursor::new(text.as_bytes()))
                .map_err(|e| ServiceError::new(format!("store {path}")).because(e))?;
        }
        Ok(Captured { bytes: written, items: keys, gaps: Vec::new() })
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// All of the application's keys at a revision, as lines.
struct Lines<'c> {
    client: &'c mut Client,
    pages: Pages,
    line: Cursor<Vec<u8>>,
    hash: Sha256,
    keys: u64,
    bytes: u64,
    leases: BTreeSet<i64>,
    /// The server has the revision no more.
    compacted: bool,
}

impl<'c> Lines<'c> {
    fn new(client: &'c mut Client, revision: i64) -> Self {
        Self {
            client,
            pages: Pages::of_application(revision),
            line: Cursor::default(),
            hash: Sha256::new(),
            keys: 0,
            bytes: 0,
            leases: BTreeSet::new(),
            compacted: false,
        }
    }
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = self.line.read(buffer)?;
        while count == 0 && !buffer.is_empty() {
            let next = self.pages.next(self.client).map_err(|e| {
                self.compacted = e.has_code(OUT_OF_RANGE);
                io::Error::other(e)
            })?;
            let Some(found) = next else { return Ok(0) };
            let line = found.entry.to_line().into_bytes();
            self.hash.update(&line);
            self.keys += 1;
            self.bytes += found.entry.size() as u64;
            if found.entry.lease != 0 {
                self.leases.insert(found.entry.lease);
            }
            self.line = Cursor::new(line);
            count = self.line.read(buffer)?;
        }
        Ok(count)
    }
}
