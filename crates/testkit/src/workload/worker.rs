//! A worker that makes transfers by itself, asked by nobody, and can be asked to pause between two.
//!
//! In its directory: `pid` names its process. A file `pause` asks it to finish its job; once it has
//! it says so by a file `quiet`, and works on when `pause` is gone. [`quiesce`] and [`resume`] are
//! the shell commands for that, as a configuration would have them.

use super::clients::Dice;
use super::{Addresses, BoxError, books};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often it looks while it pauses.
const LOOK: Duration = Duration::from_millis(1);

/// Asks the worker in `directory` to finish its job, and waits until it has.
pub(super) fn quiesce(directory: &Path) -> String {
    let at = directory.display();
    format!(
        "rm -f '{at}/quiet' && touch '{at}/pause' && until [ -e '{at}/quiet' ]; do sleep 0.005; done"
    )
}

/// Lets it go on.
pub(super) fn resume(directory: &Path) -> String {
    format!("rm -f '{}/pause'", directory.display())
}

/// Works until `ended`; says how many transfers it made.
#[allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]
pub(super) fn run(
    at: &Addresses,
    directory: &Path,
    ended: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<u64, BoxError> {
    let (pause, quiet) = (directory.join("pause"), directory.join("quiet"));
    let mut desk = books::connect(at)?;
    let mut dice = Dice(4711);
    std::fs::write(directory.join("pid"), std::process::id().to_string())?;
    ready();
    let mut jobs = 0;
    while !ended.load(Ordering::Relaxed) {
        if pause.exists() {
            // Again each time: whoever asks anew has removed it.
            std::fs::write(&quiet, "")?;
            std::thread::sleep(LOOK);
            continue;
        }
        if quiet.exists() {
            std::fs::remove_file(&quiet)?;
        }
        let transfer = dice.transfer();
        let words: Vec<&str> = transfer.split('/').collect();
        let [from, to, account, amount] = words.as_slice() else { unreachable!("by its format") };
        let (from, to): (usize, usize) = (from.parse()?, to.parse()?);
        let (account, amount): (u32, i64) = (account.parse()?, amount.parse()?);
        desk[from].add(account, -amount)?;
        desk[to].add(account, amount)?;
        jobs += 1;
    }
    Ok(jobs)
}
