//! What every room above says when a step cannot be done: what it was, why it failed, and what to
//! do about it. The words name the object; `Display` never repeats the cause, whoever prints it
//! walks the chain.

use std::error::Error;

/// A step's refusal or failure.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct StepError {
    /// What could not be done, with the object's name: "connect to <postgres://shop@db/shop>".
    doing: String,
    /// What a person can do about it.
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StepError {
    /// A failure with words of its own.
    pub fn new(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), hint: None, source: None }
    }

    /// A larger step that failed because a smaller one did, with that one's advice.
    pub fn over(doing: impl Into<String>, source: Self) -> Self {
        let hint = source.hint.clone();
        Self { doing: doing.into(), hint, source: Some(Box::new(source)) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_step_keeps_the_advice_of_the_smaller_one_and_does_not_repeat_its_words() {
        let error = StepError::over("prepare db", StepError::new("connect").hint("start it"));
        assert_eq!(error.to_string(), "prepare db");
        assert_eq!(error.advice(), Some("start it"));
        assert_eq!(error.source().unwrap().to_string(), "connect");
    }
}
