//! How a failure is shown, and the exit status that it ends with.

use crate::output::tell;
use std::process::ExitCode;

pub(crate) use stillpoint_agent::{Failure, FailureKind};

/// Shows it on stderr and gives the exit status.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    let (word, exit) = match failure.kind() {
        FailureKind::Failed => ("error", 1),
        FailureKind::Usage => ("error", 2),
        FailureKind::Partial => ("partial", 3),
        FailureKind::Cancelled => ("cancelled", 1),
    };
    let mut lines = failure.lines().iter();
    tell(&format!("{word}: {}", lines.next().map_or("", String::as_str)));
    for line in lines {
        tell(&format!("  because: {line}"));
    }
    if let Some(hint) = failure.advice() {
        tell(&format!("  hint: {hint}"));
    }
    ExitCode::from(exit)
}
