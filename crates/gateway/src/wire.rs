//! The words of the control protocol, shared by both sides: JSON objects, one a line, over a Unix
//! socket. `docs/gateway.md` describes them for people.
//!
//! The gateway speaks first, with a [`Tell::Greeting`] that names the protocol's version; a client
//! that does not know the version hangs up. Each [`Ask`] except [`Ask::Beat`] gets one answer, in
//! order; [`Tell::Drained`] and [`Tell::Ended`] may come at any time in between.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use stillpoint_model::ids::PartName;
use stillpoint_model::manifest::GatewayEvidence;

/// The version of the control protocol that this program speaks.
pub const PROTOCOL: u32 = 1;

/// The longest line that either side accepts, in bytes.
pub(crate) const LONGEST_LINE: usize = 1 << 20;

/// At most this many requests in flight are named in one answer.
pub(crate) const MOST_NAMED: usize = 50;

/// What a hold is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// However it ends, requests go through to the application.
    Backup,
    /// The same, until the coordinator says that the data is being exchanged: from then on only a
    /// release or a reopen lets requests through.
    Restore,
}

/// Why a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The coordinator released it.
    Released,
    /// It had lasted as long as it may.
    MaxHold,
    /// The coordinator sent no beat for too long.
    Silence,
    /// The coordinator's connection was closed.
    ConnectionLost,
    /// The gateway was told to stop.
    GatewayStopped,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Released => "the coordinator released it",
            Self::MaxHold => "it lasted as long as a hold may",
            Self::Silence => "the coordinator fell silent",
            Self::ConnectionLost => "the coordinator's connection was closed",
            Self::GatewayStopped => "the gateway was told to stop",
        })
    }
}

/// How and when a hold ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The hold's id, as its coordinator gave it.
    pub hold: String,
    /// Why.
    pub reason: EndReason,
    /// When.
    pub at: Timestamp,
}

/// What a gateway is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// Requests go through.
    Passing,
    /// New requests wait; some are still in flight.
    Draining,
    /// New requests wait; none is in flight.
    Holding,
    /// A hold has ended; those that waited go through in batches.
    Releasing,
    /// A restore was left unfinished; every request is answered 503.
    Refusing,
}

/// A gateway's own account of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: PartName,
    /// What it is doing.
    pub state: StateName,
    /// Requests between the gate and the last byte of their response.
    pub in_flight: u64,
    /// Requests that wait.
    pub held: u64,
    /// Upgraded connections (WebSocket), which do not count as in flight.
    pub upgraded: u64,
    /// How many requests may wait.
    pub max_held: u64,
    /// How long a hold may last, in milliseconds.
    pub max_hold_ms: u64,
    /// Where requests go.
    pub upstream: String,
    /// Whether a connection to there could be opened just now.
    pub upstream_reachable: bool,
    /// Since the gateway began.
    pub totals: Totals,
    /// The hold that is on.
    pub hold: Option<HoldStatus>,
    /// The hold that left requests refused.
    pub refusing: Option<Ended>,
    /// The last hold that ended, however it did.
    pub last_end: Option<Ended>,
}

/// A hold that is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// As its coordinator named it.
    pub id: String,
    /// What it is for.
    pub purpose: Purpose,
    /// New requests were parked from here on.
    pub began: Timestamp,
    /// None was in flight any more.
    pub drained: Option<Timestamp>,
    /// Requests in flight when it began.
    pub in_flight_at_begin: u64,
    /// Requests that have waited so far.
    pub held: u64,
    /// Requests refused so far.
    pub refused: u64,
    /// It ends by itself after this long, in milliseconds.
    pub max_hold_ms: u64,
    /// It ends by itself when no beat came for this long, in milliseconds.
    pub silence_ms: u64,
    /// Ending by itself means refusing, not passing.
    pub refuse_on_silence: bool,
}

/// Counts since the gateway began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests that arrived.
    pub requests: u64,
    /// Requests that waited.
    pub held: u64,
    /// Requests answered 503.
    pub refused: u64,
    /// Requests whose client went away while they waited.
    pub abandoned: u64,
    /// Requests of the application to itself that passed during a hold.
    pub re_entrant: u64,
    /// Requests that passed because the configuration says that they may.
    #[serde(default)]
    pub excepted: u64,
    /// Requests answered 502.
    pub bad_gateway: u64,
    /// Holds begun.
    pub holds: u64,
    /// Holds that ended otherwise than by their coordinator's release.
    pub ran_out: u64,
}

/// A request in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedRequest {
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// Who sent it.
    pub client: SocketAddr,
    /// How long it has been in flight, in milliseconds.
    pub age_ms: u64,
}

impl fmt::Display for UnfinishedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = std::time::Duration::from_millis(self.age_ms).as_secs_f64();
        write!(f, "{} {} from {}, {age:.1} s", self.method, self.path, self.client)
    }
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Ask {
    Status {},
    Hold { id: String, purpose: Purpose, max_hold_ms: u64, silence_ms: u64 },
    Beat {},
    Check {},
    Unfinished {},
    RefuseOnSilence {},
    Release {},
    Reopen { hold: String },
}

/// What a gateway answers or announces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Tell {
    Greeting { protocol: u32, name: PartName },
    Status { status: Box<Status> },
    Held { began: Timestamp, in_flight_at_begin: u64, max_hold_ms: u64 },
    Done {},
    Unfinished { requests: Vec<UnfinishedRequest>, more: u64 },
    Released { evidence: Box<GatewayEvidence> },
    ReleasedUndrained {},
    RanOut { reason: EndReason, at: Timestamp },
    Busy { hold: String },
    Refused { why: String },
    Drained { at: Timestamp },
    Ended { reason: EndReason, at: Timestamp },
}
