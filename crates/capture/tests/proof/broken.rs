//! A participant whose mark is of another instant than the others': the proof that such a one would
//! be found.

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use stillpoint_capture::watchdog::Undo;
use stillpoint_capture::{Account, CaptureError, HoldOrder, Participant, Rank};
use stillpoint_model::ids::PartName;
use stillpoint_model::progress::Monitor;
use stillpoint_repository::Writer;
use stillpoint_testkit::workload;

/// When it marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    BeforeHold,
    AfterRelease,
}

/// How many orders lie between its mark and the others'.
const ORDERS: u64 = 20;

/// The bank's own time: orders that it has answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(pub(crate) SocketAddr);

impl Clock {
    pub(crate) fn now(self) -> u64 {
        workload::orders_answered(self.0).expect("the bank answers")
    }

    /// Waits until so many more orders have been answered.
    pub(crate) fn pass(self, orders: u64) {
        let (until, limit) = (self.now() + orders, Instant::now() + Duration::from_secs(60));
        while self.now() < until {
            assert!(Instant::now() < limit, "the bank takes no orders any more");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// One of the real ones, which is told to mark at another moment.
pub(crate) struct Broken {
    inner: Box<dyn Participant>,
    when: When,
    clock: Clock,
}

impl Broken {
    pub(crate) fn new(inner: Box<dyn Participant>, when: When, clock: Clock) -> Self {
        Self { inner, when, clock }
    }
}

impl Participant for Broken {
    fn name(&self) -> &PartName {
        self.inner.name()
    }

    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn prepare(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        self.inner.prepare(writer, monitor)?;
        if self.when == When::BeforeHold {
            self.inner.mark()?;
            self.clock.pass(ORDERS);
        }
        Ok(())
    }

    fn undo(&self) -> Vec<Undo> {
        self.inner.undo()
    }

    fn hold(&mut self, order: &HoldOrder) -> Result<(), CaptureError> {
        self.inner.hold(order)
    }

    fn drain(&mut self, order: &HoldOrder, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        self.inner.drain(order, monitor)
    }

    fn counter(&mut self) -> Result<Option<String>, CaptureError> {
        self.inner.counter()
    }

    fn mark(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    fn release(&mut self) -> Result<(), CaptureError> {
        self.inner.release()
    }

    fn capture(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        if self.when == When::AfterRelease {
            self.clock.pass(ORDERS);
            self.inner.mark()?;
        }
        self.inner.capture(writer, monitor)
    }

    fn account(&mut self) -> Account {
        self.inner.account()
    }
}
