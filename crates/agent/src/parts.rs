//! From the configuration's parts to participants of a still point and steps of a restore.

use crate::crons::Runs;
use crate::failure::Failure;
use crate::place::Place;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stillpoint_capture::mount::{Earlier, Filter, MountParticipant, MountRestore, SETTLED_BEFORE};
use stillpoint_capture::restore::{JournalPart, RestorePart};
use stillpoint_capture::worker::Shell;
use stillpoint_capture::{
    CaptureError, GatewayParticipant, NoStreams, Participant, ServiceParticipant, TreeSource,
    WorkerParticipant,
};
use stillpoint_gateway::control::Purpose;
use stillpoint_model::config::{MountPart, ServicePart};
use stillpoint_model::ids::PartName;
use stillpoint_model::manifest::{Code, Part, Role};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{BlobId, Node, Reader};
use stillpoint_services::etcd::{Etcd, EtcdOptions};
use stillpoint_services::mariadb::{Mariadb, MariadbOptions};
use stillpoint_services::postgresql::{Postgres, PostgresOptions, default_tool_dirs};
use stillpoint_services::redis::{Redis, RedisOptions};
use stillpoint_services::sqlite::{Sqlite, SqliteOptions};
use stillpoint_services::{Driver, Restore, ServiceError, Source};

use crate::stored::Stored;

/// The driver of one service. Passwords are read from the environment here, and nowhere else.
pub fn driver(service: &ServicePart) -> Result<Box<dyn Driver>, ServiceError> {
    let path = std::env::var_os("PATH");
    let in_path = || path.iter().flat_map(std::env::split_paths).collect::<Vec<PathBuf>>();
    Ok(match service {
        ServicePart::Postgresql { url, password_env, databases } => {
            Box::new(Postgres::new(PostgresOptions {
                url: url.clone(),
                password: password(password_env.as_deref())?,
                databases: databases.clone(),
                tool_dirs: default_tool_dirs(path.as_deref()),
            })?)
        }
        ServicePart::Mariadb { flavour, url, password_env, databases } => {
            Box::new(Mariadb::new(MariadbOptions {
                kind: flavour.as_str(),
                url: url.clone(),
                password: password(password_env.as_deref())?,
                databases: databases.clone(),
                tool_dirs: in_path(),
            })?)
        }
        ServicePart::Redis { flavour, url, password_env } => Box::new(Redis::new(RedisOptions {
            kind: flavour.as_str(),
            url: url.clone(),
            password: password(password_env.as_deref())?,
            tool_dirs: in_path(),
        })?),
        ServicePart::Etcd { url, password_env } => Box::new(Etcd::new(EtcdOptions {
            url: url.clone(),
            password: password(password_env.as_deref())?,
        })?),
        ServicePart::Sqlite { path } => {
            Box::new(Sqlite::new(SqliteOptions { path: path.clone() })?)
        }
    })
}

fn password(variable: Option<&str>) -> Result<Option<String>, ServiceError> {
    let read = |name: &str| {
        std::env::var(name).map_err(|e| {
            ServiceError::new(format!("read the password from the variable {name}"))
                .because(e)
                .hint(format!("`password_env` names it; set it: export {name}=..."))
        })
    };
    variable.map(read).transpose()
}

fn filter(mount: &MountPart) -> Result<Filter, Failure> {
    Filter::new(&mount.exclude)
        .map_err(|e| Failure::usage(format!("mount {}", mount.path.display())).because(&e))
}

/// Every gateway of the environment, and where it is reached.
pub fn gateways(place: &Place, purpose: Purpose) -> Result<Vec<GatewayParticipant>, Failure> {
    place
        .environment()
        .gateways
        .keys()
        .map(|name| {
            let socket = place.gateway_socket(name)?;
            Ok(GatewayParticipant::new(name.clone(), socket, purpose))
        })
        .collect()
}

/// The control sockets of every gateway.
pub fn gateway_sockets(place: &Place) -> Result<Vec<PathBuf>, Failure> {
    place.environment().gateways.keys().map(|name| place.gateway_socket(name)).collect()
}

/// Every worker and cron of the environment. The run of a cron that asked for this is left alone.
pub fn workers(place: &Place, asked_by: Option<&str>) -> Result<Vec<WorkerParticipant>, Failure> {
    let mut all = configured(place);
    for name in place.environment().crons.keys() {
        let runs = Runs::of(place, name, asked_by)?;
        all.push(WorkerParticipant::atomic(name.clone(), Box::new(runs)));
    }
    Ok(all)
}

fn configured(place: &Place) -> Vec<WorkerParticipant> {
    let workers = place.environment().workers.iter();
    workers
        .map(|(name, part)| {
            let (directory, mut environment) = (directory(place), variables(place));
            environment.insert("STILLPOINT_WORKER".to_owned(), name.to_string());
            WorkerParticipant::new(name.clone(), part, move |command| Shell {
                command: command.to_owned(),
                directory: directory.clone(),
                environment: environment.clone(),
            })
        })
        .collect()
}

/// Where the user's commands run: beside the configuration.
pub(crate) fn directory(place: &Place) -> PathBuf {
    place.config_file.parent().unwrap_or(Path::new("/")).to_owned()
}

/// What the user's commands are told of where they run.
pub(crate) fn variables(place: &Place) -> BTreeMap<String, String> {
    let kind = place.environment().kind.to_string();
    [
        ("STILLPOINT_PROJECT", place.config.project.to_string()),
        ("STILLPOINT_ENVIRONMENT", place.name.to_string()),
        ("STILLPOINT_ENVIRONMENT_TYPE", kind),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// All participants of a backup. `last` is the environment's last one: what it holds and has not
/// changed since is not read again; where it cannot be read, everything is.
pub fn participants(
    place: &Place,
    live: bool,
    asked_by: Option<&str>,
    last: Option<(&Reader, &Stored)>,
    monitor: &dyn Monitor,
) -> Result<Vec<Box<dyn Participant>>, Failure> {
    let environment = place.environment();
    let mut all: Vec<Box<dyn Participant>> = Vec::new();
    if !live {
        for gateway in gateways(place, Purpose::Backup)? {
            all.push(Box::new(gateway));
        }
        for worker in workers(place, asked_by)? {
            all.push(Box::new(worker));
        }
    }
    for (name, service) in &environment.services {
        let driver = driver(service)
            .map_err(|e| CaptureError::over(format!("prepare service `{name}`"), e))?;
        all.push(Box::new(ServiceParticipant::new(name.clone(), driver)));
    }
    let databases = databases(place)?;
    for (name, mount) in &environment.mounts {
        let filter = filter(mount)?;
        let fresh = || {
            MountParticipant::new(name.clone(), mount.path.clone(), filter.clone())
                .keeping_apart(databases.clone())
        };
        let mut participant = fresh();
        if let Some((reader, stored)) = last
            && let Err(failure) = recall(&mut participant, reader, stored)
        {
            monitor.warn(&format!("{failure}; everything is read again"));
            // What it recalled before that is not kept: half a memory is none.
            participant = fresh();
        }
        all.push(Box::new(participant));
    }
    Ok(all)
}

/// The files of every SQLite database. Whichever path leads to one, only its driver may open it:
/// so two services on one file are refused here, as no text tells that paths are the same.
fn databases(place: &Place) -> Result<Vec<PathBuf>, Failure> {
    let mut seen: Vec<(&PartName, PathBuf)> = Vec::new();
    for (name, service) in &place.environment().services {
        let ServicePart::Sqlite { path } = service else { continue };
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        if let Some((other, _)) = seen.iter().find(|(_, taken)| *taken == path) {
            return Err(Failure::usage(format!(
                "services `{other}` and `{name}` are the same database {}",
                path.display()
            )));
        }
        seen.push((name, path));
    }
    let beside = |path: PathBuf| {
        ["", "-wal", "-shm", "-journal"].map(|suffix| {
            let mut file = path.clone().into_os_string();
            file.push(suffix);
            PathBuf::from(file)
        })
    };
    Ok(seen.into_iter().flat_map(|(_, path)| beside(path)).collect())
}

/// Lets a mount know what the last backup holds of it, if anything.
fn recall(
    participant: &mut MountParticipant,
    reader: &Reader,
    stored: &Stored,
) -> Result<(), Failure> {
    let name = participant.name();
    let part = stored.manifest.parts.iter().find(|p| p.role == Role::Mount && p.name == *name);
    let Some(part) = part else { return Ok(()) };
    let settled_before = part.marker.values.get(SETTLED_BEFORE).and_then(|at| at.parse().ok());
    let Some(settled_before) = settled_before else { return Ok(()) };
    let (_, tree) = stored.directory_of(reader, part)?;
    Ok(participant.recall(&Earlier { reader, tree, settled_before })?)
}

/// The restore of one part of a backup, into this environment.
pub fn restore_part<'a>(
    place: &Place,
    reader: &'a Arc<Reader>,
    part: &Part,
    (node, tree): (Node, BlobId),
) -> Result<RestorePart<'a>, Failure> {
    let missing = || {
        Failure::new(format!("the environment has no {} `{}`", role(part.role), part.name))
            .hint("add it to stillpoint.yaml, or leave it out with --only")
    };
    let environment = place.environment();
    let steps: Box<dyn Restore> = match part.role {
        Role::Service => {
            let service = environment.services.get(&part.name).ok_or_else(missing)?;
            if service.kind() != part.kind {
                return Err(Failure::new(format!(
                    "`{}` is {} in the backup and {} in the environment",
                    part.name,
                    part.kind,
                    service.kind()
                )));
            }
            driver(service)
                .map_err(|e| CaptureError::over(format!("restore `{}`", part.name), e))?
                .restore()
        }
        Role::Mount => {
            let mount = environment.mounts.get(&part.name).ok_or_else(missing)?;
            let (path, filter) = (mount.path.clone(), filter(mount)?);
            Box::new(MountRestore::new(path, filter, Arc::clone(reader), node))
        }
    };
    let source: Box<dyn Source + 'a> = match part.role {
        Role::Mount => Box::new(NoStreams),
        Role::Service => Box::new(TreeSource::new(reader, &tree).map_err(|e| {
            Failure::new(format!("read `{}` of the backup", part.name)).because(&e)
        })?),
    };
    let (name, role) = (part.name.clone(), part.role);
    Ok(RestorePart { name, role, steps, source })
}

/// The steps that finish or undo a part's restore, without the backup.
pub fn recovery_steps(place: &Place, part: &JournalPart) -> Result<Box<dyn Restore>, CaptureError> {
    let environment = place.environment();
    let missing = || {
        CaptureError::new(format!("recover `{}`: it is not in stillpoint.yaml any more", part.name))
    };
    match part.role {
        Role::Service => {
            let service = environment.services.get(&part.name).ok_or_else(missing)?;
            let driver = driver(service)
                .map_err(|e| CaptureError::over(format!("recover `{}`", part.name), e))?;
            Ok(driver.restore())
        }
        Role::Mount => {
            let mount = environment.mounts.get(&part.name).ok_or_else(missing)?;
            let filter = Filter::new(&mount.exclude)
                .map_err(|e| CaptureError::new(format!("recover `{}`", part.name)).because(e))?;
            Ok(Box::new(MountRestore::to_recover(mount.path.clone(), filter)))
        }
    }
}

/// The word for a role.
pub fn role(role: Role) -> &'static str {
    match role {
        Role::Service => "service",
        Role::Mount => "mount",
    }
}

/// The commit that the environment's code is at, by Git itself.
pub fn code(place: &Place) -> Option<Code> {
    let path = &place.environment().code.as_ref()?.path;
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").arg("-C").arg(path).args(arguments).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let branch = git(&["symbolic-ref", "--short", "-q", "HEAD"]);
    Some(Code { commit, branch })
}
