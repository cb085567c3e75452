//! What works and what is missing. Nothing is changed: the right to write is asked for by a
//! transaction whose condition no key can meet; the server checks rights before conditions.

use serde_json::json;

use super::client::{CallError, Client, Login, PERMISSION_DENIED};
use super::entry::{OURS, encode};
use super::prepared::READ_ALL;
use crate::{Finding, NeededFor, ServiceError, chain};

/// The statement that lets a role write everything.
pub(super) const WRITE_ALL: &str =
    "etcdctl role grant-permission ROLE --prefix=true readwrite \"\", for a role of the user's";

pub(super) fn examine(login: &Login) -> Vec<Finding> {
    let what = format!("a connection to {}, etcd 3.4 or newer", login.shown());
    let mut client = match Client::connect(login) {
        Ok(client) => client,
        Err(error) => return vec![finding(what, NeededFor::Backup, Err(error))],
    };
    let mut findings = vec![finding(what, NeededFor::Backup, Ok(()))];
    let denied = |doing: &str, hint: &'static str| {
        let doing = format!("{} may not {doing}", login.whose());
        move |e: CallError| {
            if e.has_code(PERMISSION_DENIED) {
                return ServiceError::new(doing).hint(hint);
            }
            ServiceError::new("it cannot be looked into").because(e)
        }
    };
    let reads = try_reading(&mut client).map_err(denied("read all keys", READ_ALL));
    findings.push(finding("reading all keys".to_owned(), NeededFor::Backup, reads));
    let writes = try_writing(&mut client).map_err(denied("write all keys", WRITE_ALL));
    findings.push(finding("writing all keys".to_owned(), NeededFor::Restore, writes));
    let alarms = refuse_alarms(&mut client);
    findings.push(finding("a server without alarms".to_owned(), NeededFor::Restore, alarms));
    findings
}

fn finding(what: String, needed_for: NeededFor, found: Result<(), ServiceError>) -> Finding {
    let (problem, hint) = match found {
        Ok(()) => (None, None),
        Err(error) => (Some(chain(&error)), error.advice().map(str::to_owned)),
    };
    Finding { what, needed_for, problem, hint }
}

/// Fails where this user may not read every key.
pub(super) fn try_reading(client: &mut Client) -> Result<(), CallError> {
    let all = json!({ "key": "AA==", "range_end": "AA==", "count_only": true });
    client.call("/v3/kv/range", &all).map(drop)
}

/// Fails where this user may not write every key.
pub(super) fn try_writing(client: &mut Client) -> Result<(), CallError> {
    let never = json!({ "key": encode(OURS), "target": "VERSION", "version": "-1" });
    let all = json!({ "request_delete_range": { "key": "AA==", "range_end": "AA==" } });
    let body = json!({ "compare": [never], "success": [all] });
    client.call("/v3/kv/txn", &body).map(drop)
}

/// A server with an alarm takes no writes, or is damaged.
pub(super) fn refuse_alarms(client: &mut Client) -> Result<(), ServiceError> {
    let status = client.call("/v3/maintenance/status", &json!({})).map_err(|e| {
        ServiceError::new(format!("read the status of {}", client.login.shown())).because(e)
    })?;
    let errors = status["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named: Vec<&str> = errors.iter().filter_map(|error| error.as_str()).collect();
    if named.is_empty() {
        return Ok(());
    }
    Err(ServiceError::new(format!("{} has alarms", client.login.shown()))
        .because(named.join(", "))
        .hint("compact, defragment (`etcdctl defrag`), then `etcdctl alarm disarm`"))
}
