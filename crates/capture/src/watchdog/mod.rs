//! The watchdog: a process of its own that outlives whoever asked for a hold or a restore, and
//! does what the dead or silent one no longer can.
//!
//! A holder connects, names itself by its process id, and registers what to undo ([`Undo`]). From
//! then on it beats. The watchdog acts once, for each registered undo whose time has come:
//! [`When::Dead`] when the process has ended, [`When::Silent`] also when it stopped beating or its
//! time ran out. Death is seen through a pidfd, so a reused process id cannot mislead it.
//! Gateways need no watchdog to release: they watch their coordinator themselves.

mod client;
mod protocol;
mod server;
mod vigil;

pub use client::{Guard, WatchdogError};
pub use protocol::{EndSignal, Undo, When};
pub use server::{Watchdog, WatchdogOptions, started};
#[cfg(test)]
pub(crate) use vigil::Vigil;

#[cfg(test)]
mod tests;
