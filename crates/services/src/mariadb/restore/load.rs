//! Loading beside the live database, and the proof that it is what was captured.

use std::io::{self, Read};
use std::process::{Command, Stdio};

use mysql::Conn;

use super::super::catalog::{self, Catalog};
use super::super::connection::{name, name_in, run};
use super::super::count::count;
use super::super::objects;
use super::super::tools::Version;
use super::MariadbRestore;
use super::target::{Found, MARKER, Plan, find};
use crate::{ServiceError, Source};

impl MariadbRestore {
    pub(super) fn load_all(
        &self,
        session: &mut Conn,
        plan: &Plan,
        source: &dyn Source,
    ) -> Result<(), ServiceError> {
        for target in &plan.targets {
            match find(session, target)? {
                Found::Nothing => {}
                Found::Loaded | Found::Swapped => continue,
            }
            let defaults = &target.defaults_after;
            run(session, &format!("DROP DATABASE IF EXISTS {}", name(&target.new)))?;
            run(
                session,
                &format!(
                    "CREATE DATABASE {} CHARACTER SET {} COLLATE {}",
                    name(&target.new),
                    defaults.character_set,
                    defaults.collation
                ),
            )?;
            let path = format!("{}.sql", target.live);
            let dump = source
                .open(&path)
                .map_err(|e| ServiceError::new(format!("read {path}")).because(e))?;
            // Whoever goes on after this process was killed waits for this lock: the program
            // beneath lives a moment longer. A subquery of two rows is an error.
            let first = format!(
                "SELECT IF(GET_LOCK('{}', 60) = 1, 1, (SELECT 1 UNION SELECT 2));\n",
                plan.lock("pour")
            );
            self.pour(&target.new, first.as_bytes().chain(dump), plan.mariadb)?;
            let marker = name_in(&target.new, MARKER);
            run(session, &format!("CREATE TABLE {marker} (done INT) ENGINE = InnoDB"))?;
        }
        Ok(())
    }

    fn pour(&self, into: &str, mut from: impl Read, mariadb: bool) -> Result<(), ServiceError> {
        let doing = || ServiceError::new(format!("load the dump into {into}"));
        let dir = tempfile::tempdir().map_err(|e| doing().because(e))?;
        let options = dir.path().join("options");
        self.driver.login.write_options(&options, None, mariadb)?;
        let errors = dir.path().join("said");
        let said = std::fs::File::create(&errors).map_err(|e| doing().because(e))?;
        let mut child = Command::new(self.driver.tool(["mariadb", "mysql"])?)
            .arg(format!("--defaults-file={}", options.display()))
            // No client command of a dump is run.
            .args(["--batch", "--binary-mode", "--default-character-set=utf8mb4"])
            .args(["--max-allowed-packet=1G", "--", into])
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .map_err(|e| doing().because(e))?;
        let poured = match child.stdin.take() {
            Some(mut to) => io::copy(&mut from, &mut to),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if poured.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().map_err(|e| doing().because(e))?;
        if !status.success() || poured.is_err() {
            let words = std::fs::read(&errors).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).trim().to_owned();
            return Err(doing().because(match poured {
                Err(e) if words.is_empty() => e.to_string(),
                _ => words,
            }));
        }
        Ok(())
    }
}

/// Compares every table with the catalog.
pub(super) fn verify_all(
    session: &mut Conn,
    plan: &Plan,
    catalog: &Catalog,
) -> Result<(), ServiceError> {
    // Another version may print the same definition, and sum the same rows up, in another way.
    let server = Version::of_server(session)?;
    let alike = Version::new(&catalog.server).release == server.release;
    for target in &plan.targets {
        let differs = |what: &str| {
            ServiceError::new(format!("compare {} with what was captured", target.live))
                .because(what.to_owned())
        };
        let captured = catalog.database(&target.live)?;
        let mut loaded = catalog::tables(session, &target.new)?;
        if loaded.remove(MARKER).is_none() {
            return Err(differs("it was not loaded to its end"));
        }
        if !loaded.keys().eq(captured.tables.keys()) {
            return Err(differs("the loaded tables are others"));
        }
        for (table, engine) in loaded {
            let wanted = &captured.tables[&table];
            let found = count(session, &target.new, &table, &engine, wanted.history)?.table;
            let what = if found.engine != wanted.engine {
                Some("has another engine")
            } else if alike && found.definition != wanted.definition {
                Some("is defined in another way")
            } else if wanted.rows.is_some() && found.rows != wanted.rows {
                Some("has another number of rows")
            } else if alike && wanted.checksum.is_some() && found.checksum != wanted.checksum {
                Some("has other rows")
            } else {
                None
            };
            if let Some(what) = what {
                return Err(differs(&format!("the loaded table {table} {what}")));
            }
        }
        rehearse(session, plan, &target.new, &captured.objects)?;
    }
    Ok(())
}

/// Makes views and routines in the loaded database and drops them again, so that the swap finds
/// no surprise. Triggers may name the live database, and events would run: those are left out.
/// A view of another database of this restore cannot be made yet.
fn rehearse(
    session: &mut Conn,
    plan: &Plan,
    new: &str,
    all: &[objects::Object],
) -> Result<(), ServiceError> {
    if plan.targets.len() > 1 {
        return Ok(());
    }
    let rehearsed: Vec<objects::Object> =
        all.iter().filter(|one| one.is("VIEW") || one.is_routine()).cloned().collect();
    let made = objects::make(session, &[(new, &rehearsed)], plan.mariadb);
    for object in rehearsed.iter().rev() {
        objects::drop_object(session, new, object)?;
    }
    made.map_err(|e| ServiceError::over("make the views and routines that were captured", e))
}
