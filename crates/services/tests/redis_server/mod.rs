//! A real Redis server for tests: on a private socket, run by an account without rights, with the
//! accounts that the documentation gives.
#![allow(dead_code, reason = "each test program uses its own part of this")]
#![allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue};
use stillpoint_services::redis::{Patience, Redis, RedisOptions};

const NOBODY: u32 = 65534;

/// As in docs/services.md.
pub(crate) const BY_FILE: &str = "+info +time +command|list +bgsave +config|get";
pub(crate) const BY_REPLICATION: &str = "+info +time +command|list +psync +replconf";
pub(crate) const RESTORE: &str = "~* +info +time +config|get +select +scan +dump +restore \
    +pexpiretime +hset +hgetall +unlink +swapdb +flushdb +function|dump +function|restore \
    +bgsave +multi +exec +discard";

pub(crate) struct Server {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
    settings: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// Starts a server that saves only when it is told to.
    pub(crate) fn start() -> Self {
        Self::with(&["--save", ""])
    }

    pub(crate) fn with(settings: &[&str]) -> Self {
        let server = Self::bare(settings);
        let rights = [BY_FILE, BY_REPLICATION, RESTORE];
        for (name, rights) in ["byfile", "byreplication", "restorer"].into_iter().zip(rights) {
            server.allow(&format!("{name} on >secret {rights}"));
        }
        server
    }

    /// A server without accounts.
    pub(crate) fn bare(settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("rd").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        if stillpoint_testkit::is_root() {
            for path in [dir.path().to_owned(), dir.path().join("data")] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let settings: Vec<String> = settings.iter().map(|word| (*word).to_owned()).collect();
        if settings.iter().any(|setting| setting == "--sentinel") {
            let file = dir.path().join("data").join("sentinel.conf");
            std::fs::write(&file, "").unwrap();
            let chown = stillpoint_testkit::is_root();
            chown.then(|| std::os::unix::fs::chown(&file, Some(NOBODY), Some(NOBODY)).unwrap());
        }
        let child = spawn(dir.path(), &settings);
        let server = Self { child, dir, settings };
        server.wait_ready();
        server
    }

    fn wait_ready(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let info = self
                .try_admin()
                .and_then(|mut admin| redis::cmd("INFO").query::<String>(&mut admin));
            if info.is_ok_and(|info| !info.contains("\nloading:1")) {
                return;
            }
            assert!(Instant::now() < end, "the server starts: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it answers while it loads.
    pub(crate) fn wait_loading(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let info = self
                .try_admin()
                .and_then(|mut admin| redis::cmd("INFO").query::<String>(&mut admin));
            if info.is_ok_and(|info| info.contains("\nloading:1")) {
                return;
            }
            assert!(Instant::now() < end, "the server loads: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A crash, and a start from what is on disk.
    pub(crate) fn crash_and_start(&mut self) {
        self.crash_and_begin();
        self.wait_ready();
    }

    pub(crate) fn crash_and_begin(&mut self) {
        let acl = self.dir.path().join("users");
        let users: Vec<String> = self.ask(&["ACL", "LIST"]);
        std::fs::write(&acl, users.join("\n") + "\n").unwrap();
        self.kill();
        let _ = std::fs::remove_file(self.socket());
        let mut settings = self.settings.clone();
        settings.extend(["--aclfile".to_owned(), acl.display().to_string()]);
        self.child = spawn(self.dir.path(), &settings);
    }

    /// Adds settings for the next start.
    pub(crate) fn add_settings(&mut self, settings: &[&str]) {
        self.settings.extend(settings.iter().map(|word| (*word).to_owned()));
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn try_admin(&self) -> redis::RedisResult<Connection> {
        redis::Client::open(format!("redis+unix://{}", self.socket().display()))?.get_connection()
    }

    pub(crate) fn admin(&self) -> Connection {
        self.try_admin().unwrap()
    }

    pub(crate) fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        ask(&mut self.admin(), words)
    }

    pub(crate) fn set(&self, name: &str, value: &str) {
        self.ask::<()>(&["CONFIG", "SET", name, value]);
    }

    /// Changes an account: its name, then what `ACL SETUSER` takes.
    pub(crate) fn allow(&self, account: &str) {
        let words: Vec<&str> = ["ACL", "SETUSER"].into_iter().chain(account.split(' ')).collect();
        self.ask::<()>(&words);
    }

    /// Runs each line in database `database`.
    pub(crate) fn lines(&self, database: u32, lines: &str) {
        let mut admin = self.admin();
        ask::<()>(&mut admin, &["SELECT", &database.to_string()]);
        for line in lines.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if !words.is_empty() {
                ask::<redis::Value>(&mut admin, &words);
            }
        }
    }

    /// One command in database `database`.
    pub(crate) fn line_in<T: FromRedisValue>(&self, database: u32, words: &[&str]) -> T {
        let mut admin = self.admin();
        ask::<()>(&mut admin, &["SELECT", &database.to_string()]);
        ask(&mut admin, words)
    }

    pub(crate) fn info(&self, name: &str) -> String {
        let info: String = self.ask(&["INFO", "everything"]);
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_default().to_owned()
    }

    pub(crate) fn wait_for(&self, name: &str, value: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.info(name) != value {
            assert!(Instant::now() < end, "{name} becomes {value}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn driver(&self, account: &str) -> Redis {
        self.driver_with(account, "secret")
    }

    pub(crate) fn driver_with(&self, account: &str, password: &str) -> Redis {
        driver_at(&self.socket(), account, password)
    }
}

pub(crate) fn driver_at(socket: &Path, account: &str, password: &str) -> Redis {
    Redis::new(RedisOptions {
        kind: "redis",
        url: format!("redis+unix://{account}@{}", socket.display()),
        password: Some(password.to_owned()),
        tool_dirs: Vec::new(),
    })
    .unwrap()
}

/// Gives up soon where it must, so that a test of that is quick.
pub(crate) fn hasty() -> Patience {
    Patience { prepare: Duration::from_millis(200), mark: Duration::from_millis(200) }
}

pub(crate) fn ask<T: FromRedisValue>(connection: &mut Connection, words: &[&str]) -> T {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command.query(connection).unwrap_or_else(|e| panic!("{words:?}: {e}"))
}

fn spawn(dir: &Path, settings: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    if settings.iter().any(|setting| setting == "--sentinel") {
        // It writes down what it sees.
        command.arg(dir.join("data").join("sentinel.conf"));
    }
    command
        .args(["--port", "0", "--enable-debug-command", "yes", "--appendfsync", "always"])
        .args(["--hz", "50"])
        .arg("--unixsocket")
        .arg(dir.join("socket"))
        .arg("--dir")
        .arg(dir.join("data"))
        .arg("--logfile")
        .arg(dir.join("log"))
        .args(settings)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    without_rights(&mut command);
    command.spawn().unwrap()
}

/// Root's programs run as an account without rights: limits and closed directories do not bind
/// root.
pub(crate) fn without_rights(command: &mut Command) {
    if stillpoint_testkit::is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

/// Every type in its small and its big form, in three databases, with binary names and values.
pub(crate) fn fill(server: &Server) {
    let mut admin = server.admin();
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(&b"\xff\x00 \r\n'\""[..]).arg(&b"\x00\xfe\r\n"[..]);
    pipe.cmd("SET").arg("big").arg(big);
    pipe.cmd("SET").arg("number").arg(-12_345);
    for n in 0..1500 {
        pipe.cmd("RPUSH").arg("list:big").arg(format!("entry {n}"));
        pipe.cmd("SADD").arg("set:big").arg(format!("member {n}"));
        pipe.cmd("ZADD").arg("zset:big").arg(f64::from(n) / 7.0).arg(format!("member {n}"));
        pipe.cmd("HSET").arg("hash:big").arg(format!("field {n}")).arg(&[0xff_u8, 0, 13][..]);
        pipe.cmd("XADD").arg("stream").arg("*").arg("n").arg(n);
        pipe.cmd("PFADD").arg("loglog:big").arg(n);
        pipe.cmd("SET").arg(format!("many:{n}")).arg(n).arg("EX").arg(100_000 + n);
    }
    pipe.exec(&mut admin).unwrap();
    server.lines(
        0,
        "RPUSH list a b c
         SADD set:ints 1 2 3
         SADD set x y z
         ZADD zset 1 a 2.5 b -inf c
         HSET hash f v g w
         PFADD loglog a b c
         SETBIT bits 70000 1
         GEOADD places 13.361389 38.115556 Palermo
         XGROUP CREATE stream readers 0
         XREADGROUP GROUP readers ann COUNT 7 STREAMS stream >
         XREADGROUP GROUP readers bob COUNT 3 STREAMS stream >
         XDEL stream 0-1
         SET lasting x PXAT 4102444800123",
    );
    server.lines(3, "SET in three\nHSET h a 1\nEXPIRE h 500000");
    server.lines(15, "SET in fifteen");
    let library =
        "#!lua name=shop\nredis.register_function('twice', function(k, a) return a[1] * 2 end)";
    server.ask::<String>(&["FUNCTION", "LOAD", library]);
    let library = "#!lua name=till\nredis.register_function('one', function() return 1 end)";
    server.ask::<String>(&["FUNCTION", "LOAD", library]);
}

/// All that a server holds, in words that are equal only if it is.
pub(crate) fn state(server: &Server) -> Vec<String> {
    let mut admin = server.admin();
    let info: String = ask(&mut admin, &["INFO", "keyspace"]);
    let counts = info.lines().filter_map(|line| line.split(",avg_ttl").next()?.strip_prefix("db"));
    let mut state: Vec<String> = counts.map(str::to_owned).collect();
    state.push(ask(&mut admin, &["DEBUG", "DIGEST"]));
    let mut functions: Vec<redis::Value> = ask(&mut admin, &["FUNCTION", "LIST", "WITHCODE"]);
    functions.sort_by_key(|library| format!("{library:?}"));
    state.push(format!("{functions:?}"));
    for key in ["lasting", "many:7", "list"] {
        state.push(ask::<i64>(&mut admin, &["PEXPIRETIME", key]).to_string());
    }
    if ask::<bool>(&mut admin, &["EXISTS", "stream"]) {
        let stream: redis::Value = ask(&mut admin, &["XINFO", "STREAM", "stream", "FULL"]);
        state.push(format!("{stream:?}"));
    }
    state
}

/// A captured file.
pub(crate) fn bytes(source: &dyn stillpoint_services::Source, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut source.open(path).unwrap(), &mut bytes).unwrap();
    bytes
}
