//! The demo's environment and its processes: built, opened, struck.
//!
//! Every process ends with this one: they read standard input and end when it does. The database
//! servers (see `servers`) do not, so the watchdog is there before them.

use super::compare::Restored;
use super::servers::Servers;
use super::shop::{Past, ShopOptions, Target};
use super::{Cast, PASSWORD_VARIABLE, load, shop};
use crate::failure::Failure;
use crate::terminal::Terminal;
use jiff::Timestamp;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use stillpoint_capture::watchdog::Guard;
use stillpoint_model::progress::Monitor;

/// The environment.
pub(super) struct Stage {
    top: PathBuf,
    keep: bool,
    program: PathBuf,
    // Declared before what they depend on: dropped, and so ended, first.
    gateway: Option<Process>,
    shop: Option<Process>,
    gateway_address: Option<SocketAddr>,
    shop_address: Option<SocketAddr>,
    watchdog: Option<Arc<Guard>>,
    options: ShopOptions,
    past: Past,
    servers: Option<Servers>,
    /// Of all servers.
    password: Option<String>,
}

/// A backup that was taken.
pub(super) struct Taken {
    /// When it was asked for.
    pub(super) begun: Timestamp,
    /// When it was done.
    pub(super) ended: Timestamp,
    /// As `backup:create` printed it.
    pub(super) object: serde_json::Value,
}

/// A child that ends when its standard input does.
struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Starts it, and waits for its line `ready ADDRESS`.
    fn start(name: &'static str, command: &mut Command) -> Result<(Self, SocketAddr), Failure> {
        let fail = || Failure::new(format!("start {name}"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| fail().because(&e))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(|e| fail().because(&e))?;
        }
        let process = Self { name, child };
        let address = line.trim().rsplit([' ', '/']).find_map(|word| word.parse().ok());
        match address {
            Some(address) => Ok((process, address)),
            None => Err(fail().hint(format!("it said `{}` instead of `ready`", line.trim()))),
        }
    }

    /// Ends it in good order.
    fn end(mut self) -> Result<(), Failure> {
        drop(self.child.stdin.take());
        let status = self.child.wait();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::new(format!("{} ended with {status}", self.name))),
            Err(e) => Err(Failure::new(format!("wait for {}", self.name)).because(&e)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Already ended, or ends now that its standard input has.
        drop(self.child.wait());
    }
}

impl Stage {
    /// Builds the environment: directories, servers, the shop's past, the configuration.
    pub(super) fn build(
        keep: Option<&Path>,
        cast: &Cast,
        past: Past,
        terminal: &Terminal,
    ) -> Result<Self, Failure> {
        terminal.begin("building a shop", None);
        let top = top(keep)?;
        let program =
            std::env::current_exe().map_err(|e| Failure::new("find this program").because(&e))?;
        let make = |name: &str| -> Result<PathBuf, Failure> {
            let path = top.join(name);
            fs::create_dir_all(&path)
                .map_err(|e| Failure::new(format!("create {}", path.display())).because(&e))?;
            Ok(path)
        };
        let shop_directory = make("shop")?;
        make("backups")?;
        let options = ShopOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            sqlite: cast.sqlite.then(|| shop_directory.join("shop.db")),
            postgres: None,
            mariadb: None,
            redis: None,
            uploads: make("shop/uploads")?,
        };
        let mut stage = Self {
            top,
            keep: keep.is_some(),
            program,
            gateway: None,
            shop: None,
            gateway_address: None,
            shop_address: None,
            watchdog: None,
            options,
            past,
            servers: None,
            password: Servers::password(cast),
        };
        // It is told of each server as soon as there is one, and may need their password.
        let guard = stage.start_watchdog()?;
        let servers = Servers::start(cast, stage.password.as_deref(), &guard, terminal)?;
        servers.fill(&mut stage.options);
        stage.servers = Some(servers);
        terminal.begin("filling the shop", None);
        shop::seed(&stage.options, past)
            .map_err(|e| Failure::new("fill the shop").because(e.as_ref()))?;
        Ok(stage)
    }

    fn start_watchdog(&mut self) -> Result<Arc<Guard>, Failure> {
        let fail = || Failure::new("start the watchdog");
        let mut watchdog = self
            .stillpoint(&["watchdog", "--until-idle"])
            // Not of this group: what ends the demo must not end the watchdog.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| fail().because(&e))?;
        let mut line = String::new();
        if let Some(out) = watchdog.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(|e| fail().because(&e))?;
        }
        let socket = PathBuf::from(line.trim().trim_start_matches("ready "));
        let guard =
            Guard::connect(&socket, Duration::from_secs(30)).map_err(|e| fail().because(&e))?;
        let guard = Arc::new(guard);
        self.watchdog = Some(Arc::clone(&guard));
        Ok(guard)
    }

    /// This program, with the demo's configuration and data directory.
    fn stillpoint(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command.arg("--config").arg(self.config());
        command.arg("--data-dir").arg(self.data());
        for variable in ["STILLPOINT_PROJECT", "STILLPOINT_ENVIRONMENT"] {
            command.env_remove(variable);
        }
        if let Some(password) = &self.password {
            command.env(PASSWORD_VARIABLE, password);
        }
        command
    }

    fn config(&self) -> PathBuf {
        self.top.join("stillpoint.yaml")
    }

    fn data(&self) -> PathBuf {
        self.top.join("data")
    }

    /// The customers' log.
    pub(super) fn load_log(&self) -> PathBuf {
        self.top.join("customers.log")
    }

    /// The repository, for stock restic.
    pub(super) fn repository(&self) -> PathBuf {
        self.top.join("backups/shop/production")
    }

    /// The repository's password.
    pub(super) fn password_file(&self) -> PathBuf {
        self.data().join("keys/shop-production.password")
    }

    /// Starts the shop, and the gateway before it.
    pub(super) fn open(&mut self, terminal: &Terminal) -> Result<(), Failure> {
        terminal.begin("opening the shop", None);
        let mut command = Command::new(&self.program);
        command.arg("demo-shop").arg("--listen").arg(self.options.listen.to_string());
        command.arg("--uploads").arg(&self.options.uploads);
        if let Some(path) = &self.options.sqlite {
            command.arg("--sqlite").arg(path);
        }
        for (argument, target) in [
            ("--postgres", &self.options.postgres),
            ("--mariadb", &self.options.mariadb),
            ("--redis", &self.options.redis),
        ] {
            if let Some(target) = target {
                command.arg(argument).arg(&target.url);
            }
        }
        if let Some(password) = &self.password {
            command.env(PASSWORD_VARIABLE, password);
        }
        let (shop, address) = Process::start("the shop", &mut command)?;
        (self.shop, self.shop_address) = (Some(shop), Some(address));
        self.write_config(address)?;
        let mut command = self.stillpoint(&["gateway", "web", "--exit-with-stdin"]);
        // Neither keys nor passwords for whoever faces the network.
        command.env_remove(PASSWORD_VARIABLE);
        let (gateway, address) = Process::start("the gateway", &mut command)?;
        (self.gateway, self.gateway_address) = (Some(gateway), Some(address));
        Ok(())
    }

    fn write_config(&self, shop: SocketAddr) -> Result<(), Failure> {
        let services = services(&self.options);
        let text = format!(
            "project: shop\n\
             environments:\n  \
               main:\n    \
                 type: production\n    \
                 gateways:\n      \
                   web: {{ listen: \"127.0.0.1:0\", upstream: \"http://{shop}\", max_held: 1000 }}\n    \
                 services:\n{services}    \
                 mounts:\n      \
                   uploads: {{ path: ./shop/uploads, exclude: [\"*.tmp\"] }}\n\
             regions:\n  \
               home:\n    \
                 locations:\n      \
                   a: {{ url: \"file://{}\" }}\n",
            self.top.join("backups").display()
        );
        let path = self.config();
        fs::File::create(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| Failure::new(format!("write {}", path.display())).because(&e))
    }

    fn gateway(&self) -> Result<SocketAddr, Failure> {
        self.gateway_address.ok_or_else(|| Failure::new("the gateway is not open"))
    }

    /// Starts the customers. They order until they are told to go; should nobody tell them, they
    /// go by themselves long after `duration`.
    pub(super) fn start_load(&self, connections: u16, duration: Duration) -> Result<Load, Failure> {
        let mut command = Command::new(&self.program);
        command.arg("demo-load").arg("--target").arg(self.gateway()?.to_string());
        command.arg("--connections").arg(connections.to_string());
        let longest = duration + Duration::from_secs(3600);
        command.arg("--seconds").arg(longest.as_secs().to_string());
        command.arg("--log").arg(self.load_log());
        Load::start(&mut command)
    }

    /// Takes a backup: a process of its own.
    pub(super) fn back_up(&self, terminal: &Terminal) -> Result<Taken, Failure> {
        let begun = Timestamp::now();
        let output = self.run(&["backup:create", "--local", "--format", "json"], terminal)?;
        let object = serde_json::from_slice(&output)
            .map_err(|e| Failure::new("read what backup:create printed").because(&e))?;
        Ok(Taken { begun, ended: Timestamp::now(), object })
    }

    /// Restores a backup, and says how long that took.
    pub(super) fn restore(&self, id: &str, terminal: &Terminal) -> Result<Duration, Failure> {
        let begun = Instant::now();
        // What is there now was destroyed on purpose: nothing of it is worth a safety backup.
        self.run(&["backup:restore", id, "--local", "--yes", "--no-safety-backup"], terminal)?;
        Ok(begun.elapsed())
    }

    fn run(&self, arguments: &[&str], terminal: &Terminal) -> Result<Vec<u8>, Failure> {
        let fail = || Failure::new(format!("stillpoint {}", arguments.join(" ")));
        let mut child = self
            .stillpoint(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| fail().because(&e))?;
        let mut said = Vec::new();
        let mut stdout = child.stdout.take();
        let reader = std::thread::spawn(move || {
            let mut printed = Vec::new();
            stdout.as_mut().map_or(Ok(0), |out| out.read_to_end(&mut printed)).map(|_| printed)
        });
        if let Some(errors) = child.stderr.take() {
            for line in BufReader::new(errors).lines() {
                let line = line.map_err(|e| fail().because(&e))?;
                terminal.say(&format!("  {line}"));
                said.push(line);
            }
        }
        let printed = reader.join().map_err(|_| fail())?.map_err(|e| fail().because(&e))?;
        let status = child.wait().map_err(|e| fail().because(&e))?;
        if status.success() {
            return Ok(printed);
        }
        let failure = Failure::new(format!("stillpoint {}: {status}", arguments[0]));
        Err(match said.iter().find(|line| line.starts_with("error: ")) {
            Some(error) => failure.hint(error.clone()),
            None => failure,
        })
    }

    /// The shop's stores.
    pub(super) fn stores(&self) -> Restored {
        let servers = self.servers.as_ref();
        Restored {
            sqlite: self.options.sqlite.clone(),
            postgres: servers.and_then(Servers::postgres_place),
            mariadb: servers.and_then(Servers::mariadb_place),
            redis: servers.and_then(Servers::redis_place),
            uploads: self.options.uploads.clone(),
            past: self.past,
        }
    }

    /// One more order through the gateway: the restored shop must go on as if nothing had been.
    pub(super) fn order_once_more(&self) -> Result<(), Failure> {
        let fail = || Failure::new("the restored shop does not take orders");
        let mut connection = TcpStream::connect(self.gateway()?).map_err(|e| fail().because(&e))?;
        let order = shop::Order::numbered(u64::from(u32::MAX));
        let body = serde_json::to_string(&order.body).map_err(|e| fail().because(&e))?;
        let request = format!(
            "POST /orders/{} HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            order.number,
            body.len()
        );
        let mut answer = String::new();
        connection
            .write_all(request.as_bytes())
            .and_then(|()| connection.read_to_string(&mut answer))
            .map_err(|e| fail().because(&e))?;
        let status = answer.lines().next().unwrap_or_default();
        if status.contains(" 201 ") { Ok(()) } else { Err(fail().hint(status.to_owned())) }
    }

    /// Ends everything, and removes what is not needed to open the repository.
    pub(super) fn strike(mut self) -> Result<(), Failure> {
        for process in [self.gateway.take(), self.shop.take()].into_iter().flatten() {
            process.end()?;
        }
        self.servers.take().map_or(Ok(()), Servers::end)?;
        if let Some(watchdog) = self.watchdog.take().and_then(Arc::into_inner) {
            watchdog.goodbye().map_err(|e| Failure::new("leave the watchdog").because(&e))?;
        }
        if !self.keep {
            let shop = self.top.join("shop");
            fs::remove_dir_all(&shop)
                .map_err(|e| Failure::new(format!("remove {}", shop.display())).because(&e))?;
        }
        Ok(())
    }
}

/// The services' lines in the configuration.
fn services(options: &ShopOptions) -> String {
    let mut lines = String::new();
    let servers = [
        ("db", "postgresql", &options.postgres),
        ("mariadb", "mariadb", &options.mariadb),
        ("redis", "redis", &options.redis),
    ];
    for (name, kind, target) in servers {
        if let Some(Target { url, .. }) = target {
            let _ = writeln!(
                lines,
                "      {name}: {{ type: {kind}, url: \"{url}\", password_env: {PASSWORD_VARIABLE} }}"
            );
        }
    }
    if options.sqlite.is_some() {
        lines += "      local: { type: sqlite, path: ./shop/shop.db }\n";
    }
    lines
}

fn top(keep: Option<&Path>) -> Result<PathBuf, Failure> {
    let fail = |path: &Path| Failure::new(format!("use the directory {}", path.display()));
    let Some(keep) = keep else {
        return tempfile::Builder::new()
            .prefix("stillpoint-demo-")
            .tempdir()
            .map(tempfile::TempDir::keep)
            .map_err(|e| fail(&std::env::temp_dir()).because(&e));
    };
    fs::create_dir_all(keep).map_err(|e| fail(keep).because(&e))?;
    let empty = fs::read_dir(keep).map_err(|e| fail(keep).because(&e))?.next().is_none();
    if !empty {
        return Err(Failure::usage(format!("{} is not empty", keep.display()))
            .hint("--keep wants a new directory: nothing in it is to be overwritten"));
    }
    std::path::absolute(keep).map_err(|e| fail(keep).because(&e))
}

/// The customers at work.
pub(super) struct Load {
    process: Process,
    lines: Receiver<String>,
    begun: Instant,
}

impl Load {
    fn start(command: &mut Command) -> Result<Self, Failure> {
        let fail = || Failure::new("start the customers");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| fail().because(&e))?;
        let out = child.stdout.take().ok_or_else(fail)?;
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || forward(out, &tell));
        let process = Process { name: "the customers", child };
        Ok(Self { process, lines, begun: Instant::now() })
    }

    /// When the first of them came.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Lets them order until then.
    pub(super) fn wait(&self, until: Instant, terminal: &Terminal) -> Result<(), Failure> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => show(&line, terminal),
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(()),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new("the customers left early"));
                }
            }
        }
    }

    /// Tells them to go, and waits until the last has its answer.
    pub(super) fn end(mut self, terminal: &Terminal) -> Result<load::Summary, Failure> {
        drop(self.process.child.stdin.take());
        let mut last = String::new();
        while let Ok(line) = self.lines.recv() {
            show(&line, terminal);
            last = line;
        }
        let status = self.process.child.wait();
        let status = status.map_err(|e| Failure::new("wait for the customers").because(&e))?;
        if !status.success() {
            return Err(Failure::new(format!("the customers ended with {status}")));
        }
        serde_json::from_str(&last).map_err(|e| Failure::new("read the customers' sum").because(&e))
    }
}

fn forward(out: ChildStdout, tell: &mpsc::Sender<String>) {
    for line in BufReader::new(out).lines() {
        let Ok(line) = line else { return };
        if tell.send(line).is_err() {
            return;
        }
    }
}

fn show(line: &str, terminal: &Terminal) {
    if let Ok(progress) = serde_json::from_str::<load::Progress>(line) {
        terminal.status(&format!("{} orders, {} failed", progress.acknowledged, progress.failed));
    }
}
