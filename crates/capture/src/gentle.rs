//! Work that users must not feel: it yields the processors to whoever else wants them, and with
//! the kernel's default also the disk, whose priority follows.
//!
//! A priority that was lowered needs a privilege to be raised again, so such work gets a thread of
//! its own: threads and processes that it starts are low too, and the caller's is as before. What
//! is done between hold and release is never done here: there requests wait for it.

use crate::CaptureError;
use std::panic::resume_unwind;

/// By how much the priority is lowered, as `nice` counts: a thread then gets about a tenth of a
/// processor that another one wants as well, and all of one that is idle.
const NICE: i32 = 10;

/// Does `work` at a low priority, and waits for it. What it panics with goes on in the caller.
///
/// # Errors
/// The system has no thread left.
pub fn gently<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, CaptureError> {
    std::thread::scope(|scope| {
        let name = std::thread::current().name().unwrap_or("work").to_owned();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, || {
                if let Err(error) = rustix::process::nice(NICE) {
                    tracing::debug!("the priority could not be lowered: {error}");
                }
                work()
            })
            .map_err(|e| CaptureError::new("start a thread").because(e))?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[test]
    fn only_the_work_and_what_it_starts_is_of_low_priority() {
        let before = niceness();
        let lowered = (before + NICE).min(19);
        let child = || {
            let shown = std::process::Command::new("nice").output().unwrap().stdout;
            String::from_utf8(shown).unwrap().trim().parse::<i32>().unwrap()
        };
        let inside = gently(|| (niceness(), std::thread::spawn(niceness).join().unwrap(), child()));
        assert_eq!(inside.unwrap(), (lowered, lowered, lowered));
        assert_eq!((niceness(), child()), (before, before));
    }

    #[test]
    #[should_panic(expected = "in the work")]
    fn a_panic_reaches_the_caller() {
        let _ = gently(|| panic!("in the work"));
    }
}
