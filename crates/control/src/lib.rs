//! The control plane: projects, environments, backups, activities, users, roles and tokens, and the
//! use cases over them. HTTP calls these; agents carry out what they order.
//!
//! What must never break:
//! - every use case checks the caller's role itself, and says of what the caller may not see only
//!   that it was not found;
//! - one activity at a time in an environment; the others wait in the order of their arrival;
//! - an activity's final state is stored before its log says that it has ended;
//! - of a token, only a hash is stored.

mod access;
mod activities;
mod agents;
mod audit;
mod backups;
pub mod entity;
mod environments;
mod error;
mod queue;
mod schema;
mod store;
mod tokens;
mod users;

pub use access::{Access, Caller, TypeRole};
pub use activities::{Filter, LogLine};
pub use backups::RestoreWish;
pub use error::ControlError;
pub use stillpoint_agent::protocol::LocationState;
pub use store::{Control, micros, now};
pub use tokens::{AccessToken, CreatedToken};
pub use users::{Membership, NewUser};
