//! What handlers read of a request: who asks, the body, the query.

use crate::Api;
use crate::error::ApiError;
use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde_json::Value;
use stillpoint_control::{Caller, ControlError};

/// No body of this API is near as large.
const MAX_BODY: usize = 256 * 1024;

/// Who asks, by the access token.
pub(crate) struct Who(pub(crate) Caller);

impl FromRequestParts<Api> for Who {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let token = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
            })
            .ok_or(ControlError::InvalidAccessToken)?;
        Ok(Self(api.control.authenticate(token).await?))
    }
}

/// A JSON body, whatever its type is said to be; an absent one is an empty object.
pub(crate) struct Body(pub(crate) Value);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = raw(request).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(serde_json::json!({})));
        }
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::bad(format!("the body is not JSON: {e}")))?;
        if value.is_object() || value.is_array() {
            Ok(Self(value))
        } else {
            Err(ApiError::bad("the body is not a JSON object"))
        }
    }
}

impl Body {
    /// A string, if it is there.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, ApiError> {
        match &self.0[key] {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(ApiError::bad(format!("`{key}` is not a string"))),
        }
    }

    /// True or false, or the default.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ApiError> {
        match &self.0[key] {
            Value::Null => Ok(default),
            Value::Bool(flag) => Ok(*flag),
            _ => Err(ApiError::bad(format!("`{key}` is neither true nor false"))),
        }
    }

    /// Strings; none, if it is absent.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, ApiError> {
        let wrong = || ApiError::bad(format!("`{key}` is not a list of strings"));
        match &self.0[key] {
            Value::Null => Ok(Vec::new()),
            Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong))
                .collect(),
            _ => Err(wrong()),
        }
    }
}

/// The whole body, up to a limit.
pub(crate) async fn raw(request: Request) -> Result<axum::body::Bytes, ApiError> {
    to_bytes(request.into_body(), MAX_BODY).await.map_err(|_| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body could not be read, or is longer than {MAX_BODY} bytes"),
        )
    })
}

/// The query's pairs, decoded, in their order; keys may be repeated.
pub(crate) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect()))
    }
}

impl Query {
    /// The first value.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Every value of `key` or `key[]`.
    pub(crate) fn all(&self, key: &str) -> Vec<String> {
        let many = format!("{key}[]");
        let named = self.0.iter().filter(|(name, _)| name == key || *name == many);
        named.map(|(_, value)| value.clone()).collect()
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let wrong = |_| ApiError::bad(format!("`{key}` is not a number"));
        self.get(key).map(|value| value.parse().map_err(wrong)).transpose()
    }

    /// A time in RFC 3339, whose `+` may have become a space on its way.
    pub(crate) fn time(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let at: jiff::Timestamp = value
            .replace(' ', "+")
            .parse()
            .map_err(|_| ApiError::bad(format!("`{key}` is not a time in RFC 3339")))?;
        Ok(Some(at.as_microsecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_whose_plus_became_a_space_is_read_as_it_was_meant() {
        let pair = |value: &str| Query(vec![("starts_at".to_owned(), value.to_owned())]);
        let whole = pair("2026-11-22T21:03:47.872057+00:00").time("starts_at").unwrap();
        assert_eq!(whole, Some(1_795_381_427_872_057));
        assert_eq!(pair("2026-11-22T21:03:47.872057 00:00").time("starts_at").unwrap(), whole);
        assert_eq!(pair("2026-11-22T21:03:47.872057Z").time("starts_at").unwrap(), whole);
        assert!(pair("yesterday").time("starts_at").is_err());
    }
}
