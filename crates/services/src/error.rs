//! What drivers say when something cannot be done.

use std::error::Error;

/// A driver's refusal or failure: what it was doing, why that failed, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct ServiceError {
    /// What could not be done, with the object's name: `connect to postgres://shop@db/shop`.
    doing: String,
    /// What a person can do about it.
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ServiceError {
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

    /// The advice, for the edge that prints it.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}
