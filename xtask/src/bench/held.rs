//! Many requests that wait at once: what they cost in memory, and that all are answered.

use super::control::Control;
use super::load;
use super::processes::Server;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// The hold lasts no longer, whatever happens.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// What was seen.
pub(crate) struct Held {
    pub(crate) requests: u64,
    /// Resident memory before any request had come, in MiB.
    pub(crate) before_mib: f64,
    /// While all waited.
    pub(crate) waiting_mib: f64,
    /// The most at any time, the release included.
    pub(crate) most_mib: f64,
    /// From the release to the last answer.
    pub(crate) released_in: Duration,
}

/// Holds, lets so many requests come, releases. Fails unless all are answered well.
pub(crate) fn measure(
    gateway: &Server,
    address: SocketAddr,
    socket: &Path,
    requests: u64,
) -> Result<Held, String> {
    let (before_mib, _) = gateway.memory_mib()?;
    let mut control = Control::connect(socket)?;
    control.hold(LONGEST)?;
    let begun = Instant::now();
    let crowd = load::crowd(address, "/1k", requests)?;
    let waiting = wait_for(&mut control, requests, begun);
    let (waiting_mib, _) = gateway.memory_mib()?;
    // Also when too few came: then the crowd ends, and its end is waited for.
    let released = control.release();
    let release = Instant::now();
    let turn = load::finish(crowd);
    let released_in = release.elapsed();
    waiting?;
    released?;
    let answered = turn?.requests;
    if answered != requests {
        return Err(format!("{answered} of {requests} held requests were answered"));
    }
    let (_, most_mib) = gateway.memory_mib()?;
    Ok(Held { requests, before_mib, waiting_mib, most_mib, released_in })
}

fn wait_for(control: &mut Control, requests: u64, begun: Instant) -> Result<(), String> {
    loop {
        let held = control.held()?;
        if held >= requests {
            return Ok(());
        }
        if begun.elapsed() > LONGEST / 2 {
            return Err(format!("only {held} of {requests} requests came to wait"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
