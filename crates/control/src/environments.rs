//! Projects and environments. What an agent's configuration names exists; what can be done with it
//! is decided here.

use crate::access::{Access, Caller};
use crate::activities::NewActivity;
use crate::entity::{activity, backup, environment, project};
use crate::error::ControlError;
use crate::store::{Control, now};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder,
};
use serde_json::json;
use stillpoint_agent::protocol::LocationState;
use stillpoint_model::ids::LocationName;

impl Control {
    /// The projects that the caller is in.
    pub async fn projects(&self, caller: &Caller) -> Result<Vec<project::Model>, ControlError> {
        let all = project::Entity::find().order_by_asc(project::Column::Id).all(self.db()).await?;
        let mut seen = Vec::new();
        for project in all {
            if self.access(caller, &project.id).await.is_ok() {
                seen.push(project);
            }
        }
        Ok(seen)
    }

    /// One of them, and what the caller may do in it.
    pub async fn project(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<(project::Model, Access), ControlError> {
        let access = self.access(caller, id).await?;
        let project = project::Entity::find_by_id(id).one(self.db()).await?;
        Ok((project.ok_or(ControlError::NotFound("Project"))?, access))
    }

    /// The environments that the caller may see.
    pub async fn environments(
        &self,
        caller: &Caller,
        project: &str,
    ) -> Result<(Vec<environment::Model>, Access), ControlError> {
        let access = self.access(caller, project).await?;
        let all = environment::Entity::find()
            .filter(environment::Column::Project.eq(project))
            .order_by_asc(environment::Column::Name)
            .all(self.db())
            .await?;
        Ok((all.into_iter().filter(|e| access.sees(&e.kind)).collect(), access))
    }

    /// One of them.
    pub async fn environment(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
    ) -> Result<(environment::Model, Access), ControlError> {
        let access = self.access(caller, project).await?;
        let id = (project.to_owned(), name.to_owned());
        let found = environment::Entity::find_by_id(id).one(self.db()).await?;
        let found = found.filter(|environment| access.sees(&environment.kind));
        Ok((found.ok_or(ControlError::NotFound("Environment"))?, access))
    }

    /// One of them, for somebody who may do everything with it.
    pub(crate) async fn environment_as_admin(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        action: &str,
    ) -> Result<environment::Model, ControlError> {
        let (environment, access) = self.environment(caller, project, name).await?;
        let allowed = access.is_admin_of(&environment.kind);
        let needed = format!("the role admin for {} environments", environment.kind);
        self.judge(caller, action, &format!("{project}/{name}"), allowed, &needed).await?;
        Ok(environment)
    }

    /// Whether an activity of it has not ended.
    pub async fn is_dirty(&self, environment: &environment::Model) -> Result<bool, ControlError> {
        let open = activity::Entity::find()
            .filter(activity::Column::Project.eq(&environment.project))
            .filter(activity::Column::Environment.eq(&environment.name))
            .filter(activity::Column::State.is_in(["pending", "in_progress"]))
            .count(self.db())
            .await?;
        Ok(open > 0)
    }

    /// When its newest backup was taken.
    pub async fn last_backup(
        &self,
        environment: &environment::Model,
    ) -> Result<Option<i64>, ControlError> {
        let newest = backup::Entity::find()
            .filter(backup::Column::Project.eq(&environment.project))
            .filter(backup::Column::Environment.eq(&environment.name))
            .order_by_desc(backup::Column::CreatedAt)
            .one(self.db())
            .await?;
        Ok(newest.map(|backup| backup.created_at))
    }

    /// Gives an environment another title.
    pub async fn retitle_environment(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        title: &str,
    ) -> Result<environment::Model, ControlError> {
        let found = self.environment_as_admin(caller, project, name, "environment.update").await?;
        if title.is_empty() || title.len() > 200 || title.chars().any(char::is_control) {
            let why = "1 to 200 characters, none of them a control character".to_owned();
            return Err(ControlError::Invalid { field: "title", why });
        }
        let mut active = found.into_active_model();
        active.title = Set(title.to_owned());
        active.updated_at = Set(now());
        let change = self.change().await?;
        let changed = active.update(change.db()).await?;
        change.keep().await?;
        Ok(changed)
    }

    /// Activates or deactivates an environment: its status only, nothing of its data. Answers with
    /// the activity, which has ended already.
    pub async fn set_active(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        active: bool,
    ) -> Result<(environment::Model, activity::Model), ControlError> {
        let (action, status) =
            if active { ("activate", "active") } else { ("deactivate", "inactive") };
        let kind = format!("environment.{action}");
        let found = self.environment_as_admin(caller, project, name, &kind).await?;
        if found.status == status {
            return Err(ControlError::WrongStatus {
                environment: found.name,
                status: format!("{status} already"),
            });
        }
        if active && !found.configured {
            return Err(ControlError::WrongStatus {
                environment: found.name,
                status: "not in the configuration any more".to_owned(),
            });
        }
        if !active && self.is_dirty(&found).await? {
            return Err(ControlError::WrongStatus {
                environment: found.name,
                status: "busy with an activity: wait for it to end, or cancel it".to_owned(),
            });
        }
        let mut changed = found.into_active_model();
        changed.status = Set(status.to_owned());
        changed.updated_at = Set(now());
        let text = format!("{} {action}d environment {name}", caller.user.display_name);
        // Both or neither: a status that nobody is said to have changed helps nobody.
        let change = self.change().await?;
        let changed = changed.update(change.db()).await?;
        let new = NewActivity {
            caller: Some(caller),
            environment: &changed,
            kind: &kind,
            order: None,
            text: &text,
            payload: json!({}),
            first: false,
        };
        let activity = new.done().insert(change.db()).await?;
        change.keep().await?;
        self.changed();
        Ok((changed, activity))
    }

    /// How the project's locations are, as its agent last said.
    pub async fn locations(
        &self,
        caller: &Caller,
        project: &str,
    ) -> Result<Vec<LocationState>, ControlError> {
        self.access(caller, project).await?;
        Ok(self.inner.links.locations(project))
    }

    /// Asks for the locations to be healed now. `replaced`: this one's disk is another one, so that
    /// it may be filled anew.
    pub async fn heal_locations(
        &self,
        caller: &Caller,
        project: &str,
        replaced: Option<LocationName>,
    ) -> Result<(), ControlError> {
        self.admin_access(caller, project, "location.heal").await?;
        if let Some(name) = &replaced
            && !self.inner.links.locations(project).iter().any(|l| l.name == *name)
        {
            return Err(ControlError::NotFound("Location"));
        }
        if self.inner.links.heal(project, replaced) {
            Ok(())
        } else {
            Err(ControlError::Conflict("the project's agent is not connected".to_owned()))
        }
    }
}
