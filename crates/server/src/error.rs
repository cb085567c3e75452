//! Errors as the API's clients read them. What went wrong inside is logged, never told.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use stillpoint_control::ControlError;

/// An error on its way to a client.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    detail: Value,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), detail: json!({}) }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} not found"))
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = match &error {
            ControlError::NotFound(_) => StatusCode::NOT_FOUND,
            ControlError::Forbidden(_) => StatusCode::FORBIDDEN,
            ControlError::InvalidAccessToken => StatusCode::UNAUTHORIZED,
            ControlError::Conflict(_) => StatusCode::CONFLICT,
            ControlError::Invalid { .. }
            | ControlError::NotActive(_)
            | ControlError::WrongStatus { .. }
            | ControlError::CannotCancel(_)
            | ControlError::InvalidApiToken => StatusCode::BAD_REQUEST,
            ControlError::Full(_) => {
                tracing::error!("{error}: {error:?}");
                let message = "the server has no room left to store this; nothing was changed. \
                               Make room where its data directory is, and ask again";
                return Self::new(StatusCode::INSUFFICIENT_STORAGE, message);
            }
            ControlError::Unusable { .. } | ControlError::Storage(_) => {
                tracing::error!("{error}: {error:?}");
                let message = "the server could not store or read what this needs";
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
            }
        };
        let detail = match &error {
            ControlError::Invalid { field, why } => json!({ *field: why }),
            _ => json!({}),
        };
        Self { status, message: error.to_string(), detail }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, message, detail } = self;
        let body = json!({
            "status": "error",
            "code": status.as_u16(),
            "title": status.canonical_reason().unwrap_or("Error"),
            "message": message,
            "detail": detail,
        });
        (status, Json(body)).into_response()
    }
}
