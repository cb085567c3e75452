//! Keys in their order, a page at a time, all as of one revision.

use std::collections::VecDeque;

use serde_json::json;

use super::client::{CallError, Client, number};
use super::entry::{AFTER_OURS, Entry, OURS, after, encode};

/// A page should be about so large.
const PAGE: usize = 2 << 20;
/// The first page asks for so many keys; how many the next one does follows from their size.
const FIRST: usize = 64;
const MOST: usize = 5_000;

/// A key as it was found.
pub(super) struct Found {
    pub(super) entry: Entry,
    /// The revision that wrote it.
    pub(super) written: i64,
}

/// Keys of one or several ranges.
pub(super) struct Pages {
    revision: i64,
    /// What is still to be read: from, and up to but without.
    ranges: VecDeque<(Vec<u8>, Vec<u8>)>,
    page: VecDeque<Found>,
    limit: usize,
}

impl Pages {
    fn new(revision: i64, ranges: impl Into<VecDeque<(Vec<u8>, Vec<u8>)>>) -> Self {
        Self { revision, ranges: ranges.into(), page: VecDeque::new(), limit: FIRST }
    }

    /// The application's: all but ours.
    pub(super) fn of_application(revision: i64) -> Self {
        let all = b"\0".to_vec();
        Self::new(revision, [(all.clone(), OURS.to_vec()), (AFTER_OURS.to_vec(), all)])
    }

    /// Those that begin with `prefix`.
    pub(super) fn under(revision: i64, prefix: &[u8]) -> Self {
        Self::new(revision, [(prefix.to_vec(), after(prefix))])
    }

    pub(super) fn next(&mut self, client: &mut Client) -> Result<Option<Found>, CallError> {
        while self.page.is_empty() {
            let Some((from, to)) = self.ranges.pop_front() else { return Ok(None) };
            let answer = client.call(
                "/v3/kv/range",
                &json!({
                    "key": encode(&from), "range_end": encode(&to),
                    "revision": self.revision.to_string(), "limit": self.limit.to_string(),
                }),
            )?;
            let kvs = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut size = 0;
            for kv in kvs {
                let entry = Entry::from_answer(kv).ok_or(CallError::Strange("a key"))?;
                let written =
                    number(&kv["mod_revision"]).ok_or(CallError::Strange("a revision"))?;
                size += entry.size();
                self.page.push_back(Found { entry, written });
            }
            if answer["more"].as_bool() == Some(true) {
                let last = self.page.back().ok_or(CallError::Strange("keys"))?;
                // The very next key that there could be.
                let next = [last.entry.key.as_slice(), b"\0"].concat();
                self.ranges.push_front((next, to));
                let each = (size / kvs.len().max(1)).max(1);
                self.limit = (PAGE / each).clamp(1, MOST);
            }
        }
        Ok(self.page.pop_front())
    }
}
