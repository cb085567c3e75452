//! A part's data, until somebody asks to stop.

use crate::stream::Watched;
use std::io::{self, Read};
use stillpoint_model::progress::Monitor;
use stillpoint_services::Source;

/// A source whose streams fail once the work is cancelled, and that counts what was read.
pub(super) struct Interruptible<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) monitor: &'a dyn Monitor,
}

impl Source for Interruptible<'_> {
    fn paths(&self) -> Vec<String> {
        self.source.paths()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let content = self.source.open(path)?;
        Ok(Box::new(Watched { content, monitor: self.monitor }))
    }

    fn advance(&self, bytes: u64) {
        self.monitor.advance(bytes);
    }

    fn stopped(&self) -> bool {
        self.monitor.cancelled()
    }
}
