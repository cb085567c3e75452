//! The server's end of the agents' connections: JSON lines over a unix socket in a private
//! directory, so that whoever can connect is trusted.

use crate::entity::{backup, environment, member, project, user};
use crate::error::ControlError;
use crate::store::{Control, now};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder,
};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use stillpoint_agent::protocol::{FromAgent, FromServer, Inventory, PROTOCOL};
use stillpoint_model::ids::BackupId;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

impl Control {
    /// Accepts agents for ever.
    pub async fn serve_agents(&self, listener: UnixListener) {
        let count = AtomicU64::new(0);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = self.clone();
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(async move {
                        if let Err(error) = control.serve_agent(stream, number).await {
                            tracing::warn!("an agent's connection ended: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::error!("accept an agent: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        }
    }

    async fn serve_agent(&self, stream: UnixStream, number: u64) -> io::Result<()> {
        let (reading, mut writing) = stream.into_split();
        let mut lines = BufReader::new(reading).lines();
        let Some(line) = lines.next_line().await? else { return Ok(()) };
        let FromAgent::Hello { protocol, inventory, .. } = serde_json::from_str(&line)? else {
            return refuse(&mut writing, "say hello first".to_owned()).await;
        };
        if protocol != PROTOCOL {
            let why = format!("the server speaks protocol {PROTOCOL}, the agent {protocol}");
            return refuse(&mut writing, why).await;
        }
        let project = inventory.project.to_string();
        let (orders, mut queue) = mpsc::unbounded_channel();
        if !self.inner.links.connect(&project, number, orders) {
            return refuse(&mut writing, format!("project {project} has an agent already")).await;
        }
        let served = async {
            // Left by a connection whose end was not noticed in time.
            self.fail_interrupted("the agent was lost", Some(&project)).await?;
            self.learn(&inventory).await?;
            send(&mut writing, &FromServer::Welcome).await.map_err(storage)?;
            self.pump().await?;
            loop {
                tokio::select! {
                    message = queue.recv() => {
                        let Some(message) = message else { return Ok(()) };
                        send(&mut writing, &message).await.map_err(storage)?;
                    }
                    line = lines.next_line() => {
                        let Some(line) = line.map_err(storage)? else { return Ok(()) };
                        self.hear(&project, &line).await?;
                    }
                }
            }
        }
        .await;
        self.inner.links.disconnect(&project, number);
        let failed = self.fail_interrupted("the agent was lost", Some(&project)).await;
        // It may be back already, and have found nothing to clean up yet.
        self.pump_soon().await;
        served.and(failed).map_err(|e: ControlError| io::Error::other(e))
    }

    async fn hear(&self, project: &str, line: &str) -> Result<(), ControlError> {
        match serde_json::from_str(line).map_err(|e| storage(e.into()))? {
            FromAgent::Hello { .. } => {}
            FromAgent::Event { activity, event } => self.event(activity.as_str(), event).await?,
            FromAgent::Locations { locations } => {
                self.inner.links.set_locations(project, locations);
            }
            FromAgent::Copies { copies, all_asked } => {
                self.set_copies(project, &copies, all_asked).await?;
            }
        }
        Ok(())
    }

    /// Where not every location could be asked, what was known before may be more than was counted.
    pub(crate) async fn set_copies(
        &self,
        project: &str,
        copies: &[(BackupId, u32)],
        all_asked: bool,
    ) -> Result<(), ControlError> {
        let change = self.change().await?;
        for (id, count) in copies {
            let found = backup::Entity::find_by_id(id.to_string())
                .filter(backup::Column::Project.eq(project))
                .one(change.db())
                .await?;
            if let Some(found) = found {
                let counted = (*count).try_into().unwrap_or(i32::MAX);
                let copies = if all_asked { counted } else { counted.max(found.copies) };
                if copies != found.copies {
                    let mut found = found.into_active_model();
                    found.copies = Set(copies);
                    found.update(change.db()).await?;
                }
            }
        }
        change.keep().await
    }

    /// Takes over what an agent's configuration names. What it does not name any more can no longer
    /// be backed up; its backups stay.
    #[allow(clippy::single_match_else, reason = "found or new: two cases of equal weight")]
    async fn learn(&self, inventory: &Inventory) -> Result<(), ControlError> {
        let at = now();
        let id = inventory.project.to_string();
        let admin =
            user::Entity::find().order_by_asc(user::Column::CreatedAt).one(self.db()).await?;
        let admin = admin.ok_or(ControlError::NotFound("User"))?;
        let change = self.change().await?;
        let region = inventory.region.as_ref().map_or("local", |region| region.as_str()).to_owned();
        let quorum = i32::try_from(inventory.write_quorum).unwrap_or(1);
        match project::Entity::find_by_id(&id).one(change.db()).await? {
            Some(known) => {
                let mut known = known.into_active_model();
                known.region = Set(region);
                known.write_quorum = Set(quorum);
                known.updated_at = Set(at);
                known.update(change.db()).await?;
            }
            None => {
                let new = project::Model {
                    id: id.clone(),
                    title: id.clone(),
                    region,
                    owner: admin.id.clone(),
                    write_quorum: quorum,
                    created_at: at,
                    updated_at: at,
                };
                let new: project::ActiveModel = new.into();
                new.insert(change.db()).await?;
                let owner = member::Model {
                    project: id.clone(),
                    user: admin.id,
                    role: "admin".to_owned(),
                    production: None,
                    staging: None,
                    development: None,
                    created_at: at,
                    updated_at: at,
                };
                let owner: member::ActiveModel = owner.into();
                owner.insert(change.db()).await?;
            }
        }
        let known = environment::Entity::find()
            .filter(environment::Column::Project.eq(&id))
            .all(change.db())
            .await?;
        for environment in &known {
            if !inventory.environments.iter().any(|e| e.name.as_str() == environment.name) {
                let mut gone = environment.clone().into_active_model();
                gone.status = Set("inactive".to_owned());
                gone.configured = Set(false);
                gone.updated_at = Set(at);
                gone.update(change.db()).await?;
            }
        }
        for named in &inventory.environments {
            match known.iter().find(|environment| environment.name == named.name.as_str()) {
                Some(environment) => {
                    let mut found = environment.clone().into_active_model();
                    found.kind = Set(named.kind.clone());
                    found.head_commit = Set(named.head_commit.clone());
                    found.configured = Set(true);
                    found.updated_at = Set(at);
                    found.update(change.db()).await?;
                }
                None => {
                    let new = environment::Model {
                        project: id.clone(),
                        name: named.name.to_string(),
                        title: named.name.to_string(),
                        kind: named.kind.clone(),
                        status: "active".to_owned(),
                        head_commit: named.head_commit.clone(),
                        configured: true,
                        created_at: at,
                        updated_at: at,
                    };
                    let new: environment::ActiveModel = new.into();
                    new.insert(change.db()).await?;
                }
            }
        }
        change.keep().await
    }
}

#[allow(clippy::needless_pass_by_value, reason = "as `map_err` wants it")]
fn storage(error: io::Error) -> ControlError {
    ControlError::Conflict(format!("the connection failed: {error}"))
}

async fn send(writing: &mut OwnedWriteHalf, message: &FromServer) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writing.write_all(&line).await
}

async fn refuse(writing: &mut OwnedWriteHalf, why: String) -> io::Result<()> {
    send(writing, &FromServer::Refused { why }).await
}
