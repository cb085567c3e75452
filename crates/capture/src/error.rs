//! What the coordinator and its participants say when something cannot be done.

use std::error::Error;
use stillpoint_services::ServiceError;

/// A refusal or failure of one step, naming the part that it concerns.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct CaptureError {
    /// What could not be done: "prepare db", "mark uploads".
    doing: String,
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl CaptureError {
    /// A failure with words of its own.
    pub fn new(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), hint: None, source: None }
    }

    /// The same, caused by `source`.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same, with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A driver's failure, with its advice.
    pub fn of_service(doing: impl Into<String>, source: ServiceError) -> Self {
        let hint = source.advice().map(str::to_owned);
        Self { doing: doing.into(), hint, source: Some(Box::new(source)) }
    }

    /// The advice, for the edge that prints it.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}
