//! What a backup says about itself: `/manifest.json` in its tree.
//!
//! A manifest never claims more than its evidence shows: `consistency` and `completeness` are
//! derived by the coordinator from what was seen, and everything missing is listed in `gaps`.
//! The format is versioned; readers refuse a version they do not know.

use crate::ids::{BackupId, EnvironmentName, PartName, ProjectId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the manifest's format that this program writes.
pub const MANIFEST_VERSION: u32 = 1;

/// The whole record of one backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's version, [`MANIFEST_VERSION`].
    pub version: u32,
    /// The program that wrote it, with its version.
    pub written_by: String,
    /// The backup's id.
    pub backup: BackupId,
    /// The project it belongs to.
    pub project: ProjectId,
    /// The environment it is of.
    pub environment: EnvironmentName,
    /// The environment's type (`production`, `staging`, `development`).
    pub environment_type: String,
    /// When the backup was asked for.
    pub created: Timestamp,
    /// How its parts relate to one another in time.
    pub consistency: Consistency,
    /// Whether all that was asked for is in it.
    pub completeness: Completeness,
    /// Why `consistency` is less than consistent, if it is.
    pub doubts: Vec<String>,
    /// What is missing, if anything.
    pub gaps: Vec<Gap>,
    /// What proves the instant. Absent from a live backup: there was no hold.
    pub evidence: Option<Evidence>,
    /// Every captured part, services and mounts.
    pub parts: Vec<Part>,
    /// The Git commit that the code was at, where one was found. Code itself is not backed up.
    pub code: Option<Code>,
}

impl Manifest {
    /// Bytes captured, before deduplication and compression.
    pub fn bytes_captured(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// What scripts may read of a backup: all of it strings, times in RFC 3339 with microseconds.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::from([
            ("consistency", self.consistency.as_str().to_owned()),
            ("completeness", self.completeness.as_str().to_owned()),
            ("bytes_captured", self.bytes_captured().to_string()),
        ]);
        if let Some(evidence) = &self.evidence {
            attributes.insert("hold_ms", format!("{:.1}", evidence.hold_ms()));
            attributes.insert("drain_ms", format!("{:.1}", evidence.drain_ms()));
            attributes.insert("mark_ms", format!("{:.1}", evidence.mark_ms()));
            attributes.insert("hold_begin", format!("{:.6}", evidence.hold_begin));
            attributes.insert("hold_end", format!("{:.6}", evidence.hold_end));
            let sum = |pick: fn(&GatewayEvidence) -> u64| {
                evidence.gateways.iter().map(pick).sum::<u64>().to_string()
            };
            attributes.insert("requests_in_flight", sum(|g| g.in_flight_at_begin));
            attributes.insert("requests_held", sum(|g| g.held));
        }
        attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// How the parts of a backup relate to one another in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// All parts are at one instant, and the evidence shows it.
    Consistent,
    /// The still point was held, but something was captured as a power cut would have left it.
    CrashConsistent,
    /// Nothing was held: each service is consistent in itself, not among services.
    Live,
}

impl Consistency {
    /// The word in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consistent => "consistent",
            Self::CrashConsistent => "crash-consistent",
            Self::Live => "live",
        }
    }
}

/// Whether everything that was asked for is in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Completeness {
    /// Nothing is missing.
    Complete,
    /// Something is missing; the manifest's `gaps` name it.
    Partial,
}

impl Completeness {
    /// The word in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
        }
    }
}

/// One thing that is missing from a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The part it is missing from.
    pub part: PartName,
    /// What is missing: a path, a database, a kind of object.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What proves a still point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The first gateway began to park requests.
    pub hold_begin: Timestamp,
    /// The last request in flight had ended, at all gateways.
    pub drained: Timestamp,
    /// All participants had been marked.
    pub marked: Timestamp,
    /// The last gateway let requests flow again.
    pub hold_end: Timestamp,
    /// Each gateway's own account.
    pub gateways: Vec<GatewayEvidence>,
    /// How long the services' counters were watched until they stood still, in microseconds.
    pub settle_us: u64,
    /// How many times the marks were taken; more than one where a write was seen between them.
    pub mark_rounds: u32,
    /// Writes seen between hold and release that nobody held, in words.
    pub unheld_writes: Vec<String>,
}

impl Evidence {
    /// First request parked to release, in milliseconds: what a user can feel.
    pub fn hold_ms(&self) -> f64 {
        milliseconds(self.hold_begin, self.hold_end)
    }

    /// Hold begin to the end of the last request in flight, in milliseconds.
    pub fn drain_ms(&self) -> f64 {
        milliseconds(self.hold_begin, self.drained)
    }

    /// End of the drain to release, in milliseconds (`hold_ms` = `drain_ms` + `mark_ms`).
    pub fn mark_ms(&self) -> f64 {
        milliseconds(self.drained, self.hold_end)
    }
}

fn milliseconds(from: Timestamp, to: Timestamp) -> f64 {
    (to.as_microsecond() - from.as_microsecond()) as f64 / 1000.0
}

/// One gateway's account of a hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayEvidence {
    /// The gateway.
    pub gateway: PartName,
    /// It began to park requests.
    pub hold_begin: Timestamp,
    /// None was in flight any more.
    pub drained: Timestamp,
    /// It let requests flow again.
    pub hold_end: Timestamp,
    /// Requests in flight when the hold began.
    pub in_flight_at_begin: u64,
    /// Requests that arrived during the hold and waited.
    pub held: u64,
    /// Requests that arrived during the hold and were refused (more than `max_held` waited).
    pub refused: u64,
    /// Requests that passed during the hold because the configuration says that they may.
    #[serde(default)]
    pub excepted: u64,
    /// Requests of the application to itself, while it served one in flight, that passed during
    /// the hold.
    #[serde(default)]
    pub re_entrant: u64,
    /// What its hold endpoint adds. Absent where all requests went through the gateway itself: it
    /// sees them end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointEvidence>,
}

/// What is known of a hold by a hold endpoint: a proxy asks it whether a request may begin, and
/// reports by its access log that it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointEvidence {
    /// Whether the proxy reports that requests have ended.
    pub completions: bool,
    /// Requests that had passed before the hold, and of which nobody had said that they ended when
    /// it was released.
    pub unfinished: u64,
    /// Upgraded connections (WebSocket) that were open: an endpoint cannot hold what they bring.
    pub upgraded: u64,
    /// Requests that the proxy let pass without asking, from a minute before the hold on.
    pub unasked: u64,
    /// How long the endpoint had been there when the hold began, in milliseconds.
    pub up_ms: u64,
}

impl EndpointEvidence {
    /// An endpoint that began less than this before a hold may not know of all that is in flight.
    pub const YOUNG_MS: u64 = 60_000;

    /// What speaks against `consistent`, in words.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if !self.completions {
            doubts.push(
                "its endpoint is not told when requests end (`completions` is not set), so some \
                 may still have been at work"
                    .to_owned(),
            );
        } else if self.unfinished > 0 {
            doubts.push(format!(
                "nobody reported the end of {} that had passed before the hold",
                number(self.unfinished, "request")
            ));
        }
        if self.upgraded > 0 {
            doubts.push(format!(
                "an endpoint cannot hold what comes over {} that was open",
                number(self.upgraded, "upgraded connection")
            ));
        }
        if self.unasked > 0 {
            doubts.push(format!(
                "the proxy let {} pass without asking its endpoint",
                number(self.unasked, "request")
            ));
        }
        if self.up_ms < Self::YOUNG_MS {
            doubts.push(format!(
                "its endpoint had begun only {:.1} s before, and does not know of requests from \
                 before that",
                self.up_ms as f64 / 1000.0
            ));
        }
        doubts
    }
}

fn number(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// One captured part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its name; its data is below `/services/NAME` or `/mounts/NAME`.
    pub name: PartName,
    /// A service or a mount.
    pub role: Role,
    /// The type as in the configuration (`postgresql`, `sqlite`, `mount`).
    pub kind: String,
    /// Its instant.
    pub marker: Marker,
    /// What was found in prepare: versions of server and tools.
    pub facts: BTreeMap<String, String>,
    /// Bytes captured, before deduplication and compression.
    pub bytes: u64,
    /// How many files or tables those bytes are in.
    pub items: u64,
}

/// What a captured part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Below `/services`.
    Service,
    /// Below `/mounts`.
    Mount,
}

/// The instant that a participant fixed, in its own terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// When the mark was complete, by the clock of the machine that took it.
    pub at: Timestamp,
    /// The participant's own words for it: `lsn`, `snapshot`, `gtid`, `delta_files`, ...
    pub values: BTreeMap<String, String>,
}

/// Where the code was; restore prints how to get it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// The commit id.
    pub commit: String,
    /// The branch, if one was checked out.
    pub branch: Option<String>,
}
