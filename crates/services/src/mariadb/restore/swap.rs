//! The swap, and the way back.
//!
//! All tables of all databases change places in one `RENAME TABLE`, which the server does whole or
//! not at all. It waits for transactions that use the tables, so it is tried first by a lock that
//! changes nothing; whoever is in the way is named.

use mysql::Conn;
use mysql::prelude::Queryable;

use super::super::catalog::{self, Defaults};
use super::super::connection::{filled, name, name_in, run};
use super::super::objects::{self, Object};
use super::target::{Found, MARKER, Plan, Target, find};
use crate::ServiceError;

/// Swaps what is loaded and not swapped; then sees to views and the like.
pub(super) fn forth(session: &mut Conn, plan: &Plan) -> Result<(), ServiceError> {
    let mut loaded = Vec::new();
    for target in &plan.targets {
        let doing = || ServiceError::new(format!("swap the database {}", target.live));
        match find(session, target)? {
            Found::Nothing => return Err(doing().because("nothing was loaded for it")),
            Found::Swapped => {}
            Found::Loaded => {
                let live = catalog::defaults(session, &target.live)?.is_some();
                let now = if live { objects::objects(session, &target.live)? } else { Vec::new() };
                if let Some(Object { kind, name, .. }) =
                    now.iter().find(|object| !target.before.iter().any(|o| o.same(object)))
                {
                    return Err(doing()
                        .because(format!("the {kind} {name} was changed since the plan"))
                        .hint("restore again"));
                }
                loaded.push(target);
            }
        }
    }
    if !loaded.is_empty() {
        for target in &loaded {
            probe(session, target)?;
        }
        let swapped = loaded
            .iter()
            .try_for_each(|target| {
                create(session, &target.live, target.defaults_before.as_ref())?;
                create(session, &target.old, None)?;
                objects::clear(session, &target.live, &target.after)
            })
            .and_then(|()| exchange(session, &loaded, |target| (&target.old, &target.new)));
        if let Err(error) = swapped {
            // Whoever reads this error finds everything as it was.
            return Err(match back(session, plan) {
                Ok(()) => error,
                Err(also) => {
                    error.hint(format!("and it is not undone yet: {}", crate::chain(&also)))
                }
            });
        }
    }
    for target in &plan.targets {
        set_defaults(session, &target.live, &target.defaults_after)?;
    }
    let wanted: Vec<(&str, &[Object])> =
        plan.targets.iter().map(|t| (t.live.as_str(), t.after.as_slice())).collect();
    objects::make(session, &wanted, plan.mariadb)
}

/// Undoes a swap, whole or half done.
pub(super) fn back(session: &mut Conn, plan: &Plan) -> Result<(), ServiceError> {
    let mut swapped = Vec::new();
    let mut begun = Vec::new();
    for target in &plan.targets {
        match find(session, target)? {
            Found::Nothing => {}
            Found::Loaded => begun.push(target),
            Found::Swapped => {
                swapped.push(target);
                begun.push(target);
            }
        }
    }
    for target in &swapped {
        objects::clear(session, &target.live, &target.before)?;
    }
    if !swapped.is_empty() {
        exchange(session, &swapped, |target| (&target.new, &target.old))?;
    }
    let mut wanted: Vec<(&str, Vec<Object>)> = Vec::new();
    for target in begun {
        let Some(defaults) = catalog::defaults(session, &target.live)? else { continue };
        let now = objects::objects(session, &target.live)?;
        for object in &now {
            // What only the restored state had; nobody was ever granted anything on it.
            let before = target.before.iter().any(|before| before.replaces(object));
            if !before && ours(target, object) {
                objects::drop_object(session, &target.live, object)?;
            }
        }
        match &target.defaults_before {
            Some(before) if defaults == target.defaults_after => {
                set_defaults(session, &target.live, before)?;
            }
            None if catalog::tables(session, &target.live)?.is_empty() => {
                run(session, &format!("DROP DATABASE {}", name(&target.live)))?;
                continue;
            }
            _ => {}
        }
        wanted.push((&target.live, to_make_again(target, &now)));
    }
    let wanted: Vec<(&str, &[Object])> =
        wanted.iter().map(|(database, objects)| (*database, objects.as_slice())).collect();
    objects::make(session, &wanted, plan.mariadb)
}

/// Whether an object is as this restore made it.
fn ours(target: &Target, object: &Object) -> bool {
    target.after.iter().any(|after| after.same(object))
}

/// What the live database had and this restore took from it. What somebody else has changed since
/// the plan is left as it is.
fn to_make_again(target: &Target, now: &[Object]) -> Vec<Object> {
    let theirs = |object: &Object| {
        !ours(target, object) && !target.before.iter().any(|before| before.same(object))
    };
    let triggers_stay = now.iter().any(|object| object.is("TRIGGER") && theirs(object));
    let taken = |before: &&Object| {
        let there = now.iter().find(|object| object.replaces(before));
        !(before.is("TRIGGER") && triggers_stay) && there.is_none_or(|there| !theirs(there))
    };
    target.before.iter().filter(taken).cloned().collect()
}

fn create(
    session: &mut Conn,
    database: &str,
    defaults: Option<&Defaults>,
) -> Result<(), ServiceError> {
    let options = defaults.map_or_else(String::new, |defaults| {
        format!(" CHARACTER SET {} COLLATE {}", defaults.character_set, defaults.collation)
    });
    run(session, &format!("CREATE DATABASE IF NOT EXISTS {}{options}", name(database)))
}

fn set_defaults(session: &mut Conn, database: &str, wanted: &Defaults) -> Result<(), ServiceError> {
    if catalog::defaults(session, database)?.as_ref() == Some(wanted) {
        return Ok(());
    }
    let Defaults { character_set, collation } = wanted;
    let database = name(database);
    run(
        session,
        &format!("ALTER DATABASE {database} CHARACTER SET {character_set} COLLATE {collation}"),
    )
}

/// Sees whether the tables of the live database can be had, and lets go of them.
fn probe(session: &mut Conn, target: &Target) -> Result<(), ServiceError> {
    let tables: Vec<String> = catalog::tables(session, &target.live)?
        .into_keys()
        .map(|table| format!("{} WRITE", name_in(&target.live, &table)))
        .collect();
    if tables.is_empty() {
        return Ok(());
    }
    let locked = run(session, &format!("LOCK TABLES {}", tables.join(", ")));
    run(session, "UNLOCK TABLES")?;
    locked.map_err(|e| {
        let error = ServiceError::new(format!("have the tables of {} for the swap", target.live));
        match in_the_way(session, &target.live) {
            Some(who) => error
                .because(format!("{}; {who}", crate::chain(&e)))
                .hint("end that connection or its transaction (KILL), and restore again"),
            None => {
                error.because(crate::chain(&e)).hint("end long transactions, and restore again")
            }
        }
    })
}

/// The connections that have a transaction open, the oldest first.
fn in_the_way(session: &mut Conn, database: &str) -> Option<String> {
    let found: Vec<(u64, String, String, u64, u8)> = session
        .query(filled(
            "SELECT p.id, p.user, p.host, p.time, p.command = 'Sleep' \
             FROM information_schema.processlist p LEFT JOIN information_schema.innodb_trx t \
             ON t.trx_mysql_thread_id = p.id \
             WHERE p.id <> CONNECTION_ID() AND IFNULL(p.state, '') NOT LIKE 'Waiting for %' \
             AND (t.trx_id IS NOT NULL OR (p.command <> 'Sleep' AND p.db = ?)) \
             AND p.command NOT IN ('Daemon', 'Binlog Dump') \
             ORDER BY t.trx_started IS NULL, t.trx_started LIMIT 3",
            &[database],
        ))
        .ok()?;
    let shown = found.into_iter().map(|(id, user, host, seconds, idle)| {
        let does = if idle == 1 { "idle in a transaction" } else { "at work" };
        format!("connection {id} ({user}@{host}, {does} for {seconds} s)")
    });
    let shown: Vec<String> = shown.collect();
    (!shown.is_empty()).then(|| format!("in the way may be {}", shown.join(", ")))
}

/// One statement that moves the tables of each live database out, and those that come into their
/// place; `ways` gives where they go and where they come from.
fn exchange(
    session: &mut Conn,
    targets: &[&Target],
    ways: impl Fn(&Target) -> (&String, &String),
) -> Result<(), ServiceError> {
    let mut moves = Vec::new();
    for target in targets {
        let (out, come) = ways(target);
        let live = &target.live;
        for table in catalog::tables(session, live)?.into_keys() {
            moves.push(format!("{} TO {}", name_in(live, &table), name_in(out, &table)));
        }
        for table in catalog::tables(session, come)?.into_keys() {
            let to = if table == MARKER { out } else { live };
            moves.push(format!("{} TO {}", name_in(come, &table), name_in(to, &table)));
        }
    }
    run(session, "SET SESSION foreign_key_checks = 0")?;
    let renamed = run(session, &format!("RENAME TABLE {}", moves.join(", ")));
    renamed.map_err(|e| ServiceError::new("exchange the tables").because(crate::chain(&e)))
}
