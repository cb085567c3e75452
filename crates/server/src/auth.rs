//! `/oauth2/*`, users, their tokens.

use crate::Api;
use crate::error::ApiError;
use crate::request::{Body, Who, raw};
use crate::shape::time;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::collections::HashMap;
use stillpoint_control::ControlError;
use stillpoint_control::entity::{api_token, user};

/// A form or JSON: clients send either, whatever they say it is.
async fn fields(request: Request) -> Result<HashMap<String, String>, ApiError> {
    let bytes = raw(request).await?;
    if let Ok(Value::Object(object)) = serde_json::from_slice(&bytes) {
        let text = |(key, value): (String, Value)| Some((key, value.as_str()?.to_owned()));
        return Ok(object.into_iter().filter_map(text).collect());
    }
    Ok(form_urlencoded::parse(&bytes).into_owned().collect())
}

/// `POST /oauth2/token`.
pub(crate) async fn token(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let fields = fields(request).await?;
    let refuse = |error: &str, description: &str, hint: &str| {
        let body = json!({ "error": error, "error_description": description, "error_hint": hint });
        (StatusCode::BAD_REQUEST, Json(body)).into_response()
    };
    if fields.get("grant_type").map(String::as_str) != Some("api_token") {
        let description = "only the grant type api_token is supported";
        return Ok(refuse("unsupported_grant_type", description, "log in with an API token"));
    }
    let token = fields.get("api_token").map(String::as_str).unwrap_or_default();
    match api.control.exchange(token).await {
        Ok(access) => Ok(Json(json!({
            "access_token": access.token,
            "expires_in": access.expires_in,
            "token_type": "bearer",
            "scope": "",
        }))
        .into_response()),
        Err(ControlError::InvalidApiToken) => Ok(refuse(
            "invalid_grant",
            "Invalid API token",
            "The API token is invalid or has been revoked",
        )),
        Err(error) => Err(error.into()),
    }
}

/// `POST /oauth2/revoke`.
pub(crate) async fn revoke(
    State(api): State<Api>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    if let Some(token) = fields(request).await?.get("token") {
        api.control.revoke(token);
    }
    Ok(Json(json!({})))
}

/// A user as the API writes one.
pub(crate) fn user_object(user: &user::Model) -> Value {
    let (first, last) = user.display_name.split_once(' ').unwrap_or((&user.display_name, ""));
    json!({
        "id": user.id, "deactivated": false, "namespace": "local",
        "username": user.username, "email": user.email, "email_verified": true,
        "first_name": first, "last_name": last, "picture": "", "company": "", "website": "",
        "country": "", "phone_number_verified": true, "mfa_enabled": false, "sso_enabled": false,
        "machine": user.machine,
        "created_at": time(user.created_at), "updated_at": time(user.updated_at),
    })
}

/// `GET /users/me`.
pub(crate) async fn me(Who(caller): Who) -> Json<Value> {
    Json(user_object(&caller.user))
}

/// `GET /users/{id}`.
pub(crate) async fn user(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(user_object(&api.control.user(&caller, &id).await?)))
}

/// `GET /me`: the account with its projects, for older clients.
pub(crate) async fn account(
    State(api): State<Api>,
    Who(caller): Who,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let base = format!("{}://{host}", api.scheme);
    let projects: Vec<Value> = api
        .control
        .projects(&caller)
        .await?
        .iter()
        .map(|project| {
            let uri = format!("{base}/projects/{}", project.id);
            json!({
                "id": project.id, "name": project.id, "title": project.title,
                "region": project.region, "region_label": project.region,
                "uri": uri, "endpoint": uri, "owner": project.owner, "subscription_id": "1",
                "organization_id": null, "status": "active", "vendor": "local",
                "plan": "development", "created_at": time(project.created_at),
            })
        })
        .collect();
    let user = &caller.user;
    Ok(Json(json!({
        "id": user.id, "uuid": user.id, "username": user.username, "mail": user.email,
        "display_name": user.display_name, "status": 1, "ssh_keys": [], "has_key": false,
        "roles": [], "trial": false, "projects": projects,
    })))
}

/// `POST /me/verification`.
pub(crate) async fn verification(Who(_): Who) -> Json<Value> {
    Json(json!({ "state": false, "type": "" }))
}

fn token_object(token: &api_token::Model) -> Value {
    json!({
        "id": token.id, "name": token.name, "mfa_on_creation": false,
        "created_at": time(token.created_at), "updated_at": time(token.created_at),
        "last_used_at": token.last_used_at.map(time),
    })
}

/// `GET /users/{id}/api-tokens`.
pub(crate) async fn api_tokens(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let tokens = api.control.api_tokens(&caller, &id).await?;
    Ok(Json(tokens.iter().map(token_object).collect()))
}

/// `POST /users/{id}/api-tokens`.
pub(crate) async fn create_api_token(
    State(api): State<Api>,
    Who(caller): Who,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, ApiError> {
    let name = body.text("name")?.unwrap_or_default();
    let created = api.control.create_api_token(&caller, &id, name).await?;
    let mut object = token_object(&created.model);
    object["token"] = created.secret.into();
    Ok((StatusCode::CREATED, Json(object)).into_response())
}

/// `DELETE /users/{id}/api-tokens/{token}`.
pub(crate) async fn delete_api_token(
    State(api): State<Api>,
    Who(caller): Who,
    Path((id, token)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.control.delete_api_token(&caller, &id, &token).await?;
    Ok(StatusCode::NO_CONTENT)
}
