//! Activities and their logs.

use crate::Api;
use crate::error::ApiError;
use crate::request::{Query, Who};
use crate::shape::{activity_object, envelope, time};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;
use stillpoint_control::entity::activity;
use stillpoint_control::{Caller, Filter};

/// A stream without a seal ends after this long; clients connect again.
const LONGEST: Duration = Duration::from_secs(600);
/// Lines read from the datastore at once.
const BATCH: u64 = 500;

async fn object(api: &Api, caller: &Caller, found: &activity::Model) -> Result<Value, ApiError> {
    let access = api.control.access(caller, &found.project).await?;
    let log = api.control.log_lines(&found.id, 0, 10_000).await?;
    Ok(activity_object(found, &log, api.control.can_cancel(&access, found)))
}

async fn filtered(
    api: &Api,
    caller: &Caller,
    project: &str,
    environment: Option<String>,
    query: &Query,
) -> Result<Json<Value>, ApiError> {
    let count = query.number("count")?;
    if count.is_some_and(|count| count < 0) {
        return Err(ApiError::bad("`count` is negative"));
    }
    let filter = Filter {
        environment,
        kinds: query.all("type"),
        states: query.all("state"),
        results: query.all("result"),
        before: query.time("starts_at")?,
        count: count.map(|count| count.unsigned_abs().min(1000)),
    };
    let found = api.control.activities(caller, project, &filter).await?;
    let access = api.control.access(caller, project).await?;
    let objects = found
        .iter()
        .map(|activity| activity_object(activity, &[], api.control.can_cancel(&access, activity)));
    Ok(Json(objects.collect()))
}

/// `GET /projects/{id}/activities`.
pub(crate) async fn list(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    filtered(&api, &caller, &id, None, &query).await
}

/// `GET {E}/activities`.
pub(crate) async fn list_of_environment(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name)): Path<(String, String)>,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    filtered(&api, &caller, &id, Some(name), &query).await
}

/// `GET /projects/{id}/activities/{activity}`.
pub(crate) async fn get(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, activity)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let found = api.control.activity(&caller, &id, &activity).await?;
    Ok(Json(object(&api, &caller, &found).await?))
}

/// `GET {E}/activities/{activity}`.
pub(crate) async fn get_of_environment(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name, activity)): Path<(String, String, String)>,
) -> Result<Json<Value>, ApiError> {
    let found = api.control.activity(&caller, &id, &activity).await?;
    if found.environment != name {
        return Err(ApiError::not_found("Activity"));
    }
    Ok(Json(object(&api, &caller, &found).await?))
}

/// `POST {self}/cancel`.
pub(crate) async fn cancel(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, activity)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let stopped = api.control.cancel(&caller, &id, &activity).await?;
    let entity = object(&api, &caller, &stopped).await?;
    Ok(Json(envelope(std::slice::from_ref(&entity), Some(entity.clone()))))
}

/// `GET {self}/log`: a line of JSON for each line, and a seal once the activity has ended. The
/// final state is stored before the seal is sent: `settle` does both in that order.
pub(crate) async fn log(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, activity)): Path<(String, String)>,
    query: Query,
) -> Result<Response, ApiError> {
    let found = api.control.activity(&caller, &id, &activity).await?;
    let follow = Follow {
        activity: found.id,
        project: id,
        next: query.number("start_at")?.unwrap_or(0).max(0),
        left: query.number("max_items")?.filter(|items| *items > 0),
        patience: match query.number("max_delay")? {
            Some(seconds) if seconds >= 0 => {
                Duration::from_secs(seconds.unsigned_abs()).min(LONGEST)
            }
            _ => LONGEST,
        },
    };
    let (sender, body) = Channel::<Bytes, Infallible>::new(16);
    tokio::spawn(async move {
        // A client that has gone away ends it, and hears nothing of it.
        let _gone = follow.run(&api, &caller, sender).await;
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((StatusCode::OK, kind, Body::new(body)).into_response())
}

struct Follow {
    project: String,
    activity: String,
    next: i64,
    left: Option<i64>,
    patience: Duration,
}

impl Follow {
    async fn run(
        mut self,
        api: &Api,
        caller: &Caller,
        mut sender: Sender<Bytes, Infallible>,
    ) -> Result<(), http_body_util::channel::SendError> {
        let mut changes = api.control.follow();
        let mut closing = api.closing.clone();
        let end = tokio::time::Instant::now() + self.patience;
        loop {
            changes.borrow_and_update();
            // The state before the lines: once it has ended, no line comes after those read now.
            let Ok(found) = api.control.activity(caller, &self.project, &self.activity).await
            else {
                return Ok(());
            };
            let ended = ["complete", "cancelled"].contains(&found.state.as_str());
            loop {
                let batch = BATCH.min(self.left.unwrap_or(i64::MAX).unsigned_abs());
                let Ok(lines) = api.control.log_lines(&self.activity, self.next, batch).await
                else {
                    return Ok(());
                };
                if lines.is_empty() {
                    break;
                }
                for line in &lines {
                    let data = json!({
                        "timestamp": time(line.at), "message": format!("{}\n", line.line),
                    });
                    let object = json!({ "_id": line.number.to_string(), "data": data });
                    sender.send_data(Bytes::from(format!("{object}\n"))).await?;
                    self.next = line.number + 1;
                }
                if let Some(left) = &mut self.left {
                    *left -= i64::try_from(lines.len()).unwrap_or(i64::MAX);
                    if *left <= 0 {
                        return Ok(());
                    }
                }
            }
            if ended {
                return sender.send_data(Bytes::from_static(b"{\"seal\":true}\n")).await;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                _ = closing.wait_for(|closing| *closing) => return Ok(()),
                () = tokio::time::sleep_until(end) => return Ok(()),
            }
        }
    }
}
