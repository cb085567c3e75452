//! What more than one test of this crate needs.

use std::path::{Path, PathBuf};
use std::time::Duration;
use stillpoint_capture::watchdog::{Guard, Watchdog, WatchdogOptions};

/// A connection to a watchdog that runs in this process until nobody needs it any more.
pub(crate) fn guard(directory: &Path) -> Guard {
    let socket = directory.join("w.sock");
    let watchdog = Watchdog::bind(WatchdogOptions {
        socket: socket.clone(),
        program: PathBuf::from("/bin/true"),
        until_idle: true,
    })
    .unwrap();
    std::thread::spawn(|| watchdog.serve());
    Guard::connect(&socket, Duration::from_secs(60)).unwrap()
}
