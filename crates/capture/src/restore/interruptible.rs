//! A part's data, until somebody asks to stop.

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
        Ok(Box::new(Content { content, monitor: self.monitor }))
    }
}

struct Content<'a> {
    content: Box<dyn Read + Send + 'a>,
    monitor: &'a dyn Monitor,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.monitor.cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.content.read(buffer)?;
        self.monitor.advance(count as u64);
        Ok(count)
    }
}
