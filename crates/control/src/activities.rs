//! Activities as callers see them: lists, one, its log, and how it is cancelled.

use crate::access::Caller;
use crate::entity::{activity, backup, environment, log_line};
use crate::error::ControlError;
use crate::store::{Control, now};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect,
};
use serde_json::{Value, json};
use stillpoint_agent::protocol::Order;
use stillpoint_model::ids::ActivityId;
use tokio::sync::watch;

/// Which activities are asked for. Empty lists: all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this environment.
    pub environment: Option<String>,
    /// Of one of these types.
    pub kinds: Vec<String>,
    /// In one of these states.
    pub states: Vec<String>,
    /// With one of these results.
    pub results: Vec<String>,
    /// Created before this time, in microseconds since 1970.
    pub before: Option<i64>,
    /// At most so many.
    pub count: Option<u64>,
}

/// A line of a log.
pub type LogLine = log_line::Model;

impl Control {
    /// Activities that the caller may see, the newest first.
    pub async fn activities(
        &self,
        caller: &Caller,
        project: &str,
        filter: &Filter,
    ) -> Result<Vec<activity::Model>, ControlError> {
        let access = match &filter.environment {
            Some(name) => self.environment(caller, project, name).await?.1,
            None => self.access(caller, project).await?,
        };
        let seen: Vec<&str> = ["production", "staging", "development"]
            .into_iter()
            .filter(|kind| access.sees(kind))
            .collect();
        let mut wanted = Condition::all()
            .add(activity::Column::Project.eq(project))
            .add(activity::Column::EnvironmentKind.is_in(seen));
        if let Some(name) = &filter.environment {
            wanted = wanted.add(activity::Column::Environment.eq(name));
        }
        let any_of = [
            (activity::Column::Kind, &filter.kinds),
            (activity::Column::State, &filter.states),
            (activity::Column::Result, &filter.results),
        ];
        for (column, words) in any_of {
            if !words.is_empty() {
                wanted = wanted.add(column.is_in(words));
            }
        }
        if let Some(before) = filter.before {
            wanted = wanted.add(activity::Column::CreatedAt.lt(before));
        }
        Ok(activity::Entity::find()
            .filter(wanted)
            .order_by_desc(activity::Column::CreatedAt)
            .limit(filter.count.unwrap_or(25))
            .all(self.db())
            .await?)
    }

    /// One of them.
    pub async fn activity(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
    ) -> Result<activity::Model, ControlError> {
        let access = self.access(caller, project).await?;
        let found = activity::Entity::find_by_id(id)
            .filter(activity::Column::Project.eq(project))
            .one(self.db())
            .await?;
        let found = found.filter(|activity| access.sees(&activity.environment_kind));
        found.ok_or(ControlError::NotFound("Activity"))
    }

    /// Whether the caller may stop it, and it can still be stopped.
    pub fn can_cancel(&self, access: &crate::Access, activity: &activity::Model) -> bool {
        access.is_admin_of(&activity.environment_kind)
            && !activity.first
            && !activity.cancelling
            && ["pending", "in_progress"].contains(&activity.state.as_str())
    }

    /// Asks an activity to stop. One that waits ends at once; one that runs, as soon as it is safe.
    pub async fn cancel(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
    ) -> Result<activity::Model, ControlError> {
        let found = self.activity(caller, project, id).await?;
        let access = self.access(caller, project).await?;
        let allowed = access.is_admin_of(&found.environment_kind);
        let needed = format!("the role admin for {} environments", found.environment_kind);
        let subject = format!("{project}/{}/{id}", found.environment);
        self.judge(caller, "activity.cancel", &subject, allowed, &needed).await?;
        self.stop(&found).await
    }

    /// The lines of an activity's log from number `from` on.
    pub async fn log_lines(
        &self,
        activity: &str,
        from: i64,
        count: u64,
    ) -> Result<Vec<LogLine>, ControlError> {
        Ok(log_line::Entity::find()
            .filter(log_line::Column::Activity.eq(activity))
            .filter(log_line::Column::Number.gte(from))
            .order_by_asc(log_line::Column::Number)
            .limit(count)
            .all(self.db())
            .await?)
    }

    /// Tells of every change of any activity: whoever follows one looks again.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Puts an order into the queue, together with what it changes at once: both are stored, or
    /// neither is. Once it is stored it is not refused any more, whatever fails after that.
    pub(crate) async fn enqueue(
        &self,
        new: NewActivity<'_>,
        at_once: Option<backup::ActiveModel>,
    ) -> Result<activity::Model, ControlError> {
        let model = new.pending();
        let change = self.change().await?;
        if let Some(backup) = at_once {
            backup.update(change.db()).await?;
        }
        let activity = model.insert(change.db()).await?;
        change.keep().await?;
        if !self.inner.links.is_connected(&activity.project)
            && let Err(error) = self.log(&activity.id, "waiting for the agent").await
        {
            tracing::error!("{} waits for the agent: {error}", activity.id);
        }
        self.pump_soon().await;
        Ok(activity)
    }

    /// Ends an activity: `complete` with the failure, if there is one, or `cancelled`.
    pub(crate) async fn settle(
        &self,
        id: &str,
        state: &str,
        failure: Option<&str>,
    ) -> Result<activity::Model, ControlError> {
        if let Some(failure) = failure {
            for line in failure.lines() {
                self.log(id, line).await?;
            }
        }
        let found = activity::Entity::find_by_id(id).one(self.db()).await?;
        let found = found.ok_or(ControlError::NotFound("Activity"))?;
        let success = state == "complete" && failure.is_none();
        let at = now();
        let started = found.started_at.unwrap_or(at);
        let mut ended = found.into_active_model();
        ended.state = Set(state.to_owned());
        ended.result = Set(Some(if success { "success" } else { "failure" }.to_owned()));
        ended.completion_percent = Set(100);
        ended.failure = Set(failure.map(str::to_owned));
        ended.started_at = Set(Some(started));
        ended.completed_at = Set(Some(at));
        ended.updated_at = Set(at);
        let change = self.change().await?;
        let ended = ended.update(change.db()).await?;
        change.keep().await?;
        self.changed();
        Ok(ended)
    }

    /// Adds a line to an activity's log.
    pub(crate) async fn log(&self, activity: &str, line: &str) -> Result<(), ControlError> {
        let change = self.change().await?;
        let last = log_line::Entity::find()
            .filter(log_line::Column::Activity.eq(activity))
            .order_by_desc(log_line::Column::Number)
            .one(change.db())
            .await?;
        let line = log_line::ActiveModel {
            activity: Set(activity.to_owned()),
            number: Set(last.map_or(0, |line| line.number + 1)),
            at: Set(now()),
            line: Set(line.to_owned()),
        };
        log_line::Entity::insert(line).exec_without_returning(change.db()).await?;
        change.keep().await?;
        self.changed();
        Ok(())
    }
}

/// An activity that is not stored yet.
pub(crate) struct NewActivity<'a> {
    /// Who asked for it; none: Stillpoint itself.
    pub(crate) caller: Option<&'a Caller>,
    pub(crate) environment: &'a environment::Model,
    pub(crate) kind: &'a str,
    /// None for one that no agent has to do with.
    pub(crate) order: Option<&'a Order>,
    pub(crate) text: &'a str,
    pub(crate) payload: Value,
    /// It goes before everything else of its environment.
    pub(crate) first: bool,
}

impl NewActivity<'_> {
    /// As it waits for its turn.
    pub(crate) fn pending(self) -> activity::ActiveModel {
        let at = now();
        let Self { caller, environment, kind, order, text, mut payload, first } = self;
        if payload.get("environment").is_none() {
            payload["environment"] = json!({
                "id": environment.name,
                "name": environment.name,
                "title": environment.title,
                "type": environment.kind,
                "project": environment.project,
            });
        }
        payload["project"] = json!({ "id": environment.project });
        payload["user"] = match caller {
            Some(Caller { user }) => json!({
                "id": user.id,
                "display_name": user.display_name,
                "created_at": crate::micros(user.created_at),
                "updated_at": crate::micros(user.updated_at),
            }),
            None => json!({ "id": null, "display_name": "Stillpoint" }),
        };
        activity::ActiveModel {
            id: Set(ActivityId::random().to_string()),
            project: Set(environment.project.clone()),
            environment: Set(environment.name.clone()),
            environment_kind: Set(environment.kind.clone()),
            kind: Set(kind.to_owned()),
            state: Set("pending".to_owned()),
            result: Set(None),
            completion_percent: Set(0),
            order: Set(order.and_then(|o| serde_json::to_value(o).ok()).unwrap_or(Value::Null)),
            first: Set(first),
            cancelling: Set(false),
            phase: Set(None),
            text: Set(text.to_owned()),
            description: Set(escape(text)),
            payload: Set(payload),
            failure: Set(None),
            user: Set(caller.map(|caller| caller.user.id.clone())),
            created_at: Set(at),
            updated_at: Set(at),
            started_at: Set(None),
            completed_at: Set(None),
        }
    }

    /// As one that was done the moment that it was asked for.
    pub(crate) fn done(self) -> activity::ActiveModel {
        let at = now();
        activity::ActiveModel {
            state: Set("complete".to_owned()),
            result: Set(Some("success".to_owned())),
            completion_percent: Set(100),
            started_at: Set(Some(at)),
            completed_at: Set(Some(at)),
            ..self.pending()
        }
    }
}

/// Text that goes where markup is read.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
