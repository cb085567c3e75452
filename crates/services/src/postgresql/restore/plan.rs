//! Plan: every refusal that can be foreseen, while nothing has been changed.

use postgres::Client;

use super::{Plan, PostgresRestore, Target};
use crate::ServiceError;
use crate::postgresql::catalog::{Catalog, Database};
use crate::postgresql::connection::Session;
use crate::postgresql::list;
use crate::postgresql::names::{beside, ident};

impl PostgresRestore {
    pub(super) fn make_plan(&self, token: &str, catalog: &Catalog) -> Result<Plan, ServiceError> {
        let pairs = self.pair(catalog)?;
        let mut session = self.maintenance(pairs.iter().map(|(_, live)| live.as_str()))?;
        let shown = self.login.shown("");
        let fail = |e: postgres::Error| {
            ServiceError::new(format!("plan the restore to {shown}")).because(e)
        };
        if session.version / 10_000 < catalog.server_version / 10_000 {
            return Err(ServiceError::new(format!(
                "the server at {shown} is PostgreSQL {}, the capture is of PostgreSQL {}",
                session.version / 10_000,
                catalog.server_version / 10_000
            ))
            .hint("restore to a server that is not older"));
        }
        let row = session
            .client
            .query_one(
                "SELECT rolcreatedb, rolsuper FROM pg_roles WHERE rolname = current_user",
                &[],
            )
            .map_err(fail)?;
        let (creates, superuser): (bool, bool) = (row.get(0), row.get(1));
        let user = self.login.user();
        if !creates && !superuser {
            return Err(ServiceError::new(format!(
                "`{user}` may not create the database that the backup is loaded into"
            ))
            .hint(format!("as a superuser: ALTER ROLE {} CREATEDB", ident(user))));
        }
        let mut databases = Vec::new();
        for (captured, live) in pairs {
            let found = list::properties(&mut session.client, &live).map_err(fail)?;
            if found.is_some() && !superuser {
                refuse_unowned(&mut session.client, user, &live)?;
            }
            refuse_slots(&mut session.client, &live)?;
            refuse_subscriptions(&mut session.client, &live)?;
            refuse_lost_large_objects(captured)?;
            if !superuser {
                // A live database keeps its owner; one that is gone gets the captured one's.
                let owner = found.is_none().then_some(&captured.properties.owner);
                refuse_roles(&mut session, user, captured, owner)?;
                refuse_extensions(&mut session.client, captured)?;
            }
            let properties = found.unwrap_or_else(|| captured.properties.clone());
            if let Some(tablespace) = &properties.tablespace {
                refuse_tablespace(&mut session.client, user, tablespace)?;
            }
            databases.push(Target {
                captured: captured.name.clone(),
                aside: beside(&live, "stillpoint", token),
                old: beside(&live, "old", token),
                live,
                properties,
            });
        }
        Ok(Plan { token: token.to_owned(), databases })
    }

    /// Which captured database goes where. A single one may go to another name.
    fn pair<'c>(&self, catalog: &'c Catalog) -> Result<Vec<(&'c Database, String)>, ServiceError> {
        if let ([captured], [live]) = (catalog.databases.as_slice(), self.databases.as_slice()) {
            return Ok(vec![(captured, live.clone())]);
        }
        let mut names: Vec<&str> = catalog.databases.iter().map(|d| d.name.as_str()).collect();
        names.sort_unstable();
        if names != self.databases {
            return Err(ServiceError::new(format!(
                "the capture holds the databases {}, the service is configured with {}",
                names.join(", "),
                self.databases.join(", ")
            ))
            .hint("name the captured databases in the service's `databases`"));
        }
        Ok(catalog.databases.iter().map(|d| (d, d.name.clone())).collect())
    }
}

/// Earlier versions counted large objects without taking them.
fn refuse_lost_large_objects(captured: &Database) -> Result<(), ServiceError> {
    if captured.large_objects == 0 || captured.large_object_statements.is_some() {
        return Ok(());
    }
    Err(ServiceError::new(format!(
        "the captured database `{}` had {} large objects, which the version that captured it left \
         out",
        captured.name, captured.large_objects
    ))
    .hint(
        "restore a newer backup, or load the captured files by hand into a database of its own \
         (docs/services.md says how)",
    ))
}

fn checked(e: postgres::Error) -> ServiceError {
    ServiceError::new("check the rights for a restore").because(e)
}

fn refuse_unowned(client: &mut Client, user: &str, live: &str) -> Result<(), ServiceError> {
    let row = client
        .query_one(
            "SELECT pg_has_role(datdba, 'USAGE'), pg_get_userbyid(datdba)::text \
             FROM pg_database WHERE datname = $1",
            &[&live],
        )
        .map_err(checked)?;
    if row.get(0) {
        return Ok(());
    }
    Err(ServiceError::new(format!(
        "`{user}` does not own the database `{live}`, so it may not swap it"
    ))
    .hint(format!("as a superuser: ALTER DATABASE {} OWNER TO {}", ident(live), ident(user))))
}

fn refuse_slots(client: &mut Client, live: &str) -> Result<(), ServiceError> {
    let slots = client
        .query(
            "SELECT slot_name::text FROM pg_replication_slots WHERE database = $1 ORDER BY 1",
            &[&live],
        )
        .map_err(checked)?;
    if slots.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = slots.iter().map(|row| row.get(0)).collect();
    Err(ServiceError::new(format!(
        "the database `{live}` has logical replication slots ({}), which cannot move to a \
         restored one",
        names.join(", ")
    ))
    .hint("drop them with pg_drop_replication_slot() and create them anew after the restore"))
}

/// A database that has subscriptions cannot be dropped, their workers would go on in the one that
/// was swapped out, and the restored one would take up none of their work.
fn refuse_subscriptions(client: &mut Client, live: &str) -> Result<(), ServiceError> {
    let subscriptions = client
        .query(
            "SELECT s.subname::text FROM pg_subscription s \
             JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = $1 ORDER BY 1",
            &[&live],
        )
        .map_err(checked)?;
    if subscriptions.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = subscriptions.iter().map(|row| row.get(0)).collect();
    Err(ServiceError::new(format!(
        "the database `{live}` has logical subscriptions ({}), which cannot move to a restored one",
        names.join(", ")
    ))
    .hint("drop them with DROP SUBSCRIPTION and create them anew after the restore"))
}

/// The restored database goes where the live one is, or where the captured one was.
fn refuse_tablespace(
    client: &mut Client,
    user: &str,
    tablespace: &str,
) -> Result<(), ServiceError> {
    let row = client
        .query_opt(
            "SELECT has_tablespace_privilege(oid, 'CREATE') FROM pg_tablespace WHERE spcname = $1",
            &[&tablespace],
        )
        .map_err(checked)?;
    match row {
        None => Err(ServiceError::new(format!(
            "the tablespace `{tablespace}`, in which the captured database was, does not exist"
        ))
        .hint("create it; the captured globals.sql has the statement")),
        Some(row) if row.get(0) => Ok(()),
        Some(_) => Err(ServiceError::new(format!(
            "`{user}` may not create a database in the tablespace `{tablespace}`"
        ))
        .hint(format!(
            "as a superuser: GRANT CREATE ON TABLESPACE {} TO {}",
            ident(tablespace),
            ident(user)
        ))),
    }
}

/// Roles that the captured objects belong to or mention must exist, and owners be ours to give.
fn refuse_roles(
    session: &mut Session,
    user: &str,
    captured: &Database,
    owner: Option<&String>,
) -> Result<(), ServiceError> {
    let owners: Vec<&String> = captured.owners.iter().chain(owner).collect();
    let mut wanted = owners.clone();
    wanted.extend(&captured.mentioned);
    wanted.sort();
    wanted.dedup();
    let missing = session
        .client
        .query(
            "SELECT w FROM unnest($1::text[]) w WHERE w NOT IN (SELECT rolname FROM pg_roles)",
            &[&wanted],
        )
        .map_err(checked)?;
    if !missing.is_empty() {
        let names: Vec<String> = missing.iter().map(|row| row.get(0)).collect();
        return Err(ServiceError::new(format!(
            "roles that the captured database needs do not exist: {}",
            names.join(", ")
        ))
        .hint("create them; the captured globals.sql has the statements"));
    }
    let right = if session.version >= 160_000 { "SET" } else { "MEMBER" };
    let foreign = session
        .client
        .query(
            "SELECT DISTINCT w FROM unnest($1::text[]) w WHERE NOT pg_has_role(w, $2)",
            &[&owners, &right],
        )
        .map_err(checked)?;
    if foreign.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = foreign.iter().map(|row| ident(row.get(0))).collect();
    Err(ServiceError::new(format!(
        "objects of the captured database belong to roles that `{user}` may not act as: {}",
        names.join(", ")
    ))
    .hint(format!("as a superuser: GRANT {} TO {}", names.join(", "), ident(user))))
}

/// Extensions must be installed on the host, and be such that a database's owner may create them.
fn refuse_extensions(client: &mut Client, captured: &Database) -> Result<(), ServiceError> {
    let missing = list::extensions_not_installed(client, &captured.extensions).map_err(checked)?;
    if !missing.is_empty() {
        return Err(ServiceError::new(format!(
            "extensions of the captured database are not installed at the server: {}",
            missing.join(", ")
        ))
        .hint("install the packages that bring them (Debian: postgresql-contrib and others)"));
    }
    let names = list::extensions_not_trusted(client, &captured.extensions).map_err(checked)?;
    if names.is_empty() {
        return Ok(());
    }
    Err(ServiceError::new(format!(
        "extensions of the captured database need a superuser to be created: {}",
        names.join(", ")
    ))
    .hint("restore with a superuser's role"))
}
