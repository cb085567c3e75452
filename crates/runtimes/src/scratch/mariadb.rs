//! A scratch MariaDB: initialised, started, with an application's account that has what backup and
//! restore need and no more.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::account::Account;
use super::place::{check_name, find, prepare, secret_file};
use super::process::{Launch, OnSpawn, ServerProcess, io_error, random_password, tool};
use super::socket::SocketDir;
use crate::RuntimeError;

/// What a scratch MariaDB should be like.
#[derive(Debug, Clone)]
pub struct MariadbOptions {
    /// The application's account, for connections by the socket.
    pub user: String,
    /// Its database.
    pub database: String,
    /// Its password; made up if not given.
    pub password: Option<String>,
    /// More arguments of the server.
    pub arguments: Vec<String>,
    /// Told of the server's process as soon as there is one.
    pub on_spawn: Option<OnSpawn>,
}

impl Default for MariadbOptions {
    fn default() -> Self {
        Self {
            user: "shop".to_owned(),
            database: "shop".to_owned(),
            password: None,
            arguments: Vec::new(),
            on_spawn: None,
        }
    }
}

/// The programs of an installed MariaDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MariadbInstallation {
    server: PathBuf,
    install_db: PathBuf,
    /// The client that belongs to the server.
    pub client: PathBuf,
}

/// A running scratch MariaDB. Dropping it stops it.
#[derive(Debug)]
pub struct ScratchMariadb {
    process: ServerProcess,
    // After the process: removed once the server has ended.
    socket: SocketDir,
    user: String,
    database: String,
    password: String,
    root_password: String,
    client: PathBuf,
}

impl ScratchMariadb {
    /// The installed server, if there is a whole one.
    pub fn find() -> Option<MariadbInstallation> {
        let path = std::env::var_os("PATH");
        let find = |name| find(name, path.as_deref());
        Some(MariadbInstallation {
            server: find("mariadbd")?,
            install_db: find("mariadb-install-db")?,
            client: find("mariadb")?,
        })
    }

    /// Initialises and starts a server in `dir` (created if missing, and given to the server's
    /// account), with the account and the database of `options`. Ready when it returns.
    pub fn start(
        installation: &MariadbInstallation,
        dir: &Path,
        options: &MariadbOptions,
    ) -> Result<Self, RuntimeError> {
        check_name("account", &options.user)?;
        check_name("database", &options.database)?;
        let account = Account::for_servers();
        let data_dir = prepare(dir, &account)?;
        // Its own: a server that starts takes another's temporary tables for leftovers. The one that
        // initialises has some as well.
        let scratch_tables = dir.join("tmp");
        fs::create_dir(&scratch_tables)
            .map_err(|source| io_error("create", &scratch_tables, source))?;
        account.own(&scratch_tables)?;
        let scratch_tables = format!("--tmpdir={}", scratch_tables.display());
        let initialised = tool(&installation.install_db, &account, dir)
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", data_dir.display()))
            .arg(&scratch_tables)
            .output()
            .map_err(|source| io_error("run mariadb-install-db in", dir, source))?;
        if !initialised.status.success() {
            return Err(RuntimeError::Tool {
                program: "mariadb-install-db",
                output: String::from_utf8_lossy(&initialised.stderr).trim().to_owned(),
            });
        }
        let socket = SocketDir::make(dir, &account, "mariadb.sock")?;
        let password = options.password.clone().unwrap_or_else(random_password);
        let root_password = random_password();
        // Run before anybody can connect: there is no moment at which root has no password.
        let first = dir.join("first.sql");
        secret_file(&first, &first_statements(options, &password, &root_password), &account)?;
        let path = socket.path.join("mariadb.sock");
        let mut arguments = vec![
            "--no-defaults".to_owned(),
            format!("--datadir={}", data_dir.display()),
            format!("--socket={}", path.display()),
            format!("--pid-file={}", dir.join("mariadb.pid").display()),
            format!("--init-file={}", first.display()),
            scratch_tables,
            "--skip-networking".to_owned(),
            "--innodb-buffer-pool-size=32M".to_owned(),
            "--character-set-server=utf8mb4".to_owned(),
        ];
        arguments.extend(options.arguments.clone());
        let launch = Launch {
            name: "MariaDB",
            program: &installation.server,
            arguments,
            account: &account,
            dir,
            log: dir.join("mariadb.log"),
            stop: &[Signal::TERM],
            on_spawn: options.on_spawn.as_ref(),
        };
        let process = ServerProcess::start(&launch, || greets(&path))?;
        fs::remove_file(&first).map_err(|source| io_error("remove", &first, source))?;
        Ok(Self {
            process,
            socket,
            user: options.user.clone(),
            database: options.database.clone(),
            password,
            root_password,
            client: installation.client.clone(),
        })
    }

    /// The application's connection, without its password.
    pub fn url(&self) -> String {
        let socket = self.socket();
        format!("mysql://{}@localhost/{}?socket={}", self.user, self.database, socket.display())
    }

    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.path.join("mariadb.sock")
    }

    /// The application's account.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The application's database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The application's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Root's password. For fixtures and comparisons only: what is tested must do with the
    /// application's account.
    pub fn root_password(&self) -> &str {
        &self.root_password
    }

    /// The client that belongs to the server.
    pub fn client(&self) -> &Path {
        &self.client
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops the server: everything is written down.
    pub fn stop(self) -> Result<(), RuntimeError> {
        self.process.stop()
    }
}

/// Whether the server greets whoever connects: it listens before it has run its first statements,
/// and speaks after them.
fn greets(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let patience = stream.set_read_timeout(Some(Duration::from_secs(1)));
    patience.is_ok() && stream.read(&mut [0; 1]).is_ok_and(|read| read == 1)
}

/// One statement a line. The grants are those that `docs/services.md` asks for.
fn first_statements(options: &MariadbOptions, password: &str, root_password: &str) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let (user, database) = (&options.user, &options.database);
    [
        format!("ALTER USER root@localhost IDENTIFIED BY '{}';", quoted(root_password)),
        format!("CREATE DATABASE `{database}`;"),
        format!("CREATE USER {user}@localhost IDENTIFIED BY '{}';", quoted(password)),
        format!("GRANT ALL ON `{}`.* TO {user}@localhost;", database.replace('_', "\\_")),
        format!("GRANT RELOAD, PROCESS ON *.* TO {user}@localhost;"),
        format!("GRANT SELECT ON mysql.proc TO {user}@localhost;"),
        format!("GRANT ALL ON `stillpoint\\_%`.* TO {user}@localhost;"),
    ]
    .join("\n")
}
