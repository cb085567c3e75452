//! The queue: which activity runs next, who carries it out, and what its events change.
//!
//! An environment has at most one activity in progress. An agent that is lost in the middle of one
//! leaves something to clean up; that goes before everything else of the environment.

use crate::activities::NewActivity;
use crate::entity::{activity, backup, environment};
use crate::error::ControlError;
use crate::store::{Control, now};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder,
};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use stillpoint_agent::protocol::{Event, FromServer, LocationState, Order, Outcome};
use stillpoint_model::ids::LocationName;
use tokio::sync::mpsc::UnboundedSender;

/// How long what could not be started is left alone.
const PUMP_AGAIN: Duration = Duration::from_secs(1);

/// The connected agents, by project.
#[derive(Default)]
pub(crate) struct Links {
    links: Mutex<HashMap<String, Link>>,
    /// Held while it is decided what runs next.
    pub(crate) deciding: tokio::sync::Mutex<()>,
}

struct Link {
    number: u64,
    orders: UnboundedSender<FromServer>,
    locations: Vec<LocationState>,
}

impl Links {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Link>> {
        self.links.lock().expect("no holder of the links panicked")
    }

    pub(crate) fn is_connected(&self, project: &str) -> bool {
        self.lock().contains_key(project)
    }

    /// Takes a project's agent in; false if it has one already.
    pub(crate) fn connect(
        &self,
        project: &str,
        number: u64,
        orders: UnboundedSender<FromServer>,
    ) -> bool {
        let mut links = self.lock();
        if links.contains_key(project) {
            return false;
        }
        links.insert(project.to_owned(), Link { number, orders, locations: Vec::new() });
        true
    }

    /// Only the connection that is there now is taken away.
    pub(crate) fn disconnect(&self, project: &str, number: u64) {
        let mut links = self.lock();
        if links.get(project).is_some_and(|link| link.number == number) {
            links.remove(project);
        }
    }

    /// True if there was somebody to send it to.
    fn send(&self, project: &str, message: FromServer) -> bool {
        self.lock().get(project).is_some_and(|link| link.orders.send(message).is_ok())
    }

    /// Asks a project's agent to heal its locations; false if it has none.
    pub(crate) fn heal(&self, project: &str, replaced: Option<LocationName>) -> bool {
        self.send(project, FromServer::Heal { replaced })
    }

    pub(crate) fn locations(&self, project: &str) -> Vec<LocationState> {
        self.lock().get(project).map(|link| link.locations.clone()).unwrap_or_default()
    }

    pub(crate) fn set_locations(&self, project: &str, locations: Vec<LocationState>) {
        if let Some(link) = self.lock().get_mut(project) {
            link.locations = locations;
        }
    }
}

impl Control {
    /// Starts whatever can be started now.
    pub(crate) async fn pump(&self) -> Result<(), ControlError> {
        let _deciding = self.inner.links.deciding.lock().await;
        let open = activity::Entity::find()
            .filter(activity::Column::State.is_in(["pending", "in_progress"]))
            .order_by_desc(activity::Column::First)
            .order_by_asc(activity::Column::CreatedAt)
            .all(self.db())
            .await?;
        let mut busy: HashSet<(String, String)> =
            open.iter().filter(|activity| activity.state == "in_progress").map(place_of).collect();
        for activity in open.into_iter().filter(|activity| activity.state == "pending") {
            if !self.inner.links.is_connected(&activity.project)
                || !busy.insert(place_of(&activity))
            {
                continue;
            }
            let Ok(order) = serde_json::from_value::<Order>(activity.order.clone()) else {
                continue; // It is settled by whoever inserted it: no agent has to do with it.
            };
            let Ok(id) = activity.id.parse() else { continue };
            let project = activity.project.clone();
            let mut started = activity.into_active_model();
            started.state = Set("in_progress".to_owned());
            started.started_at = Set(Some(now()));
            started.updated_at = Set(now());
            let change = self.change().await?;
            started.update(change.db()).await?;
            change.keep().await?;
            // If its agent goes just now, the loss of it fails this activity like any other.
            self.inner.links.send(&project, FromServer::Run { activity: id, order });
            self.changed();
        }
        Ok(())
    }

    /// The same, later if it fails now: what waits must not be forgotten.
    pub(crate) async fn pump_soon(&self) {
        if let Err(error) = self.pump().await {
            tracing::error!("what waits cannot be started now: {error}");
            let control = self.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(PUMP_AGAIN).await;
                    if control.pump().await.is_ok() {
                        return;
                    }
                }
            });
        }
    }

    /// What an agent says of one of its activities.
    pub(crate) async fn event(&self, id: &str, event: Event) -> Result<(), ControlError> {
        let found = activity::Entity::find_by_id(id).one(self.db()).await?;
        let Some(found) = found.filter(|activity| activity.state == "in_progress") else {
            return Ok(()); // It was failed when its agent was lost, and is cleaned up after.
        };
        match event {
            Event::Phase { phase, .. } => {
                self.log(id, &phase).await?;
                let percent = percent_of(&phase).max(found.completion_percent);
                let mut at = found.into_active_model();
                at.phase = Set(Some(phase));
                at.completion_percent = Set(percent);
                at.updated_at = Set(now());
                let change = self.change().await?;
                at.update(change.db()).await?;
                change.keep().await?;
                self.changed();
            }
            Event::Progress { .. } => {}
            Event::Log { line } => self.log(id, &line).await?,
            Event::Published { backup } => self.keep_backup(&found, &backup).await?,
            Event::Copied { copies, all_asked } => {
                self.set_copies(&found.project, &copies, all_asked).await?;
            }
            Event::Ended { outcome } => {
                self.ended(&found, outcome).await?;
                self.pump().await?;
            }
        }
        Ok(())
    }

    async fn ended(&self, found: &activity::Model, outcome: Outcome) -> Result<(), ControlError> {
        let deleted = match serde_json::from_value(found.order.clone()) {
            Ok(Order::Delete { backups, .. }) => backups,
            _ => Vec::new(),
        };
        let done = matches!(outcome, Outcome::Done | Outcome::Partial);
        for id in &deleted {
            let change = self.change().await?;
            if done {
                backup::Entity::delete_by_id(id.to_string()).exec(change.db()).await?;
            } else if let Some(kept) =
                backup::Entity::find_by_id(id.to_string()).one(change.db()).await?
            {
                let mut kept = kept.into_active_model();
                kept.status = Set("CREATED".to_owned());
                kept.update(change.db()).await?;
            }
            change.keep().await?;
        }
        match outcome {
            Outcome::Done | Outcome::Partial => self.settle(&found.id, "complete", None).await?,
            Outcome::Cancelled => {
                self.log(&found.id, "cancelled").await?;
                self.settle(&found.id, "cancelled", None).await?
            }
            Outcome::Failed { message, hint } => {
                let hint = hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                self.settle(&found.id, "complete", Some(&format!("{message}{hint}"))).await?
            }
        };
        Ok(())
    }

    /// Asks an activity to stop.
    pub(crate) async fn stop(
        &self,
        found: &activity::Model,
    ) -> Result<activity::Model, ControlError> {
        let deciding = self.inner.links.deciding.lock().await;
        let now_is = activity::Entity::find_by_id(&found.id).one(self.db()).await?;
        let now_is = now_is.ok_or(ControlError::NotFound("Activity"))?;
        if now_is.first {
            return Err(ControlError::CannotCancel("it cleans up".to_owned()));
        }
        match now_is.state.as_str() {
            "pending" => {
                self.undelete(&now_is).await?;
                let stopped = self.settle(&found.id, "cancelled", None).await?;
                drop(deciding);
                self.pump_soon().await;
                Ok(stopped)
            }
            "in_progress" => {
                let id = found.id.parse().map_err(|_| ControlError::NotFound("Activity"))?;
                let mut asked = now_is.into_active_model();
                asked.cancelling = Set(true);
                asked.updated_at = Set(now());
                let change = self.change().await?;
                let asked = asked.update(change.db()).await?;
                change.keep().await?;
                self.inner.links.send(&found.project, FromServer::Cancel { activity: id });
                Ok(asked)
            }
            state => Err(ControlError::CannotCancel(format!("it is {state}"))),
        }
    }

    /// A backup whose deletion was called off before it began is a backup like any other.
    async fn undelete(&self, stopped: &activity::Model) -> Result<(), ControlError> {
        let Ok(Order::Delete { backups, .. }) = serde_json::from_value(stopped.order.clone())
        else {
            return Ok(());
        };
        let change = self.change().await?;
        for id in backups {
            let found = backup::Entity::find_by_id(id.to_string()).one(change.db()).await?;
            if let Some(kept) = found {
                let mut kept = kept.into_active_model();
                kept.status = Set("CREATED".to_owned());
                kept.update(change.db()).await?;
            }
        }
        change.keep().await
    }

    /// Fails what ran, since nobody will tell how it ended, and orders what it left to be cleaned
    /// up. A backup that was published although its end was not heard of stays what it is.
    pub(crate) async fn fail_interrupted(
        &self,
        why: &str,
        project: Option<&str>,
    ) -> Result<(), ControlError> {
        let mut running =
            activity::Entity::find().filter(activity::Column::State.eq("in_progress"));
        if let Some(project) = project {
            running = running.filter(activity::Column::Project.eq(project));
        }
        for activity in running.all(self.db()).await? {
            // First what cleans up: whoever is cut off in between does it all again, and to clean
            // up twice harms nobody.
            self.order_cleaning_up(&activity).await?;
            self.settle(&activity.id, "complete", Some(why)).await?;
        }
        Ok(())
    }

    async fn order_cleaning_up(&self, activity: &activity::Model) -> Result<(), ControlError> {
        let Ok(order) = serde_json::from_value::<Order>(activity.order.clone()) else {
            return Ok(());
        };
        let id = (activity.project.clone(), activity.environment.clone());
        let environment = environment::Entity::find_by_id(id).one(self.db()).await?;
        let Some(environment) = environment else { return Ok(()) };
        for (kind, order) in self.cleaning_up(order).await? {
            let text = format!("Stillpoint cleans up after activity {}", activity.id);
            let new = NewActivity {
                caller: None,
                environment: &environment,
                kind,
                order: Some(&order),
                text: &text,
                payload: json!({ "after": activity.id }),
                first: true,
            };
            let change = self.change().await?;
            new.pending().insert(change.db()).await?;
            change.keep().await?;
        }
        Ok(())
    }

    /// What undoes an order that was cut off.
    async fn cleaning_up(&self, order: Order) -> Result<Vec<(&'static str, Order)>, ControlError> {
        let environment = order.environment().clone();
        let delete = |backups| {
            let environment = environment.clone();
            ("environment.backup.delete", Order::Delete { environment, backups })
        };
        Ok(match order {
            Order::Backup { backup, .. } if self.is_kept(backup.as_str()).await? => Vec::new(),
            Order::Backup { backup, .. } => vec![delete(vec![backup])],
            Order::Restore { safety, .. } => {
                let mut orders = vec![(
                    "environment.restore",
                    Order::Recover { environment: environment.clone() },
                )];
                if let Some(safety) = safety
                    && !self.is_kept(safety.as_str()).await?
                {
                    orders.push(delete(vec![safety]));
                }
                orders
            }
            Order::Delete { backups, .. } => vec![delete(backups)],
            Order::Recover { environment } => {
                vec![("environment.restore", Order::Recover { environment })]
            }
        })
    }

    async fn is_kept(&self, backup: &str) -> Result<bool, ControlError> {
        Ok(backup::Entity::find_by_id(backup).one(self.db()).await?.is_some())
    }
}

fn place_of(activity: &activity::Model) -> (String, String) {
    (activity.project.clone(), activity.environment.clone())
}

/// How far along an activity is that has reached this phase: phases, not bytes, so a rough measure.
fn percent_of(phase: &str) -> i32 {
    match phase {
        "prepare" | "plan" => 5,
        "hold" | "mark" => 30,
        "released" | "capture" => 40,
        "publish" | "finish" => 90,
        "replicate" => 95,
        _ => 50,
    }
}
