//! Restore: load under a prefix of its own, compare, exchange what differs, keep what was.
//!
//! etcd cannot rename, so a swap writes each key that differs. It does so in transactions of which
//! each also keeps what it overwrites, so that at any moment the server itself knows how to go
//! back: under `\0stillpoint/TOKEN/` lie `new/KEY` (what is restored), `leases/ID`, and from the
//! swap on `old/KEY` (what a key was) and `added/KEY` (that it was not there). Nothing depends on
//! old revisions, which a compaction would take.
//!
//! Keys that are the same on both sides are left alone: nobody who watches them notices anything.

mod load;
mod swap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{CallError, Client, Login, PERMISSION_DENIED};
use super::entry::{Entry, OURS, after, encode};
use super::examine::{WRITE_ALL, refuse_alarms, try_writing};
use super::prepared::Facts;
use crate::{Aside, Restore, ServiceError, Source};

/// Operations in one transaction; servers take 128 by default.
const OPERATIONS: usize = 100;
/// Keys and values in one transaction; servers take requests of 1.5 MiB by default.
const BYTES: usize = 768 << 10;

pub(super) struct EtcdRestore {
    login: Login,
}

/// What is written into the journal.
#[derive(Serialize, Deserialize)]
struct Plan {
    token: String,
}

/// The prefixes of one restore.
struct Prefixes {
    all: Vec<u8>,
    new: Vec<u8>,
    old: Vec<u8>,
    added: Vec<u8>,
    leases: Vec<u8>,
}

impl Prefixes {
    fn of(aside: &Aside) -> Result<Self, ServiceError> {
        let plan: Plan = serde_json::from_value(aside.0.clone()).map_err(|e| {
            ServiceError::new("read what the journal says of the restore").because(e)
        })?;
        let all = [OURS, plan.token.as_bytes(), b"/"].concat();
        let under = |word: &[u8]| [&all, word].concat();
        Ok(Self {
            new: under(b"new/"),
            old: under(b"old/"),
            added: under(b"added/"),
            leases: under(b"leases/"),
            all,
        })
    }
}

impl EtcdRestore {
    pub(super) fn new(login: Login) -> Self {
        Self { login }
    }

    fn connect(&self, aside: &Aside) -> Result<(Client, Prefixes), ServiceError> {
        Ok((Client::connect(&self.login)?, Prefixes::of(aside)?))
    }

    fn failed(&self, doing: &str) -> impl Fn(CallError) -> ServiceError {
        let doing = format!("{doing} {}", self.login.shown());
        move |error| ServiceError::new(doing.as_str()).because(error)
    }

    /// What is loaded takes room, and so does what is kept. A server that runs out of it takes no
    /// more writes from anybody.
    fn refuse_too_small(&self, client: &Client, facts: &Facts) -> Result<(), ServiceError> {
        let metrics = client.get("/metrics").map_err(self.failed("read the quota of"))?;
        let metric = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.trim().parse::<f64>().ok())
        };
        let quota = metric("etcd_server_quota_backend_bytes");
        let size = metric("etcd_mvcc_db_total_size_in_bytes");
        let used = metric("etcd_mvcc_db_total_size_in_use_in_bytes");
        let (Some(quota), Some(size), Some(used)) = (quota, size, used) else {
            return Err(ServiceError::new(format!("read the quota of {}", self.login.shown()))
                .because("its metrics do not say it"));
        };
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let needed = facts.bytes as f64 * 2.0 + used;
        if size + needed <= quota {
            return Ok(());
        }
        let mib = |bytes: f64| format!("{:.0} MiB", bytes / 1_048_576.0);
        Err(ServiceError::new(format!("{} has too little room", self.login.shown()))
            .because(format!(
                "its file takes {} of a quota of {}, and the restore up to {} more",
                mib(size),
                mib(quota),
                mib(needed)
            ))
            .hint(
                "compact and defragment it (`etcdctl compact`, `etcdctl defrag`), or raise \
                 --quota-backend-bytes",
            ))
    }
}

impl Restore for EtcdRestore {
    fn plan(&mut self, token: &str, source: &dyn Source) -> Result<Aside, ServiceError> {
        let facts = Facts::read(source)?;
        let mut client = Client::connect(&self.login)?;
        try_writing(&mut client).map_err(|e| {
            let denied = e.has_code(PERMISSION_DENIED);
            let error = ServiceError::new(format!(
                "{} may not write all keys of {}",
                self.login.whose(),
                self.login.shown()
            ))
            .because(e);
            if denied { error.hint(WRITE_ALL) } else { error }
        })?;
        refuse_alarms(&mut client)?;
        self.refuse_too_small(&client, &facts)?;
        serde_json::to_value(Plan { token: token.to_owned() })
            .map(Aside)
            .map_err(|e| ServiceError::new("write the restore's plan").because(e))
    }

    fn load(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let (mut client, prefixes) = self.connect(aside)?;
        load::load(&mut client, &prefixes, source)
    }

    fn verify(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let (mut client, prefixes) = self.connect(aside)?;
        load::verify(&mut client, &prefixes, source)
    }

    fn swap(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let (mut client, prefixes) = self.connect(aside)?;
        // One that was cut off: what it kept must not be taken for what was live.
        swap::back(&mut client, &prefixes).map_err(self.failed("undo an earlier swap at"))?;
        swap::swap(&mut client, &prefixes)
    }

    fn swap_back(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let (mut client, prefixes) = self.connect(aside)?;
        swap::back(&mut client, &prefixes).map_err(self.failed("swap back at"))
    }

    fn finish(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let (mut client, prefixes) = self.connect(aside)?;
        delete_under(&mut client, &prefixes.all).map_err(self.failed("remove what was kept at"))
    }

    fn discard(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let (mut client, prefixes) = self.connect(aside)?;
        // Undone already, or nothing to undo; else it would be past undoing.
        swap::back(&mut client, &prefixes).map_err(self.failed("swap back at"))?;
        delete_under(&mut client, &prefixes.all).map_err(self.failed("remove what was loaded at"))
    }
}

fn delete_under(client: &mut Client, prefix: &[u8]) -> Result<(), CallError> {
    let range = json!({ "key": encode(prefix), "range_end": encode(&after(prefix)) });
    client.call("/v3/kv/deleterange", &range).map(drop)
}

/// Operations that are sent together, in transactions that the server takes.
#[derive(Default)]
struct Batch {
    conditions: Vec<Value>,
    operations: Vec<Value>,
    bytes: usize,
}

impl Batch {
    /// True where `operations` more of this size would be too much.
    fn is_full(&self, operations: usize, bytes: usize) -> bool {
        self.operations.len() + operations > OPERATIONS || self.bytes + bytes > BYTES
    }

    fn add(&mut self, operation: Value, bytes: usize) {
        self.operations.push(operation);
        self.bytes += bytes;
    }

    fn put(&mut self, entry: &Entry) {
        self.add(entry.put(), entry.size());
    }

    /// Sends all and begins anew.
    fn send(&mut self, client: &mut Client) -> Result<(), CallError> {
        let Self { conditions, operations, .. } = std::mem::take(self);
        if operations.is_empty() {
            return Ok(());
        }
        let body = json!({ "compare": conditions, "success": operations });
        let answer = client.call("/v3/kv/txn", &body)?;
        let succeeded = answer["succeeded"].as_bool() == Some(true);
        if succeeded { Ok(()) } else { Err(CallError::Overtaken) }
    }
}
