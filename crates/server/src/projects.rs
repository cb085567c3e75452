//! Projects, their settings, types, members and locations.

use crate::Api;
use crate::auth::user_object;
use crate::error::ApiError;
use crate::request::{Body, Query, Who};
use crate::shape::{project_object, time};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Value, json};
use stillpoint_control::{Caller, Membership, NewUser};

const TYPES: [&str; 3] = ["development", "staging", "production"];

async fn default_branch(api: &Api, caller: &Caller, project: &str) -> Result<String, ApiError> {
    let (environments, _) = api.control.environments(caller, project).await?;
    let production = environments.iter().find(|e| e.kind == "production");
    let chosen = production.or(environments.first());
    Ok(chosen.map_or_else(|| "main".to_owned(), |environment| environment.name.clone()))
}

/// `GET /projects/{id}`.
pub(crate) async fn get(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (project, access) = api.control.project(&caller, &id).await?;
    let branch = default_branch(&api, &caller, &id).await?;
    Ok(Json(project_object(&project, &branch, &access)))
}

/// `GET /projects`: those of the caller.
pub(crate) async fn list(
    State(api): State<Api>,
    Who(caller): Who,
) -> Result<Json<Value>, ApiError> {
    let mut all = Vec::new();
    for project in api.control.projects(&caller).await? {
        let access = api.control.access(&caller, &project.id).await?;
        let branch = default_branch(&api, &caller, &project.id).await?;
        all.push(project_object(&project, &branch, &access));
    }
    Ok(Json(all.into()))
}

/// `GET /projects/{id}/settings`.
pub(crate) async fn settings(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    api.control.access(&caller, &id).await?;
    Ok(Json(json!({
        "data_retention": null, "sizing_api_enabled": false,
        "_links": { "self": { "href": format!("/projects/{id}/settings") } },
    })))
}

/// `GET /projects/{id}/capabilities`.
pub(crate) async fn capabilities(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    api.control.access(&caller, &id).await?;
    Ok(Json(json!({
        "custom_domains": { "enabled": false }, "data_retention": { "enabled": false },
        "metrics": { "max_range": "" }, "images": {}, "autoscaling": { "enabled": false },
        "integrations": { "enabled": false, "config": {} },
    })))
}

fn type_object(project: &str, kind: &str) -> Value {
    let own = format!("/projects/{project}/environment-types/{kind}");
    json!({
        "id": kind, "attributes": {},
        "_links": { "self": { "href": own }, "#access": { "href": format!("{own}/access") } },
    })
}

/// `GET /projects/{id}/environment-types`.
pub(crate) async fn types(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    api.control.access(&caller, &id).await?;
    Ok(Json(TYPES.iter().map(|kind| type_object(&id, kind)).collect()))
}

/// `GET /projects/{id}/environment-types/{type}`.
pub(crate) async fn one_type(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, kind)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    api.control.access(&caller, &id).await?;
    if !TYPES.contains(&kind.as_str()) {
        return Err(ApiError::not_found("Environment type"));
    }
    Ok(Json(type_object(&id, &kind)))
}

/// `GET /projects/{id}/locations`: how the locations are.
pub(crate) async fn locations(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let locations = api.control.locations(&caller, &id).await?;
    Ok(Json(serde_json::to_value(locations).unwrap_or_default()))
}

/// `POST /projects/{id}/locations/heal`: gives every location what it lacks. The locations tell how
/// that goes: those looked at after `asked_at` are healthy again, or say why not.
pub(crate) async fn heal_locations(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let replaced = body.text("replaced")?;
    let replaced = replaced
        .map(|name| name.parse().map_err(|_| ApiError::not_found("Location")))
        .transpose()?;
    let asked_at = Timestamp::now();
    api.control.heal_locations(&caller, &id, replaced).await?;
    Ok(Json(json!({ "asked_at": asked_at })))
}

fn member_object(project: &str, membership: &Membership) -> Value {
    let own = format!("/projects/{project}/user-access/{}", membership.user.id);
    json!({
        "project_id": project, "organization_id": null, "user_id": membership.user.id,
        "permissions": membership.permissions(),
        "granted_at": time(membership.member.created_at),
        "updated_at": time(membership.member.updated_at),
        "_links": {
            "self": { "href": own },
            "delete": { "href": own, "method": "DELETE" },
            "ref:users:0": { "href": format!("/ref/users?in={}", membership.user.id) },
        },
    })
}

/// `GET /projects/{id}/user-access`.
pub(crate) async fn members(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let members = api.control.members(&caller, &id).await?;
    let ids: Vec<&str> = members.iter().map(|m| m.user.id.as_str()).collect();
    Ok(Json(json!({
        "items": members.iter().map(|m| member_object(&id, m)).collect::<Vec<_>>(),
        "_links": {
            "self": { "href": format!("/projects/{id}/user-access") },
            "ref:users:0": { "href": format!("/ref/users?in={}", ids.join(",")) },
        },
    })))
}

/// `GET /projects/{id}/access`: the same for older clients.
pub(crate) async fn legacy_members(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let members = api.control.members(&caller, &id).await?;
    let objects = members.iter().map(|membership| {
        let own = format!("/projects/{id}/access/{}", membership.user.id);
        json!({
            "id": membership.user.id, "user": membership.user.id, "project": id,
            "role": membership.member.role, "permissions": membership.permissions(),
            "created_at": time(membership.member.created_at),
            "updated_at": time(membership.member.updated_at),
            "_embedded": { "users": [{
                "id": membership.user.id, "email": membership.user.email,
                "display_name": membership.user.display_name,
                "created_at": time(membership.user.created_at),
                "updated_at": time(membership.user.updated_at),
            }] },
            "_links": { "self": { "href": own }, "#delete": { "href": own } },
        })
    });
    Ok(Json(objects.collect()))
}

/// `DELETE /projects/{id}/access/{user}` and `.../user-access/{user}`.
pub(crate) async fn remove_member(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, user)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.control.remove_member(&caller, &id, &user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /projects/{id}/invitations`: whoever is named is let in at once.
pub(crate) async fn invite(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, ApiError> {
    let mut permissions = Vec::new();
    for item in body.0["permissions"].as_array().into_iter().flatten() {
        let (Some(kind), Some(role)) = (item["type"].as_str(), item["role"].as_str()) else {
            return Err(ApiError::bad("`permissions` is a list of {\"type\", \"role\"}"));
        };
        permissions.push((kind.to_owned(), role.to_owned()));
    }
    let new = NewUser {
        email: body.text("email")?.unwrap_or_default().to_owned(),
        machine: body.flag("machine", false)?,
        role: body.text("role")?.unwrap_or("viewer").to_owned(),
        permissions,
    };
    let added = api.control.add_member(&caller, &id, &new).await?;
    let at = time(added.member.created_at);
    let object = json!({
        "id": added.user.id, "state": "accepted", "project_id": id, "role": added.member.role,
        "email": added.user.email, "permissions": body.0["permissions"], "environments": [],
        "owner": { "id": caller.user.id, "display_name": caller.user.display_name },
        "user": user_object(&added.user),
        "created_at": at, "updated_at": at, "finished_at": at, "_links": {},
    });
    Ok((StatusCode::CREATED, Json(object)).into_response())
}

/// `GET /users/{id}/extended-access`.
pub(crate) async fn extended_access(
    State(api): State<Api>,
    Who(caller): Who,
    Path(user): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if user != caller.user.id && user != "me" {
        return Err(ApiError::not_found("User"));
    }
    let mut items = Vec::new();
    let projects = api.control.projects(&caller).await?;
    for project in &projects {
        let members = api.control.members(&caller, &project.id).await?;
        let own = members.iter().find(|m| m.user.id == caller.user.id);
        items.push(json!({
            "user_id": caller.user.id, "resource_id": project.id, "resource_type": "project",
            "organization_id": null, "permissions": own.map(Membership::permissions),
            "granted_at": time(project.created_at), "updated_at": time(project.updated_at),
        }));
    }
    let ids: Vec<&str> = projects.iter().map(|project| project.id.as_str()).collect();
    Ok(Json(json!({
        "items": items,
        "_links": {
            "self": { "href": format!("/users/{}/extended-access", caller.user.id) },
            "ref:projects:0": { "href": format!("/ref/projects?in={}", ids.join(",")) },
        },
    })))
}

/// `GET /ref/projects`.
pub(crate) async fn ref_projects(
    State(api): State<Api>,
    Who(caller): Who,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let mut found = json!({});
    for id in query.get("in").unwrap_or_default().split(',').filter(|id| !id.is_empty()) {
        found[id] = match api.control.project(&caller, id).await {
            Ok((project, _)) => json!({
                "id": project.id, "organization_id": null, "subscription_id": "1",
                "region": project.region, "title": project.title, "type": "", "plan": "",
                "status": "active", "vendor": "local", "created_at": time(project.created_at),
                "updated_at": time(project.updated_at),
            }),
            Err(stillpoint_control::ControlError::NotFound(_)) => Value::Null,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(Json(found))
}

/// `GET /ref/users`.
pub(crate) async fn ref_users(
    State(api): State<Api>,
    Who(caller): Who,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let mut found = json!({});
    for id in query.get("in").unwrap_or_default().split(',').filter(|id| !id.is_empty()) {
        found[id] = match api.control.user(&caller, id).await {
            Ok(user) => user_object(&user),
            Err(stillpoint_control::ControlError::NotFound(_)) => Value::Null,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(Json(found))
}
