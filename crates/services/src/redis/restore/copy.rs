//! Keys from our server to the live one, and the comparison of both.
//!
//! Memory is bounded: a batch is as many keys as together take [`BATCH`] bytes, and one value at
//! least. A key that expires meanwhile is gone on both sides; one that is gone before its time is a
//! difference.

use std::collections::HashMap;

use redis::{FromRedisValue, Pipeline};

use super::super::connection::Session;
use super::plan::{Pair, Target};
use crate::ServiceError;

/// How much memory the values of one batch may take.
const BATCH: u64 = 8 << 20;
/// How many keys are asked for at once.
const KEYS: u32 = 500;
/// Where our server keeps a value of the live one for a comparison. No capture uses it.
const WORKBENCH: u32 = super::auxiliary::DATABASES - 1;

type Key = Vec<u8>;

/// A value and the time it lives until, in milliseconds since 1970; below zero for ever.
type Kept = (Option<Vec<u8>>, i64);

pub(super) fn differs(why: &str) -> ServiceError {
    ServiceError::new("compare what was loaded with what was captured").because(why.to_owned())
}

fn ask<T: FromRedisValue>(
    session: &mut Session,
    pipe: &Pipeline,
    doing: &str,
) -> Result<T, ServiceError> {
    pipe.query(&mut session.connection).map_err(|e| ServiceError::new(doing).because(e))
}

fn select(session: &mut Session, database: u32) -> Result<(), ServiceError> {
    session.run(&["SELECT", &database.to_string()])
}

/// Calls `with` for each batch of keys of the selected database. A key may come twice.
fn each_batch(
    session: &mut Session,
    mut with: impl FnMut(&mut Session, &[Key]) -> Result<(), ServiceError>,
) -> Result<(), ServiceError> {
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys): (String, Vec<Key>) =
            session.run(&["SCAN", &cursor, "COUNT", &KEYS.to_string()])?;
        if !keys.is_empty() {
            with(session, &keys)?;
        }
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}

/// Cuts `keys` of our server where their values together grow too large.
fn by_size(from: &mut Session, keys: &[Key]) -> Result<Vec<Vec<Key>>, ServiceError> {
    let mut pipe = redis::pipe();
    for key in keys {
        pipe.cmd("MEMORY").arg("USAGE").arg(&key[..]);
    }
    let sizes: Vec<Option<u64>> = ask(from, &pipe, "ask for the sizes of captured values")?;
    let mut batches = vec![Vec::new()];
    let mut taken = 0;
    for (key, size) in keys.iter().zip(sizes) {
        let size = size.unwrap_or(0);
        if taken + size > BATCH && taken > 0 {
            batches.push(Vec::new());
            taken = 0;
        }
        taken += size;
        if let Some(batch) = batches.last_mut() {
            batch.push(key.clone());
        }
    }
    Ok(batches)
}

fn values(session: &mut Session, keys: &[Key], doing: &str) -> Result<Vec<Kept>, ServiceError> {
    let mut pipe = redis::pipe();
    for key in keys {
        pipe.cmd("DUMP").arg(&key[..]);
        pipe.cmd("PEXPIRETIME").arg(&key[..]);
    }
    let replies: Vec<redis::Value> = ask(session, &pipe, doing)?;
    let read = |pair: &[redis::Value]| -> Result<Kept, redis::RedisError> {
        let [dump, until] = pair else { return Ok((None, 0)) };
        Ok((
            FromRedisValue::from_redis_value_ref(dump)?,
            FromRedisValue::from_redis_value_ref(until)?,
        ))
    };
    replies
        .chunks(2)
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(|e| ServiceError::new(doing).because(e))
}

/// Copies a captured database into its spare one.
pub(super) fn database(
    from: &mut Session,
    live: &mut Session,
    pair: Pair,
) -> Result<(), ServiceError> {
    select(from, pair.live)?;
    select(live, pair.spare)?;
    each_batch(from, |from, keys| {
        for keys in by_size(from, keys)? {
            let found = values(from, &keys, "read captured values")?;
            let mut pipe = redis::pipe();
            let mut any = false;
            for (key, (dump, until)) in keys.iter().zip(found) {
                let Some(dump) = dump else { continue };
                any = true;
                pipe.cmd("RESTORE").arg(&key[..]).arg(until.max(0)).arg(dump).arg("REPLACE");
                pipe.arg("ABSTTL").ignore();
            }
            if any {
                ask::<()>(live, &pipe, &format!("restore keys into database {}", pair.spare))?;
            }
        }
        Ok(())
    })
}

/// The server's clock in milliseconds.
fn now(session: &mut Session) -> Result<i64, ServiceError> {
    session.run::<(i64, i64)>(&["TIME"]).map(|(seconds, micros)| seconds * 1000 + micros / 1000)
}

/// Compares a captured database with its spare one, key by key, both ways.
pub(super) fn compare(
    from: &mut Session,
    live: &mut Session,
    pair: Pair,
    target: &Target,
) -> Result<(), ServiceError> {
    select(from, pair.live)?;
    select(live, pair.spare)?;
    each_batch(from, |from, keys| {
        for keys in by_size(from, keys)? {
            let captured = values(from, &keys, "read captured values")?;
            let loaded = values(live, &keys, "read loaded values")?;
            let mut unlike = Vec::new();
            for ((key, captured), loaded) in keys.iter().zip(captured).zip(loaded) {
                unlike.extend(same(from, live, (pair, key), captured, loaded)?);
            }
            if !unlike.is_empty() {
                same_in_other_forms(from, pair, &unlike)?;
            }
        }
        Ok(())
    })?;
    // Nothing that was not captured.
    each_batch(live, |live, keys| {
        let mut pipe = redis::pipe();
        for key in keys {
            pipe.cmd("EXISTS").arg(&key[..]);
        }
        let captured: Vec<bool> = ask(from, &pipe, "look for captured keys")?;
        for (key, captured) in keys.iter().zip(captured) {
            let is_marker = pair.spare == target.marked_database()
                && key.as_slice() == target.marker.as_bytes();
            if captured || is_marker {
                continue;
            }
            // It may have expired in one server a moment before it does in the other.
            let (value, until) = values(live, std::slice::from_ref(key), "read loaded values")?
                .pop()
                .unwrap_or((None, 0));
            if value.is_some() && (until < 0 || until > now(live)?) {
                let name = String::from_utf8_lossy(key).into_owned();
                return Err(differs(&format!("database {} got a key {name:?}", pair.live)));
            }
        }
        Ok(())
    })
}

/// A value whose dumps differ: both of them, and until when it lives.
struct Unlike<'a> {
    key: &'a Key,
    captured: Vec<u8>,
    loaded: Vec<u8>,
    until: i64,
}

fn of_key(what: &str, pair: Pair, key: &[u8]) -> ServiceError {
    let name = String::from_utf8_lossy(key);
    differs(&format!("{what} of the key {name:?} of database {} differs", pair.live))
}

/// Compares one value; gives it back where its dumps differ.
fn same<'a>(
    from: &mut Session,
    live: &mut Session,
    (pair, key): (Pair, &'a Key),
    (captured, until): Kept,
    (loaded, loaded_until): Kept,
) -> Result<Option<Unlike<'a>>, ServiceError> {
    let (captured, loaded) = match (captured, loaded) {
        (Some(captured), Some(loaded)) => (captured, loaded),
        (None, None) => return Ok(None),
        (Some(_), None) if until >= 0 && until <= now(live)? => return Ok(None),
        (None, Some(_)) if loaded_until >= 0 && loaded_until <= now(from)? => return Ok(None),
        (_, _) => return Err(of_key("the presence", pair, key)),
    };
    if until != loaded_until {
        return Err(of_key("the time to live", pair, key));
    }
    Ok((captured != loaded).then_some(Unlike { key, captured, loaded, until }))
}

/// Sets and hashes are dumped in the order of a table that differs from server to server, and
/// strings are compressed by settings. So the loaded values are read by our server: there both
/// have one dump, or one digest, which knows neither order nor form.
fn same_in_other_forms(
    from: &mut Session,
    pair: Pair,
    unlike: &[Unlike<'_>],
) -> Result<(), ServiceError> {
    let mut pipe = redis::pipe();
    for Unlike { key, .. } in unlike {
        pipe.cmd("DEBUG").arg("DIGEST-VALUE").arg(&key[..]);
    }
    pipe.cmd("SELECT").arg(WORKBENCH).ignore();
    for Unlike { key, loaded, until, .. } in unlike {
        pipe.cmd("RESTORE").arg(&key[..]).arg((*until).max(0)).arg(&loaded[..]).arg("REPLACE");
        pipe.arg("ABSTTL").ignore();
        pipe.cmd("DEBUG").arg("DIGEST-VALUE").arg(&key[..]);
        pipe.cmd("DUMP").arg(&key[..]);
        pipe.cmd("TYPE").arg(&key[..]);
        pipe.cmd("UNLINK").arg(&key[..]).ignore();
    }
    pipe.cmd("SELECT").arg(pair.live).ignore();
    let doing = "read loaded values in the auxiliary server";
    let replies: Vec<redis::Value> = ask(from, &pipe, doing)?;
    let now = now(from)?;
    let (captured, loaded) = replies.split_at(unlike.len().min(replies.len()));
    for ((one, digest), loaded) in unlike.iter().zip(captured).zip(loaded.chunks(3)) {
        let [loaded_digest, dump, kind] = loaded else {
            return Err(ServiceError::new(doing).because("it answers too little"));
        };
        let is_expired = one.until >= 0 && one.until <= now;
        let is_same_dump = *dump == redis::Value::BulkString(one.captured.clone());
        // The digest of a stream lacks its consumer groups. Its dumps differ in nothing else.
        let is_stream = *kind == redis::Value::SimpleString("stream".to_owned());
        if !is_expired && !is_same_dump && (is_stream || digest != loaded_digest) {
            return Err(of_key("the value", pair, one.key));
        }
    }
    Ok(())
}

/// The code of every library of functions, in an order of its own: the server has none.
pub(super) fn libraries(session: &mut Session) -> Result<Vec<String>, ServiceError> {
    let doing = || ServiceError::new("list the functions");
    let found: Vec<HashMap<String, redis::Value>> =
        session.run(&["FUNCTION", "LIST", "WITHCODE"])?;
    let mut code = Vec::new();
    for mut library in found {
        let text = library.remove("library_code");
        let text = text.ok_or_else(|| doing().because("a library has no code"))?;
        code.push(String::from_redis_value(text).map_err(|e| doing().because(e.to_string()))?);
    }
    code.sort();
    Ok(code)
}

/// Compares the functions that were loaded with those that our server has, by its own means.
pub(super) fn compare_functions(from: &mut Session, loaded: &[u8]) -> Result<(), ServiceError> {
    let captured = libraries(from)?;
    let mut restore = redis::cmd("FUNCTION");
    restore.arg("RESTORE").arg(loaded).arg("FLUSH");
    restore
        .query::<()>(&mut from.connection)
        .map_err(|e| ServiceError::new("read the loaded functions").because(e))?;
    if libraries(from)? == captured {
        Ok(())
    } else {
        Err(differs("the loaded functions are others"))
    }
}
