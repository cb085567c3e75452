//! What a server says of itself (`INFO`), and waiting for its own work to end.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use super::connection::Session;
use crate::ServiceError;

/// How often the state is looked at while something is waited for.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// The lines of `INFO` as name and value.
pub(super) struct Info {
    values: BTreeMap<String, String>,
    modules: Vec<String>,
}

impl Info {
    /// Reads `sections`.
    pub(super) fn read(session: &mut Session, sections: &[&str]) -> Result<Self, ServiceError> {
        let words: Vec<&str> = ["INFO"].iter().chain(sections).copied().collect();
        session.run::<String>(&words).map(|text| Self::parse(&text))
    }

    /// Reads all that a backup and a restore look at.
    pub(super) fn all(session: &mut Session) -> Result<Self, ServiceError> {
        let sections =
            "server memory persistence replication cluster keyspace stats modules".split(' ');
        Self::read(session, &sections.collect::<Vec<_>>())
    }

    pub(super) fn parse(text: &str) -> Self {
        let mut info = Self { values: BTreeMap::new(), modules: Vec::new() };
        for (name, value) in text.lines().filter_map(|line| line.trim_end().split_once(':')) {
            if name == "module" {
                let module = value.strip_prefix("name=").unwrap_or(value);
                info.modules.extend(module.split(',').next().map(str::to_owned));
            }
            info.values.insert(name.to_owned(), value.to_owned());
        }
        info
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// A number; an error where the server does not say it.
    pub(super) fn number(&self, name: &str) -> Result<u64, ServiceError> {
        self.text(name).parse().map_err(|_| {
            ServiceError::new(format!("read {name} from INFO"))
                .because(format!("the server says {:?}", self.text(name)))
        })
    }

    fn is_on(&self, name: &str) -> bool {
        !matches!(self.text(name), "" | "0")
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The names of loaded modules.
    pub(super) fn modules(&self) -> Vec<String> {
        self.modules.clone()
    }

    /// Of each database: keys, and those of them that expire.
    pub(super) fn keyspace(&self) -> BTreeMap<u32, (u64, u64)> {
        let of_line = |(name, value): (&str, &str)| {
            let number = name.strip_prefix("db")?.parse().ok()?;
            let field = |wanted: &str| {
                value.split(',').find_map(|pair| pair.strip_prefix(wanted)?.parse::<u64>().ok())
            };
            Some((number, (field("keys=")?, field("expires=")?)))
        };
        self.lines().filter_map(of_line).collect()
    }

    /// How often the commands were called that `counts` (needs the section `commandstats`).
    pub(super) fn calls(&self, counts: impl Fn(&str) -> bool) -> u64 {
        let of_line = |(name, value): (&str, &str)| {
            let command = name.strip_prefix("cmdstat_")?;
            let calls = value.split(',').find_map(|pair| pair.strip_prefix("calls="))?;
            counts(command).then(|| calls.parse::<u64>().ok()).flatten()
        };
        self.lines().filter_map(of_line).sum()
    }

    /// The save or rewrite that runs or is about to, in words.
    pub(super) fn busy_with(&self) -> Option<&'static str> {
        [
            ("rdb_bgsave_in_progress", "a save (BGSAVE)"),
            ("aof_rewrite_in_progress", "a rewrite of the append-only file"),
            ("aof_rewrite_scheduled", "a scheduled rewrite of the append-only file"),
            ("module_fork_in_progress", "the fork of a module"),
        ]
        .into_iter()
        .find_map(|(name, words)| self.is_on(name).then_some(words))
    }

    /// Refuses what must not be touched: still loading, a replica, part of a cluster.
    pub(super) fn refuse_unfit(&self) -> Result<(), ServiceError> {
        let refuse = |why: String, hint: &str| {
            Err(ServiceError::new("use this Redis server").because(why).hint(hint))
        };
        let version = self.version();
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if self.text("redis_mode") == "sentinel" {
            let hint = "give the address of the master that it watches";
            return refuse("it is a sentinel, which holds no data".to_owned(), hint);
        }
        if self.is_on("cluster_enabled") {
            let hint = "servers in cluster mode are not supported: one save is not the cluster";
            return refuse("it runs in cluster mode".to_owned(), hint);
        }
        if major.is_none_or(|major| major < 7) {
            let hint = "Redis 7.0 or Valkey 7.2 is the oldest that can be captured with proof";
            return refuse(format!("its version is {version:?}"), hint);
        }
        if self.is_on("loading") || self.is_on("async_loading") {
            return refuse("it is loading its data".to_owned(), "try again when it has started");
        }
        if self.text("role") != "master" {
            let (host, port) = (self.text("master_host"), self.text("master_port"));
            return refuse(
                format!("it is a replica of {host}:{port}, which may lag behind"),
                "give the address of the master: a hold's instant is fixed where writes arrive",
            );
        }
        Ok(())
    }

    /// Refuses where a save would not work: its failure would stop the application's writes.
    pub(super) fn refuse_failing_saves(&self) -> Result<(), ServiceError> {
        if matches!(self.text("rdb_last_bgsave_status"), "ok" | "") {
            return Ok(());
        }
        Err(ServiceError::new("let the server save")
            .because(
                "its last save failed (rdb_last_bgsave_status), and with \
                 stop-writes-on-bgsave-error a further failure stops the application's writes",
            )
            .hint("read its log, mend the cause (room, rights of its directory, memory), then run BGSAVE"))
    }

    /// The version, in the server's own numbering.
    pub(super) fn version(&self) -> &str {
        let own = self.text("valkey_version");
        if own.is_empty() { self.text("redis_version") } else { own }
    }

    /// `redis` or `valkey`.
    pub(super) fn server(&self) -> &'static str {
        if self.text("valkey_version").is_empty() { "redis" } else { "valkey" }
    }
}

/// Waits until no save and no rewrite runs; fails after `patience`, and names what runs.
pub(super) fn wait_idle(session: &mut Session, patience: Duration) -> Result<Info, ServiceError> {
    let end = Instant::now() + patience;
    loop {
        let info = Info::read(session, &["persistence"])?;
        let Some(words) = info.busy_with() else { return Ok(info) };
        if Instant::now() >= end {
            return Err(ServiceError::new("let the server save")
                .because(format!(
                    "{words} runs, and still did after {} seconds",
                    patience.as_secs_f32()
                ))
                .hint("try again when it has ended"));
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_info_are_read_as_the_server_writes_them() {
        let info = Info::parse(
            "# Keyspace\r\ndb0:keys=3,expires=1,avg_ttl=0\r\ndb9:keys=1,expires=0,avg_ttl=0\r\n\
             module:name=bf,ver=20600,api=1\r\nmodule:name=search,ver=1\r\n\
             cmdstat_set:calls=3,usec=9\r\ncmdstat_debug|reload:calls=2,usec=9\r\n\
             # Persistence\r\nloading:0\r\naof_rewrite_in_progress:1\r\nredis_version:7.0.15\r\n",
        );
        assert_eq!(info.keyspace(), BTreeMap::from([(0, (3, 1)), (9, (1, 0))]));
        assert_eq!(info.busy_with(), Some("a rewrite of the append-only file"));
        assert_eq!((info.version(), info.server()), ("7.0.15", "redis"));
        assert_eq!(info.modules(), ["bf", "search"]);
        assert_eq!(info.calls(|name| name.starts_with("debug")), 2);
        assert!(info.number("rdb_saves").is_err());
        assert!(info.refuse_unfit().is_err(), "no role is said");
    }

    #[test]
    fn servers_older_than_the_proofs_are_refused() {
        let old = Info::parse("redis_version:6.2.14\r\nrole:master\r\nloading:0\r\n");
        let error = old.refuse_unfit().unwrap_err();
        assert!(crate::chain(&error).contains("6.2.14"));
        let new = Info::parse("redis_version:7.2.4\r\nvalkey_version:8.0.1\r\nrole:master\r\n");
        new.refuse_unfit().unwrap();
        assert_eq!((new.version(), new.server()), ("8.0.1", "valkey"));
    }
}
