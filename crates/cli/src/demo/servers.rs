//! The demo's database servers: started for it alone, each in a directory of its own, with one
//! password that is made up for them all.
//!
//! They do not end with the demo by themselves. So the watchdog, which is there before them, is told
//! of each before it can do anything, and ends it and removes its directory if the demo is killed.
//! What it is told replaces all that it was told before: whoever registers one server's undo
//! registers them all. Guards against servers and data that nobody knows of any more.

use super::compare::{RedisPlace, ServerPlace};
use super::shop::{ShopOptions, Target};
use super::{Cast, clean};
use crate::failure::Failure;
use crate::terminal::Terminal;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use stillpoint_capture::watchdog::{EndSignal, Guard, Undo, started};
use stillpoint_model::ids::BackupId;
use stillpoint_model::progress::Monitor;
use stillpoint_runtimes::{
    MariadbOptions, OnSpawn, RedisOptions, RuntimeError, ScratchMariadb, ScratchOptions,
    ScratchPostgres, ScratchRedis,
};
use tempfile::TempDir;

/// A running server in its directory. Dropped, it is stopped, and then its directory is removed.
struct Running<S> {
    server: S,
    directory: TempDir,
}

impl<S> Running<S> {
    fn end(
        self,
        name: &'static str,
        stop: impl FnOnce(S) -> Result<(), RuntimeError>,
    ) -> Result<(), Failure> {
        let fail = |doing: &str| Failure::new(format!("{doing} {name}"));
        stop(self.server).map_err(|e| fail("stop").because(&e))?;
        self.directory.close().map_err(|e| fail("remove the files of").because(&e))
    }
}

/// The servers of a cast.
pub(super) struct Servers {
    postgres: Option<Running<ScratchPostgres>>,
    mariadb: Option<Running<ScratchMariadb>>,
    redis: Option<Running<ScratchRedis>>,
}

impl Servers {
    /// A password for the servers of this cast, if it has any.
    pub(super) fn password(cast: &Cast) -> Option<String> {
        let any = cast.postgresql.is_some() || cast.mariadb.is_some() || cast.redis.is_some();
        any.then(|| BackupId::random().to_string())
    }

    /// Starts those that the cast has.
    pub(super) fn start(
        cast: &Cast,
        password: Option<&str>,
        guard: &Arc<Guard>,
        terminal: &Terminal,
    ) -> Result<Self, Failure> {
        let watched = Watched { guard: Arc::clone(guard), servers: Arc::default() };
        let password = password.map(str::to_owned);
        let mut servers = Self { postgres: None, mariadb: None, redis: None };
        if let Some(installation) = &cast.postgresql {
            terminal.begin("starting PostgreSQL", None);
            let start = |directory: &TempDir, on_spawn| {
                let password = password.clone();
                let on_spawn = Some(on_spawn);
                let options = ScratchOptions { password, on_spawn, ..ScratchOptions::default() };
                ScratchPostgres::start(installation, directory.path(), &options)
            };
            // On SIGTERM it would wait for its clients to go.
            let by = EndSignal::Interrupt;
            servers.postgres = Some(watched.start("PostgreSQL", clean::POSTGRESQL, by, start)?);
        }
        if let Some(installation) = &cast.mariadb {
            terminal.begin("starting MariaDB", None);
            let start = |directory: &TempDir, on_spawn| {
                let password = password.clone();
                let on_spawn = Some(on_spawn);
                let options = MariadbOptions { password, on_spawn, ..MariadbOptions::default() };
                ScratchMariadb::start(installation, directory.path(), &options)
            };
            let by = EndSignal::Terminate;
            servers.mariadb = Some(watched.start("MariaDB", clean::MARIADB, by, start)?);
        }
        if let Some(installation) = &cast.redis {
            terminal.begin("starting Redis", None);
            let start = |directory: &TempDir, on_spawn| {
                let password = password.clone();
                let on_spawn = Some(on_spawn);
                // Synced before it is answered, as the databases do it: an order that was
                // acknowledged survives a power cut.
                let lines = vec!["appendfsync always".to_owned()];
                let options = RedisOptions { password, on_spawn, lines, ..RedisOptions::default() };
                ScratchRedis::start(installation, directory.path(), &options)
            };
            let by = EndSignal::Terminate;
            servers.redis = Some(watched.start("Redis", clean::REDIS, by, start)?);
        }
        Ok(servers)
    }

    /// Tells the shop where they are.
    pub(super) fn fill(&self, options: &mut ShopOptions) {
        options.postgres = self.postgres_place().map(|place| place.target);
        options.mariadb = self.mariadb_place().map(|place| place.target);
        options.redis = self.redis_place().map(|place| place.server.target);
    }

    /// `PostgreSQL`, as the shop, the disaster and the comparison see it.
    pub(super) fn postgres_place(&self) -> Option<ServerPlace> {
        let server = &self.postgres.as_ref()?.server;
        Some(place(server.url(), server.password(), server.psql()))
    }

    /// `MariaDB`, likewise.
    pub(super) fn mariadb_place(&self) -> Option<ServerPlace> {
        let server = &self.mariadb.as_ref()?.server;
        Some(place(server.url(), server.password(), server.client().to_owned()))
    }

    /// Redis, likewise.
    pub(super) fn redis_place(&self) -> Option<RedisPlace> {
        let server = &self.redis.as_ref()?.server;
        Some(RedisPlace {
            server: place(server.url(), server.password(), server.client().to_owned()),
            admin_password: server.admin_password().to_owned(),
        })
    }

    /// Stops them all and removes their directories.
    pub(super) fn end(self) -> Result<(), Failure> {
        let postgres =
            self.postgres.map_or(Ok(()), |it| it.end("PostgreSQL", ScratchPostgres::stop));
        let mariadb = self.mariadb.map_or(Ok(()), |it| it.end("MariaDB", ScratchMariadb::stop));
        let redis = self.redis.map_or(Ok(()), |it| it.end("Redis", ScratchRedis::stop));
        postgres.and(mariadb).and(redis)
    }
}

fn place(url: String, password: &str, client: PathBuf) -> ServerPlace {
    ServerPlace { target: Target { url, password: Some(password.to_owned()) }, client }
}

/// What the watchdog has to do about one server.
struct Undos {
    end: Option<Undo>,
    clean: Undo,
}

/// The watchdog, and all that it was told.
#[derive(Clone)]
struct Watched {
    guard: Arc<Guard>,
    servers: Arc<Mutex<Vec<Undos>>>,
}

impl Watched {
    /// Makes a directory and starts a server in it, both known to the watchdog.
    fn start<S>(
        &self,
        name: &'static str,
        prefix: &str,
        by: EndSignal,
        start: impl FnOnce(&TempDir, OnSpawn) -> Result<S, RuntimeError>,
    ) -> Result<Running<S>, Failure> {
        let fail = |doing: &str| Failure::new(format!("{doing} a scratch {name}"));
        // In the system's own temporary directory, which the server's account can reach.
        let directory = tempfile::Builder::new()
            .prefix(prefix)
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir()
            .map_err(|e| fail("make room for").because(&e))?;
        let clean = Undo::Run { arguments: clean::arguments(directory.path()) };
        let index = self
            .tell(|servers| {
                servers.push(Undos { end: None, clean });
                servers.len() - 1
            })
            .map_err(|e| fail("tell the watchdog of").because(&e))?;
        let watched = self.clone();
        let on_spawn = OnSpawn::new(move |pid| {
            let pid = i32::try_from(pid).map_err(io::Error::other)?;
            let end = Undo::EndProcess { by, pid, started: started(pid)? };
            watched.tell(|servers| servers[index].end = Some(end))
        });
        let server = start(&directory, on_spawn).map_err(|e| {
            let failure = fail("start").because(&e);
            match e.advice() {
                Some(advice) => failure.hint(advice),
                None => failure,
            }
        })?;
        Ok(Running { server, directory })
    }

    /// Changes what is to be undone and tells the watchdog all of it: a server is ended before its
    /// directory goes.
    fn tell<T>(&self, change: impl FnOnce(&mut Vec<Undos>) -> T) -> io::Result<T> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut servers);
        let all = servers
            .iter()
            .flat_map(|undos| undos.end.clone().into_iter().chain([undos.clean.clone()]));
        self.guard.register(all.collect(), None).map_err(io::Error::other)?;
        Ok(changed)
    }
}
