//! Why a use case refuses or fails. What the caller may not see is said to be unknown, in the same
//! words as what is not there.

use sea_orm::sqlx::error::DatabaseError;
use sea_orm::{DbErr, RuntimeErr};

/// A refusal or failure.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Not there, or not for this caller's eyes.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The caller lacks the role.
    #[error("{0}")]
    Forbidden(String),
    /// A value that cannot be.
    #[error("{field}: {why}")]
    Invalid {
        /// Which one.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Only an active environment can be backed up or restored.
    #[error(
        "environment `{0}` is not active: activate it first, `stillpoint environment:activate {0}`"
    )]
    NotActive(String),
    /// The environment is active already, or not.
    #[error("environment `{environment}` is {status}")]
    WrongStatus {
        /// Its name.
        environment: String,
        /// Its status.
        status: String,
    },
    /// The activity has ended, or cannot be stopped any more.
    #[error("the activity cannot be cancelled in its current state: {0}")]
    CannotCancel(String),
    /// There is one already.
    #[error("{0}")]
    Conflict(String),
    /// No such token, or one that was revoked.
    #[error("Invalid API token")]
    InvalidApiToken,
    /// No such access token, or one that has expired.
    #[error("the access token is invalid or has expired")]
    InvalidAccessToken,
    /// The datastore cannot be used.
    #[error("open the datastore {path}: {why}")]
    Unusable {
        /// Its file.
        path: String,
        /// In words.
        why: String,
    },
    /// The datastore has no room left for what was to be stored. Nothing of it was.
    #[error("the datastore has no room left")]
    Full(#[source] DbErr),
    /// The datastore failed.
    #[error("the datastore failed")]
    Storage(#[source] DbErr),
}

/// SQLite's result code for a full disk, as its driver gives it.
const SQLITE_FULL: &str = "13";

impl From<DbErr> for ControlError {
    fn from(error: DbErr) -> Self {
        let full = match &error {
            DbErr::Conn(RuntimeErr::SqlxError(e))
            | DbErr::Exec(RuntimeErr::SqlxError(e))
            | DbErr::Query(RuntimeErr::SqlxError(e)) => e
                .as_database_error()
                .and_then(DatabaseError::code)
                .is_some_and(|code| code == SQLITE_FULL),
            _ => false,
        };
        if full { Self::Full(error) } else { Self::Storage(error) }
    }
}
