//! Environments and their backups.

use crate::Api;
use crate::error::ApiError;
use crate::request::{Body, Query, Who};
use crate::shape::{activity_object, backup_object, envelope, environment_object};
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use stillpoint_control::entity::{activity, environment};
use stillpoint_control::{Access, Caller, RestoreWish};

async fn object(
    api: &Api,
    environment: &environment::Model,
    access: &Access,
) -> Result<Value, ApiError> {
    let dirty = api.control.is_dirty(environment).await?;
    let last = api.control.last_backup(environment).await?;
    Ok(environment_object(environment, dirty, last, access))
}

/// `GET /projects/{id}/environments`.
pub(crate) async fn list(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let (all, access) = api.control.environments(&caller, &id).await?;
    let mut objects = Vec::new();
    for environment in &all {
        let of_type = query.get("type").is_none_or(|kind| kind == environment.kind);
        let active = environment.status == "active";
        let as_asked = query.get("active").is_none_or(|asked| (asked == "true") == active);
        if of_type && as_asked {
            objects.push(object(&api, environment, &access).await?);
        }
    }
    Ok(Json(objects.into()))
}

/// `GET {E}`.
pub(crate) async fn get(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (environment, access) = api.control.environment(&caller, &id, &name).await?;
    Ok(Json(object(&api, &environment, &access).await?))
}

/// `PATCH {E}`: the title; the rest is the configuration's.
pub(crate) async fn patch(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name)): Path<(String, String)>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let Some(title) = body.text("title")? else {
        return Err(ApiError::bad(
            "only `title` can be changed here; the rest is what stillpoint.yaml says",
        ));
    };
    let changed = api.control.retitle_environment(&caller, &id, &name, title).await?;
    let access = api.control.access(&caller, &id).await?;
    Ok(Json(envelope(&[], Some(object(&api, &changed, &access).await?))))
}

/// `POST {E}/activate`.
pub(crate) async fn activate(
    state: State<Api>,
    who: Who,
    path: Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    set_active(state, who, path, true).await
}

/// `POST {E}/deactivate`.
pub(crate) async fn deactivate(
    state: State<Api>,
    who: Who,
    path: Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    set_active(state, who, path, false).await
}

async fn set_active(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name)): Path<(String, String)>,
    active: bool,
) -> Result<Json<Value>, ApiError> {
    let (changed, activity) = api.control.set_active(&caller, &id, &name, active).await?;
    let access = api.control.access(&caller, &id).await?;
    let entity = object(&api, &changed, &access).await?;
    Ok(Json(envelope(&[activity_object(&activity, &[], false)], Some(entity))))
}

/// `GET {E}/deployments/current`: some clients insist on one.
pub(crate) async fn deployment(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (environment, _) = api.control.environment(&caller, &id, &name).await?;
    if environment.status != "active" {
        return Err(ApiError::not_found("Deployment"));
    }
    Ok(Json(json!({
        "id": "current", "webapps": {}, "services": {}, "workers": {}, "routes": {},
        "container_profiles": {}, "project_info": { "settings": {}, "capabilities": {} },
        "_links": {},
    })))
}

/// `GET {E}/settings`.
pub(crate) async fn settings(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    api.control.environment(&caller, &id, &name).await?;
    Ok(Json(json!({ "enable_manual_deployments": false, "_links": {} })))
}

async fn started(
    api: &Api,
    caller: &Caller,
    activity: &activity::Model,
) -> Result<Json<Value>, ApiError> {
    let access = api.control.access(caller, &activity.project).await?;
    let can_cancel = api.control.can_cancel(&access, activity);
    Ok(Json(envelope(&[activity_object(activity, &[], can_cancel)], None)))
}

/// `POST {E}/backup` and `POST {E}/backups`.
pub(crate) async fn create_backup(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name)): Path<(String, String)>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let safe = body.flag("safe", true)?;
    let cron_run = body.text("cron_run")?.map(str::to_owned);
    let activity = api.control.create_backup(&caller, &id, &name, safe, cron_run).await?;
    started(&api, &caller, &activity).await
}

/// `GET {E}/backups`.
pub(crate) async fn backups(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (all, access) = api.control.backups(&caller, &id, &name).await?;
    let quorum = api.control.project(&caller, &id).await?.0.write_quorum;
    Ok(Json(all.iter().map(|backup| backup_object(backup, quorum, &access)).collect()))
}

/// `GET {E}/backups/{id}`.
pub(crate) async fn backup(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name, backup)): Path<(String, String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (found, access) = api.control.backup(&caller, &id, &name, &backup).await?;
    let quorum = api.control.project(&caller, &id).await?.0.write_quorum;
    Ok(Json(backup_object(&found, quorum, &access)))
}

/// `DELETE {E}/backups/{id}`.
pub(crate) async fn delete_backup(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name, backup)): Path<(String, String, String)>,
) -> Result<Json<Value>, ApiError> {
    let activity = api.control.delete_backup(&caller, &id, &name, &backup).await?;
    started(&api, &caller, &activity).await
}

/// `POST {E}/backups/{id}/restore`.
pub(crate) async fn restore_backup(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, name, backup)): Path<(String, String, String)>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let wish = RestoreWish {
        target: body.text("environment_name")?.map(str::to_owned),
        only: body.texts("only")?,
        no_safety_backup: !body.flag("safety_backup", true)?,
    };
    let activity = api.control.restore_backup(&caller, &id, &name, &backup, &wish).await?;
    started(&api, &caller, &activity).await
}
