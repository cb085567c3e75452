//! Two connections that have left HTTP, joined byte by byte until both sides have closed.
//!
//! Such a connection may stay open for days, so that it is not waited for in a drain. What its
//! client sends is held instead, from the beginning of a hold to its end: the bytes stay where they
//! are, in one small buffer here and in the client's socket. That the client has closed is held like
//! its bytes, since an application may write on account of that as well. What the application sends
//! is never held.
//!
//! What was passed on just before the hold the application may still be at work on: there are no
//! answers to wait for. That is left to the services' own counters, which have to stand still
//! before anything is marked.

use crate::descriptors::Place;
use crate::gate::{Gate, UpgradeCount};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// What one connection keeps of a client's bytes during a hold, beside the kernel.
const BUFFER: usize = 8 * 1024;

/// Joins a client's and the application's connection once both have switched. The connection
/// counts as upgraded, and not as in flight, for as long as `count` lives, and keeps its place.
pub(crate) fn join(client: OnUpgrade, upstream: OnUpgrade, count: UpgradeCount, place: Place) {
    tokio::spawn(async move {
        let _place = place;
        let (client, upstream) = match tokio::try_join!(client, upstream) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "an upgrade came to nothing");
                return;
            }
        };
        let (from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
        let (mut from_upstream, to_upstream) = tokio::io::split(TokioIo::new(upstream));
        let back = async {
            tokio::io::copy(&mut from_upstream, &mut to_client).await?;
            to_client.shutdown().await
        };
        if let Err(error) =
            tokio::try_join!(pass_unless_held(count.gate(), from_client, to_upstream), back)
        {
            tracing::debug!(%error, "an upgraded connection broke");
        }
    });
}

async fn pass_unless_held(
    gate: &Gate,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut changes = gate.changes();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            until_open(gate, &mut changes).await;
            return to.shutdown().await;
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            until_open(gate, &mut changes).await;
            // An application that does not read may keep a write waiting into the next hold.
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                written = to.write(rest) => match written? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    written => rest = &rest[written..],
                },
            }
        }
        to.flush().await?;
    }
}

/// Waits until there is no hold, and until none has left requests refused.
async fn until_open(gate: &Gate, changes: &mut watch::Receiver<()>) {
    loop {
        // Before the look, so that no change after it is missed.
        changes.mark_unchanged();
        if gate.look(|state, _| state.is_open()) {
            return;
        }
        // An error would mean that the gate is gone, and this borrows it.
        let _ = changes.changed().await;
    }
}
