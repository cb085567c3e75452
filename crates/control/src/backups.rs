//! Backups: asked for, listed, deleted, restored.

use crate::access::{Access, Caller};
use crate::activities::NewActivity;
use crate::entity::{activity, backup, environment};
use crate::error::ControlError;
use crate::store::{Control, now};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder,
};
use serde_json::{Value, json};
use stillpoint_agent::protocol::Order;
use stillpoint_model::ids::{BackupId, EnvironmentName, PartName};

/// What is to be restored, and where.
#[derive(Debug, Clone, Default)]
pub struct RestoreWish {
    /// The environment whose data is replaced; none: the backup's own.
    pub target: Option<String>,
    /// Only these parts; empty: all.
    pub only: Vec<String>,
    /// Do not back up what is there first.
    pub no_safety_backup: bool,
}

impl Control {
    /// Asks for a backup. The activity's payload says which id it will have. The run of a cron that
    /// asks is not frozen in its hold.
    pub async fn create_backup(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        safe: bool,
        cron_run: Option<String>,
    ) -> Result<activity::Model, ControlError> {
        let environment =
            self.environment_as_admin(caller, project, name, "environment.backup").await?;
        active(&environment)?;
        let backup = BackupId::random();
        let order = Order::Backup {
            environment: environment_name(name)?,
            backup: backup.clone(),
            live: !safe,
            asked_by: cron_run,
        };
        let payload = json!({ "backup_name": backup, "safe": safe });
        let text = format!("{} created a backup of {name}", caller.user.display_name);
        let new = NewActivity {
            caller: Some(caller),
            environment: &environment,
            kind: "environment.backup",
            order: Some(&order),
            text: &text,
            payload,
            first: false,
        };
        self.enqueue(new, None).await
    }

    /// The backups of an environment, the newest first.
    pub async fn backups(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
    ) -> Result<(Vec<backup::Model>, Access), ControlError> {
        let (_, access) = self.environment(caller, project, name).await?;
        let all = backup::Entity::find()
            .filter(backup::Column::Project.eq(project))
            .filter(backup::Column::Environment.eq(name))
            .order_by_desc(backup::Column::CreatedAt)
            .all(self.db())
            .await?;
        Ok((all.into_iter().filter(|b| access.sees(&b.kind)).collect(), access))
    }

    /// One of them.
    pub async fn backup(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        id: &str,
    ) -> Result<(backup::Model, Access), ControlError> {
        let (_, access) = self.environment(caller, project, name).await?;
        let found = backup::Entity::find_by_id(id)
            .filter(backup::Column::Project.eq(project))
            .filter(backup::Column::Environment.eq(name))
            .one(self.db())
            .await?;
        let found = found.filter(|backup| access.sees(&backup.kind));
        Ok((found.ok_or(ControlError::NotFound("Backup"))?, access))
    }

    /// Asks for a backup to be deleted. From now on it cannot be restored.
    pub async fn delete_backup(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        id: &str,
    ) -> Result<activity::Model, ControlError> {
        let (found, _) = self.backup(caller, project, name, id).await?;
        let action = "environment.backup.delete";
        let environment = self.environment_as_admin(caller, project, name, action).await?;
        if found.status != "CREATED" {
            return Err(ControlError::Conflict(format!("backup {id} is being deleted already")));
        }
        let id: BackupId = id.parse().map_err(|_| ControlError::NotFound("Backup"))?;
        let mut deleting = found.into_active_model();
        deleting.status = Set("DELETING".to_owned());
        deleting.updated_at = Set(now());
        let order =
            Order::Delete { environment: environment_name(name)?, backups: vec![id.clone()] };
        let text = format!("{} deleted backup {id} of {name}", caller.user.display_name);
        let payload = json!({ "backup_name": id });
        let new = NewActivity {
            caller: Some(caller),
            environment: &environment,
            kind: action,
            order: Some(&order),
            text: &text,
            payload,
            first: false,
        };
        self.enqueue(new, Some(deleting)).await
    }

    /// Asks for a backup to be put back.
    pub async fn restore_backup(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        id: &str,
        wish: &RestoreWish,
    ) -> Result<activity::Model, ControlError> {
        let (found, _) = self.backup(caller, project, name, id).await?;
        let target = wish.target.as_deref().unwrap_or(name);
        let action = "environment.restore";
        let environment = match self.environment_as_admin(caller, project, target, action).await {
            Err(ControlError::NotFound(_)) => {
                let why = format!(
                    "there is no environment `{target}`; a restore that makes a new one is not \
                     supported by this version yet"
                );
                return Err(ControlError::Invalid { field: "environment_name", why });
            }
            other => other?,
        };
        active(&environment)?;
        if found.status != "CREATED" {
            return Err(ControlError::Conflict(format!("backup {id} is being deleted")));
        }
        if environment.kind != found.kind {
            let why = format!(
                "the backup is of a {} environment, `{target}` is a {} one; restores between \
                 types are not supported by this version yet",
                found.kind, environment.kind
            );
            return Err(ControlError::Invalid { field: "environment_name", why });
        }
        let only = wish
            .only
            .iter()
            .map(|name| name.parse())
            .collect::<Result<Vec<PartName>, _>>()
            .map_err(|e| ControlError::Invalid { field: "only", why: e.to_string() })?;
        for part in &only {
            let held = found.manifest["parts"]
                .as_array()
                .is_some_and(|parts| parts.iter().any(|held| held["name"] == part.as_str()));
            if !held {
                let why = format!("the backup holds no `{part}`");
                return Err(ControlError::Invalid { field: "only", why });
            }
        }
        let backup: BackupId = id.parse().map_err(|_| ControlError::NotFound("Backup"))?;
        let safety = (!wish.no_safety_backup).then(BackupId::random);
        let order = Order::Restore {
            environment: environment_name(target)?,
            from: environment_name(name)?,
            backup,
            only,
            safety: safety.clone(),
        };
        let text = format!(
            "{} restored backup {} to {target}",
            caller.user.display_name,
            id.get(..7).unwrap_or(id)
        );
        let payload = json!({
            "backup_name": id,
            "environment": target,
            "commit": found.manifest["code"]["commit"],
            "safety_backup": safety,
        });
        let new = NewActivity {
            caller: Some(caller),
            environment: &environment,
            kind: action,
            order: Some(&order),
            text: &text,
            payload,
            first: false,
        };
        self.enqueue(new, None).await
    }

    /// Keeps a backup that an agent has published.
    pub(crate) async fn keep_backup(
        &self,
        activity: &activity::Model,
        record: &stillpoint_agent::protocol::BackupRecord,
    ) -> Result<(), ControlError> {
        let manifest = &record.manifest;
        let model = backup::ActiveModel {
            id: Set(manifest.backup.to_string()),
            project: Set(activity.project.clone()),
            environment: Set(activity.environment.clone()),
            kind: Set(activity.environment_kind.clone()),
            status: Set("CREATED".to_owned()),
            safe: Set(manifest.consistency != stillpoint_model::manifest::Consistency::Live),
            manifest: Set(serde_json::to_value(manifest).unwrap_or(Value::Null)),
            bytes_captured: Set(record.bytes_captured.try_into().unwrap_or(i64::MAX)),
            bytes_added: Set(record.bytes_added.try_into().unwrap_or(i64::MAX)),
            copies: Set(record.copies.try_into().unwrap_or(i32::MAX)),
            created_at: Set(manifest.created.as_microsecond()),
            updated_at: Set(now()),
        };
        let change = self.change().await?;
        model.insert(change.db()).await?;
        change.keep().await
    }
}

fn active(environment: &environment::Model) -> Result<(), ControlError> {
    if environment.status == "active" {
        Ok(())
    } else {
        Err(ControlError::NotActive(environment.name.clone()))
    }
}

fn environment_name(name: &str) -> Result<EnvironmentName, ControlError> {
    name.parse().map_err(|_| ControlError::NotFound("Environment"))
}
