//! Room for as many connections as may wait, and no more connections than there is room for.
//!
//! Each client's connection takes a descriptor, and another while its request is with the
//! application; the usual soft limit of 1,024 would end a hold's patience at a tenth of what
//! `max_held` promises. So it is raised as far as the hard limit, the administrator's word, allows.
//! What then does not fit is not accepted: those clients wait in the system's queue. A gateway that
//! accepted them would have no descriptor left to pass their requests on with, nor one for a
//! coordinator, and would answer 502 where it only has to wait.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;

/// Descriptors for everything but requests, where there are as many.
const OTHERS: u64 = 1000;

/// Clients beyond `max_held` that are to be told so.
const REFUSED: u64 = 1000;

/// Raises the process's soft limit to what `max_held` needs, as far as the hard limit allows. How
/// many clients there is room for.
pub(crate) fn make_room(max_held: usize) -> Semaphore {
    let clients = (max_held as u64).saturating_add(REFUSED);
    let wanted = clients.saturating_mul(2).saturating_add(OTHERS);
    let limit = raise_to(wanted);
    if limit < wanted {
        tracing::warn!(
            limit,
            wanted,
            "the limit of open files is too low for max_held: further clients will wait unseen"
        );
    }
    let room = usize::try_from(room_in(limit)).unwrap_or(usize::MAX);
    Semaphore::new(room.min(Semaphore::MAX_PERMITS))
}

/// The soft limit, raised if it can be.
fn raise_to(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let Some(soft) = limit.current else { return u64::MAX };
    let raised = wanted.min(limit.maximum.unwrap_or(u64::MAX));
    if raised <= soft {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
        Ok(()) => raised,
        Err(error) => {
            tracing::warn!(%error, soft, wanted, "could not raise the limit of open files");
            soft
        }
    }
}

/// How many clients fit into a limit: two descriptors each, but for those that others need.
fn room_in(limit: u64) -> u64 {
    let others = OTHERS.min(limit / 3);
    ((limit - others) / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_room_for_themselves_and_others() {
        for limit in [3, 10, 64, 1024, 20_000, u64::MAX] {
            let room = room_in(limit);
            assert!(room >= 1 && room <= limit / 2, "{limit}: {room}");
        }
        // What is asked for is enough for all that may wait, and for some to be told to come again.
        assert_eq!(room_in(2 * (10_000 + REFUSED) + OTHERS), 10_000 + REFUSED);
    }
}
