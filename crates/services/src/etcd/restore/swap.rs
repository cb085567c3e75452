//! Swap and swap back: live keys one by one, each kept in the transaction that changes it.
//!
//! A swap compares the live keys with the loaded ones, in one walk over both in their order. A key
//! that is written by anybody meanwhile fails the transaction that would overwrite it: the swap
//! then fails as a whole, and is undone.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::json;

use super::{Batch, Prefixes, delete_under};
use crate::ServiceError;
use crate::etcd::client::{CallError, Client, FAILED_PRECONDITION, NOT_FOUND, number};
use crate::etcd::entry::{Entry, delete, encode};
use crate::etcd::pages::{Found, Pages};

/// How often an undo begins anew since a lease has just ended.
const ROUNDS: u32 = 8;

pub(super) fn swap(client: &mut Client, prefixes: &Prefixes) -> Result<(), ServiceError> {
    let shown = client.login.shown();
    exchange(client, prefixes).map_err(|e| {
        ServiceError::new(format!("swap keys at {shown}")).because(e).hint(
            "if a key was written meanwhile: by whoever is not held; stop it, and restore again",
        )
    })
}

fn exchange(client: &mut Client, prefixes: &Prefixes) -> Result<(), CallError> {
    let revision = client.revision()?;
    let mut leases = Leases::read(client, revision, &prefixes.leases)?;
    let mut live = Pages::of_application(revision);
    let mut new = Pages::under(revision, &prefixes.new);
    let mut next_live = live.next(client)?;
    let mut next_new = loaded(client, &mut new, prefixes)?;
    let mut batch = Batch::default();
    loop {
        let order = match (&next_live, &next_new) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(live), Some(new)) => live.entry.key.cmp(&new.key),
        };
        let was = if order.is_le() {
            std::mem::replace(&mut next_live, live.next(client)?)
        } else {
            None
        };
        let will_be = if order.is_ge() {
            let next = loaded(client, &mut new, prefixes)?;
            std::mem::replace(&mut next_new, next)
        } else {
            None
        };
        if was.as_ref().map(|found| &found.entry) == will_be.as_ref() {
            continue;
        }
        if let Some(entry) = &will_be {
            leases.grant(client, entry.lease)?;
        }
        change(client, &mut batch, prefixes, was.as_ref(), will_be.as_ref())?;
    }
    batch.send(client)
}

/// Adds what makes one key other than it is, and keeps what it was.
fn change(
    client: &mut Client,
    batch: &mut Batch,
    prefixes: &Prefixes,
    was: Option<&Found>,
    will_be: Option<&Entry>,
) -> Result<(), CallError> {
    let key = was.map_or_else(|| will_be.map(|e| &e.key), |found| Some(&found.entry.key));
    let Some(key) = key else { return Ok(()) };
    let kept = match was {
        Some(found) => found.entry.aside(&prefixes.old),
        None => Entry { key: [prefixes.added.as_slice(), key].concat(), value: vec![], lease: 0 },
    };
    let size = will_be.map_or(key.len(), Entry::size);
    if batch.is_full(2, kept.size() + size) {
        batch.send(client)?;
    }
    batch.put(&kept);
    if batch.is_full(1, size) {
        // Too large for one transaction: first it is kept, then it is changed.
        batch.send(client)?;
    }
    let written = was.map_or(0, |found| found.written);
    batch.conditions.push(json!({
        "key": encode(key), "target": "MOD", "mod_revision": written.to_string(),
    }));
    match will_be {
        Some(entry) => batch.put(entry),
        None => batch.add(delete(key), key.len()),
    }
    Ok(())
}

fn loaded(
    client: &mut Client,
    pages: &mut Pages,
    prefixes: &Prefixes,
) -> Result<Option<Entry>, CallError> {
    let Some(found) = pages.next(client)? else { return Ok(None) };
    found.entry.back(&prefixes.new).map(Some).ok_or(CallError::Strange("a loaded key"))
}

/// Undoes a swap, whole or half done.
pub(super) fn back(client: &mut Client, prefixes: &Prefixes) -> Result<(), CallError> {
    let mut round = 1;
    loop {
        match put_back(client, prefixes) {
            // A lease has ended between our question and the transaction.
            Err(e) if e.has_code(NOT_FOUND) && round < ROUNDS => round += 1,
            outcome => return outcome,
        }
    }
}

fn put_back(client: &mut Client, prefixes: &Prefixes) -> Result<(), CallError> {
    let revision = client.revision()?;
    let mut batch = Batch::default();
    let mut alive: BTreeMap<i64, bool> = BTreeMap::from([(0, true)]);
    let mut pages = Pages::under(revision, &prefixes.old);
    let mut kept_any = false;
    while let Some(found) = pages.next(client)? {
        kept_any = true;
        let entry = found.entry.back(&prefixes.old).ok_or(CallError::Strange("a kept key"))?;
        let lives = match alive.get(&entry.lease) {
            Some(lives) => *lives,
            None => *alive.entry(entry.lease).or_insert(is_alive(client, entry.lease)?),
        };
        if batch.is_full(1, entry.size()) {
            batch.send(client)?;
        }
        if lives {
            batch.put(&entry);
        } else {
            // It would have ended with its lease.
            batch.add(delete(&entry.key), entry.key.len());
        }
    }
    let mut pages = Pages::under(revision, &prefixes.added);
    while let Some(found) = pages.next(client)? {
        kept_any = true;
        let key = &found.entry.key[prefixes.added.len()..];
        if batch.is_full(1, key.len()) {
            batch.send(client)?;
        }
        batch.add(delete(key), key.len());
    }
    batch.send(client)?;
    if kept_any {
        delete_under(client, &prefixes.old)?;
        delete_under(client, &prefixes.added)?;
    }
    Ok(())
}

fn is_alive(client: &mut Client, lease: i64) -> Result<bool, CallError> {
    let answer = client.call("/v3/lease/timetolive", &json!({ "ID": lease.to_string() }))?;
    Ok(number(&answer["TTL"]).is_some_and(|left| left > 0))
}

/// Leases that restored keys belong to: those that live still are taken, others granted anew, under
/// their old numbers.
struct Leases {
    /// Not granted yet: number and seconds.
    captured: BTreeMap<i64, i64>,
}

impl Leases {
    fn read(client: &mut Client, revision: i64, prefix: &[u8]) -> Result<Self, CallError> {
        let mut pages = Pages::under(revision, prefix);
        let mut captured = BTreeMap::new();
        while let Some(found) = pages.next(client)? {
            let parse = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok();
            let id = parse(&found.entry.key[prefix.len()..]);
            let lease = id.zip(parse(&found.entry.value));
            let (id, ttl) = lease.ok_or(CallError::Strange("a lease"))?;
            captured.insert(id, ttl);
        }
        Ok(Self { captured })
    }

    fn grant(&mut self, client: &mut Client, id: i64) -> Result<(), CallError> {
        let Some(ttl) = self.captured.remove(&id) else { return Ok(()) };
        let body = json!({ "ID": id.to_string(), "TTL": ttl.to_string() });
        match client.call("/v3/lease/grant", &body) {
            // It lives still.
            Err(e) if e.has_code(FAILED_PRECONDITION) => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}
