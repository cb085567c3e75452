//! What `doctor` says of a worker. It changes nothing: no command of the user's is run.

use super::target;
use super::{Aimed, Shell};
use crate::CaptureError;
use std::path::PathBuf;
use std::time::Instant;
use stillpoint_model::config::WorkerPart;
use stillpoint_services::{Finding, NeededFor};

/// Looks whether a worker can be found and frozen.
pub fn examine(part: &WorkerPart) -> Vec<Finding> {
    let shell = |command: &str| Shell {
        command: command.to_owned(),
        directory: PathBuf::from("/"),
        environment: std::collections::BTreeMap::new(),
    };
    let finding = |what: String, found: Result<(), CaptureError>| {
        let (problem, hint) = match found {
            Ok(()) => (None, None),
            Err(error) => (Some(chain(&error)), error.advice().map(str::to_owned)),
        };
        Finding { what, needed_for: NeededFor::Backup, problem, hint }
    };
    match target::aim(&part.freezer, shell, Instant::now() + part.timeout) {
        Err(error) => vec![finding("finding the worker".to_owned(), Err(error))],
        Ok(Aimed { target: None, doubt: Some(doubt) }) => {
            let stale = CaptureError::new(doubt).hint("remove the stale file, or start the worker");
            vec![finding("finding the worker".to_owned(), Err(stale))]
        }
        Ok(Aimed { target: None, doubt: None }) => {
            vec![finding("the worker, which does not run".to_owned(), Ok(()))]
        }
        Ok(Aimed { target: Some(target), .. }) => {
            vec![finding(format!("freezing {}", target.describe()), target.permitted())]
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &CaptureError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
