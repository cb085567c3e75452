//! What works and what is missing, right by right, each missing one with the statement that gives it.
//!
//! Nothing is changed and nothing is locked: every answer is read from the catalogs. A right that
//! is not named here and then refused by the server, in a backup that was begun at night, is what
//! this guards against; so it asks what prepare and a restore's plan ask, and no other questions.

use postgres::Client;

use super::Postgres;
use super::connection::Session;
use super::list;
use super::names::ident;
use super::tools::Tools;
use crate::{Finding, NeededFor, ServiceError, chain};

/// What a question about the server is answered with.
type Answer = Result<Vec<Finding>, postgres::Error>;

pub(super) fn examine(driver: &Postgres) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut server_known = false;
    for database in &driver.databases {
        let shown = driver.login.shown(database);
        let what = format!("a connection to {shown}");
        let mut session = match driver.login.connect(database) {
            Ok(session) => session,
            Err(error) => {
                findings.push(failed(what, NeededFor::Backup, &error));
                continue;
            }
        };
        findings.push(fine(what, NeededFor::Backup));
        if !server_known {
            server_known = true;
            findings.extend(tools(driver, session.version));
            let asked = may_create(&mut session.client, driver.login.user());
            findings.extend(answered("the role's attributes", NeededFor::Restore, asked));
        }
        let user = driver.login.user();
        let asked = reads(&mut session.client, user, database);
        findings.extend(answered("what it may read", NeededFor::Backup, asked));
        let asked = may_swap(&mut session, user, database);
        findings.extend(answered("what it may swap", NeededFor::Restore, asked));
    }
    findings
}

fn fine(what: impl Into<String>, needed_for: NeededFor) -> Finding {
    Finding { what: what.into(), needed_for, problem: None, hint: None }
}

fn lacking(
    what: impl Into<String>,
    needed_for: NeededFor,
    problem: impl Into<String>,
    hint: impl Into<String>,
) -> Finding {
    let (problem, hint) = (Some(problem.into()), Some(hint.into()));
    Finding { what: what.into(), needed_for, problem, hint }
}

fn failed(what: String, needed_for: NeededFor, error: &ServiceError) -> Finding {
    let hint = error.advice().map(str::to_owned);
    Finding { what, needed_for, problem: Some(chain(error)), hint }
}

/// A question that could not be asked is a finding as well.
fn answered(what: &str, needed_for: NeededFor, asked: Answer) -> Vec<Finding> {
    asked.unwrap_or_else(|error| {
        let error = ServiceError::new("it cannot be looked into").because(error);
        vec![failed(what.to_owned(), needed_for, &error)]
    })
}

fn tools(driver: &Postgres, server: u32) -> Vec<Finding> {
    let major = server / 10_000;
    let wanted = |tool: &str| format!("{tool} {major} or newer");
    let tools = match Tools::find(&driver.tool_dirs, server) {
        Ok(tools) => tools,
        Err(error) => return vec![failed(wanted("pg_dump"), NeededFor::Backup, &error)],
    };
    let dump = fine(format!("pg_dump {}", tools.version), NeededFor::Backup);
    let dumpall = match tools.beside("pg_dumpall") {
        Some(version) => fine(format!("pg_dumpall {version}"), NeededFor::Backup),
        None => lacking(
            wanted("pg_dumpall"),
            NeededFor::Backup,
            "it is not beside pg_dump, so roles and tablespaces would be missing",
            format!("install the Debian package postgresql-client-{major}"),
        ),
    };
    vec![dump, dumpall]
}

fn reads(client: &mut Client, user: &str, database: &str) -> Answer {
    let lacks = list::unreadable(client, user)?;
    if lacks.is_empty() {
        let what = format!("reading every table, sequence and large object of `{database}`");
        return Ok(vec![fine(what, NeededFor::Backup)]);
    }
    let named = |(object, right, statement): (String, &str, String)| {
        let problem = format!("`{user}` lacks {right}");
        lacking(format!("reading {object} of `{database}`"), NeededFor::Backup, problem, statement)
    };
    Ok(lacks.into_iter().map(named).collect())
}

fn may_create(client: &mut Client, user: &str) -> Answer {
    let row = client.query_one(
        "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user",
        &[],
    )?;
    let what = "CREATEDB, for the database that is loaded beside the live one";
    Ok(vec![if row.get(0) {
        fine(what, NeededFor::Restore)
    } else {
        let statement = format!("ALTER ROLE {} CREATEDB", ident(user));
        lacking(what, NeededFor::Restore, format!("`{user}` lacks it"), statement)
    }])
}

/// What a restore of this database needs: to own it, to be its objects' owners, to end sessions in
/// it, and to create its extensions again.
fn may_swap(session: &mut Session, user: &str, database: &str) -> Answer {
    let client = &mut session.client;
    let row = client.query_one(
        "SELECT rolsuper, pg_has_role(d.datdba, 'USAGE'), \
         t.spcname = 'pg_default' OR has_tablespace_privilege(t.oid, 'CREATE'), t.spcname::text \
         FROM pg_roles r, pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace \
         WHERE r.rolname = current_user AND d.datname = current_database()",
        &[],
    )?;
    let (superuser, owns, places): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
    let tablespace: String = row.get(3);
    let what = format!("the rights to swap `{database}`");
    if superuser {
        return Ok(vec![fine(what, NeededFor::Restore)]);
    }
    let restore = NeededFor::Restore;
    let mut lacks = Vec::new();
    if !owns {
        lacks.push(lacking(
            format!("owning the database `{database}`"),
            restore,
            format!("`{user}` does not own it, so it may not rename it"),
            format!("ALTER DATABASE {} OWNER TO {}", ident(database), ident(user)),
        ));
    }
    if !places {
        lacks.push(lacking(
            format!("the tablespace `{tablespace}`"),
            restore,
            format!("`{user}` may not create a database there"),
            format!("GRANT CREATE ON TABLESPACE {} TO {}", ident(&tablespace), ident(user)),
        ));
    }
    let right = if session.version >= 160_000 { "SET" } else { "MEMBER" };
    lacks.extend(foreign_owners(client, user, database, right)?);
    lacks.extend(foreign_sessions(client, user, database)?);
    lacks.extend(extensions(client, database)?);
    Ok(if lacks.is_empty() { vec![fine(what, restore)] } else { lacks })
}

fn foreign_owners(client: &mut Client, user: &str, database: &str, right: &str) -> Answer {
    let (owners, _) = list::roles(client)?;
    let foreign = client.query(
        "SELECT w FROM unnest($1::text[]) w WHERE NOT pg_has_role(w, $2) ORDER BY 1",
        &[&owners, &right],
    )?;
    let named = |row: &postgres::Row| {
        let owner: String = row.get(0);
        lacking(
            format!("acting as `{owner}`"),
            NeededFor::Restore,
            format!("objects in `{database}` belong to it, and `{user}` is no member of it"),
            format!("GRANT {} TO {}", ident(&owner), ident(user)),
        )
    };
    Ok(foreign.iter().map(named).collect())
}

/// Sessions in the database that a swap could not end. Of other roles' sessions the server may hide
/// what they are, so whatever has a role counts.
fn foreign_sessions(client: &mut Client, user: &str, database: &str) -> Answer {
    let sessions = client.query(
        "SELECT r.rolname::text, r.rolsuper, min(a.pid) FROM pg_stat_activity a \
         JOIN pg_roles r ON r.oid = a.usesysid \
         WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() \
         AND NOT pg_has_role(r.oid, 'USAGE') \
         AND (r.rolsuper OR NOT pg_has_role('pg_signal_backend', 'USAGE')) \
         GROUP BY 1, 2 ORDER BY 1",
        &[],
    )?;
    let named = |row: &postgres::Row| {
        let (role, superuser, pid): (String, bool, i32) = (row.get(0), row.get(1), row.get(2));
        let statement = if superuser {
            format!("SELECT pg_terminate_backend({pid})")
        } else {
            format!("GRANT pg_signal_backend TO {}", ident(user))
        };
        lacking(
            format!("ending the sessions of `{role}`"),
            NeededFor::Restore,
            format!("`{role}` is connected to `{database}`, and `{user}` may not end its sessions"),
            statement,
        )
    };
    Ok(sessions.iter().map(named).collect())
}

fn extensions(client: &mut Client, database: &str) -> Answer {
    let rows = client.query("SELECT extname::text FROM pg_extension ORDER BY 1", &[])?;
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut lacks = Vec::new();
    for name in list::extensions_not_installed(client, &names)? {
        lacks.push(lacking(
            format!("the extension {name} of `{database}`"),
            NeededFor::Restore,
            "its files are not installed at the server",
            "install the package that brings it (Debian: postgresql-contrib and others)",
        ));
    }
    for name in list::extensions_not_trusted(client, &names)? {
        lacks.push(lacking(
            format!("the extension {name} of `{database}`"),
            NeededFor::Restore,
            "only a superuser may create it",
            "restore with a superuser's role",
        ));
    }
    Ok(lacks)
}
