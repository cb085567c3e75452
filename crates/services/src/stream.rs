//! Named streams between drivers and whatever stores them.

use std::io::{self, Read};

/// Where captured data goes. Streams of several threads may be written at once.
pub trait Sink: Sync {
    /// Stores everything that `content` gives, as the file `path` (relative, `/` between names,
    /// unique within one capture). Returns the number of bytes. An error of either side is fatal
    /// to the capture.
    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<u64>;

    /// True once the capture is to stop: streams fail from then on. For work that takes long and
    /// writes no stream meanwhile.
    fn stopped(&self) -> bool {
        false
    }
}

/// Where captured data comes back from.
pub trait Source: Send + Sync {
    /// Every path that the capture wrote, sorted.
    fn paths(&self) -> Vec<String>;

    /// Opens one of them. Every byte is verified against its hash before it is given out.
    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send + '_>>;

    /// Told of bytes that were loaded or verified by other means than the streams.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// True once the load is to stop: streams fail from then on. For work that takes long and
    /// reads no stream meanwhile.
    fn stopped(&self) -> bool {
        false
    }
}
