//! Room for as many connections as may wait. Each takes a descriptor, and another while it is with
//! the application; the usual soft limit of 1,024 would end a hold's patience at a tenth of what
//! `max_held` promises. The hard limit is the administrator's word and stays.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but requests.
const OTHERS: u64 = 1000;

/// Raises the process's soft limit to what `max_held` needs, as far as the hard limit allows.
pub(crate) fn make_room(max_held: usize) {
    let wanted = (max_held as u64).saturating_mul(2).saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    // No limit at all is room enough.
    let (Some(soft), hard) = (limit.current, limit.maximum.unwrap_or(u64::MAX)) else { return };
    let current = wanted.min(hard);
    if soft < current {
        let raised = Rlimit { current: Some(current), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, soft, wanted, "could not raise the limit of open files");
            return;
        }
    }
    if current < wanted {
        tracing::warn!(
            hard,
            wanted,
            "the limit of open files is too low for max_held: further clients will wait unseen"
        );
    }
}
