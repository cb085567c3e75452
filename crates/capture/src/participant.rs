//! The one trait that everything in a still point implements: gateways, workers, crons,
//! services and mounts. The coordinator leads them by rank and knows nothing else of them.

use crate::CaptureError;
use crate::watchdog::Undo;
use std::time::Duration;
use stillpoint_model::ids::PartName;
use stillpoint_model::manifest::{Gap, GatewayEvidence, Part, WorkerEvidence};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{Node, Writer};

/// Which step a participant acts in. Lower ranks stop first and are let go last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Stops what comes in.
    Gateway,
    /// Works by itself, and is frozen.
    Worker,
    /// Holds data: is marked and captured.
    Data,
}

/// How long a hold may take, and whose it is.
#[derive(Debug, Clone)]
pub struct HoldOrder {
    /// What the hold is for, unique: the backup's id.
    pub id: String,
    /// How long requests in flight may take to finish.
    pub drain_timeout: Duration,
    /// The hold's longest duration in all.
    pub max_hold: Duration,
    /// How long the coordinator may fall silent before the hold ends without it.
    pub silence: Duration,
}

/// What a participant contributes to the manifest and the tree, once it has been captured.
#[derive(Debug, Default)]
pub struct Account {
    /// A gateway's record of the hold.
    pub gateway: Option<GatewayEvidence>,
    /// A worker's record of its stillness.
    pub worker: Option<WorkerEvidence>,
    /// The captured part, and the directory that holds its data.
    pub part: Option<(Part, Node)>,
    /// What is missing.
    pub gaps: Vec<Gap>,
    /// What speaks against `consistent`, in words.
    pub doubts: Vec<String>,
}

/// One part of an environment, in a still point. Steps are called in the order of the methods;
/// `mark` may be called again. Dropping a participant at any point gives up all that it holds.
pub trait Participant: Send {
    /// Its name, for messages.
    fn name(&self) -> &PartName;

    /// When it acts.
    fn rank(&self) -> Rank;

    /// Checks what can be checked and does early what takes long. Nothing waits yet.
    fn prepare(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError>;

    /// What the watchdog must do if this process dies or falls silent between hold and release.
    /// Asked for before the hold, and again after [`Participant::aim`], before anything is frozen.
    fn undo(&self) -> Vec<Undo> {
        Vec::new()
    }

    /// Stops what comes in, at once.
    fn hold(&mut self, order: &HoldOrder) -> Result<(), CaptureError> {
        let _ = order;
        Ok(())
    }

    /// Waits until nothing is in flight, or until it is asked to stop.
    fn drain(&mut self, order: &HoldOrder, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        let _ = (order, monitor);
        Ok(())
    }

    /// Looks up what it will freeze. Called before each [`Participant::freeze`].
    fn aim(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// Stops what works by itself. May be called again after [`Participant::thaw`].
    fn freeze(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// A reading of the part's own counter of writes: equal readings, no writes in between.
    /// `None` where there is no such counter.
    fn counter(&mut self) -> Result<Option<String>, CaptureError> {
        Ok(None)
    }

    /// Fixes the part's instant.
    fn mark(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// Lets go on what was frozen.
    fn thaw(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// Lets go. An error means that the hold had ended before.
    fn release(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// What is left to be undone once everything was to let go: a thaw that failed.
    fn owed(&self) -> Vec<Undo> {
        Vec::new()
    }

    /// Streams the marked state into the repository.
    fn capture(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        let _ = (writer, monitor);
        Ok(())
    }

    /// What it amounted to. Called last.
    fn account(&mut self) -> Account;
}
