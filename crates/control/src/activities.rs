//! Activities as callers see them: lists, one, its log, and how it is cancelled.

use crate::access::Caller;
use crate::entity::{activity, environment, log_line};
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

    /// Puts an order into the queue.
    pub(crate) async fn enqueue(
        &self,
        caller: Option<&Caller>,
        environment: &environment::Model,
        kind: &str,
        order: &Order,
        text: &str,
        payload: Value,
    ) -> Result<activity::Model, ControlError> {
        let order = serde_json::to_value(order).unwrap_or(Value::Null);
        let activity =
            self.insert_activity(caller, environment, kind, order, text, payload, false).await?;
        if !self.inner.links.is_connected(&activity.project) {
            self.log(&activity.id, "waiting for the agent").await?;
        }
        self.pump().await?;
        Ok(activity)
    }

    #[allow(clippy::too_many_arguments, reason = "each is a column")]
    pub(crate) async fn insert_activity(
        &self,
        caller: Option<&Caller>,
        environment: &environment::Model,
        kind: &str,
        order: Value,
        text: &str,
        payload: Value,
        first: bool,
    ) -> Result<activity::Model, ControlError> {
        let at = now();
        let mut payload = payload;
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
        let model = activity::ActiveModel {
            id: Set(ActivityId::random().to_string()),
            project: Set(environment.project.clone()),
            environment: Set(environment.name.clone()),
            environment_kind: Set(environment.kind.clone()),
            kind: Set(kind.to_owned()),
            state: Set("pending".to_owned()),
            result: Set(None),
            completion_percent: Set(0),
            order: Set(order),
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
        };
        let _writing = self.inner.writing.lock().await;
        Ok(model.insert(self.db()).await?)
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
        let writing = self.inner.writing.lock().await;
        let ended = ended.update(self.db()).await?;
        drop(writing);
        self.changed();
        Ok(ended)
    }

    /// Adds a line to an activity's log.
    pub(crate) async fn log(&self, activity: &str, line: &str) -> Result<(), ControlError> {
        let writing = self.inner.writing.lock().await;
        let last = log_line::Entity::find()
            .filter(log_line::Column::Activity.eq(activity))
            .order_by_desc(log_line::Column::Number)
            .one(self.db())
            .await?;
        let line = log_line::ActiveModel {
            activity: Set(activity.to_owned()),
            number: Set(last.map_or(0, |line| line.number + 1)),
            at: Set(now()),
            line: Set(line.to_owned()),
        };
        log_line::Entity::insert(line).exec_without_returning(self.db()).await?;
        drop(writing);
        self.changed();
        Ok(())
    }
}

/// Text that goes where markup is read.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
