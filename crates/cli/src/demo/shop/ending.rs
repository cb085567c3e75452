//! When a process of the demo ends: on SIGTERM or SIGINT, or when the parent that holds the other
//! end of its standard input is gone, however that came about. Guards against processes that
//! outlive a demo that was killed.

use std::io::{self, Read};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Resolves when this process has been told to end. `stdin` says whether the end of standard input
/// counts. Must be called within a runtime.
pub(crate) fn told_to_end(stdin: bool) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, closed) = oneshot::channel::<()>();
    // Without the end of input to wait for, the sender is kept: the channel then never resolves.
    let kept = if stdin {
        // A thread of its own: a blocked read cannot be cancelled, and must not keep the process.
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            let mut buffer = [0; 256];
            let mut input = io::stdin().lock();
            loop {
                match input.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            drop(sender);
        })?;
        None
    } else {
        Some(sender)
    };
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = closed => {}
        }
        drop(kept);
    })
}
