//! What can go wrong between a coordinator and a gateway.

use crate::wire::{EndReason, Tell};
use jiff::Timestamp;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong between a coordinator and a gateway.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody answers on the control socket.
    #[error("could not connect to the gateway's control socket {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The gateway speaks another version of the control protocol.
    #[error("the gateway speaks version {theirs} of the control protocol, this program {ours}")]
    Version {
        /// The gateway's version.
        theirs: u32,
        /// This program's.
        ours: u32,
    },
    /// The connection broke. A hold on it has ended, or the gateway itself has.
    #[error("the connection to the gateway broke")]
    Lost {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The gateway did not answer in time.
    #[error("the gateway did not answer for {waited:?}")]
    NoAnswer {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Something was said that this protocol does not know at this point.
    #[error("the gateway said something unexpected: {said}")]
    Unexpected {
        /// What.
        said: String,
    },
    /// Another hold is on, or has left requests refused.
    #[error("hold `{hold}` is in the way")]
    Busy {
        /// The other hold's id.
        hold: String,
    },
    /// The gateway will not do that.
    #[error("the gateway refused: {why}")]
    Refused {
        /// Why.
        why: String,
    },
    /// Requests were still in flight when the time was up. The hold is still on.
    #[error("{} in flight did not end in time: {}", requests(unfinished), unfinished.join("; "))]
    DrainTimeout {
        /// Each with method, path, client and age; the oldest first.
        unfinished: Vec<String>,
    },
    /// The hold has ended by itself: what was captured under it is not consistent.
    #[error("the hold ended by itself at {at}: {reason}")]
    RanOut {
        /// Why it ended.
        reason: EndReason,
        /// When it ended.
        at: Timestamp,
    },
    /// The hold was released before nothing was in flight any more: it proves nothing.
    #[error("the hold was released while requests were still in flight")]
    Undrained,
}

impl ControlError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect { .. } => {
                Some("is the gateway running, with this control socket, and as this user?")
            }
            Self::Version { .. } => Some("run the gateway and this program from the same release"),
            Self::DrainTimeout { .. } => Some(
                "a longer drain_timeout lets them finish; a request that the application makes to \
                 itself must carry on the X-Stillpoint-In-Flight header",
            ),
            Self::RanOut { reason: EndReason::MaxHold, .. } => {
                Some("raise max_hold, or find what made the marks slow")
            }
            _ => None,
        }
    }

    pub(super) fn unexpected(tell: &Tell) -> Self {
        match tell {
            Tell::Busy { hold } => Self::Busy { hold: hold.clone() },
            Tell::Refused { why } => Self::Refused { why: why.clone() },
            Tell::RanOut { reason, at } | Tell::Ended { reason, at } => {
                Self::RanOut { reason: *reason, at: *at }
            }
            other => Self::Unexpected { said: format!("{other:?}") },
        }
    }
}

fn requests(unfinished: &[String]) -> String {
    match unfinished.len() {
        1 => "1 request".to_owned(),
        number => format!("{number} requests"),
    }
}
