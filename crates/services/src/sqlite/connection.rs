//! Opening databases, and copying one into another page by page.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::ServiceError;

/// How long a lock is waited for. Requests may be waiting meanwhile.
pub(super) const BUSY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// Between tries for a lock. SQLite's own waiting sleeps ever longer, up to 100 ms, and misses the
/// short gaps that a busy writer in rollback-journal mode leaves.
const TRY_AGAIN: Duration = Duration::from_millis(1);

fn wait_for_lock(tries: i32) -> bool {
    thread::sleep(TRY_AGAIN);
    Duration::from_millis(u64::from(tries.unsigned_abs())) < BUSY
}

/// Opens a database that others use. It must exist.
pub(super) fn open_live(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(wait_for_lock))?;
    // Nothing has been read until the first statement.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// Opens a database that others use, if it is one: `None` where it is damaged beyond opening.
///
/// Looks at the file alone first: with a log beside it, opening may change both.
pub(super) fn open_if_whole(path: &Path) -> Result<Option<Connection>, rusqlite::Error> {
    let looked = open_still(path).and_then(|still| pragma::<i64>(&still, "schema_version"));
    if looked.is_err_and(|e| e.sqlite_error_code() == Some(ErrorCode::NotADatabase)) {
        return Ok(None);
    }
    match open_live(path) {
        Ok(live) => Ok(Some(live)),
        Err(e) if is_damaged(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a database that nobody writes; no `-wal` or `-shm` is made beside it.
pub(super) fn open_still(path: &Path) -> Result<Connection, rusqlite::Error> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri.push_str("?mode=ro&immutable=1");
    Connection::open_with_flags(
        uri,
        OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
}

/// Creates a database to copy into. Its durability is the caller's.
pub(super) fn create(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
    Ok(connection)
}

/// Copies all of `from`, as its open transaction sees it, into `to`: in one transaction there.
pub(super) fn copy(from: &Connection, to: &mut Connection) -> Result<(), CopyError> {
    copy_until(from, to, -1, &|| false)
}

/// The same, so many pages at once, until `stopped` says so. `from` must be in a transaction: else
/// it would begin anew whenever somebody writes.
pub(super) fn copy_until(
    from: &Connection,
    to: &mut Connection,
    pages: i32,
    stopped: &dyn Fn() -> bool,
) -> Result<(), CopyError> {
    let backup = Backup::new(from, to)?;
    let mut deadline = Instant::now() + BUSY;
    loop {
        if stopped() {
            return Err(CopyError::Cancelled);
        }
        match backup.step(pages)? {
            StepResult::Done => return Ok(()),
            StepResult::More => deadline = Instant::now() + BUSY,
            _ if Instant::now() >= deadline => return Err(CopyError::Locked),
            _ => thread::sleep(PAUSE),
        }
    }
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("another connection keeps the database locked")]
    Locked,
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// True when the file is not a database, or not any more.
fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// Advice for what SQLite answers.
pub(super) fn explained(doing: String, path: &Path, source: rusqlite::Error) -> ServiceError {
    let error = ServiceError::new(doing);
    let hint = match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            format!("{} is no SQLite database, or is damaged", path.display())
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => format!(
            "this account must be able to read and write {} and its directory: SQLite keeps its \
             lock and log files beside it",
            path.display()
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another connection keeps it locked for long; is `locking_mode` exclusive there?"
                .to_owned()
        }
        _ => return error.because(source),
    };
    error.hint(hint).because(source)
}

/// One value of a PRAGMA.
pub(super) fn pragma<T: rusqlite::types::FromSql>(
    connection: &Connection,
    name: &str,
) -> Result<T, rusqlite::Error> {
    connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
}
