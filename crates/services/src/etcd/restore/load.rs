//! Load and verify: captured keys under the restore's own prefix, and read again from there.

use std::io::{BufRead, BufReader};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Batch, Prefixes, delete_under};
use crate::etcd::client::Client;
use crate::etcd::entry::Entry;
use crate::etcd::pages::Pages;
use crate::etcd::prepared::{Facts, KEYS, LEASES, hex};
use crate::{ServiceError, Source};

pub(super) fn load(
    client: &mut Client,
    prefixes: &Prefixes,
    source: &dyn Source,
) -> Result<(), ServiceError> {
    let shown = client.login.shown();
    let doing = || ServiceError::new(format!("load keys into {shown}"));
    // Of a load that was cut off.
    delete_under(client, &prefixes.all).map_err(|e| doing().because(e))?;
    let mut batch = Batch::default();
    let mut add = |entry: &Entry| {
        if batch.is_full(1, entry.size()) {
            batch.send(client)?;
        }
        batch.put(entry);
        Ok(())
    };
    let each = &mut |line: &str| {
        let entry = Entry::from_line(line)?;
        add(&entry.aside(&prefixes.new)).map_err(|e: crate::etcd::client::CallError| e.into())
    };
    lines(source, KEYS, each)?;
    let each = &mut |line: &str| {
        let lease: Value = serde_json::from_str(line)?;
        let (id, ttl) = (lease["ID"].as_str(), lease["TTL"].as_str());
        let (Some(id), Some(ttl)) = (id, ttl) else { return Err("it is no lease".into()) };
        let key = [&prefixes.leases, id.as_bytes()].concat();
        add(&Entry { key, value: ttl.as_bytes().to_vec(), lease: 0 }).map_err(Into::into)
    };
    lines(source, LEASES, each)?;
    batch.send(client).map_err(|e| doing().because(e))
}

type Refused = Box<dyn std::error::Error + Send + Sync>;

fn lines(
    source: &dyn Source,
    path: &str,
    each: &mut dyn FnMut(&str) -> Result<(), Refused>,
) -> Result<(), ServiceError> {
    let doing = || ServiceError::new(format!("load {path}"));
    let content = source.open(path).map_err(|e| doing().because(e))?;
    for line in BufReader::with_capacity(1 << 16, content).lines() {
        let line = line.map_err(|e| doing().because(e))?;
        each(&line).map_err(|e| {
            doing().because(e).hint("the cause names what it was; nothing live was changed")
        })?;
    }
    Ok(())
}

pub(super) fn verify(
    client: &mut Client,
    prefixes: &Prefixes,
    source: &dyn Source,
) -> Result<(), ServiceError> {
    let facts = Facts::read(source)?;
    let shown = client.login.shown();
    let doing = || ServiceError::new(format!("verify the keys loaded into {shown}"));
    let revision = client.revision().map_err(|e| doing().because(e))?;
    let mut pages = Pages::under(revision, &prefixes.new);
    let mut hash = Sha256::new();
    let mut keys = 0;
    while let Some(found) = pages.next(client).map_err(|e| doing().because(e))? {
        if source.stopped() {
            return Err(doing().because("cancelled"));
        }
        let entry = found.entry.back(&prefixes.new);
        let entry = entry.ok_or_else(|| doing().because("a key there is not this restore's"))?;
        let line = entry.to_line();
        hash.update(&line);
        keys += 1;
        source.advance(line.len() as u64);
    }
    if keys != facts.keys {
        return Err(doing().because(format!("there are {keys}, captured were {}", facts.keys)));
    }
    if hex(&hash.finalize()) != facts.sha256 {
        return Err(doing().because("they differ from those that were captured"));
    }
    let mut pages = Pages::under(revision, &prefixes.leases);
    let mut leases = 0;
    while pages.next(client).map_err(|e| doing().because(e))?.is_some() {
        leases += 1;
    }
    if leases != facts.leases {
        return Err(
            doing().because(format!("there are {leases} leases, captured were {}", facts.leases))
        );
    }
    Ok(())
}
