//! The running scratch server: initialise, start, wait, set up, stop.
//!
//! Guards against leftovers: the server runs in a process group of its own, in the foreground of
//! this process, and ends with the value that stands for it. If this process is killed, the server
//! lives on: whoever minds is told of its process at once ([`OnSpawn`]), before it is ready, so
//! that another process can end it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::Installation;
use super::account::Account;
use crate::RuntimeError;

/// How long a server may take to get ready, or to stop, before it is given up.
const PATIENCE: Duration = Duration::from_mins(1);
/// The longest path of a Unix socket, without its final zero.
const SOCKET_PATH: usize = 107;
/// A free port can be taken by another program before the server has it.
const PORT_TRIES: u32 = 5;

/// What a scratch server should be like.
#[derive(Debug, Clone)]
pub struct ScratchOptions {
    /// The application's role: may log in and create databases, nothing more.
    pub user: String,
    /// The database that the role owns.
    pub database: String,
    /// The role's password; made up if not given.
    pub password: Option<String>,
    /// Listen on a free port of 127.0.0.1 as well.
    pub tcp: bool,
    /// More settings, as in `postgresql.conf`: name and value.
    pub settings: Vec<(String, String)>,
    /// Told of the server's process as soon as there is one.
    pub on_spawn: Option<OnSpawn>,
}

/// Told of a server's first process (its id) right after it was started, and before it is ready. On
/// an error the server is ended again. Called again where a start is tried again.
#[derive(Clone)]
pub struct OnSpawn(Arc<dyn Fn(u32) -> io::Result<()> + Send + Sync>);

impl OnSpawn {
    /// Calls `told`.
    pub fn new(told: impl Fn(u32) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }
}

impl std::fmt::Debug for OnSpawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnSpawn")
    }
}

impl Default for ScratchOptions {
    fn default() -> Self {
        Self {
            user: "shop".to_owned(),
            database: "shop".to_owned(),
            password: None,
            tcp: false,
            settings: Vec::new(),
            on_spawn: None,
        }
    }
}

/// A running scratch server. Dropping it stops it.
#[derive(Debug)]
pub struct ScratchPostgres {
    installation: Installation,
    data_dir: PathBuf,
    socket_dir: PathBuf,
    /// Set when the socket had to move away from an over-long path.
    own_socket_dir: bool,
    port: u16,
    tcp: bool,
    user: String,
    database: String,
    password: String,
    superuser_password: String,
    child: Child,
}

impl ScratchPostgres {
    /// The newest installed server: in `PATH`, or where Debian has it.
    pub fn find() -> Option<Installation> {
        Installation::find_in(std::env::var_os("PATH").as_deref())
    }

    /// Initialises and starts a server in `dir` (created if missing, and given to the server's
    /// account), with the role and the database of `options`. Ready when it returns.
    pub fn start(
        installation: &Installation,
        dir: &Path,
        options: &ScratchOptions,
    ) -> Result<Self, RuntimeError> {
        check_name("role", &options.user)?;
        check_name("database", &options.database)?;
        let account = Account::for_servers();
        let data_dir = dir.join("data");
        if data_dir.exists() {
            return Err(RuntimeError::InUse { path: data_dir });
        }
        fs::create_dir_all(dir).map_err(|source| io_error("create", dir, source))?;
        account.own(dir)?;
        let closed =
            account.closed_way_to(dir).map_err(|source| io_error("look at", dir, source))?;
        if let Some(path) = closed {
            return Err(RuntimeError::Unreachable { account: account.name, path });
        }

        let superuser_password = random_password();
        initialise(installation, &account, dir, &data_dir, &superuser_password)?;
        let (socket_dir, own_socket_dir) = socket_dir(dir, &account)?;

        let mut tries = 0;
        let (child, port) = loop {
            tries += 1;
            let port = if options.tcp { free_port(dir)? } else { 5432 };
            configure(&data_dir, &socket_dir, port, options)?;
            match run(installation, &account, dir, &data_dir, options.on_spawn.as_ref()) {
                Ok(child) => break (child, port),
                Err(_) if options.tcp && tries < PORT_TRIES => {}
                Err(error) => return Err(error),
            }
        };
        let server = Self {
            installation: installation.clone(),
            data_dir,
            socket_dir,
            own_socket_dir,
            port,
            tcp: options.tcp,
            user: options.user.clone(),
            database: options.database.clone(),
            password: options.password.clone().unwrap_or_else(random_password),
            superuser_password,
            child,
        };
        server.create_role()?;
        Ok(server)
    }

    /// The application's connection, without its password.
    pub fn url(&self) -> String {
        if self.tcp {
            format!("postgres://{}@127.0.0.1:{}/{}", self.user, self.port, self.database)
        } else {
            self.socket_url(&self.user, &self.database)
        }
    }

    /// The application role's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The superuser's connection to the application's database, with its password. For fixtures
    /// and comparisons only: what is tested must do with the application's role.
    pub fn superuser_url(&self) -> String {
        let login = format!("postgres:{}", self.superuser_password);
        self.socket_url(&login, &self.database)
    }

    /// The directory of the server's Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The port: of 127.0.0.1 if asked for, and part of the socket's name in any case.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The programs it was started from.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The client that belongs to the server.
    pub fn psql(&self) -> PathBuf {
        self.installation.bin_dir.join("psql")
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        self.data_dir.with_file_name("postgresql.log")
    }

    /// The first process of the server, leader of its process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops the server: sessions are ended, everything is written down.
    pub fn stop(mut self) -> Result<(), RuntimeError> {
        self.shut_down();
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(status) => Err(RuntimeError::Tool {
                program: "postgres",
                output: format!(
                    "{}\n{}",
                    status.map_or_else(|| "it did not end".to_owned(), |s| s.to_string()),
                    log_tail(&self.log_path())
                ),
            }),
            Err(source) => Err(io_error("wait for the server in", &self.data_dir, source)),
        }
    }

    fn socket_url(&self, login: &str, database: &str) -> String {
        let host = percent_encoded(&self.socket_dir);
        format!("postgres://{login}@/{database}?host={host}&port={}", self.port)
    }

    fn create_role(&self) -> Result<(), RuntimeError> {
        let sql = |doing| move |source| RuntimeError::Sql { doing, source };
        let login = format!("postgres:{}", self.superuser_password);
        let mut client = Client::connect(&self.socket_url(&login, "postgres"), NoTls)
            .map_err(sql("connect to the scratch server"))?;
        let literal = self.password.replace('\'', "''");
        client
            .batch_execute(&format!(
                "SET standard_conforming_strings = on; \
                 CREATE ROLE \"{}\" LOGIN CREATEDB PASSWORD '{literal}'",
                self.user
            ))
            .map_err(sql("create the application's role"))?;
        client
            .batch_execute(&format!(
                "CREATE DATABASE \"{}\" OWNER \"{}\"",
                self.database, self.user
            ))
            .map_err(sql("create the application's database"))
    }

    /// Fast shutdown, then harder ones, each given its time.
    fn shut_down(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        let Some(pid) = Pid::from_raw(pid) else { return };
        for signal in [Signal::INT, Signal::QUIT] {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            let _ = kill_process(pid, signal);
            let _ = wait(&mut self.child, Instant::now() + PATIENCE / 2);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = self.child.wait();
        }
        if self.own_socket_dir {
            let _ = fs::remove_dir_all(&self.socket_dir);
        }
    }
}

impl Drop for ScratchPostgres {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Waits for the end of `child`, at most until `deadline`.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn tool(program: &Path, account: &Account, dir: &Path) -> Command {
    let mut command = Command::new(program);
    // The machine's own PG* variables and language must not reach a private server.
    command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").env("HOME", dir);
    command.current_dir(dir).stdin(Stdio::null());
    account.apply(&mut command);
    command
}

fn initialise(
    installation: &Installation,
    account: &Account,
    dir: &Path,
    data_dir: &Path,
    superuser_password: &str,
) -> Result<(), RuntimeError> {
    let password_file = dir.join("superuser.password");
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&password_file)
        .map_err(|source| io_error("create", &password_file, source))?;
    writeln!(file, "{superuser_password}")
        .map_err(|source| io_error("write", &password_file, source))?;
    account.own(&password_file)?;
    let output = tool(&installation.bin_dir.join("initdb"), account, dir)
        .args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
        .args(["--no-sync", "--no-instructions"])
        .arg(format!("--pwfile={}", password_file.display()))
        .arg(format!("--pgdata={}", data_dir.display()))
        .output();
    let removed = fs::remove_file(&password_file);
    let output = output.map_err(|source| io_error("run initdb in", dir, source))?;
    removed.map_err(|source| io_error("remove", &password_file, source))?;
    if output.status.success() {
        return Ok(());
    }
    Err(RuntimeError::Tool {
        program: "initdb",
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// A directory for the socket whose path is short enough: in `dir`, else in the system's own.
fn socket_dir(dir: &Path, account: &Account) -> Result<(PathBuf, bool), RuntimeError> {
    let inside = dir.join("socket");
    let name_length = "/.s.PGSQL.65535.lock".len();
    let fits = inside.as_os_str().len() + name_length <= SOCKET_PATH;
    let path = if fits {
        inside
    } else {
        PathBuf::from(format!("/tmp/stillpoint-{}", &random_password()[..12]))
    };
    fs::DirBuilder::new()
        .mode(0o755)
        .create(&path)
        .map_err(|source| io_error("create", &path, source))?;
    account.own(&path)?;
    Ok((path, !fits))
}

#[allow(clippy::disallowed_methods, reason = "a scratch server is made anew, never recovered")]
fn configure(
    data_dir: &Path,
    socket_dir: &Path,
    port: u16,
    options: &ScratchOptions,
) -> Result<(), RuntimeError> {
    let mut lines = format!(
        "# Written anew at each start; the last value of a setting counts.\n\
         listen_addresses = '{}'\nport = {port}\nunix_socket_directories = {}\n\
         logging_collector = off\nlog_line_prefix = '%m [%p] %u@%d '\n\
         shared_buffers = 32MB\n",
        if options.tcp { "127.0.0.1" } else { "" },
        quoted(&socket_dir.to_string_lossy()),
    );
    for (name, value) in &options.settings {
        let _ = writeln!(lines, "{name} = {}", quoted(value));
    }
    let included = data_dir.join("postgresql.auto.conf");
    fs::write(&included, lines).map_err(|source| io_error("write", &included, source))
}

/// A value of `postgresql.conf`.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

fn run(
    installation: &Installation,
    account: &Account,
    dir: &Path,
    data_dir: &Path,
    on_spawn: Option<&OnSpawn>,
) -> Result<Child, RuntimeError> {
    let log_path = dir.join("postgresql.log");
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|source| io_error("open", &log_path, source))?;
    let log_too = log.try_clone().map_err(|source| io_error("open", &log_path, source))?;
    // The process becomes the server only when it is told to: should this one be killed before
    // anybody knows of it, there is no server that nobody ends.
    let mut child = tool(Path::new("/bin/sh"), account, dir)
        .args(["-c", "read -r go && exec \"$0\" -D \"$1\" </dev/null"])
        .arg(installation.bin_dir.join("postgres"))
        .arg(data_dir)
        .stdin(Stdio::piped())
        .stdout(log)
        .stderr(log_too)
        .process_group(0)
        .spawn()
        .map_err(|source| io_error("run postgres in", dir, source))?;
    let told = on_spawn.map_or(Ok(()), |OnSpawn(tell)| tell(child.id()));
    let gone =
        told.and_then(|()| child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(b"go\n")));
    if let Err(source) = gone {
        let _ = child.kill();
        let _ = child.wait();
        return Err(io_error("tell of the postgres in", dir, source));
    }

    // The server itself says when it is ready, on the last line of its pid file; this is what
    // pg_ctl waits for, too.
    let pid_path = data_dir.join("postmaster.pid");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = child.try_wait().map_err(|source| io_error("wait for", dir, source))?;
        let status = fs::read_to_string(&pid_path).unwrap_or_default();
        if ended.is_none() && status.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
            return Ok(child);
        }
        if ended.is_some() || Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(RuntimeError::DidNotStart { log: log_tail(&log_path) });
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn log_tail(path: &Path) -> String {
    let log = fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

fn free_port(dir: &Path) -> Result<u16, RuntimeError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| io_error("find a free port for", dir, source))
}

fn check_name(what: &'static str, given: &str) -> Result<(), RuntimeError> {
    let first = given.bytes().next();
    let valid = given.len() <= 63
        && first.is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && given.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && given != "postgres";
    if valid {
        return Ok(());
    }
    Err(RuntimeError::Option {
        what,
        given: given.to_owned(),
        rule: "lower-case letters, digits and `_`, beginning with a letter, and not `postgres`",
    })
}

fn random_password() -> String {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    format!("{:032x}", u128::from_be_bytes(bytes))
}

/// A path as part of a URL's query.
fn percent_encoded(path: &Path) -> String {
    let text = path.to_string_lossy();
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> RuntimeError {
    RuntimeError::Io { doing, path: path.to_owned(), source }
}
