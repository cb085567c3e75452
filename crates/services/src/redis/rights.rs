//! The account's rights: what a backup and a restore need, and the statement that gives it.
//!
//! Each right is tried with a command that changes nothing, whether it is allowed or not: with an
//! argument that the server refuses after it has looked at the rights. So no right is needed to
//! look at rights, and renamed commands are noticed too.

use super::connection::{QUICK, Session};
use super::info::Info;
use super::save::Files;
use super::{Redis, Way};
use crate::{Finding, NeededFor, ServiceError};

/// A right, as `ACL SETUSER` takes it, and the words that try it.
type Need = (&'static str, &'static [&'static str]);

/// No key of an application has this name, and nothing is ever stored there.
const PROBE: &str = "stillpoint:probe";

/// For every backup.
const ALWAYS: [Need; 3] = [
    ("+info", &["INFO", "server"]),
    ("+time", &["TIME"]),
    ("+command|list", &["COMMAND", "LIST", "FILTERBY", "ACLCAT", "write"]),
];

/// To take the file that the server writes.
const BY_FILE: [Need; 2] =
    [("+bgsave", &["BGSAVE", PROBE]), ("+config|get", &["CONFIG", "GET", "dir"])];

/// To be sent the same over the network. A master refuses PSYNC with FAILOVER.
const BY_REPLICATION: [Need; 2] =
    [("+psync", &["PSYNC", "?", "-1", "FAILOVER"]), ("+replconf", &["REPLCONF", "rdb-only", "0"])];

const RESTORE: [Need; 19] = [
    ("+info", &["INFO", "server"]),
    ("+time", &["TIME"]),
    ("+config|get", &["CONFIG", "GET", "databases"]),
    ("+select", &["SELECT", "0"]),
    ("+scan", &["SCAN", "0", "COUNT", "1"]),
    ("+dump", &["DUMP", PROBE]),
    ("+restore", &["RESTORE", PROBE, "0", "none"]),
    ("+pexpiretime", &["PEXPIRETIME", PROBE]),
    ("+hset", &["HSET", PROBE, "a", "b", "odd"]),
    ("+hgetall", &["HGETALL", PROBE]),
    ("+unlink", &["UNLINK", PROBE]),
    ("+swapdb", &["SWAPDB", "none", "none"]),
    ("+flushdb", &["FLUSHDB", "none"]),
    ("+function|dump", &["FUNCTION", "DUMP"]),
    ("+function|restore", &["FUNCTION", "RESTORE", "none"]),
    ("+bgsave", &["BGSAVE", PROBE]),
    ("+exec", &["EXEC"]),
    ("+discard", &["DISCARD"]),
    ("+multi", &["MULTI"]),
];

/// What an account cannot do.
#[derive(Default)]
pub(super) struct Lacks {
    account: String,
    rights: Vec<&'static str>,
    /// Commands that this server does not know.
    unknown: Vec<&'static str>,
}

impl Lacks {
    /// Tries each of `needs`, in a session that is given up afterwards.
    fn of(driver: &Redis, needs: &[Need]) -> Result<Self, ServiceError> {
        let mut session = driver.login.connect(QUICK)?;
        let mut lacks = Self { account: driver.login.account().to_owned(), ..Self::default() };
        for (right, words) in needs {
            lacks.try_one(&mut session, right, words)?;
        }
        Ok(lacks)
    }

    fn try_one(
        &mut self,
        session: &mut Session,
        right: &'static str,
        words: &[&str],
    ) -> Result<(), ServiceError> {
        let Err(error) = session.ask::<redis::Value>(words) else { return Ok(()) };
        if error.code() == Some("NOAUTH") {
            return Err(ServiceError::new("log in to the Redis server")
                .because(error)
                .hint("name the variable that holds the password: password_env"));
        }
        let said = error.to_string();
        // EXEC wraps the refusal into one of its own.
        if error.code() == Some("NOPERM") || said.contains("NOPERM") {
            // The command may be allowed where its keys are not.
            let lacking = if said.contains("access") { "~*" } else { right };
            if !self.rights.contains(&lacking) {
                self.rights.push(lacking);
            }
        } else if said.contains("unknown command") {
            self.unknown.push(right);
        } else if error.is_io_error() || error.is_connection_dropped() || error.is_timeout() {
            return Err(ServiceError::new("try what the account may do")
                .because(error)
                .hint("is it a Redis or Valkey server, at this very address?"));
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.rights.is_empty() && self.unknown.is_empty()
    }

    /// The statement that gives what is missing.
    fn statement(&self) -> String {
        if self.rights.is_empty() {
            return "the commands were renamed or removed (rename-command) in redis.conf"
                .to_owned();
        }
        format!("ACL SETUSER {} {}", self.account, self.rights.join(" "))
    }

    fn words(&self) -> String {
        let mut words = Vec::new();
        if !self.rights.is_empty() {
            words.push(format!("the account {} lacks {}", self.account, self.rights.join(" ")));
        }
        if !self.unknown.is_empty() {
            words.push(format!("the server does not know {}", self.unknown.join(" ")));
        }
        words.join("; ")
    }

    pub(super) fn refuse(&self, what: &str) -> Result<(), ServiceError> {
        if self.is_empty() {
            return Ok(());
        }
        Err(ServiceError::new(format!("{what} with this account"))
            .because(self.words())
            .hint(self.statement()))
    }

    fn findings(&self, needed_for: NeededFor, all: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        for right in &self.rights {
            findings.push(Finding {
                what: format!("the right {right}"),
                needed_for,
                problem: Some(format!("the account {} lacks it", self.account)),
                hint: Some(format!("ACL SETUSER {} {right}", self.account)),
            });
        }
        for right in &self.unknown {
            findings.push(Finding {
                what: format!("the right {right}"),
                needed_for,
                problem: Some("the server does not know this command".to_owned()),
                hint: Some("it was renamed or removed (rename-command) in redis.conf".to_owned()),
            });
        }
        if findings.is_empty() {
            findings.push(Finding { what: all.to_owned(), needed_for, problem: None, hint: None });
        }
        findings
    }
}

/// What every backup needs.
pub(super) fn for_backup(driver: &Redis) -> Result<Lacks, ServiceError> {
    Lacks::of(driver, &ALWAYS)
}

/// What a restore needs.
pub(super) fn for_restore(driver: &Redis) -> Result<Lacks, ServiceError> {
    Lacks::of(driver, &RESTORE)
}

/// Which way a capture goes: by the server's file where that can be had, else by replication.
pub(super) fn way(driver: &Redis, info: &Info) -> Result<Way, ServiceError> {
    if !driver.replication_only && Lacks::of(driver, &BY_FILE)?.is_empty() {
        let mut session = driver.login.connect(QUICK)?;
        if let Some(files) = Files::find(&mut session, &driver.login.address, info)? {
            return Ok(Way::File(files));
        }
    }
    Lacks::of(driver, &BY_REPLICATION)?.refuse("be sent the server's data").map_err(|error| {
        let what = "back up by replication (the server's own file, or the rights +bgsave \
                    +config|get to use it, are out of reach)";
        ServiceError::over(what, error)
    })?;
    Ok(Way::Replication)
}

/// Every finding, one by one.
pub(super) fn examine(driver: &Redis) -> Vec<Finding> {
    let finding = |what: &str, needed_for, outcome: Result<(), ServiceError>| {
        let error = outcome.err();
        Finding {
            what: what.to_owned(),
            needed_for,
            problem: error.as_ref().map(|error| crate::chain(error)),
            hint: error.and_then(|error| error.advice().map(str::to_owned)),
        }
    };
    let mut findings = vec![finding(
        "the program redis-server",
        NeededFor::Restore,
        driver.server_program().map(drop),
    )];
    for (needed_for, all, lacks) in [
        (NeededFor::Backup, "the rights of every backup", for_backup(driver)),
        (NeededFor::Restore, "all rights", for_restore(driver)),
    ] {
        match lacks {
            Ok(lacks) => findings.extend(lacks.findings(needed_for, all)),
            Err(error) => {
                findings.push(finding("the account", needed_for, Err(error)));
                return findings;
            }
        }
    }
    let server = driver.login.connect(QUICK).and_then(|mut session| Info::all(&mut session));
    let info = match server {
        Ok(info) => info,
        Err(error) => {
            findings.push(finding("the server", NeededFor::Backup, Err(error)));
            return findings;
        }
    };
    findings.push(finding("the server", NeededFor::Backup, info.refuse_unfit()));
    findings.push(finding("the last save", NeededFor::Backup, info.refuse_failing_saves()));
    let way = way(driver, &info);
    let what = match &way {
        Ok(Way::File(_)) => "the server's file, for captures",
        _ => "the rights for captures by replication",
    };
    findings.push(finding(what, NeededFor::Backup, way.map(drop)));
    findings
}
