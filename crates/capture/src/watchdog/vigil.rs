//! When a holder counts as silent: the watchdog's decision, without clock or I/O, so that a model
//! checker can drive it. Times come in as the time since the vigil began.
//!
//! Invariant: what is registered is acted on once a silence, and again when a holder that was heard
//! in between falls silent again: it may have gone on where it had been stopped. No beat puts off the
//! end that was registered.

use std::time::Duration;

/// The watch over one holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Vigil {
    silence: Duration,
    last_word: Duration,
    /// When even one who beats counts as silent.
    deadline: Option<Duration>,
    acted: bool,
}

impl Vigil {
    /// Over a holder that beats more often than every `silence`.
    pub(crate) fn new(silence: Duration) -> Self {
        Self { silence, last_word: Duration::ZERO, deadline: None, acted: false }
    }

    /// Something new was registered, to be acted on `within` that time at the latest.
    pub(crate) fn register(&mut self, now: Duration, within: Option<Duration>) {
        self.last_word = now;
        self.deadline = within.map(|within| now + within);
        self.acted = false;
    }

    /// The holder lives.
    pub(crate) fn beat(&mut self, now: Duration) {
        self.last_word = now;
        self.acted = false;
    }

    /// When [`Vigil::look`] is due; none: not before the holder is heard again.
    pub(crate) fn due(&self) -> Option<Duration> {
        let silent = self.last_word + self.silence;
        (!self.acted).then(|| self.deadline.map_or(silent, |deadline| deadline.min(silent)))
    }

    /// True, once a silence, if the holder counts as silent now.
    pub(crate) fn look(&mut self, now: Duration) -> bool {
        let silent = self.due().is_some_and(|due| now >= due);
        self.acted |= silent;
        silent
    }
}
