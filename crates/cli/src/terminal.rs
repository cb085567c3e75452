//! Progress on a terminal: one line that is redrawn; elsewhere one plain line a phase. All of it
//! on stderr: stdout is for data.

use crate::output::tell;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::time::Duration;
use stillpoint_model::progress::Monitor;

/// Shows progress to a person.
pub(crate) struct Terminal {
    bar: ProgressBar,
    drawn: bool,
    verbose: bool,
    quiet: bool,
}

impl Terminal {
    /// For standard error. `verbose` shows notes as well.
    pub(crate) fn new(quiet: bool, verbose: bool) -> Self {
        let bar = if quiet {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        } else {
            ProgressBar::new_spinner()
        };
        // Bytes are shown only in a phase that counts them.
        let style = ProgressStyle::with_template("{spinner} {msg}{counted} {elapsed}");
        if let Ok(style) = style {
            bar.set_style(style.with_key(
                "counted",
                |state: &ProgressState, out: &mut dyn Write| {
                    if state.pos() > 0 {
                        #[allow(clippy::cast_sign_loss, reason = "bytes do not become fewer")]
                        let rate = HumanBytes(state.per_sec() as u64);
                        // What cannot be shown on a terminal is not shown.
                        write!(out, " {} ({rate}/s)", HumanBytes(state.pos())).unwrap_or(());
                    }
                },
            ));
        }
        let drawn = !quiet && !bar.is_hidden();
        if drawn {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        Self { bar, drawn, verbose, quiet }
    }

    /// Says something, without tearing the line that is drawn.
    pub(crate) fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        if self.drawn {
            self.bar.suspend(|| tell(text));
        } else {
            tell(text);
        }
    }

    /// Shows how things are, where a line can be redrawn.
    pub(crate) fn status(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// Whether a line is drawn, and drawn again.
    pub(crate) fn draws(&self) -> bool {
        self.drawn
    }

    /// Leaves the terminal clean.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Monitor for Terminal {
    fn begin(&self, phase: &str, total: Option<u64>) {
        if self.drawn {
            self.bar.reset();
            self.bar.set_message(phase.to_owned());
        } else if let Some(total) = total {
            self.say(&format!("{phase} ({})", HumanBytes(total)));
        } else {
            self.say(phase);
        }
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn note(&self, text: &str) {
        if self.verbose {
            self.say(text);
        }
    }

    fn warn(&self, text: &str) {
        self.say(&format!("warning: {text}"));
    }
}
