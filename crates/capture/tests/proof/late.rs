//! An application that works on after it has answered: money leaves one service while a request is
//! in flight, and reaches another only when the coordinator has gone on. Told by the coordinator's
//! own steps, not by time.

use std::net::SocketAddr;
use stillpoint_capture::watchdog::Undo;
use stillpoint_capture::{Account, CaptureError, HoldOrder, Participant, Rank};
use stillpoint_model::ids::PartName;
use stillpoint_model::progress::Monitor;
use stillpoint_repository::Writer;
use stillpoint_testkit::workload;

/// When the money arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Once the counters were read for the first time.
    FirstCount,
    /// Once this participant has marked for the first time.
    FirstMark,
}

/// A real participant, and the application's work beside it.
pub(crate) struct Late {
    inner: Box<dyn Participant>,
    after: After,
    bank: SocketAddr,
    arrived: bool,
}

impl Late {
    pub(crate) fn new(inner: Box<dyn Participant>, after: After, bank: SocketAddr) -> Self {
        Self { inner, after, bank, arrived: false }
    }

    fn arrive(&mut self, when: After) {
        if when == self.after && !self.arrived {
            workload::credit(self.bank, 3, 50).expect("the bank credits");
            self.arrived = true;
        }
    }
}

impl Participant for Late {
    fn name(&self) -> &PartName {
        self.inner.name()
    }

    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn prepare(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        self.inner.prepare(writer, monitor)
    }

    fn undo(&self) -> Vec<Undo> {
        self.inner.undo()
    }

    fn drain(&mut self, order: &HoldOrder, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        workload::credit(self.bank, 0, -50).expect("the bank debits");
        self.inner.drain(order, monitor)
    }

    fn counter(&mut self) -> Result<Option<String>, CaptureError> {
        let counted = self.inner.counter()?;
        self.arrive(After::FirstCount);
        Ok(counted)
    }

    fn mark(&mut self) -> Result<(), CaptureError> {
        self.inner.mark()?;
        self.arrive(After::FirstMark);
        Ok(())
    }

    fn capture(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        self.inner.capture(writer, monitor)
    }

    fn account(&mut self) -> Account {
        self.inner.account()
    }
}
