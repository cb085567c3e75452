//! Puts a backup back, and finishes or undoes what a killed restore left.

use crate::backup::{limits, take_leave, watchdog};
use crate::failure::Failure;
use crate::parts;
use crate::place::{Activity, Place};
use crate::stored::Stored;
use std::sync::Arc;
use stillpoint_capture::restore::{Recovered, RestoreOrder, RestorePart, Restored};
use stillpoint_gateway::control::Purpose;
use stillpoint_model::ids::{BackupId, EnvironmentName};
use stillpoint_model::manifest::Manifest;
use stillpoint_model::progress::Monitor;
use stillpoint_repository::Reader;

/// What is to be restored.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The backup; none: the newest.
    pub backup: Option<BackupId>,
    /// The environment that the backup is of; none: the one that is restored.
    pub from: Option<EnvironmentName>,
    /// Only these parts; empty: all.
    pub only: Vec<String>,
    /// The run of a cron that asked for it.
    pub asked_by: Option<String>,
}

/// A restore that has been looked into: everything it needs was found. Nothing has been changed.
pub struct Plan {
    reader: Arc<Reader>,
    stored: Stored,
    only: Vec<String>,
    asked_by: Option<String>,
}

impl Plan {
    /// Finds the backup and its parts.
    pub fn new(place: &Place, reader: Arc<Reader>, wish: &Wish) -> Result<Self, Failure> {
        let other = match &wish.from {
            Some(from) if *from != place.name => Some(source_of(place, from)?),
            _ => None,
        };
        let of = other.as_ref().unwrap_or(place);
        let stored = match &wish.backup {
            Some(id) => Stored::one(of, &reader, id)?,
            None => Stored::newest(of, &reader)?.ok_or_else(|| {
                Failure::new(format!("environment `{}` has no backups yet", of.name))
            })?,
        };
        let manifest = &stored.manifest;
        for only in &wish.only {
            if !manifest.parts.iter().any(|part| part.name.as_str() == only) {
                let names: Vec<&str> =
                    manifest.parts.iter().map(|part| part.name.as_str()).collect();
                return Err(Failure::usage(format!("the backup holds no `{only}`"))
                    .hint(format!("it holds: {}", names.join(", "))));
            }
        }
        let plan =
            Self { reader, stored, only: wish.only.clone(), asked_by: wish.asked_by.clone() };
        plan.parts(place)?;
        Ok(plan)
    }

    /// What the backup says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.stored.manifest
    }

    fn parts(&self, place: &Place) -> Result<Vec<RestorePart<'_>>, Failure> {
        let mut parts = Vec::new();
        for part in &self.stored.manifest.parts {
            if self.only.is_empty() || self.only.iter().any(|o| o == part.name.as_str()) {
                let directory = self.stored.directory_of(&self.reader, part)?;
                parts.push(parts::restore_part(place, &self.reader, part, directory)?);
            }
        }
        Ok(parts)
    }

    /// Restores all of it, or none.
    pub fn run(&self, place: &Place, monitor: &dyn Monitor) -> Result<Restored, Failure> {
        let _busy = place.lock(Activity::Restore)?;
        let limits = limits(place);
        let watchdog = watchdog(place, &limits)?;
        let order = RestoreOrder {
            backup: self.stored.manifest.backup.clone(),
            token: BackupId::random().as_str()[..12].to_owned(),
            journal: place.journal()?,
            recovery: recovery_arguments(place),
            limits,
        };
        let gateways = parts::gateways(place, Purpose::Restore)?;
        let workers = parts::workers(place, self.asked_by.as_deref())?;
        let parts = self.parts(place)?;
        let restored = stillpoint_capture::restore::restore(
            &order, parts, gateways, workers, &watchdog, monitor,
        )?;
        take_leave(watchdog);
        Ok(restored)
    }
}

/// Another environment whose backups may be restored here: its backups must be in the same
/// repository, so that a development host never needs production's key.
fn source_of(place: &Place, from: &EnvironmentName) -> Result<Place, Failure> {
    let other = place.beside(from)?;
    if other.environment().kind != place.environment().kind {
        return Err(Failure::usage(format!(
            "`{from}` is of type {}, `{}` of type {}: their backups are in repositories of their \
             own",
            other.environment().kind,
            place.name,
            place.environment().kind
        ))
        .hint("restores between types are not supported by this version yet"));
    }
    Ok(other)
}

/// How this program is called to recover a restore of this environment.
fn recovery_arguments(place: &Place) -> Vec<String> {
    [
        "recover".to_owned(),
        "--config".to_owned(),
        place.config_file.display().to_string(),
        "--data-dir".to_owned(),
        place.data.display().to_string(),
        "--environment".to_owned(),
        place.name.to_string(),
    ]
    .into()
}

/// Finishes or undoes a restore that was cut off, if one was.
pub fn recover(place: &Place) -> Result<Option<(BackupId, Recovered)>, Failure> {
    let _busy = place.lock(Activity::Restore)?;
    let gateways = parts::gateway_sockets(place)?;
    let steps = |part: &_| parts::recovery_steps(place, part);
    Ok(stillpoint_capture::restore::recover(&place.journal()?, steps, &gateways)?)
}
