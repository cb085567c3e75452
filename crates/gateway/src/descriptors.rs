//! Room for as many connections as may wait. Each takes a descriptor, and another while it is with
//! the application; the usual soft limit of 1,024 would end a hold's patience at a tenth of what
//! `max_held` promises. The hard limit is the administrator's word and stays.
//!
//! No more connections are accepted than there are descriptors for both of their sides. Otherwise
//! the waiting clients of a hold would take the last ones, and at its release nothing would be left
//! to reach the application with. Further clients wait in the kernel's queue until one has gone.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Descriptors for everything but requests, where there are many.
const OTHERS: u64 = 1000;

/// Clients beyond `max_held` who are to be told so, rather than to wait unseen.
const REFUSED: u64 = 1000;

/// A connection's right to its descriptors, for as long as it is kept.
pub(crate) type Place = Arc<OwnedSemaphorePermit>;

/// As many places as there are descriptors for.
#[derive(Clone)]
pub(crate) struct Room(Arc<Semaphore>);

impl Room {
    /// Raises the process's soft limit to what `max_held` needs, as far as the hard limit allows.
    pub(crate) fn make(max_held: usize) -> Self {
        let clients = (max_held as u64).saturating_add(REFUSED);
        let limit = raise(clients.saturating_mul(2).saturating_add(OTHERS));
        let places = places(limit).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(places)))
    }

    /// The next connection, when there is a place for it.
    pub(crate) async fn accept(&self, listener: &TcpListener) -> (TcpStream, SocketAddr, Place) {
        if self.0.available_permits() == 0 {
            tracing::warn!("there are descriptors for no more connections; others have to wait");
        }
        let place = self.0.clone().acquire_owned().await.expect("it is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, client)) => return (stream, client, Arc::new(place)),
                Err(error) => {
                    // Out of descriptors all the same, or a client that left early. Connections
                    // that are open go on; spinning would only take their time.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// How many connections a limit of descriptors is good for, both sides of each.
fn places(limit: u64) -> usize {
    let others = OTHERS.min(limit / 4);
    usize::try_from((limit - others) / 2).unwrap_or(usize::MAX).max(1)
}

/// Raises the soft limit, and says what it is then.
fn raise(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // No limit at all is room enough.
    let (Some(soft), hard) = (limit.current, limit.maximum.unwrap_or(u64::MAX)) else {
        return u64::MAX;
    };
    let current = wanted.min(hard);
    if soft < current {
        let raised = Rlimit { current: Some(current), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, soft, wanted, "could not raise the limit of open files");
            return soft;
        }
    }
    if current < wanted {
        tracing::warn!(
            hard,
            wanted,
            "the limit of open files is too low for max_held: further clients will wait unseen"
        );
    }
    soft.max(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_two_descriptors_and_the_rest_is_for_all_else() {
        assert_eq!(places(2 * (10_000 + REFUSED) + OTHERS), 11_000);
        assert_eq!(places(1_024), 384);
        assert_eq!(places(64), 24);
        assert_eq!(places(1), 1);
        assert!(places(u64::MAX) > 1 << 40);
    }
}
