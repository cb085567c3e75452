//! The account's rights: what a backup and a restore need, and the statement that gives it.

use mysql::Conn;
use mysql::prelude::Queryable;

use super::Mariadb;
use super::connection::name;
use crate::{Finding, NeededFor, ServiceError};

const BACKUP_GLOBAL: [&str; 2] = ["RELOAD", "PROCESS"];
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

struct Held {
    user: String,
    global: Vec<String>,
    /// (the database as a pattern holds it, privilege)
    of_database: Vec<(String, String)>,
    reads_routines: bool,
}

fn held(session: &mut Conn) -> Result<Held, ServiceError> {
    let mut read = || -> Result<Held, mysql::Error> {
        let user: String = session.query_first("SELECT CURRENT_USER()")?.unwrap_or_default();
        let (who, host) = user.rsplit_once('@').unwrap_or((user.as_str(), "%"));
        let grantee = format!("'{who}'@'{host}'");
        let global = session.exec(
            "SELECT privilege_type FROM information_schema.user_privileges WHERE grantee = ?",
            (&grantee,),
        )?;
        let of_database = session.exec(
            "SELECT table_schema, privilege_type FROM information_schema.schema_privileges \
             WHERE grantee = ?",
            (&grantee,),
        )?;
        let proc: Option<u8> = session.exec_first(
            "SELECT 1 FROM information_schema.table_privileges WHERE grantee = ? \
             AND table_schema = 'mysql' AND table_name = 'proc' AND privilege_type = 'SELECT'",
            (&grantee,),
        )?;
        Ok(Held { user: grantee, global, of_database, reads_routines: proc.is_some() })
    };
    read().map_err(|e| ServiceError::new("read the account's own privileges").because(e))
}

impl Held {
    fn globally(&self, right: &str) -> bool {
        self.global.iter().any(|held| held == right)
    }

    fn on(&self, database: &str, right: &str) -> bool {
        self.globally(right)
            || self.of_database.iter().any(|(pattern, held)| {
                held == right && (pattern == database || pattern.replace('\\', "") == database)
            })
    }

    /// What is missing for backups: (what, statement).
    fn lacks_for_backup(&self, databases: &[String]) -> Vec<(String, String)> {
        let mut lacks = Vec::new();
        for right in BACKUP_GLOBAL {
            if !self.globally(right) {
                lacks.push((right.to_owned(), format!("GRANT {right} ON *.* TO {}", self.user)));
            }
        }
        for database in databases {
            for right in BACKUP_DATABASE {
                if !self.on(database, right) {
                    let grant = format!("GRANT {right} ON {}.* TO {}", name(database), self.user);
                    lacks.push((format!("{right} on {database}"), grant));
                }
            }
        }
        // Without it routines of other accounts are not seen at all.
        if !self.globally("SELECT") && !self.reads_routines && !self.globally("SHOW CREATE ROUTINE")
        {
            let grant = format!("GRANT SELECT ON mysql.proc TO {}", self.user);
            lacks.push(("SELECT on mysql.proc".to_owned(), grant));
        }
        lacks
    }

    fn lacks_for_restore(&self, databases: &[String]) -> Vec<(String, String)> {
        let mut lacks = Vec::new();
        let places = databases.iter().map(String::as_str).chain(["stillpoint_%"]);
        for place in places {
            for right in RESTORE_DATABASE {
                if !self.on(place, right) {
                    let shown = place.replace('_', if place.ends_with('%') { "\\_" } else { "_" });
                    let grant = format!("GRANT {right} ON {}.* TO {}", name(&shown), self.user);
                    lacks.push((format!("{right} on {shown}"), grant));
                }
            }
        }
        lacks
    }
}

fn refuse(what: &str, lacks: Vec<(String, String)>) -> Result<(), ServiceError> {
    if lacks.is_empty() {
        return Ok(());
    }
    let (what_lacks, grants): (Vec<_>, Vec<_>) = lacks.into_iter().unzip();
    Err(ServiceError::new(format!("{what} with this account"))
        .because(format!("it lacks {}", what_lacks.join(", ")))
        .hint(grants.join("; ")))
}

pub(super) fn refuse_backup(session: &mut Conn, databases: &[String]) -> Result<(), ServiceError> {
    refuse("back up", held(session)?.lacks_for_backup(databases))
}

pub(super) fn refuse_restore(session: &mut Conn, databases: &[String]) -> Result<(), ServiceError> {
    refuse("restore", held(session)?.lacks_for_restore(databases))
}

/// Every finding, one by one.
pub(super) fn examine(driver: &Mariadb) -> Vec<Finding> {
    let finding = |what: &str, needed_for, problem: Option<String>, hint: Option<String>| Finding {
        what: what.to_owned(),
        needed_for,
        problem,
        hint,
    };
    let failed = |what: &str, needed_for, error: &ServiceError| {
        finding(what, needed_for, Some(crate::chain(error)), error.advice().map(str::to_owned))
    };
    let mut findings = Vec::new();
    for (names, needed_for) in [
        (["mariadb-dump", "mysqldump"], NeededFor::Backup),
        (["mariadb", "mysql"], NeededFor::Restore),
    ] {
        findings.push(match driver.tool(names) {
            Ok(path) => finding(&path.display().to_string(), needed_for, None, None),
            Err(error) => failed(names[0], needed_for, &error),
        });
    }
    match driver.login.connect().and_then(|mut session| held(&mut session)) {
        Err(error) => findings.push(failed("the account", NeededFor::Backup, &error)),
        Ok(held) => {
            findings.push(finding("the account", NeededFor::Backup, None, None));
            for (needed_for, lacks) in [
                (NeededFor::Backup, held.lacks_for_backup(&driver.databases)),
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
        }
    }
    findings
}
