//! Restore as idempotent steps: aside, verified, then swapped; the old data is kept to the end.
//!
//! The caller journals which step it is about to take, durably, before it takes it. After a crash
//! any other process can go on from the journal: before all swaps are done it calls
//! [`Restore::swap_back`] then [`Restore::discard`], afterwards [`Restore::finish`]. So every step
//! must succeed when it is repeated, or when it was cut off in the middle the time before.

use crate::{ServiceError, Source};
use serde::{Deserialize, Serialize};

/// Everything a driver needs to find again what it has put aside: names, never passwords. Kept in
/// the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Aside(pub serde_json::Value);

/// The steps of a restore, in their order.
pub trait Restore: Send {
    /// Names what will be put aside, and refuses what can be foreseen (rights, space, versions)
    /// without changing anything. `token` is unique to this restore, `[a-z0-9]+`.
    fn plan(&mut self, token: &str, source: &dyn Source) -> Result<Aside, ServiceError>;

    /// Loads the captured state beside the live one. The application goes on undisturbed.
    fn load(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError>;

    /// Proves that what was loaded is what was captured.
    fn verify(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError>;

    /// Puts the loaded state in the live one's place and keeps the live one aside. Runs in a hold.
    fn swap(&mut self, aside: &Aside) -> Result<(), ServiceError>;

    /// Undoes [`Restore::swap`], whole or half done; does nothing if it never began.
    fn swap_back(&mut self, aside: &Aside) -> Result<(), ServiceError>;

    /// After swapping ended well everywhere: removes the old state.
    fn finish(&mut self, aside: &Aside) -> Result<(), ServiceError>;

    /// Before the swap, or after it was undone: removes the loaded state.
    fn discard(&mut self, aside: &Aside) -> Result<(), ServiceError>;
}
