//! A scratch Redis (or Valkey), with an application's account that has what backup and restore need
//! and no more.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::account::Account;
use super::place::{check_name, find, prepare, secret_file};
use super::process::{Launch, OnSpawn, ServerProcess, io_error, random_password};
use super::socket::SocketDir;
use crate::RuntimeError;

/// What a scratch Redis should be like.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// The application's account.
    pub user: String,
    /// Its password; made up if not given.
    pub password: Option<String>,
    /// More lines of its configuration.
    pub lines: Vec<String>,
    /// Told of the server's process as soon as there is one.
    pub on_spawn: Option<OnSpawn>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self { user: "shop".to_owned(), password: None, lines: Vec::new(), on_spawn: None }
    }
}

/// The programs of an installed Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisInstallation {
    server: PathBuf,
    /// The client that belongs to the server.
    pub client: PathBuf,
}

/// A running scratch Redis. Dropping it stops it.
#[derive(Debug)]
pub struct ScratchRedis {
    process: ServerProcess,
    // After the process: removed once the server has ended.
    socket: SocketDir,
    user: String,
    password: String,
    admin_password: String,
    client: PathBuf,
}

impl ScratchRedis {
    /// The installed server, if there is one.
    pub fn find() -> Option<RedisInstallation> {
        let path = std::env::var_os("PATH");
        let pair = |server, client| {
            let find = |name| find(name, path.as_deref());
            Some(RedisInstallation { server: find(server)?, client: find(client)? })
        };
        pair("redis-server", "redis-cli").or_else(|| pair("valkey-server", "valkey-cli"))
    }

    /// Starts a server in `dir` (created if missing, and given to the server's account), with the
    /// account of `options`. Ready when it returns.
    pub fn start(
        installation: &RedisInstallation,
        dir: &Path,
        options: &RedisOptions,
    ) -> Result<Self, RuntimeError> {
        check_name("account", &options.user)?;
        let account = Account::for_servers();
        let data_dir = prepare(dir, &account)?;
        std::fs::create_dir(&data_dir).map_err(|source| io_error("create", &data_dir, source))?;
        account.own(&data_dir)?;
        let socket = SocketDir::make(dir, &account, "redis.sock")?;
        let password = options.password.clone().unwrap_or_else(random_password);
        let admin_password = random_password();
        let path = socket.path.join("redis.sock");
        let config = dir.join("redis.conf");
        let mut lines = vec![
            "port 0".to_owned(),
            format!("unixsocket {}", path.display()),
            "unixsocketperm 777".to_owned(),
            format!("dir {}", data_dir.display()),
            "appendonly yes".to_owned(),
            "daemonize no".to_owned(),
            format!("user default on >{admin_password} ~* &* +@all"),
            format!("user {} on >{password} ~* &* {RIGHTS}", options.user),
        ];
        lines.extend(options.lines.clone());
        secret_file(&config, &lines.join("\n"), &account)?;
        let launch = Launch {
            name: "Redis",
            program: &installation.server,
            arguments: vec![config.display().to_string()],
            account: &account,
            dir,
            log: dir.join("redis.log"),
            stop: &[Signal::TERM],
            on_spawn: options.on_spawn.as_ref(),
        };
        let process = ServerProcess::start(&launch, || UnixStream::connect(&path).is_ok())?;
        let user = options.user.clone();
        let client = installation.client.clone();
        Ok(Self { process, socket, user, password, admin_password, client })
    }

    /// The application's connection, without its password.
    pub fn url(&self) -> String {
        format!("redis+unix://{}@{}", self.user, self.socket().display())
    }

    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.path.join("redis.sock")
    }

    /// The application's account.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The application's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The password of the account `default`, which may do everything. For fixtures and comparisons
    /// only: what is tested must do with the application's account.
    pub fn admin_password(&self) -> &str {
        &self.admin_password
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

/// What an application needs, and what `docs/services.md` asks for on top of it.
const RIGHTS: &str = "+@all -@admin -@dangerous +info +bgsave +lastsave +psync +replconf \
                      +config|get +swapdb +flushdb +restore +keys +sort +acl|whoami +acl|dryrun";
