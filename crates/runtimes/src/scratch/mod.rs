//! The `scratch` runtime: private servers, each in a directory.
//!
//! For the demo, and for tests that need the real server: it is initialised, started and stopped
//! here, listens on a Unix socket in its own directory (PostgreSQL on 127.0.0.1 too, if asked to),
//! and shares nothing with a server that the machine may run already. No server runs as root: root's
//! scratch servers run as `postgres` or `nobody`. Every login needs its password; nothing is
//! trusted. fsync stays on: a scratch server keeps the promises of a real one.
//!
//! - [`account`] chooses the account and makes a command run as it;
//! - `place` and `socket` make the directories, `process` starts, watches and ends a server;
//! - `postgresql`, `mariadb` and `redis` are the servers, `installation` finds PostgreSQL's programs.

pub mod account;
mod installation;
mod mariadb;
mod place;
mod postgresql;
mod process;
mod redis;
mod socket;

pub use installation::Installation;
pub use mariadb::{MariadbInstallation, MariadbOptions, ScratchMariadb};
pub use postgresql::{ScratchOptions, ScratchPostgres};
pub use process::OnSpawn;
pub use redis::{RedisInstallation, RedisOptions, ScratchRedis};
