//! Swap, and its undoing: connections refused and ended, then all renames in one transaction.
//!
//! Every step looks first at what the server has, and does what is left to do. Renaming waits for
//! the last session in a database and fails after a while; a session can come in between the two,
//! so both are repeated, within bounds.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;

use super::{Found, Plan, PostgresRestore, Target, look};
use crate::ServiceError;
use crate::postgresql::names::{ident, literal};

/// How long sessions that were told to end may take. Requests wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(20);

/// One rename: from, to.
type Rename<'p> = (&'p str, &'p str);

impl PostgresRestore {
    pub(super) fn swap_in(&self, plan: &Plan) -> Result<(), ServiceError> {
        let mut session = self.maintenance_for(plan)?;
        let client = &mut session.client;
        let mut renames = Vec::new();
        for target in &plan.databases {
            let [live, aside, old] = state(client, plan, target)?;
            match (live, aside, old) {
                (Found::Loaded, Found::Nothing, _) => {}
                (Found::Other, Found::Loaded, Found::Nothing) => {
                    renames.push((target.live.as_str(), target.old.as_str()));
                    renames.push((target.aside.as_str(), target.live.as_str()));
                }
                (Found::Nothing, Found::Loaded, _) => {
                    renames.push((target.aside.as_str(), target.live.as_str()));
                }
                _ => return Err(unexpected("swap in", target, [live, aside, old])),
            }
        }
        rename(client, &renames, plan)?;
        for target in &plan.databases {
            allow(client, &target.live, true)?;
        }
        Ok(())
    }

    pub(super) fn swap_out(&self, plan: &Plan) -> Result<(), ServiceError> {
        let mut session = self.maintenance_for(plan)?;
        let client = &mut session.client;
        let mut renames = Vec::new();
        for target in &plan.databases {
            let [live, aside, old] = state(client, plan, target)?;
            match (live, aside, old) {
                // Swapped: undo it, back to the old one or to nothing.
                (Found::Loaded, Found::Nothing, old) => {
                    renames.push((target.live.as_str(), target.aside.as_str()));
                    if old != Found::Nothing {
                        renames.push((target.old.as_str(), target.live.as_str()));
                    }
                }
                (Found::Nothing, _, Found::Other) => {
                    renames.push((target.old.as_str(), target.live.as_str()));
                }
                // Not swapped, or undone already.
                (Found::Other | Found::Nothing, _, Found::Nothing) => {}
                _ => return Err(unexpected("swap back", target, [live, aside, old])),
            }
        }
        rename(client, &renames, plan)?;
        for target in &plan.databases {
            // Refused since before the swap, or by a swap that was cut off.
            if state(client, plan, target)?[0] == Found::Other {
                allow(client, &target.live, true)?;
            }
        }
        Ok(())
    }

    pub(super) fn drop_old(&self, plan: &Plan) -> Result<(), ServiceError> {
        let mut session = self.maintenance_for(plan)?;
        let client = &mut session.client;
        for target in &plan.databases {
            let [live, aside, old] = state(client, plan, target)?;
            match (live, old) {
                (Found::Loaded, Found::Other) => {
                    drop_database(client, &target.old)?;
                    unmark(client, target)?;
                }
                (Found::Loaded, Found::Nothing) => unmark(client, target)?,
                // Finished already.
                (_, Found::Nothing) if aside == Found::Nothing => {}
                _ => return Err(unexpected("finish", target, [live, aside, old])),
            }
        }
        Ok(())
    }

    pub(super) fn drop_aside(&self, plan: &Plan) -> Result<(), ServiceError> {
        let mut session = self.maintenance_for(plan)?;
        let client = &mut session.client;
        for target in &plan.databases {
            // Its name has the token: nobody else's. A load cut off early has not marked it yet.
            let [.., aside, _] = state(client, plan, target)?;
            if aside != Found::Nothing {
                drop_database(client, &target.aside)?;
            }
        }
        Ok(())
    }
}

fn fail(doing: String) -> impl FnOnce(postgres::Error) -> ServiceError {
    move |e| ServiceError::new(doing).because(e)
}

/// What there is under the names of `target`: live, aside, old.
fn state(client: &mut Client, plan: &Plan, target: &Target) -> Result<[Found; 3], ServiceError> {
    let mut look = |name: &str| {
        look(client, name, &plan.token).map_err(fail(format!("look for the database `{name}`")))
    };
    Ok([look(&target.live)?, look(&target.aside)?, look(&target.old)?])
}

fn unexpected(doing: &str, target: &Target, found: [Found; 3]) -> ServiceError {
    let names = [&target.live, &target.aside, &target.old];
    let seen: Vec<String> = names
        .iter()
        .zip(found)
        .map(|(name, found)| match found {
            Found::Nothing => format!("`{name}` does not exist"),
            Found::Loaded => format!("`{name}` is the restored one"),
            Found::Other => format!("`{name}` is another"),
        })
        .collect();
    ServiceError::new(format!("{doing} the database `{}`", target.live)).because(seen.join(", "))
}

/// Renames all or none, ending every session that stands in the way. What is live afterwards
/// accepts connections from the same instant on.
fn rename(client: &mut Client, renames: &[Rename<'_>], plan: &Plan) -> Result<(), ServiceError> {
    if renames.is_empty() {
        return Ok(());
    }
    let mut statements: Vec<String> = vec!["BEGIN".to_owned()];
    for (from, to) in renames {
        statements.push(format!("ALTER DATABASE {} RENAME TO {}", ident(from), ident(to)));
    }
    for target in &plan.databases {
        if renames.iter().any(|(_, to)| *to == target.live) {
            let live = ident(&target.live);
            statements.push(format!("ALTER DATABASE {live} ALLOW_CONNECTIONS true"));
        }
    }
    statements.push("COMMIT".to_owned());
    let statements = statements.join("; ");
    let deadline = Instant::now() + PATIENCE;
    loop {
        for (from, _) in renames {
            allow(client, from, false)?;
            end_sessions(client, from)?;
        }
        let Err(error) = client.batch_execute(&statements) else {
            return Ok(());
        };
        client.batch_execute("ROLLBACK").map_err(fail("undo a half-done rename".to_owned()))?;
        if error.code() != Some(&SqlState::OBJECT_IN_USE) || Instant::now() >= deadline {
            let hint = lingering(client, renames);
            // As it was: an application that stays must be able to go on.
            for (from, _) in renames {
                allow(client, from, true)?;
            }
            let names: Vec<String> =
                renames.iter().map(|(from, to)| format!("`{from}` to `{to}`")).collect();
            return Err(ServiceError::new(format!("rename {}", names.join(", ")))
                .because(error)
                .hint(hint));
        }
        thread::sleep(PAUSE);
    }
}

/// Tells every process in `database` to end: sessions, senders of replication, workers. One by
/// one: those of other roles may not be ours to end, and must not keep the rest alive. Of theirs
/// the server may hide what they are. Autovacuum gives way by itself.
fn end_sessions(client: &mut Client, database: &str) -> Result<(), ServiceError> {
    let sessions = client
        .query(
            "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid() \
             AND backend_type IS DISTINCT FROM 'autovacuum worker'",
            &[&database],
        )
        .map_err(fail(format!("list the sessions in `{database}`")))?;
    for row in sessions {
        let pid: i32 = row.get(0);
        match client.query_one("SELECT pg_terminate_backend($1)", &[&pid]) {
            Err(e) if e.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Err(fail(format!("end process {pid} in `{database}`"))(e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn lingering(client: &mut Client, renames: &[Rename<'_>]) -> String {
    let names: Vec<&str> = renames.iter().map(|(from, _)| *from).collect();
    let rows = client.query(
        "SELECT pid, coalesce(usename, '')::text, coalesce(application_name, '') \
         FROM pg_stat_activity WHERE datname = ANY ($1) AND pid <> pg_backend_pid() \
         UNION ALL SELECT 0, owner::text, 'prepared transaction ' || gid \
         FROM pg_prepared_xacts WHERE database = ANY ($1)",
        &[&names],
    );
    let left: Vec<String> = rows
        .unwrap_or_default()
        .iter()
        .map(|row| {
            let (pid, user, what): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
            format!("process {pid} of `{user}` ({what})")
        })
        .collect();
    if left.is_empty() {
        return "no other session is left; see the cause".to_owned();
    }
    format!("end these, or grant this role pg_signal_backend so that it may: {}", left.join(", "))
}

fn allow(client: &mut Client, database: &str, allowed: bool) -> Result<(), ServiceError> {
    let statement = format!("ALTER DATABASE {} ALLOW_CONNECTIONS {allowed}", ident(database));
    client.batch_execute(&statement).map_err(fail(statement))
}

/// Gives the restored database its own comment back, in the place of the mark.
fn unmark(client: &mut Client, target: &Target) -> Result<(), ServiceError> {
    let comment = target.properties.comment.as_deref().map_or("NULL".to_owned(), literal);
    let statement = format!("COMMENT ON DATABASE {} IS {comment}", ident(&target.live));
    client.batch_execute(&statement).map_err(fail(statement))
}

fn drop_database(client: &mut Client, database: &str) -> Result<(), ServiceError> {
    let doing = format!("drop the database `{database}`");
    let deadline = Instant::now() + PATIENCE;
    loop {
        allow(client, database, false)?;
        end_sessions(client, database)?;
        match client.batch_execute(&format!("DROP DATABASE IF EXISTS {}", ident(database))) {
            Ok(()) => return Ok(()),
            Err(e) if e.code() == Some(&SqlState::OBJECT_IN_USE) && Instant::now() < deadline => {
                thread::sleep(PAUSE);
            }
            Err(e) => return Err(ServiceError::new(doing).because(e)),
        }
    }
}
