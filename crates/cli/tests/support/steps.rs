//! A backup that waits at one of its steps for as long as a test wants it to, by means of the
//! world around it alone: a file without end, a request in flight, a lock in a database.
//!
//! The program knows nothing of any of it, so what is tested is what is shipped. Each wait is one
//! that the step cannot get out of by itself before the test lets it go, but for the mark, which
//! gives a locked database up after five seconds.

use super::Environment;
use super::service::{Service, await_that};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::thread::JoinHandle;
use stillpoint_gateway::control::StateName as State;
use stillpoint_testkit::{Postgres, ScratchOptions, postgres_with};

/// Where a backup waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A file in the mount has no end.
    Prepare,
    /// A request in flight is not answered.
    Drain,
    /// Somebody writes to a database in rollback-journal mode.
    Mark,
    /// A catalog of PostgreSQL is locked, which after prepare only `pg_dumpall` reads.
    Capture,
    /// The repository's lock, which is read before publishing, is a pipe.
    Publish,
}

/// A service whose backup waits.
pub(crate) struct Waiting {
    // In this order: nothing keeps a service waiting that is to end.
    world: World,
    pub service: Service,
    /// The backup's id.
    pub backup: String,
}

/// What keeps it waiting.
struct World {
    hanging: Option<JoinHandle<Option<String>>>,
    writer: Option<rusqlite::Connection>,
    catalog: Option<postgres::Client>,
    server: Option<Postgres>,
    pipe: Option<Pipe>,
}

struct Pipe {
    path: PathBuf,
    lock: Vec<u8>,
    /// Whoever read it must not read it twice.
    fed: bool,
}

impl Waiting {
    /// A running service that has one backup, and whose second one waits at `step`.
    pub(crate) fn at(step: Step) -> Self {
        let mut world =
            World { hanging: None, writer: None, catalog: None, server: None, pipe: None };
        let service = Service::of(environment(step, &mut world));
        service.succeed(&["backup:create"]);
        match step {
            Step::Prepare => {
                let endless = fs::File::create(endless_file(&service.environment)).unwrap();
                endless.set_len(1 << 42).unwrap();
            }
            Step::Drain | Step::Mark | Step::Capture | Step::Publish => {
                // What comes after the drain is arranged for while it waits: prepare is over then.
                let gateway = service.gateway;
                world.hanging = Some(std::thread::spawn(move || super::get(gateway, "/hang").ok()));
                service.environment.application.await_hanging(1);
            }
        }
        let backup = service.succeed(&["backup:create", "--no-wait"]);
        match step {
            Step::Prepare => await_phase(&service, "prepare"),
            Step::Drain => await_gateway(&service, State::Draining),
            Step::Mark => {
                await_gateway(&service, State::Draining);
                let writer = rusqlite::Connection::open(service.environment.path("app.db"));
                let writer = writer.unwrap();
                writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
                world.writer = Some(writer);
                service.environment.application.let_go();
                await_gateway(&service, State::Holding);
            }
            Step::Capture => {
                await_gateway(&service, State::Draining);
                let server = world.server.as_ref().unwrap();
                let mut client = server.superuser_in("postgres");
                let lock = "BEGIN; LOCK TABLE pg_shseclabel IN ACCESS EXCLUSIVE MODE";
                client.batch_execute(lock).unwrap();
                world.catalog = Some(client);
                service.environment.application.let_go();
                await_phase(&service, "capture");
                await_dumpall(server);
            }
            Step::Publish => {
                await_gateway(&service, State::Draining);
                world.pipe = Some(Pipe::in_place_of_the_lock(&service.environment));
                service.environment.application.let_go();
                await_phase(&service, "publish");
            }
        }
        Self { world, service, backup }
    }

    /// Nothing keeps it waiting any more; whatever the test itself had in flight has ended.
    pub(crate) fn let_go(&mut self) {
        self.service.environment.application.let_go();
        if let Some(hanging) = self.world.hanging.take() {
            hanging.join().unwrap();
        }
        let endless = endless_file(&self.service.environment);
        if endless.exists() {
            // Who reads it now reads its end; it is not there to be read again.
            fs::OpenOptions::new().write(true).open(&endless).unwrap().set_len(0).unwrap();
            fs::remove_file(&endless).unwrap();
        }
        if let Some(writer) = self.world.writer.take() {
            writer.execute_batch("COMMIT").unwrap();
        }
        if let Some(mut client) = self.world.catalog.take() {
            client.batch_execute("ROLLBACK").unwrap();
        }
        if let Some(pipe) = self.world.pipe.take() {
            pipe.let_go();
        }
    }

    /// No session of ours is left in the database.
    pub(crate) fn await_no_sessions(&self) {
        let Some(server) = &self.world.server else { return };
        let mut client = server.superuser_in("postgres");
        await_that("the database's sessions end", || {
            let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
            client.query_one(count, &[&"stillpoint"]).unwrap().get::<_, i64>(0) == 0
        });
    }
}

fn environment(step: Step, world: &mut World) -> Environment {
    let mut services = String::new();
    if step == Step::Capture {
        let server = postgres_with(&ScratchOptions {
            password: Some(super::service::PASSWORD.to_owned()),
            ..ScratchOptions::default()
        });
        server.client().batch_execute("CREATE TABLE t AS SELECT 1 AS a").unwrap();
        services = postgresql(&server);
        world.server = Some(server);
    }
    let mut environment = Environment::unstarted("", &services);
    // The same port again, should the gateway die.
    let port = stillpoint_testkit::free_port();
    environment.config = environment.config.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    environment.configure(&environment.config);
    if step == Step::Mark {
        let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
        database.pragma_update(None, "journal_mode", "delete").unwrap();
    }
    environment
}

/// A service's line of the configuration.
pub(crate) fn postgresql(server: &Postgres) -> String {
    format!(
        "\x20     db: {{ type: postgresql, url: \"{}\", password_env: {} }}\n",
        server.url(),
        super::service::PASSWORD_ENV
    )
}

fn endless_file(environment: &Environment) -> PathBuf {
    environment.path("uploads/endless")
}

fn await_phase(service: &Service, phase: &str) {
    service.await_json(&["activity:list"], |all| all[0]["phase"] == phase);
}

fn await_gateway(service: &Service, wanted: State) {
    await_that("the gateway's state", || service.environment.status().state == wanted);
}

/// Until `pg_dumpall` waits for the lock that the test has.
fn await_dumpall(server: &Postgres) {
    let mut client = server.superuser_in("postgres");
    await_that("pg_dumpall waits", || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted \
                       AND relation = 'pg_shseclabel'::regclass";
        client.query_one(waiting, &[]).unwrap().get::<_, i64>(0) > 0
    });
}

impl Pipe {
    fn in_place_of_the_lock(environment: &Environment) -> Self {
        let locks = environment.path("store/test/production/locks");
        let found: Vec<_> = fs::read_dir(locks).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(found.len(), 1, "only the backup has a lock");
        let path = found[0].path();
        let lock = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        Self { path, lock, fed: false }
    }

    /// Gives whoever waits for it what the lock said. One that was killed waits no more, and its
    /// lock is removed by others.
    fn let_go(mut self) {
        await_that("somebody reads the lock, or it is gone", || {
            self.feed();
            self.fed || !self.path.exists()
        });
    }

    fn feed(&mut self) {
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        if !self.fed
            && let Ok(file) = rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty())
        {
            self.fed = fs::File::from(file).write_all(&self.lock).is_ok();
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.feed();
    }
}
