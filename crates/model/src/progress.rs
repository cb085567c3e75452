//! How long work reports what it does. Libraries never print: a terminal, a log or an activity
//! record implements [`Monitor`], and every engine takes one as its last argument.

/// Receives the progress of one piece of work. All methods may be called from any thread.
pub trait Monitor: Send + Sync {
    /// A phase begins (`"prepare"`, `"capture db"`); `total` is its size in bytes where known.
    fn begin(&self, phase: &str, total: Option<u64>) {
        let _ = (phase, total);
    }

    /// `bytes` more have been done in the current phase.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Something a person should know, that is not an error.
    fn note(&self, text: &str) {
        let _ = text;
    }

    /// Something a person must be told, although the work goes on.
    fn warn(&self, text: &str) {
        self.note(text);
    }

    /// True once the work should stop at the next safe place.
    fn cancelled(&self) -> bool {
        false
    }
}

/// A monitor that reports nowhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {}
