//! A gateway as a participant. The hold belongs to the connection: when this process dies, the
//! gateway sees the connection close and releases by itself.

use crate::CaptureError;
use crate::participant::{Account, HoldOrder, Participant, Rank};
use jiff::Timestamp;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use stillpoint_gateway::control::{self, Control, Held, Purpose};
use stillpoint_model::ids::PartName;
use stillpoint_model::manifest::{EndpointEvidence, GatewayEvidence};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::Writer;

/// How often a drain looks whether it is asked to stop. Its end is seen at once.
const LOOK: Duration = Duration::from_millis(20);

/// One running gateway, reached by its control socket.
pub struct GatewayParticipant {
    name: PartName,
    socket: PathBuf,
    purpose: Purpose,
    control: Option<Control>,
    held: Option<Held>,
    drained: Option<Timestamp>,
    evidence: Option<GatewayEvidence>,
}

impl GatewayParticipant {
    /// The gateway `name`, whose control socket is `socket`.
    pub fn new(name: PartName, socket: PathBuf, purpose: Purpose) -> Self {
        Self { name, socket, purpose, control: None, held: None, drained: None, evidence: None }
    }

    fn fail(&self, doing: &str, source: control::ControlError) -> CaptureError {
        let hint = source.hint();
        let error = CaptureError::new(format!("{doing} gateway `{}`", self.name)).because(source);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// Connects to the gateway, before anything waits.
    pub fn reach(&mut self) -> Result<(), CaptureError> {
        let control = Control::connect(&self.socket).map_err(|source| {
            self.fail("reach", source)
                .hint(format!("is it running? `stillpoint gateway {}` starts it", self.name))
        })?;
        self.control = Some(control);
        Ok(())
    }

    /// Opens a gateway that refuses requests since a restore's hold ended by itself.
    pub(crate) fn reopen(&mut self, hold: &str) -> Result<(), CaptureError> {
        match Control::connect(&self.socket).and_then(|mut control| control.reopen(hold)) {
            // One that is not running refuses nobody, and will not when it is started again.
            Ok(()) | Err(control::ControlError::Connect { .. }) => Ok(()),
            Err(error) => Err(self.fail("open", error)),
        }
    }

    /// From now on a lost or silent coordinator makes the gateway refuse rather than release.
    pub fn refuse_on_silence(&mut self) -> Result<(), CaptureError> {
        match &self.held {
            Some(held) => held.refuse_on_silence().map_err(|e| self.fail("keep", e)),
            None => Err(CaptureError::new(format!("gateway `{}` is not held", self.name))),
        }
    }
}

impl Participant for GatewayParticipant {
    fn name(&self) -> &PartName {
        &self.name
    }

    fn rank(&self) -> Rank {
        Rank::Gateway
    }

    fn prepare(&mut self, _: &Writer, _: &dyn Monitor) -> Result<(), CaptureError> {
        self.reach()
    }

    fn hold(&mut self, order: &HoldOrder) -> Result<(), CaptureError> {
        let control = self
            .control
            .take()
            .ok_or_else(|| CaptureError::new(format!("gateway `{}` not prepared", self.name)))?;
        let order = control::HoldOrder {
            id: order.id.clone(),
            purpose: self.purpose,
            max_hold: order.max_hold,
            silence: order.silence,
        };
        self.held = Some(control.hold(&order).map_err(|e| self.fail("hold", e))?);
        Ok(())
    }

    fn drain(&mut self, order: &HoldOrder, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        let held = self
            .held
            .as_ref()
            .ok_or_else(|| CaptureError::new(format!("gateway `{}` is not held", self.name)))?;
        let until = Instant::now() + order.drain_timeout;
        let drained = loop {
            if monitor.cancelled() {
                return Err(CaptureError::new("cancelled"));
            }
            let left = until.saturating_duration_since(Instant::now());
            let seen = if left > LOOK {
                held.drained_within(LOOK)
            } else {
                // The last look names what is still in flight.
                held.wait_drained(left).map(Some)
            };
            if let Some(at) = seen.map_err(|e| self.fail("drain", e))? {
                break at;
            }
        };
        self.drained = Some(drained);
        Ok(())
    }

    fn release(&mut self) -> Result<(), CaptureError> {
        if let Some(held) = self.held.take() {
            let mut evidence = held.release().map_err(|e| self.fail("release", e))?;
            evidence.gateway = self.name.clone();
            self.evidence = Some(evidence);
        }
        Ok(())
    }

    fn account(&mut self) -> Account {
        let gateway = self.evidence.take();
        let endpoint = gateway.as_ref().and_then(|evidence| evidence.endpoint.as_ref());
        let doubts = endpoint.map(EndpointEvidence::doubts).unwrap_or_default();
        let doubts =
            doubts.iter().map(|doubt| format!("gateway `{}`: {doubt}", self.name)).collect();
        Account { gateway, doubts, ..Account::default() }
    }
}
