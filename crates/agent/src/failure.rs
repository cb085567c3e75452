//! What work ends with when it could not do what was asked, ready for a person.

use std::error::Error;
use stillpoint_capture::CaptureError;
use stillpoint_model::config::ConfigErrors;

/// How grave a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// It could not be done.
    Failed,
    /// It was asked for wrongly, or the configuration is wrong.
    Usage,
    /// Done, but not all of it.
    Partial,
    /// It was stopped, as asked.
    Cancelled,
}

/// A failure, ready for a person.
#[derive(Debug, Clone)]
pub struct Failure {
    kind: FailureKind,
    lines: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// It could not be done.
    pub fn new(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Failed, lines: vec![message.into()], hint: None }
    }

    /// It was asked for wrongly, or the configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Usage, ..Self::new(message) }
    }

    /// Done, but not all of it.
    pub fn partial(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Partial, ..Self::new(message) }
    }

    /// It was stopped, as asked.
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Cancelled, ..Self::new(message) }
    }

    /// The same, because of `source`.
    #[must_use]
    pub fn because(mut self, source: &(dyn Error + 'static)) -> Self {
        let mut next = Some(source);
        while let Some(error) = next {
            self.lines.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// The same, because of this too.
    #[must_use]
    pub fn and(mut self, why: impl Into<String>) -> Self {
        self.lines.push(why.into());
        self
    }

    /// The same, with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// How grave it is.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// What failed, and below it why, from the outermost to the innermost cause.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// What a person can do about it.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines.join(": "))?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl Error for Failure {}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        let hint = error.advice().map(str::to_owned);
        let mut failure = Self::new(error.to_string());
        if let Some(source) = error.source() {
            failure = failure.because(source);
        }
        failure.hint = hint;
        failure
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::usage(errors.to_string())
    }
}
