//! The account's rights: what a backup and a restore need, and the statement that gives it. The
//! lists are the least there is: `docs/services.md` has them as well.

use mysql::Conn;
use mysql::prelude::Queryable;

use super::Mariadb;
use super::connection::name;
use super::grants::Held;
use super::objects::Object;
use super::tools::Version;
use crate::{Finding, NeededFor, ServiceError};

/// RELOAD for the lock of the mark, PROCESS for the ids of tables.
const BACKUP_GLOBAL: [&str; 2] = ["RELOAD", "PROCESS"];
/// Without SHOW VIEW, TRIGGER and EVENT such things are not seen at all.
const BACKUP_DATABASE: [&str; 4] = ["SELECT", "SHOW VIEW", "TRIGGER", "EVENT"];
const RESTORE_DATABASE: [&str; 14] = [
    "SELECT",
    "INSERT",
    "CREATE",
    "DROP",
    "ALTER",
    "INDEX",
    "REFERENCES",
    "LOCK TABLES",
    "CREATE VIEW",
    "SHOW VIEW",
    "TRIGGER",
    "EVENT",
    "CREATE ROUTINE",
    "ALTER ROUTINE",
];
/// The databases beside the live ones, as GRANT names them, and one of them.
const ASIDE: (&str, &str) = ("stillpoint\\_%", "stillpoint_x");

/// (what, statement)
type Lack = (String, String);

impl Held {
    fn lacks_for_backup(&self, databases: &[String], server: &Version) -> Vec<Lack> {
        let mut lacks = Vec::new();
        for right in BACKUP_GLOBAL {
            if !self.globally(right) {
                let grant = format!("GRANT {right} ON *.* TO {}", self.grantee());
                lacks.push((right.to_owned(), grant));
            }
        }
        for database in databases {
            for right in BACKUP_DATABASE {
                if !self.on(database, right) {
                    lacks.push(self.lack(database, right));
                }
            }
        }
        // Without it the bodies of other accounts' routines are not shown.
        let reads_routines = self.on_table("mysql", "proc", "SELECT")
            || self.globally("SHOW CREATE ROUTINE")
            || self.globally("SHOW_ROUTINE");
        if !reads_routines && !self.globally("SELECT") {
            let (right, place) =
                if server.mariadb { ("SELECT", "mysql.proc") } else { ("SHOW_ROUTINE", "*.*") };
            let grant = format!("GRANT {right} ON {place} TO {}", self.grantee());
            lacks.push((format!("{right} on {place}"), grant));
        }
        lacks
    }

    fn lacks_for_restore(&self, databases: &[String]) -> Vec<Lack> {
        let mut lacks = Vec::new();
        for database in databases {
            let missing = RESTORE_DATABASE.iter().filter(|right| !self.on(database, right));
            lacks.extend(missing.map(|right| self.lack(database, right)));
        }
        let (shown, one) = ASIDE;
        let missing = RESTORE_DATABASE.iter().filter(|right| !self.on(one, right));
        lacks.extend(missing.map(|right| self.lack(shown, right)));
        lacks
    }

    fn lack(&self, database: &str, right: &str) -> Lack {
        let grant = format!("GRANT {right} ON {}.* TO {}", name(database), self.grantee());
        (format!("{right} on {database}"), grant)
    }
}

fn refuse(what: &str, lacks: Vec<Lack>) -> Result<(), ServiceError> {
    if lacks.is_empty() {
        return Ok(());
    }
    let (what_lacks, grants): (Vec<_>, Vec<_>) = lacks.into_iter().unzip();
    Err(ServiceError::new(format!("{what} with this account"))
        .because(format!("it lacks {}", what_lacks.join(", ")))
        .hint(grants.join("; ")))
}

pub(super) fn refuse_backup(
    session: &mut Conn,
    databases: &[String],
    server: &Version,
) -> Result<(), ServiceError> {
    refuse("back up", Held::read(session)?.lacks_for_backup(databases, server))
}

pub(super) fn refuse_restore(session: &mut Conn, databases: &[String]) -> Result<(), ServiceError> {
    refuse("restore", Held::read(session)?.lacks_for_restore(databases))
}

/// Refuses what could not be made anew after the swap: objects of other accounts, and with a
/// binary log triggers and functions.
pub(super) fn refuse_objects(
    session: &mut Conn,
    objects: &[Object],
    server: &Version,
) -> Result<(), ServiceError> {
    let held = Held::read(session)?;
    let right = if server.mariadb { "SET USER" } else { "SET_USER_ID" };
    let theirs = objects.iter().find(|object| object.definer != held.account);
    if let Some(theirs) = theirs
        && !held.globally(right)
        && !held.globally("SUPER")
    {
        let Object { kind, name, definer, .. } = theirs;
        return Err(ServiceError::new("restore with this account")
            .because(format!("it lacks {right}: the {kind} {name} is defined by {definer}"))
            .hint(format!("GRANT {right} ON *.* TO {}", held.grantee())));
    }
    let logged: Option<u8> = session
        .query_first("SELECT @@log_bin AND NOT @@log_bin_trust_function_creators")
        .map_err(|e| ServiceError::new("ask for the binary log").because(e))?;
    let guarded = objects.iter().find(|one| one.is("TRIGGER") || one.is("FUNCTION"));
    if let Some(Object { kind, name, .. }) = guarded
        && logged == Some(1)
        && !held.globally("SUPER")
    {
        return Err(ServiceError::new("restore with this account")
            .because(format!(
                "the server keeps a binary log and does not let it make the {kind} {name}"
            ))
            .hint("SET GLOBAL log_bin_trust_function_creators = 1"));
    }
    Ok(())
}

fn finding(
    what: &str,
    needed_for: NeededFor,
    problem: Option<String>,
    hint: Option<String>,
) -> Finding {
    Finding { what: what.to_owned(), needed_for, problem, hint }
}

fn failed(what: &str, needed_for: NeededFor, error: &ServiceError) -> Finding {
    finding(what, needed_for, Some(crate::chain(error)), error.advice().map(str::to_owned))
}

/// Every finding, one by one.
pub(super) fn examine(driver: &Mariadb) -> Vec<Finding> {
    let mut findings = vec![match driver.tool(["mariadb", "mysql"]) {
        Ok(path) => finding(&path.display().to_string(), NeededFor::Restore, None, None),
        Err(error) => failed("mariadb", NeededFor::Restore, &error),
    }];
    let looked = driver
        .login
        .connect()
        .and_then(|mut session| Ok((Version::of_server(&mut session)?, Held::read(&mut session)?)));
    let (server, held) = match looked {
        Ok(looked) => looked,
        Err(error) => {
            findings.push(failed("the account", NeededFor::Backup, &error));
            return findings;
        }
    };
    findings.push(finding("the account", NeededFor::Backup, None, None));
    findings.push(match driver.dumper(&server) {
        Ok(dumper) => finding(
            &format!("{} {}", dumper.path.display(), dumper.version.text),
            NeededFor::Backup,
            None,
            None,
        ),
        Err(error) => failed("mariadb-dump", NeededFor::Backup, &error),
    });
    for (needed_for, lacks) in [
        (NeededFor::Backup, held.lacks_for_backup(&driver.databases, &server)),
        (NeededFor::Restore, held.lacks_for_restore(&driver.databases)),
    ] {
        if lacks.is_empty() {
            findings.push(finding("all privileges", needed_for, None, None));
        }
        for (what, grant) in lacks {
            let what = format!("the privilege {what}");
            let problem = Some("the account lacks it".to_owned());
            findings.push(finding(&what, needed_for, problem, Some(grant)));
        }
    }
    findings
}
