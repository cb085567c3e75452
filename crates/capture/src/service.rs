//! A service as a participant: a driver of `stillpoint-services` behind the coordinator's trait.

use crate::CaptureError;
use crate::participant::{Account, Participant, Rank};
use crate::stream::WriterSink;
use crate::watchdog::{Undo, When};
use stillpoint_model::ids::PartName;
use stillpoint_model::manifest::{Gap, Marker, Part, Role};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{Node, Writer};
use stillpoint_services::{Driver, Prepared, ServiceError};

/// One service.
pub struct ServiceParticipant {
    name: PartName,
    driver: Box<dyn Driver>,
    prepared: Option<Box<dyn Prepared>>,
    marker: Option<Marker>,
    account: Account,
}

impl ServiceParticipant {
    /// The service `name`, by its driver.
    pub fn new(name: PartName, driver: Box<dyn Driver>) -> Self {
        Self { name, driver, prepared: None, marker: None, account: Account::default() }
    }

    fn step<T>(
        &mut self,
        doing: &str,
        act: impl FnOnce(&mut dyn Prepared) -> Result<T, ServiceError>,
    ) -> Result<T, CaptureError> {
        let prepared = self
            .prepared
            .as_mut()
            .ok_or_else(|| CaptureError::new(format!("{doing} `{}`: not prepared", self.name)))?;
        act(prepared.as_mut())
            .map_err(|e| CaptureError::over(format!("{doing} service `{}`", self.name), e))
    }
}

impl Participant for ServiceParticipant {
    fn name(&self) -> &PartName {
        &self.name
    }

    fn rank(&self) -> Rank {
        Rank::Data
    }

    fn prepare(&mut self, _: &Writer, _: &dyn Monitor) -> Result<(), CaptureError> {
        let prepared = self
            .driver
            .prepare()
            .map_err(|e| CaptureError::over(format!("prepare service `{}`", self.name), e))?;
        self.prepared = Some(prepared);
        Ok(())
    }

    fn undo(&self) -> Vec<Undo> {
        if self.prepared.as_ref().is_some_and(|p| p.mark_blocks_writers()) {
            // Stopped inside the mark, this process would keep the service's writers waiting.
            vec![Undo::EndHolder { when: When::Silent }]
        } else {
            Vec::new()
        }
    }

    fn counter(&mut self) -> Result<Option<String>, CaptureError> {
        self.step("read the write counter of", |p| p.counter()).map(Some)
    }

    fn mark(&mut self) -> Result<(), CaptureError> {
        self.marker = Some(self.step("mark", |p| p.mark())?);
        Ok(())
    }

    fn capture(&mut self, writer: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        let sink = WriterSink::new(writer, monitor);
        let captured = self.step("capture", |p| p.capture(&sink))?;
        let tree = sink
            .finish()
            .map_err(|e| CaptureError::new(format!("store `{}`", self.name)).because(e))?;
        let marker = self
            .marker
            .take()
            .ok_or_else(|| CaptureError::new(format!("capture `{}`: not marked", self.name)))?;
        let prepared = self.prepared.take().expect("a captured service was prepared");
        let part = Part {
            name: self.name.clone(),
            role: Role::Service,
            kind: self.driver.kind().to_owned(),
            marker,
            facts: prepared.facts(),
            bytes: captured.bytes,
            items: captured.items,
        };
        self.account.doubts =
            prepared.doubts().into_iter().map(|doubt| format!("{}: {doubt}", self.name)).collect();
        let gaps = prepared.gaps().into_iter().chain(captured.gaps);
        self.account.gaps =
            gaps.map(|(what, why)| Gap { part: self.name.clone(), what, why }).collect();
        let node = Node::directory(self.name.as_str(), tree, part.marker.at);
        self.account.part = Some((part, node));
        Ok(())
    }

    fn account(&mut self) -> Account {
        std::mem::take(&mut self.account)
    }
}
