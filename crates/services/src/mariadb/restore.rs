//! Restore: loaded into a database of its own, proven, and swapped by one `RENAME TABLE`.
//!
//! A table of our own, the marker, is renamed together with all others: in which database it is
//! found tells whether the swap was done, whoever asks.

use std::io;
use std::process::{Command, Stdio};

use mysql::Conn;
use serde::{Deserialize, Serialize};

use super::catalog::{self, Catalog, Object};
use super::connection::{name, name_in, run};
use super::{Mariadb, rights};
use crate::{Aside, Restore, ServiceError, Source};

/// The table that tells what was done.
const MARKER: &str = "stillpoint_marker";

pub(super) struct MariadbRestore {
    driver: Mariadb,
}

/// What is written into the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Target {
    live: String,
    new: String,
    old: String,
    /// Those of the live database, to be made anew if the swap is undone.
    before: Vec<Object>,
    /// Those of the captured one.
    after: Vec<Object>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Loaded,
    Swapped,
}

fn parse(aside: &Aside) -> Result<Vec<Target>, ServiceError> {
    serde_json::from_value(aside.0.clone())
        .map_err(|e| ServiceError::new("read what the journal says of the restore").because(e))
}

fn find(session: &mut Conn, target: &Target) -> Result<Found, ServiceError> {
    if catalog::tables(session, &target.old)?.contains_key(MARKER) {
        return Ok(Found::Swapped);
    }
    let loaded = catalog::tables(session, &target.new)?.contains_key(MARKER);
    Ok(if loaded { Found::Loaded } else { Found::Nothing })
}

/// One statement that moves the tables of `from` to `to`, and those of `back` into `from`'s place.
fn exchange(session: &mut Conn, live: &str, out: &str, come: &str) -> Result<(), ServiceError> {
    let mut moves = Vec::new();
    for table in catalog::tables(session, live)?.into_keys() {
        moves.push(format!("{} TO {}", name_in(live, &table), name_in(out, &table)));
    }
    for table in catalog::tables(session, come)?.into_keys() {
        let to = if table == MARKER { out } else { live };
        moves.push(format!("{} TO {}", name_in(come, &table), name_in(to, &table)));
    }
    run(session, "SET SESSION foreign_key_checks = 0")?;
    run(session, "SET SESSION lock_wait_timeout = 10")?;
    run(session, &format!("RENAME TABLE {}", moves.join(", ")))
}

impl MariadbRestore {
    pub(super) fn new(driver: Mariadb) -> Self {
        Self { driver }
    }

    fn pour(&self, into: &str, mut from: impl io::Read) -> Result<(), ServiceError> {
        let doing = || ServiceError::new(format!("load the dump into {into}"));
        let dir = tempfile::tempdir().map_err(|e| doing().because(e))?;
        let options = dir.path().join("options");
        self.driver.login.write_options(&options, None)?;
        let errors = dir.path().join("said");
        let said = std::fs::File::create(&errors).map_err(|e| doing().because(e))?;
        let mut child = Command::new(self.driver.tool(["mariadb", "mysql"])?)
            .arg(format!("--defaults-file={}", options.display()))
            // No client command of a dump is run.
            .args(["--batch", "--binary-mode", "--default-character-set=utf8mb4", into])
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
            let words = std::fs::read_to_string(&errors).unwrap_or_default();
            return Err(doing().because(match poured {
                Err(e) if words.is_empty() => e.to_string(),
                _ => words.trim().to_owned(),
            }));
        }
        Ok(())
    }
}

impl Restore for MariadbRestore {
    fn plan(&mut self, token: &str, source: &dyn Source) -> Result<Aside, ServiceError> {
        let catalog = Catalog::read(source)?;
        let mut session = self.driver.login.connect()?;
        self.driver.tool(["mariadb", "mysql"])?;
        rights::refuse_restore(&mut session, &self.driver.databases)?;
        let mut targets = Vec::new();
        for (number, live) in self.driver.databases.iter().enumerate() {
            let captured =
                catalog.databases.iter().find(|found| found.name == *live).ok_or_else(|| {
                    ServiceError::new(format!("the capture holds no database `{live}`"))
                })?;
            targets.push(Target {
                live: live.clone(),
                new: format!("stillpoint_{token}_{number}_new"),
                old: format!("stillpoint_{token}_{number}_old"),
                before: catalog::objects(&mut session, live)?,
                after: captured.objects.clone(),
            });
        }
        serde_json::to_value(targets)
            .map(Aside)
            .map_err(|e| ServiceError::new("write the restore's plan").because(e))
    }

    fn load(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let catalog = Catalog::read(source)?;
        let mut session = self.driver.login.connect()?;
        for target in parse(aside)? {
            match find(&mut session, &target)? {
                Found::Nothing => {}
                Found::Loaded | Found::Swapped => continue,
            }
            let captured = catalog.databases.iter().find(|found| found.name == target.live);
            let options = captured.map_or_else(String::new, |found| {
                format!("CHARACTER SET {} COLLATE {}", found.character_set, found.collation)
            });
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.new)))?;
            run(&mut session, &format!("CREATE DATABASE {} {options}", name(&target.new)))?;
            let path = format!("{}.sql", target.live);
            let dump = source
                .open(&path)
                .map_err(|e| ServiceError::new(format!("read {path}")).because(e))?;
            self.pour(&target.new, dump)?;
            let marker = name_in(&target.new, MARKER);
            run(&mut session, &format!("CREATE TABLE {marker} (done INT) ENGINE = InnoDB"))?;
        }
        Ok(())
    }

    fn verify(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let catalog = Catalog::read(source)?;
        let mut session = self.driver.login.connect()?;
        for target in parse(aside)? {
            let differs = |what: &str| {
                ServiceError::new(format!("compare {} with what was captured", target.live))
                    .because(what.to_owned())
            };
            let captured = catalog.databases.iter().find(|found| found.name == target.live);
            let Some(captured) = captured else { return Err(differs("it is not in the capture")) };
            let mut loaded = catalog::tables(&mut session, &target.new)?;
            if loaded.remove(MARKER).is_none() {
                return Err(differs("it was not loaded to its end"));
            }
            if !loaded.keys().eq(captured.tables.keys()) {
                return Err(differs("the loaded tables are others"));
            }
            for (table, engine) in loaded {
                let counted = catalog::count(&mut session, &target.new, &table, &engine)?;
                if captured.tables.get(&table) != Some(&counted) {
                    return Err(differs(&format!("the loaded table {table} differs")));
                }
            }
        }
        Ok(())
    }

    fn swap(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let mut session = self.driver.login.connect()?;
        for target in parse(aside)? {
            match find(&mut session, &target)? {
                Found::Nothing => {
                    return Err(ServiceError::new(format!("swap {}", target.live))
                        .because("nothing was loaded for it"));
                }
                Found::Swapped => {}
                Found::Loaded => {
                    let now = catalog::objects(&mut session, &target.live)?;
                    if now.iter().any(|object| !target.before.contains(object)) {
                        return Err(ServiceError::new(format!("swap {}", target.live)).because(
                            "its views, triggers, routines or events were changed meanwhile",
                        ));
                    }
                    let old = name(&target.old);
                    run(&mut session, &format!("CREATE DATABASE IF NOT EXISTS {old}"))?;
                    catalog::drop_objects(&mut session, &target.live, &target.before)?;
                    exchange(&mut session, &target.live, &target.old, &target.new)?;
                }
            }
            catalog::create_objects(&mut session, &target.live, &target.after)?;
        }
        Ok(())
    }

    fn swap_back(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let mut session = self.driver.login.connect()?;
        for target in parse(aside)? {
            match find(&mut session, &target)? {
                Found::Nothing => continue,
                Found::Loaded => {}
                Found::Swapped => {
                    let now = catalog::objects(&mut session, &target.live)?;
                    catalog::drop_objects(&mut session, &target.live, &now)?;
                    exchange(&mut session, &target.live, &target.new, &target.old)?;
                }
            }
            if catalog::objects(&mut session, &target.live)? != target.before {
                catalog::create_objects(&mut session, &target.live, &target.before)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let mut session = self.driver.login.connect()?;
        for target in parse(aside)? {
            if find(&mut session, &target)? == Found::Loaded {
                return Err(ServiceError::new(format!("finish the restore of {}", target.live))
                    .because("it was not swapped"));
            }
            // The marker goes with the old state, last.
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.new)))?;
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.old)))?;
        }
        Ok(())
    }

    fn discard(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let mut session = self.driver.login.connect()?;
        for target in parse(aside)? {
            if find(&mut session, &target)? == Found::Swapped {
                return Err(ServiceError::new(format!(
                    "discard what was loaded of {}",
                    target.live
                ))
                .because("it was swapped in"));
            }
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.new)))?;
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.old)))?;
        }
        Ok(())
    }
}
