//! All that it takes to let one worker go on. Whoever froze it does that, and if he cannot, the
//! watchdog, which was told of this before.

use super::{Shell, Target};
use crate::CaptureError;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use stillpoint_model::ids::PartName;

/// How long an engine may take to say how something stands.
pub(super) const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// A worker that may stand still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    pub(super) worker: PartName,
    pub(super) target: Target,
    /// Run once it is thawed.
    pub(super) resume: Option<Shell>,
    /// For thawing, and for `resume`.
    pub(super) timeout_ms: u64,
}

impl Frozen {
    /// Lets it go on. May be done again, and when nothing is frozen.
    pub(crate) fn let_go(&self) -> Result<(), CaptureError> {
        let of = |e| CaptureError::over(format!("thaw worker `{}`", self.worker), e);
        let within = Duration::from_millis(self.timeout_ms);
        self.target.thaw(Instant::now() + within).map_err(of)?;
        if let Some(resume) = &self.resume {
            resume.run(Instant::now() + within).map_err(of)?;
        }
        Ok(())
    }

    /// The worker.
    pub(crate) fn worker(&self) -> &PartName {
        &self.worker
    }
}
