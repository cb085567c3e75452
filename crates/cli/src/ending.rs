//! How a process that serves is told to end: by a signal, or by the end of its standard input,
//! which ends with the process at its other end, however that one does.

use std::io::{self, Read};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Ends with the first SIGTERM or SIGINT, or with the standard input if that is watched. Signals
/// count from the call on, not from the first poll.
pub(crate) fn ending(exit_with_stdin: bool) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stdin_ended = watch_stdin(exit_with_stdin)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stdin_ended => {}
        }
    })
}

/// Ends when standard input does, or never. A thread of its own reads it: nothing else can wait
/// for the end of any kind of standard input.
fn watch_stdin(watch: bool) -> io::Result<impl Future<Output = ()>> {
    let (ended, end) = oneshot::channel();
    if watch {
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            await_end_of_stdin();
            // When nobody waits any more, this process is ending already.
            let _ = ended.send(());
        })?;
    }
    Ok(async move {
        if !watch || end.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// Returns once standard input has ended.
pub(crate) fn await_end_of_stdin() {
    let mut stdin = io::stdin().lock();
    let mut bytes = [0_u8; 1024];
    loop {
        match stdin.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(read) if read > 0 => {}
            // An input that cannot be read any more has ended as well.
            Ok(_) | Err(_) => return,
        }
    }
}
