//! The coordinator's side of the control protocol: blocking, on the standard library alone.
//!
//! [`Control`] is a connection without a hold. [`Control::hold`] turns it into a [`Held`], which
//! owns the connection: dropping it, or dying, closes the connection, whereupon the gateway ends
//! the hold. Only [`Held::release`] yields evidence, and only when the hold was on until then.

mod connection;
mod error;
mod held;

pub use crate::wire::{
    EndReason, Ended, HoldStatus, PROTOCOL, Purpose, StateName, Status, Totals, UnfinishedRequest,
};
pub use error::ControlError;
pub use held::Held;

use crate::wire::{Ask, Tell};
use connection::{ANSWER, Connection};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stillpoint_model::ids::PartName;

/// What a coordinator asks of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldOrder {
    /// Names the hold, in logs and for [`Control::reopen`]: the backup's or activity's id.
    pub id: String,
    /// What it is for.
    pub purpose: Purpose,
    /// It ends by itself after this long. The gateway's own limit caps it.
    pub max_hold: Duration,
    /// It ends by itself when the coordinator sent no beat for this long. Beats go out four times
    /// as often. In whole milliseconds.
    pub silence: Duration,
}

/// A connection to a gateway's control socket.
#[derive(Debug)]
pub struct Control {
    connection: Connection,
    socket: PathBuf,
    gateway: PartName,
}

impl Control {
    /// Connects to a gateway and checks that both speak the same protocol.
    pub fn connect(socket: &Path) -> Result<Self, ControlError> {
        let mut connection = Connection::open(socket)
            .map_err(|source| ControlError::Connect { socket: socket.to_owned(), source })?;
        match connection.answer(ANSWER)? {
            Tell::Greeting { protocol, .. } if protocol != PROTOCOL => {
                Err(ControlError::Version { theirs: protocol, ours: PROTOCOL })
            }
            Tell::Greeting { name, .. } => {
                Ok(Self { connection, socket: socket.to_owned(), gateway: name })
            }
            other => Err(ControlError::unexpected(&other)),
        }
    }

    /// The gateway's name, as it gave it.
    pub fn gateway(&self) -> &PartName {
        &self.gateway
    }

    /// The socket that this is connected to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the gateway is doing.
    pub fn status(&mut self) -> Result<Status, ControlError> {
        match self.connection.ask(&Ask::Status {})? {
            Tell::Status { status } => Ok(*status),
            other => Err(ControlError::unexpected(&other)),
        }
    }

    /// Begins a hold: when this returns, new requests are being parked. Refused with
    /// [`ControlError::Busy`] while another hold is on or has left requests refused.
    pub fn hold(mut self, order: &HoldOrder) -> Result<Held, ControlError> {
        let answer = self.connection.ask(&Ask::Hold {
            id: order.id.clone(),
            purpose: order.purpose,
            max_hold_ms: order.max_hold.as_millis() as u64,
            silence_ms: order.silence.as_millis() as u64,
        })?;
        match answer {
            Tell::Held { began, in_flight_at_begin, max_hold_ms } => Held::begin(
                self.connection,
                self.gateway,
                began,
                in_flight_at_begin,
                Duration::from_millis(max_hold_ms),
                order.silence.min(Duration::from_millis(max_hold_ms)) / 4,
            ),
            other => Err(ControlError::unexpected(&other)),
        }
    }

    /// Ends the refusing state that the hold named `hold` left when a restore was cut off. Doing
    /// it again, or when nothing is refused, does no harm.
    pub fn reopen(&mut self, hold: &str) -> Result<(), ControlError> {
        match self.connection.ask(&Ask::Reopen { hold: hold.to_owned() })? {
            Tell::Done {} => Ok(()),
            other => Err(ControlError::unexpected(&other)),
        }
    }
}
