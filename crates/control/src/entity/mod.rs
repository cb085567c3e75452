//! The datastore's tables, one room each. Times are microseconds since 1970, ids are text.

#![allow(missing_docs, reason = "what SeaORM derives cannot be documented")]

pub mod activity;
pub mod api_token;
pub mod audit;
pub mod backup;
pub mod environment;
pub mod log_line;
pub mod member;
pub mod project;
pub mod user;
