//! What a command ends with when it could not do what was asked, and how that is shown.

use crate::output::tell;
use std::error::Error;
use std::process::ExitCode;
use stillpoint_capture::CaptureError;
use stillpoint_model::config::ConfigErrors;

/// A command's failure, ready for a person.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    lines: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// The command could not do what was asked (exit 1).
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { exit: 1, lines: vec![message.into()], hint: None }
    }

    /// The command was called wrongly, or the configuration is wrong (exit 2).
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: 2, ..Self::new(message) }
    }

    /// Done, but not all of it (exit 3).
    pub(crate) fn partial(message: impl Into<String>) -> Self {
        Self { exit: 3, ..Self::new(message) }
    }

    /// The same, because of `source`.
    #[must_use]
    pub(crate) fn because(mut self, source: &(dyn Error + 'static)) -> Self {
        let mut next = Some(source);
        while let Some(error) = next {
            self.lines.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// The same, with advice.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Shows it on stderr and gives the exit status.
    pub(crate) fn report(self) -> ExitCode {
        let word = if self.exit == 3 { "partial" } else { "error" };
        let mut lines = self.lines.iter();
        tell(&format!("{word}: {}", lines.next().map_or("", String::as_str)));
        for line in lines {
            tell(&format!("  because: {line}"));
        }
        if let Some(hint) = self.hint {
            tell(&format!("  hint: {hint}"));
        }
        ExitCode::from(self.exit)
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
