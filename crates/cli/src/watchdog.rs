//! `stillpoint watchdog`: a process of its own that outlives backups and restores. It begins with
//! what an earlier one, or this machine's last run, left undone: every restore that has a journal.

use crate::arguments::{Global, WatchdogArgs};
use crate::ending::await_end_of_stdin;
use crate::failure::Failure;
use crate::output::put;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use stillpoint_agent::place;
use stillpoint_capture::restore::Journal;
use stillpoint_capture::watchdog::{Watchdog, WatchdogOptions};

/// Serves until ended. Prints `ready SOCKET` once it listens.
pub(crate) fn run(global: &Global, arguments: &WatchdogArgs) -> Result<(), Failure> {
    let socket = place::watchdog_socket(&global.place())?;
    let fail = || Failure::new(format!("watch at {}", socket.display()));
    let program = std::env::current_exe().map_err(|e| fail().because(&e))?;
    let until_idle = arguments.until_idle;
    let options = WatchdogOptions { socket: socket.clone(), program, until_idle };
    let watchdog = Watchdog::bind(options).map_err(|e| fail().because(&e))?;
    put(&format!("ready {}", socket.display()))?;
    let ending = Arc::new(AtomicBool::new(false));
    if arguments.exit_with_stdin {
        let ending = Arc::clone(&ending);
        std::thread::spawn(move || {
            await_end_of_stdin();
            ending.store(true, Ordering::Relaxed);
        });
    }
    watchdog
        .recovering(left_undone(global)?)
        .ending_with(ending)
        .serve()
        .map_err(|e| fail().because(&e))
}

/// How this program is called to recover each restore that has a journal. One that is still under
/// way keeps its environment locked, so that its recovery fails until it has ended or died.
fn left_undone(global: &Global) -> Result<Vec<Vec<String>>, Failure> {
    let mut recoveries = Vec::new();
    for file in place::journals(&global.place())? {
        match Journal::read(&file) {
            Ok(Some(journal)) => {
                tracing::warn!("a restore of {} has not ended: recovering it", journal.backup);
                recoveries.push(journal.recovery);
            }
            Ok(None) => {}
            Err(error) => tracing::error!("{}", Failure::from(error)),
        }
    }
    Ok(recoveries)
}
