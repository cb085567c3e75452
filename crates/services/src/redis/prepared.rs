//! Prepare, mark and capture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Cursor, Seek};
use std::path::Path;

use jiff::Timestamp;
use stillpoint_model::manifest::Marker;

use super::address::Login;
use super::connection::{QUICK, Session};
use super::facts::{Counted, FACTS, Facts, RDB};
use super::info::{Info, wait_idle};
use super::rdb::{Head, Passing};
use super::replication::{COULD_NOT_FORK, Link, Position, Stream};
use super::save::{Save, Saves, refuse_failed};
use super::{Patience, Redis, Way, rights};
use crate::{Captured, Prepared, ServiceError, Sink};

/// A server that can be marked.
pub(super) struct PreparedRedis {
    login: Login,
    control: Session,
    way: Way,
    patience: Patience,
    version: String,
    /// The same as the server may write it into an RDB: Valkey has one that is Redis's, too.
    versions: Vec<String>,
    server: &'static str,
    /// The commands that write, as the server's statistics name them.
    writing: BTreeSet<String>,
    modules: Vec<String>,
    marked: Option<Marked>,
}

/// The last mark.
struct Marked {
    coming: Coming,
    /// The server's clock before it, in seconds.
    since: i64,
    after: Info,
    counts_exact: bool,
    position: Position,
}

/// What is on its way since the fork.
enum Coming {
    Save(Save),
    Stream(Stream),
}

impl PreparedRedis {
    pub(super) fn new(driver: &Redis) -> Result<Self, ServiceError> {
        let mut control = driver.login.connect(QUICK)?;
        // A server of another kind lacks commands rather than rights: that comes first. Where even
        // this may not be read, the missing rights say so.
        if let Ok(info) = Info::all(&mut control) {
            info.refuse_unfit()?;
        }
        rights::for_backup(driver)?.refuse("back up")?;
        wait_idle(&mut control, driver.patience.prepare)?.refuse_failing_saves()?;
        let info = Info::all(&mut control)?;
        info.refuse_unfit()?;
        let way = rights::way(driver, &info)?;
        let needed = info.number("used_memory_dataset")?;
        match &way {
            Way::File(files) => refuse_without_room(&files.dir, needed)?,
            Way::Replication => refuse_without_room(&tempfile::env::temp_dir(), needed)?,
        }
        let writing: BTreeSet<String> =
            control.run(&["COMMAND", "LIST", "FILTERBY", "ACLCAT", "write"])?;
        let mut prepared = Self {
            login: driver.login.clone(),
            control,
            way,
            patience: driver.patience,
            version: info.version().to_owned(),
            versions: ["valkey_version", "redis_version"].map(|name| info.text(name).into()).into(),
            server: info.server(),
            writing,
            modules: info.modules(),
            marked: None,
        };
        prepared.counter()?;
        Ok(prepared)
    }

    /// A server may close sessions that are idle (`timeout`): one that is gone is made anew.
    fn wake(&mut self) -> Result<(), ServiceError> {
        if self.control.ask::<redis::Value>(&["TIME"]).is_err() {
            self.control = self.login.connect(QUICK)?;
        }
        Ok(())
    }

    fn clock(&mut self) -> Result<i64, ServiceError> {
        self.control.run::<(i64, i64)>(&["TIME"]).map(|(seconds, _)| seconds)
    }

    fn count(&mut self) -> Result<String, ServiceError> {
        let info = Info::read(&mut self.control, &["server", "commandstats"])?;
        let calls = info.calls(|command| self.writing.contains(command));
        Ok(format!("{}:{calls}", info.text("run_id")))
    }

    /// Lets the server fork: the last of `saves`.
    fn fork(&mut self, saves: Saves) -> Result<(Option<Position>, Coming), ServiceError> {
        let Way::File(files) = &self.way else {
            let spool = tempfile::tempfile()
                .map_err(|e| ServiceError::new("create a private file").because(e))?;
            let link = Link::open(&self.login)?;
            let (position, stream) = link.sync(spool, self.patience.mark)?;
            return Ok((Some(position), Coming::Stream(stream)));
        };
        // Connected before, so that nothing has to be once the save runs.
        let follower = self.login.connect(QUICK)?;
        let said: String = self.control.ask(&["BGSAVE"]).map_err(|e| {
            let refused = e.to_string().contains("in progress");
            let hint = if refused { "try again when it has ended" } else { COULD_NOT_FORK };
            ServiceError::new("let the server save").because(e).hint(hint)
        })?;
        if !said.contains("started") {
            return Err(ServiceError::new("let the server save").because(said));
        }
        Ok((None, Coming::Save(Save::follow(follower, files.clone(), saves))))
    }

    /// What the fork made, once it is all here.
    fn receive(&mut self, coming: Coming) -> Result<File, ServiceError> {
        match coming {
            Coming::Save(save) => save.finish(),
            Coming::Stream(stream) => stream.finish().map_err(|cut_off| {
                let info = Info::read(&mut self.control, &["persistence"]);
                match info.and_then(|info| refuse_failed(&info, None)) {
                    Err(why) => why,
                    Ok(()) => ServiceError::new("receive the server's data").because(cut_off),
                }
            }),
        }
    }
}

/// A save that runs out of room would stop the application's writes.
fn refuse_without_room(dir: &Path, needed: u64) -> Result<(), ServiceError> {
    let doing = || ServiceError::new(format!("find room in {}", dir.display()));
    let found = rustix::fs::statvfs(dir).map_err(|e| doing().because(std::io::Error::from(e)))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < needed {
        return Err(doing()
            .because(format!("the data may take {needed} bytes, and {free} are free"))
            .hint("make room there"));
    }
    Ok(())
}

impl Prepared for PreparedRedis {
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("server".to_owned(), format!("{} {}", self.server, self.version)),
            ("way".to_owned(), self.way.name().to_owned()),
        ])
    }

    fn gaps(&self) -> Vec<(String, String)> {
        let why = "the data of modules is in the RDB, but a restore cannot load it yet";
        self.modules.iter().map(|name| (format!("module {name}"), why.to_owned())).collect()
    }

    fn doubts(&self) -> Vec<String> {
        let doubt = |name| format!("module {name} may write without a command, which is not seen");
        self.modules.iter().map(doubt).collect()
    }

    fn counter(&mut self) -> Result<String, ServiceError> {
        self.wake()?;
        self.count()
    }

    fn mark(&mut self) -> Result<Marker, ServiceError> {
        self.marked = None;
        self.wake()?;
        wait_idle(&mut self.control, self.patience.mark)?;
        let before = Info::all(&mut self.control)?;
        before.refuse_unfit()?;
        before.refuse_failing_saves()?;
        let since = self.clock()?;
        let counted = self.count()?;
        let saves = Saves::of(&Info::read(&mut self.control, &Saves::SECTIONS)?)?.and_one();
        let (asked, coming) = self.fork(saves)?;
        let at = Timestamp::now();
        let after = Info::all(&mut self.control)?;
        let counts_exact = self.count()? == counted
            && after.number("evicted_keys")? == before.number("evicted_keys")?;
        // The fork of another replica, older than this mark, has an older position.
        let least = before.number("master_repl_offset")?;
        let is_older = asked.as_ref().is_some_and(|position| position.offset < least);
        if after.number("rdb_saves")? != saves.background || is_older {
            return Err(ServiceError::new("fix the instant")
                .because("another save of the server began at the same moment")
                .hint("try again"));
        }
        let position = match asked {
            Some(position) => position,
            None => Position {
                id: after.text("master_replid").to_owned(),
                offset: after.number("master_repl_offset")?,
            },
        };
        let keys: Vec<String> =
            after.keyspace().iter().map(|(db, (keys, _))| format!("db{db}={keys}")).collect();
        let values = BTreeMap::from([
            ("way".to_owned(), self.way.name().to_owned()),
            ("replication_id".to_owned(), position.id.clone()),
            ("replication_offset".to_owned(), position.offset.to_string()),
            ("save".to_owned(), saves.background.to_string()),
            ("keys".to_owned(), keys.join(",")),
            ("dataset_bytes".to_owned(), after.text("used_memory_dataset").to_owned()),
        ]);
        self.marked = Some(Marked { coming, since, after, counts_exact, position });
        Ok(Marker { at, values })
    }

    fn capture(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        let doing = || ServiceError::new("capture the server");
        let Some(marked) = self.marked.take() else {
            return Err(doing().because("it was not marked"));
        };
        let mut rdb = self.receive(marked.coming)?;
        rdb.rewind().map_err(|e| doing().because(e))?;
        let head = Head::read(&mut BufReader::new(&rdb)).map_err(|e| doing().because(e))?;
        self.refuse_other(&head, marked.since, &marked.position)?;
        rdb.rewind().map_err(|e| doing().because(e))?;
        let mut passing = Passing::new(&rdb);
        sink.write(RDB, &mut passing)
            .map_err(|e| ServiceError::new(format!("store {RDB}")).because(e))?;
        let (rdb_bytes, sha256) = passing.finish().map_err(|e| doing().because(e))?;
        let databases: BTreeMap<u32, Counted> = marked
            .after
            .keyspace()
            .into_iter()
            .map(|(number, (keys, expires))| (number, Counted { keys, expires }))
            .collect();
        let items = databases.values().map(|counted| counted.keys).sum();
        let facts = Facts {
            format: Facts::format(),
            server: self.server.to_owned(),
            version: self.version.clone(),
            rdb_version: head.version,
            rdb_bytes,
            sha256,
            way: self.way.name().to_owned(),
            databases,
            counts_exact: marked.counts_exact,
            functions: marked.after.number("number_of_functions")?,
            memory_bytes: marked.after.number("used_memory_dataset")?,
            replication_id: marked.position.id,
            replication_offset: marked.position.offset,
        };
        let text = serde_json::to_string_pretty(&facts)
            .map_err(|e| ServiceError::new(format!("write {FACTS}")).because(e))?;
        let bytes = rdb_bytes
            + sink
                .write(FACTS, &mut Cursor::new(text.as_bytes()))
                .map_err(|e| ServiceError::new(format!("store {FACTS}")).because(e))?;
        Ok(Captured { bytes, items, gaps: Vec::new() })
    }
}

impl PreparedRedis {
    /// Proves by its head that an RDB is that of the mark.
    fn refuse_other(
        &self,
        head: &Head,
        since: i64,
        position: &Position,
    ) -> Result<(), ServiceError> {
        let refuse =
            |why: String| Err(ServiceError::new("take the RDB for that of the mark").because(why));
        match head.number("ctime") {
            Some(made) if made >= since => {}
            made => return refuse(format!("it says it was made at {made:?}, before {since}")),
        }
        let version = head.fields.get("valkey-ver").or_else(|| head.fields.get("redis-ver"));
        if !version.is_some_and(|version| self.versions.contains(version)) {
            return refuse(format!("it says it is of version {version:?}"));
        }
        // What is sent to a replica says where in the server's history it is from.
        if let Way::Replication = self.way {
            let (id, offset) = (head.fields.get("repl-id"), head.number("repl-offset"));
            if id != Some(&position.id)
                || offset.and_then(|offset| u64::try_from(offset).ok()) != Some(position.offset)
            {
                return refuse(format!("it says it is of {id:?} at {offset:?}"));
            }
        }
        Ok(())
    }
}
