//! Restore: load into a database of its own, compare every row, swap by renaming.
//!
//! Which state a restore is in is read from the server each time, never remembered: from which
//! databases exist under the three names (live, aside, old), and from a mark on the loaded one, its
//! comment, which stays with it when it is renamed and gives way to the right one in the end. So
//! any process can go on after any crash, and no step takes a database for its own that somebody
//! else made.

mod load;
mod plan;
mod swap;
mod verify;

use postgres::Client;
use serde::{Deserialize, Serialize};

use super::catalog::{Catalog, Properties};
use super::connection::{Login, Session};
use crate::{Aside, Restore, ServiceError, Source};

/// The comment that marks a database as loaded by a restore.
fn mark(token: &str) -> String {
    format!("being restored by stillpoint, token {token}")
}

/// Where statements about databases are sent from: not from the databases themselves.
const MAINTENANCE: [&str; 2] = ["postgres", "template1"];

/// How long another process's step at the same restore is waited for.
const ALONE: &str = "30s";

/// A number for the advisory lock of one restore.
fn lock_key(token: &str) -> i64 {
    let hash = token.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.cast_signed()
}

/// The restore of a server's databases.
pub(super) struct PostgresRestore {
    login: Login,
    /// As configured, sorted.
    databases: Vec<String>,
}

/// What is written into the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Plan {
    token: String,
    databases: Vec<Target>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Target {
    /// Its name in the capture.
    captured: String,
    /// The names: of the live one, of the loaded one, and of the live one once swapped out.
    live: String,
    aside: String,
    old: String,
    /// What belongs to the database itself: of the live one, or of the captured one if the live
    /// one is gone.
    properties: Properties,
}

impl PostgresRestore {
    pub(super) fn new(login: Login, databases: Vec<String>) -> Self {
        Self { login, databases }
    }

    /// A session from which the databases of `targets` may be renamed and dropped.
    fn maintenance<'a>(
        &self,
        mut targets: impl Iterator<Item = &'a str>,
    ) -> Result<Session, ServiceError> {
        let taken: Vec<&str> = targets.by_ref().collect();
        let mut last = None;
        for database in MAINTENANCE.iter().filter(|name| !taken.contains(*name)) {
            match self.login.connect(database) {
                Ok(session) => return Ok(session),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            ServiceError::new(
                "the maintenance databases `postgres` and `template1` are themselves \
                               to be restored",
            )
        }))
    }

    /// The same, alone: a process that was killed may have left a statement that the server is
    /// still at, and what that does must be seen before anything is decided.
    fn maintenance_for(&self, plan: &Plan) -> Result<Session, ServiceError> {
        let mut session =
            self.maintenance(plan.databases.iter().map(|target| target.live.as_str()))?;
        let lock = format!(
            "SET lock_timeout = '{ALONE}'; SELECT pg_advisory_lock({}); SET lock_timeout = 0",
            lock_key(&plan.token)
        );
        session.client.batch_execute(&lock).map_err(|e| {
            ServiceError::new("wait for another process that is at the same restore").because(e)
        })?;
        Ok(session)
    }
}

fn parse(aside: &Aside) -> Result<Plan, ServiceError> {
    serde_json::from_value(aside.0.clone())
        .map_err(|e| ServiceError::new("read what the journal says of the restore").because(e))
}

/// The same plan, and the captured databases that it is for.
fn with_catalog(aside: &Aside, source: &dyn Source) -> Result<(Plan, Catalog), ServiceError> {
    Ok((parse(aside)?, Catalog::read(source)?))
}

impl Target {
    fn captured_in<'c>(
        &self,
        catalog: &'c Catalog,
    ) -> Result<&'c super::catalog::Database, ServiceError> {
        catalog.databases.iter().find(|d| d.name == self.captured).ok_or_else(|| {
            ServiceError::new(format!("the capture holds no database `{}`", self.captured))
        })
    }
}

/// What a server has under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No such database.
    Nothing,
    /// One that this restore loaded.
    Loaded,
    /// Any other.
    Other,
}

fn look(client: &mut Client, database: &str, token: &str) -> Result<Found, postgres::Error> {
    let row = client.query_opt(
        "SELECT coalesce(shobj_description(oid, 'pg_database') = $2, false) \
         FROM pg_database WHERE datname = $1",
        &[&database, &mark(token)],
    )?;
    Ok(match row {
        None => Found::Nothing,
        Some(row) if row.get(0) => Found::Loaded,
        Some(_) => Found::Other,
    })
}

impl Restore for PostgresRestore {
    fn plan(&mut self, token: &str, source: &dyn Source) -> Result<Aside, ServiceError> {
        let plan = self.make_plan(token, &Catalog::read(source)?)?;
        serde_json::to_value(plan)
            .map(Aside)
            .map_err(|e| ServiceError::new("write the restore's plan").because(e))
    }

    fn load(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let (plan, catalog) = with_catalog(aside, source)?;
        for target in &plan.databases {
            self.load_one(&plan, target, target.captured_in(&catalog)?, source)?;
        }
        Ok(())
    }

    fn verify(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let (plan, catalog) = with_catalog(aside, source)?;
        for target in &plan.databases {
            verify::verify(&self.login, target, target.captured_in(&catalog)?, source)?;
        }
        Ok(())
    }

    fn swap(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        self.swap_in(&parse(aside)?)
    }

    fn swap_back(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        self.swap_out(&parse(aside)?)
    }

    fn finish(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        self.drop_old(&parse(aside)?)
    }

    fn discard(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        self.drop_aside(&parse(aside)?)
    }
}
