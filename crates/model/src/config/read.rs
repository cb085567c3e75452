//! From the tree to the types: which keys there are, and what must agree with what.

use super::node::{self, Place};
use super::read_cron::cron;
use super::read_worker::worker;
use super::reader::{Errors, Field, Table};
use super::values::{
    Refusal, directory_url, etcd_url, excludes, listen, mariadb_url, path, pattern, postgresql_url,
    rate, redis_url, route, syslog, upstream, variable_name,
};
use super::{
    Code, CompletionsPart, Config, ConfigErrors, EndpointPart, Environment, EnvironmentKind,
    GatewayPart, Limits, Location, Mariadb, MountPart, OnPartial, Redis, Region, ServicePart,
};
use crate::ids::{LocationName, PartName, ProjectId};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

const SERVICE_TYPES: [&str; 7] =
    ["postgresql", "mariadb", "mysql", "redis", "valkey", "etcd", "sqlite"];
/// Of the format, but not of this version.
pub(super) const LATER_SERVICE_TYPES: [&str; 4] = ["rabbitmq", "influxdb", "volume", "mongodb"];

pub(super) fn config(file: &str, text: &str) -> Result<Config, ConfigErrors> {
    let mut errors = Errors::new(file);
    let config = match node::parse(file, text) {
        Ok(node) if matches!(node.value, node::Value::Null) => {
            let refusal = Refusal::new("the file is empty")
                .hint("it needs the keys `project` and `environments`");
            errors.add(Place::START, "", refusal);
            None
        }
        Ok(node) => Table::root(&node, &mut errors).and_then(|root| whole(root, &mut errors)),
        Err(error) => {
            errors.list.push(error);
            None
        }
    };
    match (ConfigErrors::from_list(errors.list), config) {
        (Some(errors), _) => Err(errors),
        (None, Some(config)) => Ok(config),
        (None, None) => unreachable!("what could not be read has an error"),
    }
}

fn whole(mut root: Table<'_>, errors: &mut Errors) -> Option<Config> {
    let project = root
        .require("project", "write `project: NAME`, lower-case letters and digits")
        .and_then(|field| field.text_as(errors, project_id));
    let environments = root
        .require("environments", "write `environments:` with at least one below it")
        .and_then(|field| named(&field, errors, environment));
    let regions = optional(root.take("regions"), errors, |field, errors| {
        let regions = named(&field, errors, region)?;
        if regions.len() > 1 {
            field.refuse_key(
                errors,
                Refusal::new("more than one region is not supported by this version yet")
                    .hint("keep one"),
            );
        }
        Some(regions)
    });
    root.finish(errors);
    Some(Config { project: project?, environments: environments?, regions: regions? })
}

fn project_id(given: &str) -> Result<ProjectId, Refusal> {
    given.parse().map_err(|error: crate::ids::InvalidName| {
        let better: String = given
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            .take(64)
            .collect();
        let refusal = Refusal::new(error.to_string());
        if better.is_empty() { refusal } else { refusal.hint(format!("write `{better}`")) }
    })
}

/// A table whose keys are names that the user chose; at least one.
fn named<'n, N, T>(
    field: &Field<'n>,
    errors: &mut Errors,
    read: impl Fn(Table<'n>, &mut Errors) -> Option<T>,
) -> Option<BTreeMap<N, T>>
where
    N: FromStr<Err: Display> + Ord,
{
    let fields = field.table(errors)?.into_fields();
    if fields.is_empty() {
        field.refuse_key(errors, Refusal::new("there is nothing in it"));
        return None;
    }
    let mut all = BTreeMap::new();
    let mut whole = true;
    for field in fields {
        let name = field.key_as(errors);
        let value = field.table(errors).and_then(|table| read(table, errors));
        match (name, value) {
            (Some(name), Some(value)) => drop(all.insert(name, value)),
            _ => whole = false,
        }
    }
    whole.then_some(all)
}

/// An absent key gives the default; one that is there but wrong gives `None`.
pub(super) fn optional<'n, T: Default>(
    field: Option<Field<'n>>,
    errors: &mut Errors,
    read: impl FnOnce(Field<'n>, &mut Errors) -> Option<T>,
) -> Option<T> {
    optional_or(field, T::default(), errors, read)
}

pub(super) fn optional_or<'n, T>(
    field: Option<Field<'n>>,
    default: T,
    errors: &mut Errors,
    read: impl FnOnce(Field<'n>, &mut Errors) -> Option<T>,
) -> Option<T> {
    match field {
        None => Some(default),
        Some(field) => read(field, errors),
    }
}

fn environment(mut table: Table<'_>, errors: &mut Errors) -> Option<Environment> {
    let kinds =
        [EnvironmentKind::Production, EnvironmentKind::Staging, EnvironmentKind::Development]
            .map(|kind| (kind.as_str(), kind));
    let kind = table
        .require("type", "write `type: production`, `staging` or `development`")
        .and_then(|field| field.word(errors, &kinds));
    let code = optional(table.take("code"), errors, |field, errors| {
        let mut table = field.table(errors)?;
        let path = table
            .require("path", "write `code: { path: . }`")
            .and_then(|field| field.text_as(errors, path));
        table.finish(errors);
        Some(Some(Code { path: path? }))
    });
    let gateways = optional(table.take("gateways"), errors, |f, errors| named(&f, errors, gateway));
    let services = table.take("services");
    let service_fields = services.clone();
    let services = optional(services, errors, |f, errors| named(&f, errors, service));
    let mounts = table.take("mounts");
    let mount_fields = mounts.clone();
    let mounts = optional(mounts, errors, |f, errors| named(&f, errors, mount));
    let words = [("partial", OnPartial::Partial), ("fail", OnPartial::Fail)];
    let on_partial =
        optional(table.take("on_partial"), errors, |field, errors| field.word(errors, &words));
    let workers = table.take("workers");
    let workers = optional(workers, errors, |f, errors| named(&f, errors, worker));
    let crons = table.take("crons");
    let cron_fields = crons.clone();
    let crons = optional(crons, errors, |f, errors| named(&f, errors, cron));
    let limits = optional(table.take("limits"), errors, |field, errors| {
        let mut table = field.table(errors)?;
        let rate = optional(table.take("rate"), errors, |field, errors| {
            field.text_as(errors, rate).map(Some)
        });
        let step =
            optional(table.take("step"), errors, |field, errors| field.duration(errors).map(Some));
        table.finish(errors);
        Some(Limits { rate: rate?, step: step? })
    });
    if service_fields.is_none() && mount_fields.is_none() {
        table.refuse(
            errors,
            Refusal::new("there is nothing to back up").hint("add `services`, `mounts`, or both"),
        );
    }
    table.finish(errors);
    let environment = Environment {
        kind: kind?,
        code: code?,
        gateways: gateways?,
        services: services?,
        mounts: mounts?,
        workers: workers?,
        crons: crons?,
        on_partial: on_partial?,
        limits: limits?,
    };
    for name in environment.crons.keys().filter(|name| environment.workers.contains_key(name)) {
        let refusal = Refusal::new(format!("a worker is named `{name}` too"))
            .hint("names are unique among workers and crons: rename one");
        if let Some(field) = cron_fields.as_ref().and_then(|fields| fields.child(name.as_str())) {
            field.refuse_key(errors, refusal);
        }
    }
    agree(&environment, mount_fields.as_ref(), service_fields.as_ref(), errors);
    Some(environment)
}

fn gateway(mut table: Table<'_>, errors: &mut Errors) -> Option<GatewayPart> {
    let listen = table
        .require("listen", "write `listen: \"127.0.0.1:8000\"`")
        .and_then(|field| field.text_as(errors, listen));
    let upstream = table
        .require("upstream", "write `upstream: \"http://HOST:PORT\"`, the application")
        .and_then(|field| field.text_as(errors, upstream));
    let drain_field = table.take("drain_timeout");
    let drain_timeout =
        optional_or(drain_field.clone(), GatewayPart::DRAIN_TIMEOUT, errors, |f, e| f.duration(e));
    let hold_field = table.take("max_hold");
    let max_hold =
        optional_or(hold_field.clone(), GatewayPart::MAX_HOLD, errors, |f, e| f.duration(e));
    let max_held =
        optional_or(table.take("max_held"), GatewayPart::MAX_HELD, errors, |f, e| f.count(e));
    let pass = optional(table.take("pass"), errors, |field, errors| {
        let texts = field.texts(errors)?;
        let count = texts.len();
        let routes: Vec<_> =
            texts.iter().filter_map(|(field, _)| field.text_as(errors, route)).collect();
        (routes.len() == count).then_some(routes)
    });
    let endpoint = optional(table.take("endpoint"), errors, |field, errors| {
        endpoint(&field, drain_timeout, errors).map(Some)
    });
    table.unsupported("host", errors);
    table.finish(errors);
    if let (Some(drain), Some(hold)) = (drain_timeout, max_hold)
        && drain >= hold
        && let Some(field) = drain_field.or(hold_field)
    {
        field.refuse(
            errors,
            Refusal::new(format!(
                "draining may take {drain:?}, but no request waits longer than {hold:?}"
            ))
            .hint("`drain_timeout` must be less than `max_hold`, to leave time for the marks"),
        );
    }
    Some(GatewayPart {
        listen: listen?,
        upstream: upstream?,
        drain_timeout: drain_timeout?,
        max_hold: max_hold?,
        max_held: max_held?,
        pass: pass?,
        endpoint: endpoint?,
    })
}

fn endpoint(
    field: &Field<'_>,
    drain_timeout: Option<Duration>,
    errors: &mut Errors,
) -> Option<EndpointPart> {
    let mut table = field.table(errors)?;
    let listen = table
        .require("listen", "write `listen: \"127.0.0.1:8001\"`")
        .and_then(|field| field.text_as(errors, listen));
    let completions = optional(table.take("completions"), errors, |field, errors| {
        let mut table = field.table(errors)?;
        let syslog = table
            .require("syslog", "write `syslog: \"unixgram:/run/stillpoint/log.sock\"`")
            .and_then(|field| field.text_as(errors, syslog));
        let within_field = table.take("within");
        let within = optional_or(within_field.clone(), CompletionsPart::WITHIN, errors, |f, e| {
            f.duration(e)
        });
        table.finish(errors);
        if let (Some(within), Some(drain)) = (within, drain_timeout)
            && within >= drain
        {
            within_field.unwrap_or(field).refuse(
                errors,
                Refusal::new(format!(
                    "the end of a request is waited for {within:?}, but the drain takes no longer \
                     than {drain:?}"
                ))
                .hint("`within` must be less than `drain_timeout`"),
            );
        }
        Some(Some(CompletionsPart { syslog: syslog?, within: within? }))
    });
    table.finish(errors);
    Some(EndpointPart { listen: listen?, completions: completions? })
}

fn service(mut table: Table<'_>, errors: &mut Errors) -> Option<ServicePart> {
    let form = format!("write `type:` with one of: {}", SERVICE_TYPES.join(", "));
    let Some(field) = table.require("type", &form) else {
        // Which other keys there may be depends on it.
        for key in ["url", "password_env", "databases", "path", "host", "freeze"] {
            table.take(key);
        }
        table.finish(errors);
        return None;
    };
    let kind = field.text(errors)?;
    let read = match kind {
        "postgresql" => postgresql,
        "mariadb" => mariadb,
        "mysql" => mysql,
        "redis" => redis,
        "valkey" => valkey,
        "etcd" => etcd,
        "sqlite" => sqlite,
        later if LATER_SERVICE_TYPES.contains(&later) => {
            let refusal = Refusal::unsupported(&format!("a service of type `{later}`"));
            field.refuse(
                errors,
                refusal.hint(format!("this version has: {}", SERVICE_TYPES.join(", "))),
            );
            return None;
        }
        other => {
            field.refuse(errors, Refusal::not_one_of(other, &SERVICE_TYPES));
            return None;
        }
    };
    table.unsupported("host", errors);
    let service = read(&mut table, errors);
    table.finish(errors);
    service
}

fn postgresql(table: &mut Table<'_>, errors: &mut Errors) -> Option<ServicePart> {
    let (url, password_env, databases) =
        database_server(table, errors, "postgres://USER@HOST:PORT/DATABASE", postgresql_url)?;
    Some(ServicePart::Postgresql { url, password_env, databases })
}

fn mariadb(table: &mut Table<'_>, errors: &mut Errors) -> Option<ServicePart> {
    mariadb_or_mysql(table, errors, Mariadb::Mariadb)
}

fn mysql(table: &mut Table<'_>, errors: &mut Errors) -> Option<ServicePart> {
    mariadb_or_mysql(table, errors, Mariadb::Mysql)
}

fn mariadb_or_mysql(
    table: &mut Table<'_>,
    errors: &mut Errors,
    flavour: Mariadb,
) -> Option<ServicePart> {
    let (url, password_env, databases) =
        database_server(table, errors, "mysql://USER@HOST:PORT/DATABASE", mariadb_url)?;
    Some(ServicePart::Mariadb { flavour, url, password_env, databases })
}

fn redis(table: &mut Table<'_>, errors: &mut Errors) -> Option<ServicePart> {
    redis_or_valkey(table, errors, Redis::Redis)
}

fn valkey(table: &mut Table<'_>, errors: &mut Errors) -> Option<ServicePart> {
    redis_or_valkey(table, errors, Redis::Valkey)
}

fn redis_or_valkey(
    table: &mut Table<'_>,
    errors: &mut Errors,
    flavour: Redis,
) -> Option<ServicePart> {
    let url = table
        .require("url", "write `url: \"redis://HOST:PORT\"`")
        .and_then(|field| field.text_as(errors, redis_url));
    let password_env = password_env(table, errors);
    Some(ServicePart::Redis { flavour, url: url?, password_env: password_env? })
}

fn etcd(table: &mut Table<'_>, errors: &mut Errors) -> Option<ServicePart> {
    let url = table
        .require("url", "write `url: \"http://HOST:PORT\"`")
        .and_then(|field| field.text_as(errors, etcd_url));
    let password_env = password_env(table, errors);
    Some(ServicePart::Etcd { url: url?, password_env: password_env? })
}

#[allow(clippy::option_option, reason = "none: it is wrong; none in it: it is not there")]
fn password_env(table: &mut Table<'_>, errors: &mut Errors) -> Option<Option<String>> {
    optional(table.take("password_env"), errors, |field, errors| {
        field.text_as(errors, variable_name).map(Some)
    })
}

/// A server of which one or more databases are backed up.
fn database_server(
    table: &mut Table<'_>,
    errors: &mut Errors,
    form: &str,
    read: impl Fn(&str) -> Result<(String, Option<String>), Refusal>,
) -> Option<(String, Option<String>, Vec<String>)> {
    let url = table
        .require("url", &format!("write `url: \"{form}\"`"))
        .and_then(|field| Some((field.text_as(errors, read)?, field)));
    let password_env = password_env(table, errors);
    let databases = optional(table.take("databases"), errors, |field, errors| {
        let mut databases: Vec<String> = Vec::new();
        for (field, name) in field.texts(errors)? {
            if databases.iter().any(|other| other == name) {
                field.refuse(errors, Refusal::new(format!("`{name}` is given twice")));
            }
            databases.push(name.to_owned());
        }
        Some(databases)
    });
    let ((url, database), field) = url?;
    let databases = databases?;
    if database.is_none() && databases.is_empty() {
        field.refuse(
            errors,
            Refusal::new("neither the URL nor `databases` names a database")
                .hint(format!("write \"{form}\"")),
        );
    }
    Some((url, password_env?, databases))
}

fn sqlite(table: &mut Table<'_>, errors: &mut Errors) -> Option<ServicePart> {
    let path =
        table.require("path", "write `path:` with the database file")?.text_as(errors, path)?;
    Some(ServicePart::Sqlite { path })
}

fn mount(mut table: Table<'_>, errors: &mut Errors) -> Option<MountPart> {
    let path = table
        .require("path", "write `path:` with the directory")
        .and_then(|field| field.text_as(errors, path));
    let exclude = optional(table.take("exclude"), errors, |field, errors| {
        let mut patterns = Vec::new();
        for (field, text) in field.texts(errors)? {
            field.text_as(errors, pattern)?;
            patterns.push(text.to_owned());
        }
        Some(patterns)
    });
    table.unsupported("host", errors);
    table.finish(errors);
    Some(MountPart { path: path?, exclude: exclude? })
}

fn region(mut table: Table<'_>, errors: &mut Errors) -> Option<Region> {
    let locations: Option<BTreeMap<LocationName, Location>> = table
        .require("locations", "write `locations:` with at least one below it")
        .and_then(|field| named(&field, errors, location));
    let quorum = table.take("write_quorum");
    let count = locations.as_ref().map(BTreeMap::len);
    let write_quorum =
        optional_or(quorum.clone(), count.unwrap_or(1).min(2), errors, |f, e| f.count(e));
    if let (Some(field), Some(quorum), Some(count)) = (quorum, write_quorum, count)
        && quorum > count
    {
        field.refuse(
            errors,
            Refusal::new(format!("{quorum} copies are asked for, of {count} locations"))
                .hint("lower it, or add locations"),
        );
    }
    table.unsupported("capabilities", errors);
    table.finish(errors);
    Some(Region { locations: locations?, write_quorum: write_quorum? })
}

fn location(mut table: Table<'_>, errors: &mut Errors) -> Option<Location> {
    let path = table
        .require("url", "write `url: \"file:///PATH\"`")
        .and_then(|field| field.text_as(errors, directory_url));
    for key in ["endpoint", "access_key_env", "secret_key_env"] {
        // They belong to `s3://`, whose refusal by its URL says enough.
        if path.is_some() {
            table.unsupported(key, errors);
        } else {
            table.take(key);
        }
    }
    table.finish(errors);
    Some(Location::Directory { path: path? })
}

/// What parts must not do to one another. Paths are compared as they are written; what only the
/// file system can tell (links, mount points) is for the capture's own checks.
fn agree(
    environment: &Environment,
    mount_fields: Option<&Field<'_>>,
    service_fields: Option<&Field<'_>>,
    errors: &mut Errors,
) {
    let field_of =
        |fields: Option<&Field<'_>>, name: &PartName, key: &str, errors: &mut Errors, refusal| {
            let field = fields.and_then(|fields| fields.child(name.as_str()));
            if let Some(field) = field {
                field.child(key).unwrap_or(field).refuse(errors, refusal);
            }
        };
    // `components` keeps a `.` at the beginning.
    let plain = |path: &Path| {
        path.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>()
    };
    for (name, part) in &environment.mounts {
        if environment.services.contains_key(name) {
            let refusal = Refusal::new(format!("a service is named `{name}` too"))
                .hint("names are unique among services and mounts: rename one");
            if let Some(field) = mount_fields.and_then(|fields| fields.child(name.as_str())) {
                field.refuse_key(errors, refusal);
            }
        }
        let inside = environment.mounts.iter().find(|(other, outer)| {
            let (inner, outer) = (plain(&part.path), plain(&outer.path));
            // Of two that are equal, the second is refused.
            *other != name && inner.starts_with(&outer) && (inner != outer || *other < name)
        });
        if let Some((outer, _)) = inside {
            let refusal = Refusal::new(format!("this directory is in the mount `{outer}` already"))
                .hint("what is in two mounts would be captured twice and restored twice");
            field_of(mount_fields, name, "path", errors, refusal);
        }
    }
    let databases = environment.services.iter().filter_map(|(name, part)| match part {
        ServicePart::Sqlite { path } => Some((name, plain(path))),
        _ => None,
    });
    for (name, path) in databases {
        for (mount, part) in &environment.mounts {
            let Ok(relative) = path.strip_prefix(plain(&part.path)) else { continue };
            let relative = relative.to_string_lossy();
            let left_out = ["", "-wal", "-shm", "-journal"]
                .iter()
                .all(|suffix| excludes(&part.exclude, Path::new(&format!("{relative}{suffix}"))));
            if !left_out {
                let refusal = Refusal::new(format!(
                    "this database is in the mount `{mount}`, which would copy it while it changes"
                ))
                .hint(format!("add `exclude: [\"{relative}*\"]` to the mount"));
                field_of(service_fields, name, "path", errors, refusal);
            }
        }
    }
}
