//! What a restore will do, and every refusal that can be foreseen.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::super::connection::{QUICK, Session, Transaction};
use super::super::facts::{Facts, RDB};
use super::super::info::Info;
use super::super::{Redis, rights};
use super::auxiliary::Auxiliary;
use crate::{Aside, ServiceError, Source};

/// A database of the application, and the spare one that takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) live: u32,
    pub(super) spare: u32,
}

/// What is written into the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Target {
    /// The key of the marker.
    pub(super) marker: String,
    pub(super) pairs: Vec<Pair>,
    /// Of the server's process: tells whether it was started anew since.
    run_id: String,
    /// Keys that the server had evicted before.
    evicted: u64,
}

impl Target {
    pub(super) fn read(aside: &Aside) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new("read what the journal says of the restore");
        let target: Self =
            serde_json::from_value(aside.0.clone()).map_err(|e| doing().because(e))?;
        if target.pairs.is_empty() {
            return Err(doing().because("it names no database"));
        }
        Ok(target)
    }

    /// Where the marker is.
    pub(super) fn marked_database(&self) -> u32 {
        self.pairs.first().map_or(0, |pair| pair.spare)
    }

    pub(super) fn add_emptying(&self, transaction: &mut Transaction) {
        for pair in &self.pairs {
            transaction.add(&["SELECT"]).arg(pair.spare);
            transaction.add(&["FLUSHDB", "ASYNC"]);
        }
    }

    /// Empties the spare databases. The marker goes with them.
    pub(super) fn empty_spares(&self, live: &mut Session) -> Result<(), ServiceError> {
        let mut transaction = Transaction::default();
        self.add_emptying(&mut transaction);
        transaction.run(live).map_err(|e| ServiceError::new("empty the spare databases").because(e))
    }

    /// Keys in a spare database that are not ours.
    pub(super) fn refuse_used_spares(&self, info: &Info) -> Result<(), ServiceError> {
        let used = info.keyspace();
        match self.pairs.iter().find(|pair| used.contains_key(&pair.spare)) {
            None => Ok(()),
            Some(pair) => Err(ServiceError::new(format!("fill database {}", pair.spare))
                .because("it was empty when the restore was planned, and has keys now")
                .hint("restore again")),
        }
    }

    /// A capture that is not what its facts say: databases that the plan does not know, keys more
    /// or fewer than there were at the instant.
    pub(super) fn refuse_other_capture(
        &self,
        captured: &Info,
        facts: &Facts,
    ) -> Result<(), ServiceError> {
        let refuse = |why: String| Err(ServiceError::new("load the capture").because(why));
        let found = captured.keyspace();
        let planned = |number: &u32| self.pairs.iter().any(|pair| pair.live == *number);
        if let Some(number) = found.keys().find(|number| !planned(number)) {
            return refuse(format!("its list of databases lacks database {number}"));
        }
        for (number, counted) in facts.databases.iter().filter(|_| facts.counts_exact) {
            let keys = found.get(number).map_or(0, |(keys, _)| *keys);
            // Those that expire may have done so since.
            if keys > counted.keys || keys < counted.keys.saturating_sub(counted.expires) {
                return refuse(format!(
                    "database {number} has {keys} keys, and had {} of which {} expire",
                    counted.keys, counted.expires
                ));
            }
        }
        Ok(())
    }

    /// Databases that the application has begun to use since the plan.
    pub(super) fn refuse_grown(&self, info: &Info) -> Result<(), ServiceError> {
        let known = |number: &u32| {
            self.pairs.iter().any(|pair| pair.live == *number || pair.spare == *number)
        };
        match info.keyspace().into_keys().find(|number| !known(number)) {
            None => Ok(()),
            Some(number) => Err(ServiceError::new("swap the restored databases in")
                .because(format!("database {number} was empty before, and has keys now"))
                .hint("restore again")),
        }
    }

    /// A server that evicts keys may have evicted restored ones.
    pub(super) fn refuse_eviction(&self, info: &Info) -> Result<(), ServiceError> {
        if info.number("evicted_keys")? <= self.evicted {
            return Ok(());
        }
        Err(ServiceError::new("keep live and restored data in the server's memory")
            .because("it has evicted keys meanwhile (maxmemory)")
            .hint("raise maxmemory for the restore: it needs room for both"))
    }

    /// Without its marker a restore has been finished, or the server has lost it.
    pub(super) fn refuse_forgotten(&self, info: &Info) -> Result<(), ServiceError> {
        if info.text("run_id") == self.run_id {
            return Ok(());
        }
        Err(ServiceError::new("finish the restore")
            .because(
                "the server was started anew, and knows nothing of it: it may have been finished \
                 before, or the server came back with the data of before",
            )
            .hint("look at the data; restore again if it is the old one"))
    }
}

/// A setting of the server.
pub(super) fn setting(live: &mut Session, name: &str) -> Result<String, ServiceError> {
    let mut found: HashMap<String, String> = live.run(&["CONFIG", "GET", name])?;
    found.remove(name).ok_or_else(|| {
        ServiceError::new(format!("read the setting {name}")).because("the server has none")
    })
}

/// The version of the RDB format that a server writes: the end of every dump tells it.
fn rdb_version(session: &mut Session) -> Result<u32, ServiceError> {
    let dump: Vec<u8> = session.run(&["FUNCTION", "DUMP"])?;
    dump.len()
        .checked_sub(10)
        .map(|at| u32::from(u16::from_le_bytes([dump[at], dump[at + 1]])))
        .ok_or_else(|| ServiceError::new("read the version of a dump").because("it is too short"))
}

pub(super) fn plan(
    driver: &Redis,
    token: &str,
    source: &dyn Source,
) -> Result<Target, ServiceError> {
    let facts = Facts::read(source)?;
    if !source.paths().iter().any(|path| path == RDB) {
        return Err(
            ServiceError::new("restore the server").because(format!("the capture holds no {RDB}"))
        );
    }
    rights::for_restore(driver)?.refuse("restore")?;
    let mut live = driver.login.connect(QUICK)?;
    let info = Info::all(&mut live)?;
    info.refuse_unfit()?;
    refuse_versions(driver, &mut live, &facts)?;
    refuse_memory(&info, &facts)?;
    if info.text("aof_enabled") != "1" && !setting(&mut live, "save")?.is_empty() {
        info.refuse_failing_saves()?;
    }
    let databases = setting(&mut live, "databases")?;
    let databases: u32 = databases
        .parse()
        .map_err(|_| ServiceError::new("read the setting databases").because(databases))?;
    let pairs = pairs(&info, &facts, databases)?;
    Ok(Target {
        marker: format!("stillpoint:restore:{token}"),
        pairs,
        run_id: info.text("run_id").to_owned(),
        evicted: info.number("evicted_keys")?,
    })
}

/// Pairs every database that either side uses with an empty one, from the last on.
fn pairs(info: &Info, facts: &Facts, databases: u32) -> Result<Vec<Pair>, ServiceError> {
    let doing = || ServiceError::new("find empty databases to load into");
    let used = info.keyspace();
    let mut live: Vec<u32> = used.keys().chain(facts.databases.keys()).copied().collect();
    live.sort_unstable();
    live.dedup();
    if live.is_empty() {
        // Functions alone: the marker still needs a place.
        live.push(0);
    }
    let highest = live.last().copied().unwrap_or(0);
    let mut spare = (0..databases).rev().filter(|number| !live.contains(number));
    let pairs: Vec<Pair> =
        live.iter().zip(&mut spare).map(|(live, spare)| Pair { live: *live, spare }).collect();
    if pairs.len() < live.len() || highest >= databases {
        let needed = (2 * live.len() as u64).max(u64::from(highest) + 1 + live.len() as u64);
        return Err(doing()
            .because(format!(
                "{} databases are used, here or in the capture, each needs an empty one beside \
                 it, and the server has {databases}",
                live.len()
            ))
            .hint(format!("set `databases {needed}` in redis.conf and restart the server")));
    }
    Ok(pairs)
}

/// Keys go as dumps from our server to the live one, and back to be compared.
fn refuse_versions(driver: &Redis, live: &mut Session, facts: &Facts) -> Result<(), ServiceError> {
    let doing = || ServiceError::new("restore into this version of the server");
    let here = rdb_version(live)?;
    if facts.rdb_version > here {
        return Err(doing()
            .because(format!(
                "the capture is of {} {} (RDB version {}), and the server reads up to {here}",
                facts.server, facts.version, facts.rdb_version
            ))
            .hint(format!("restore into {} {} or newer", facts.server, facts.version)));
    }
    let program = driver.server_program()?;
    let auxiliary = Auxiliary::start(&program, None)?;
    let ours = rdb_version(&mut auxiliary.connect()?)?;
    if ours != here {
        return Err(doing()
            .because(format!(
                "{} writes RDB version {ours}, and the server {here}",
                program.display()
            ))
            .hint("install the server's own version of redis-server on this machine"));
    }
    Ok(())
}

fn refuse_memory(info: &Info, facts: &Facts) -> Result<(), ServiceError> {
    let doing = || ServiceError::new("load the capture beside the live data");
    let used = info.number("used_memory")?;
    let needed = used.saturating_add(facts.memory_bytes.saturating_add(facts.memory_bytes / 10));
    let limit = info.number("maxmemory")?;
    if limit > 0 && needed > limit {
        return Err(doing()
            .because(format!(
                "both need {needed} bytes and maxmemory is {limit}: the server would evict keys, \
                 or refuse writes"
            ))
            .hint(format!("CONFIG SET maxmemory {needed} (or 0) until the restore has ended")));
    }
    let machine = info.number("total_system_memory")?;
    if machine > 0 && needed > machine {
        return Err(doing()
            .because(format!("both need {needed} bytes, and the machine has {machine}"))
            .hint("restore into a server on a larger machine"));
    }
    Ok(())
}
