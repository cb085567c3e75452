//! The lock of the mark: nothing commits while the snapshots are taken.
//!
//! `BACKUP STAGE BLOCK_COMMIT` (MariaDB 10.4 and newer) passes by statements that run long: only
//! commits wait. `FLUSH TABLES WITH READ LOCK` waits for them, and every writer that comes later
//! waits behind it, so it gives up after a second and names what held it up.

use mysql::Conn;
use mysql::prelude::Queryable;

use super::connection::run;
use crate::ServiceError;

/// Seconds. A server knows no parts of one; all stages but the last keep nobody waiting.
const STAGE_WAIT: u32 = 2;
const TABLES_WAIT: u32 = 1;

/// Which lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    Stages,
    Tables,
}

impl Lock {
    /// Takes it, or leaves nothing behind.
    pub(super) fn take(self, session: &mut Conn) -> Result<(), ServiceError> {
        let (wait, statements): (u32, &[&str]) = match self {
            Self::Tables => (TABLES_WAIT, &["FLUSH TABLES WITH READ LOCK"]),
            Self::Stages => (
                STAGE_WAIT,
                &[
                    "BACKUP STAGE START",
                    "BACKUP STAGE FLUSH",
                    "BACKUP STAGE BLOCK_DDL",
                    "BACKUP STAGE BLOCK_COMMIT",
                ],
            ),
        };
        run(session, &format!("SET SESSION lock_wait_timeout = {wait}"))?;
        for statement in statements {
            if let Err(error) = run(session, statement) {
                let busy = busy(session);
                let _ = self.end(session);
                return Err(ServiceError::new("hold the server's commits for the mark")
                    .because(match &busy {
                        Some(busy) => format!("{}; {busy}", crate::chain(&error)),
                        None => crate::chain(&error),
                    })
                    .hint("back up again when no statement runs that long, and no other backup"));
            }
        }
        Ok(())
    }

    /// Ends it.
    pub(super) fn end(self, session: &mut Conn) -> Result<(), ServiceError> {
        match self {
            Self::Tables => run(session, "UNLOCK TABLES"),
            Self::Stages => run(session, "BACKUP STAGE END"),
        }
    }

    /// Does early, while nobody waits, what makes the first lock slow: whatever of tables without
    /// transactions has not reached the disk yet. Takes no lock that holds up anybody.
    pub(super) fn warm_up(self, session: &mut Conn) -> Result<(), ServiceError> {
        if self == Self::Tables {
            return Ok(());
        }
        run(session, &format!("SET SESSION lock_wait_timeout = {STAGE_WAIT}"))?;
        let flushed =
            run(session, "BACKUP STAGE START").and_then(|()| run(session, "BACKUP STAGE FLUSH"));
        let ended = run(session, "BACKUP STAGE END");
        flushed.map_err(|e| e.hint("another backup may be running at this server"))?;
        ended
    }
}

/// The statement that has run longest and does not wait itself, in words.
pub(super) fn busy(session: &mut Conn) -> Option<String> {
    let found: Option<(u64, String, u64, Option<String>)> = session
        .query_first(
            "SELECT id, user, time, info FROM information_schema.processlist \
             WHERE command IN ('Query', 'Execute') AND id <> CONNECTION_ID() \
             AND IFNULL(state, '') NOT LIKE 'Waiting for %' \
             ORDER BY IFNULL(info, '') LIKE 'SELECT%', time DESC, id LIMIT 1",
        )
        .ok()
        .flatten();
    let (id, user, seconds, statement) = found?;
    let statement: String = statement.unwrap_or_default().chars().take(300).collect();
    Some(format!("connection {id} of {user} has run for {seconds} s: {statement}"))
}
