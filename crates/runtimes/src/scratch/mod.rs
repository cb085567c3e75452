//! The `scratch` runtime: a private PostgreSQL in a directory.
//!
//! For the demo, and for tests that need the real server: it is initialised, started and stopped
//! here, listens on a Unix socket in its own directory (and on 127.0.0.1 if asked to), and shares
//! nothing with a server that the machine may run already. PostgreSQL refuses to run as root, so
//! root's scratch server runs as `postgres` or `nobody`. Every login needs its password; nothing
//! is trusted. fsync stays on: a scratch server keeps the promises of a real one.
//!
//! - [`installation`] finds the server's programs;
//! - [`account`] chooses the account and makes a command run as it;
//! - [`server`] is the running server.

pub mod account;
mod installation;
mod server;

pub use installation::Installation;
pub use server::{OnSpawn, ScratchOptions, ScratchPostgres};
