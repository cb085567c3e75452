//! A MariaDB server of a test's own, on a private socket or a free port, with accounts that have
//! exactly the rights that `docs/services.md` names. It ends with its value.
#![allow(dead_code, reason = "each test program uses its own part of this")]
#![allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};
use stillpoint_services::mariadb::{Mariadb, MariadbOptions};
use stillpoint_services::{Driver, Prepared, Sink};

use crate::common::{Memory, told};

/// What a backup needs, as the docs have it.
pub(crate) const FOR_BACKUP: &str = "GRANT RELOAD, PROCESS ON *.* TO keeper@localhost; \
    GRANT SELECT ON mysql.proc TO keeper@localhost; \
    GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON `shop`.* TO keeper@localhost";

/// What a restore needs on top.
pub(crate) const FOR_RESTORE: &str = "GRANT SELECT, INSERT, CREATE, DROP, ALTER, INDEX, \
    REFERENCES, LOCK TABLES, CREATE VIEW, SHOW VIEW, TRIGGER, EVENT, CREATE ROUTINE, \
    ALTER ROUTINE ON `shop`.* TO keeper@localhost; \
    GRANT SELECT, INSERT, CREATE, DROP, ALTER, INDEX, \
    REFERENCES, LOCK TABLES, CREATE VIEW, SHOW VIEW, TRIGGER, EVENT, CREATE ROUTINE, \
    ALTER ROUTINE ON `stillpoint\\_%`.* TO keeper@localhost";

/// For a restore, where objects are defined by others.
pub(crate) const FOR_OTHERS: &str = "GRANT SET USER ON *.* TO keeper@localhost";

pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
    options: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A data directory as it is right after the installation; made once, since it takes seconds.
fn template() -> PathBuf {
    let version = Command::new("/usr/sbin/mariadbd").arg("--version").output().unwrap();
    let version: String = String::from_utf8_lossy(&version.stdout)
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mariadb{version}"));
    if !place.is_dir() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let data = dir.path().join("data");
        let made = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .args(["--innodb-log-file-size=8M", &format!("--datadir={}", data.display())])
            .args(stillpoint_testkit::is_root().then_some("--user=root"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        // Another test may have been quicker.
        if std::fs::rename(&data, &place).is_err() {
            assert!(place.is_dir(), "the template is in its place");
        }
    }
    place
}

/// In memory where there is a gigabyte for it: each change of a definition waits for the disk.
fn place() -> PathBuf {
    let shared = Path::new("/dev/shm");
    let asked = Command::new("df").args(["--output=avail"]).arg(shared).output();
    let room = asked.ok().and_then(|found| {
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        text.lines().last()?.trim().parse::<u64>().ok()
    });
    if room.is_some_and(|kib| kib > 1 << 20) { shared.to_owned() } else { std::env::temp_dir() }
}

impl Server {
    /// With the database `shop`, empty, and the account `keeper@localhost` that may back up and
    /// restore it.
    pub(crate) fn start() -> Self {
        Self::start_with(&["--skip-networking"])
    }

    pub(crate) fn start_with(options: &[&str]) -> Self {
        let server = Self::bare(options);
        server.sql("CREATE DATABASE shop; CREATE USER keeper@localhost IDENTIFIED BY 'secret'");
        server.sql(FOR_BACKUP);
        server.sql(FOR_RESTORE);
        server
    }

    /// Without databases and accounts of ours.
    pub(crate) fn bare(options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("my").tempdir_in(place()).unwrap();
        let data = dir.path().join("data");
        let copied = Command::new("cp").arg("-a").arg(template()).arg(&data).status().unwrap();
        assert!(copied.success());
        // A server that starts removes temporary tables from its directory for them, also another
        // server's, which then crashes.
        let temporary = dir.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let options: Vec<String> = options.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(dir.path(), &options);
        let server = Self { child, dir, options };
        until("the server starts", || server.try_as("root", None).is_ok());
        server
    }

    /// A crash, and a start from what is on disk.
    pub(crate) fn crash_and_start(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.dir.path(), &self.options);
        until("the server starts again", || self.try_as("root", None).is_ok());
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn try_as(&self, user: &str, password: Option<&str>) -> Result<Conn, mysql::Error> {
        let options = OptsBuilder::new().socket(self.socket().to_str());
        let patient = vec!["SET SESSION max_statement_time = 0, autocommit = 1"];
        Conn::new(options.user(Some(user)).pass(password).init(patient))
    }

    /// A session of root's.
    pub(crate) fn root(&self) -> Conn {
        self.try_as("root", None).unwrap()
    }

    /// Runs statements, each divided from the next by `; `.
    pub(crate) fn sql(&self, statements: &str) {
        let mut root = self.root();
        for statement in statements.split("; ") {
            root.query_drop(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
        }
    }

    /// The first value of an answer, as text.
    pub(crate) fn ask(&self, question: &str) -> String {
        self.asked(question).unwrap_or_else(|| panic!("{question}: no answer"))
    }

    pub(crate) fn asked(&self, question: &str) -> Option<String> {
        let found: Option<Option<String>> = self
            .root()
            .query_first(format!("SELECT CAST(({question}) AS CHAR)"))
            .unwrap_or_else(|e| panic!("{question}: {e}"));
        found.flatten()
    }

    /// Databases that a restore has left.
    pub(crate) fn left(&self) -> String {
        self.ask(
            "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name LIKE 'stillpoint%'",
        )
    }

    pub(crate) fn options(&self) -> MariadbOptions {
        options_at(&self.socket())
    }

    pub(crate) fn driver(&self) -> Mariadb {
        Mariadb::new(self.options()).unwrap()
    }

    pub(crate) fn prepared(&self) -> Box<dyn Prepared> {
        self.driver().prepare().unwrap_or_else(|e| panic!("{}", told(&e)))
    }

    /// What prepare says.
    pub(crate) fn refusal(&self) -> String {
        told(&self.driver().prepare().err().expect("prepare refuses"))
    }
}

fn spawn(dir: &Path, options: &[String]) -> Child {
    Command::new("/usr/sbin/mariadbd")
        .args(["--no-defaults", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"])
        // No test pulls the plug of the machine.
        .args(["--innodb-flush-method=nosync", "--sync-frm=0"])
        .arg(format!("--datadir={}", dir.join("data").display()))
        .arg(format!("--tmpdir={}", dir.join("tmp").display()))
        .arg(format!("--socket={}", dir.join("socket").display()))
        .arg(format!("--pid-file={}", dir.join("pid").display()))
        .args(stillpoint_testkit::is_root().then_some("--user=root"))
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

pub(crate) fn options_at(socket: &Path) -> MariadbOptions {
    MariadbOptions {
        kind: "mariadb",
        url: format!("mysql://keeper@localhost/shop?socket={}", socket.display()),
        password: Some("secret".to_owned()),
        databases: Vec::new(),
        tool_dirs: Vec::new(),
    }
}

/// Waits for a state.
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Captures what was marked; what it says if it fails.
pub(crate) fn failed_capture(prepared: &mut dyn Prepared, sink: &dyn Sink) -> String {
    told(&prepared.capture(sink).expect_err("the capture fails"))
}

/// Prepares, marks and captures, with whatever gaps there are.
pub(crate) fn captured(driver: &dyn Driver) -> (Memory, Vec<(String, String)>) {
    let mut prepared = driver.prepare().unwrap_or_else(|e| panic!("{}", told(&e)));
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
    let memory = Memory::default();
    let found = prepared.capture(&memory).unwrap_or_else(|e| panic!("{}", told(&e)));
    (memory, found.gaps)
}

/// A dump program that does `script`, in which `$real` is the true one; and its directory.
pub(crate) fn dump_program(script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("mariadb-dump");
    let text = format!(
        "#!/bin/sh\nreal=/usr/bin/mariadb-dump\n\
         [ \"$2\" = --version ] && exec $real --version\n{script}\n"
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Takes a first part of the first stream, then lets `event` happen, then the rest.
pub(crate) struct Interrupted<F: Fn() + Sync>(pub(crate) F);

impl<F: Fn() + Sync> Sink for Interrupted<F> {
    fn write(&self, _: &str, content: &mut dyn Read) -> io::Result<u64> {
        content.read_exact(&mut [0; 2000])?;
        (self.0)();
        io::copy(content, &mut io::sink())
    }
}

/// More than the buffers on the way from the server to the sink hold.
pub(crate) const LARGE: &str = "USE shop; CREATE TABLE shop.large (id INT PRIMARY KEY, filler CHAR(250)); \
    INSERT INTO shop.large SELECT seq, REPEAT('x', 250) FROM seq_1_to_40000";

pub(crate) fn marked(server: &Server) -> Box<dyn Prepared> {
    let mut prepared = server.prepared();
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
    prepared
}
