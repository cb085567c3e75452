//! The user's own commands: for what cannot be frozen from outside, or knows better itself.

use super::{Shell, Standing, Still};
use crate::CaptureError;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A pair of commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands {
    /// Returns once the worker stands still.
    pub freeze: Shell,
    /// Lets it go on.
    pub thaw: Shell,
}

impl Still for Commands {
    fn describe(&self) -> String {
        format!("the command `{}`", self.freeze.command.trim())
    }

    fn permitted(&self) -> Result<(), CaptureError> {
        // Only running it would tell, and that stops the worker.
        Ok(())
    }

    fn freeze(&self, until: Instant) -> Result<(), CaptureError> {
        self.freeze.run(until)
    }

    fn standing(&self) -> Result<Standing, CaptureError> {
        // Its word is taken for it.
        Ok(Standing::Still)
    }

    fn thaw(&self, until: Instant) -> Result<(), CaptureError> {
        self.thaw.run(until)
    }
}
