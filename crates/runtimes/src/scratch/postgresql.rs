//! A scratch PostgreSQL: initialise, start, set up, stop.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use postgres::{Client, NoTls};
use rustix::process::Signal;

use super::Installation;
use super::account::Account;
use super::place::{check_name, prepare, secret_file};
use super::process::{Launch, OnSpawn, ServerProcess, io_error, random_password, tool};
use super::socket::SocketDir;
use crate::RuntimeError;

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
    port: u16,
    tcp: bool,
    user: String,
    database: String,
    password: String,
    superuser_password: String,
    process: ServerProcess,
    // After the process: removed once the server has ended.
    socket: SocketDir,
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
        let data_dir = prepare(dir, &account)?;
        let superuser_password = random_password();
        initialise(installation, &account, dir, &data_dir, &superuser_password)?;
        let socket = SocketDir::make(dir, &account, ".s.PGSQL.65535.lock")?;

        let mut tries = 0;
        let (process, port) = loop {
            tries += 1;
            let port = if options.tcp { free_port(dir)? } else { 5432 };
            configure(&data_dir, &socket.path, port, options)?;
            match run(installation, &account, dir, &data_dir, options.on_spawn.as_ref()) {
                Ok(process) => break (process, port),
                Err(_) if options.tcp && tries < PORT_TRIES => {}
                Err(error) => return Err(error),
            }
        };
        let server = Self {
            installation: installation.clone(),
            data_dir,
            port,
            tcp: options.tcp,
            user: options.user.clone(),
            database: options.database.clone(),
            password: options.password.clone().unwrap_or_else(random_password),
            superuser_password,
            process,
            socket,
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
        &self.socket.path
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
        self.process.pid()
    }

    /// Stops the server: sessions are ended, everything is written down.
    pub fn stop(self) -> Result<(), RuntimeError> {
        self.process.stop()
    }

    fn socket_url(&self, login: &str, database: &str) -> String {
        let host = percent_encoded(&self.socket.path);
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
}

fn initialise(
    installation: &Installation,
    account: &Account,
    dir: &Path,
    data_dir: &Path,
    superuser_password: &str,
) -> Result<(), RuntimeError> {
    let password_file = dir.join("superuser.password");
    secret_file(&password_file, superuser_password, account)?;
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
) -> Result<ServerProcess, RuntimeError> {
    let launch = Launch {
        name: "PostgreSQL",
        program: &installation.bin_dir.join("postgres"),
        arguments: vec!["-D".to_owned(), data_dir.display().to_string()],
        account,
        dir,
        log: dir.join("postgresql.log"),
        // Fast shutdown, then an immediate one.
        stop: &[Signal::INT, Signal::QUIT],
        on_spawn,
    };
    // The server itself says when it is ready, on the last line of its pid file; this is what
    // pg_ctl waits for, too.
    let pid_path = data_dir.join("postmaster.pid");
    ServerProcess::start(&launch, || {
        let status = fs::read_to_string(&pid_path).unwrap_or_default();
        status.lines().nth(7).is_some_and(|line| line.trim() == "ready")
    })
}

fn free_port(dir: &Path) -> Result<u16, RuntimeError> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| io_error("find a free port for", dir, source))
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
