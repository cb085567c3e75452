//! `stillpoint watchdog`: a process of its own that outlives backups and restores.

use crate::arguments::{Global, WatchdogArgs};
use crate::failure::Failure;
use crate::output::put;
use crate::place;
use stillpoint_capture::watchdog::{Watchdog, WatchdogOptions};

/// Serves until ended. Prints `ready SOCKET` once it listens.
pub(crate) fn run(global: &Global, arguments: &WatchdogArgs) -> Result<(), Failure> {
    let socket = place::watchdog_socket(global)?;
    let fail = || Failure::new(format!("watch at {}", socket.display()));
    let program = std::env::current_exe().map_err(|e| fail().because(&e))?;
    let until_idle = arguments.until_idle;
    let options = WatchdogOptions { socket: socket.clone(), program, until_idle };
    let watchdog = Watchdog::bind(options).map_err(|e| fail().because(&e))?;
    put(&format!("ready {}", socket.display()))?;
    watchdog.serve().map_err(|e| fail().because(&e))
}
