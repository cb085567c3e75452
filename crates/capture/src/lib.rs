//! The still point: every part of an environment fixed at one instant, then captured.
//!
//! [`back_up`] leads participants ([`Participant`]) through prepare, hold, mark, release, capture
//! and publish without knowing what they are. [`restore`] puts a backup back: aside, verified,
//! then swapped, journaled so that it can be finished or undone by another process. The
//! [`watchdog`] outlives whoever asked for any of it.

mod coordinator;
mod crew;
mod durable;
mod gateways;
mod gentle;
pub mod mount;
mod participant;
mod registry;
pub mod restore;
mod service;
mod still_point;
mod stream;
pub mod watchdog;
pub mod worker;

pub use coordinator::{Backup, BackupOrder, Limits, back_up};
pub use gateways::GatewayParticipant;
pub use gentle::gently;
pub use participant::{Account, HoldOrder, Participant, Rank};
pub use service::ServiceParticipant;
pub use stream::{NoStreams, TreeSource};
pub use worker::WorkerParticipant;

/// A refusal or failure of one step, naming the part that it concerns.
pub type CaptureError = stillpoint_model::step::StepError;
