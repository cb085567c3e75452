//! The HTTP API, as existing clients of the hosted platform speak it.
//!
//! What must never break: no handler decides what a caller may do, the use cases of
//! `stillpoint-control` do; nothing is answered with 202, and every JSON answer is of the type
//! `application/json` and nothing after it: clients rely on both.

mod activities;
mod auth;
mod environments;
mod error;
mod projects;
mod request;
mod serve;
mod shape;

pub use serve::{Bound, ServeError, ServeOptions, TlsFiles};

use axum::Router;
use axum::routing::{delete, get, post};
use error::ApiError;
use stillpoint_control::Control;
use tokio::sync::watch;

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Api {
    control: Control,
    scheme: &'static str,
    /// True once the server is ending: streams end too, clients connect again.
    closing: watch::Receiver<bool>,
}

fn router(api: Api) -> Router {
    const E: &str = "/projects/{id}/environments/{name}";
    let e = |rest: &str| format!("{E}{rest}");
    Router::new()
        .route("/oauth2/token", post(auth::token))
        .route("/oauth2/revoke", post(auth::revoke))
        .route("/users/me", get(auth::me))
        .route("/users/{id}", get(auth::user))
        .route("/users/{id}/api-tokens", get(auth::api_tokens).post(auth::create_api_token))
        .route("/users/{id}/api-tokens/{token}", delete(auth::delete_api_token))
        .route("/users/{id}/extended-access", get(projects::extended_access))
        .route("/me", get(auth::account))
        .route("/platform/me", get(auth::account))
        .route("/me/verification", post(auth::verification))
        .route("/ref/users", get(projects::ref_users))
        .route("/ref/projects", get(projects::ref_projects))
        .route("/projects", get(projects::list))
        .route("/projects/{id}", get(projects::get))
        .route("/projects/{id}/settings", get(projects::settings))
        .route("/projects/{id}/capabilities", get(projects::capabilities))
        .route("/projects/{id}/locations", get(projects::locations))
        .route("/projects/{id}/locations/heal", post(projects::heal_locations))
        .route("/projects/{id}/environment-types", get(projects::types))
        .route("/projects/{id}/environment-types/{type}", get(projects::one_type))
        .route("/projects/{id}/access", get(projects::legacy_members))
        .route("/projects/{id}/access/{user}", delete(projects::remove_member))
        .route("/projects/{id}/user-access", get(projects::members))
        .route("/projects/{id}/user-access/{user}", delete(projects::remove_member))
        .route("/projects/{id}/invitations", post(projects::invite))
        .route("/projects/{id}/activities", get(activities::list))
        .route("/projects/{id}/activities/{activity}", get(activities::get))
        .route("/projects/{id}/activities/{activity}/cancel", post(activities::cancel))
        .route("/projects/{id}/activities/{activity}/log", get(activities::log))
        .route("/projects/{id}/environments", get(environments::list))
        .route(E, get(environments::get).patch(environments::patch))
        .route(&e("/activate"), post(environments::activate))
        .route(&e("/deactivate"), post(environments::deactivate))
        .route(&e("/settings"), get(environments::settings))
        .route(&e("/deployments/current"), get(environments::deployment))
        .route(&e("/backup"), post(environments::create_backup))
        .route(&e("/backups"), get(environments::backups).post(environments::create_backup))
        .route(
            &e("/backups/{backup}"),
            get(environments::backup).delete(environments::delete_backup),
        )
        .route(&e("/backups/{backup}/restore"), post(environments::restore_backup))
        .route(&e("/activities"), get(activities::list_of_environment))
        .route(&e("/activities/{activity}"), get(activities::get_of_environment))
        .fallback(|| async { ApiError::not_found("Resource") })
        .with_state(api)
}
