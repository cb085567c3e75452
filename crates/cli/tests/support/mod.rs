//! A small environment for whole-binary tests: an application behind a gateway, a watchdog, an
//! SQLite database and a mount, each a real process or a real file.

#![allow(dead_code, reason = "every test binary uses another part of it")]
#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

pub(crate) mod service;
pub(crate) mod steps;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The binary under test.
pub(crate) const STILLPOINT: &str = env!("CARGO_BIN_EXE_stillpoint");

/// The application: answers everything; `/hang` only once it is let go.
pub(crate) struct Application {
    pub address: SocketAddr,
    gate: Arc<(Mutex<bool>, Condvar)>,
    /// Told whenever a request for `/hang` has arrived.
    hanging: Arc<(Mutex<u64>, Condvar)>,
}

impl Application {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let hanging = Arc::new((Mutex::new(0), Condvar::new()));
        let (inner_gate, inner_hanging) = (Arc::clone(&gate), Arc::clone(&hanging));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (gate, hanging) = (Arc::clone(&inner_gate), Arc::clone(&inner_hanging));
                std::thread::spawn(move || serve(stream, &gate, &hanging));
            }
        });
        Self { address, gate, hanging }
    }

    /// Waits until `count` requests for `/hang` have arrived in all.
    pub(crate) fn await_hanging(&self, count: u64) {
        let (arrived, changed) = &*self.hanging;
        let arrived = arrived.lock().unwrap();
        drop(changed.wait_while(arrived, |arrived| *arrived < count).unwrap());
    }

    /// Lets every request for `/hang` end.
    pub(crate) fn let_go(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }
}

fn serve(
    mut stream: TcpStream,
    gate: &(Mutex<bool>, Condvar),
    hanging: &(Mutex<u64>, Condvar),
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut request = String::new();
        reader.read_line(&mut request).ok().filter(|count| *count > 0)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
        }
        if request.contains("/hang") {
            *hanging.0.lock().unwrap() += 1;
            hanging.1.notify_all();
            drop(gate.1.wait_while(gate.0.lock().unwrap(), |open| !*open).unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()?;
    }
}

/// A long-running stillpoint process that prints `ready ...`. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub ready: String,
}

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.starts_with("ready "), "it said `{ready}`");
        Self { child, ready: ready.trim()["ready ".len()..].to_owned() }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The same, with what it says on a piped standard error.
    pub(crate) fn start_heard(
        command: &mut Command,
    ) -> (Self, std::io::Lines<BufReader<std::process::ChildStderr>>) {
        let mut server = Self::start(command.stderr(Stdio::piped()));
        let said = BufReader::new(server.child.stderr.take().unwrap()).lines();
        (server, said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The whole environment, below one temporary directory.
pub(crate) struct Environment {
    pub application: Application,
    pub directory: tempfile::TempDir,
    gateway: Option<Server>,
    watchdog: Option<Server>,
    pub config: String,
    /// What `password_env` names, for `up`.
    pub passwords: Vec<(String, String)>,
}

impl Environment {
    /// An SQLite database in WAL mode, a mount with a few files, a gateway, a watchdog.
    pub(crate) fn new() -> Self {
        Self::with("", "")
    }

    /// The same with more lines for the gateway and for the services.
    pub(crate) fn with(gateway: &str, services: &str) -> Self {
        let mut environment = Self::unstarted(gateway, services);
        environment.watchdog =
            Some(Server::start(environment.stillpoint(&["watchdog"]).stderr(Stdio::inherit())));
        environment.start_gateway();
        environment
    }

    /// Only the files.
    pub(crate) fn unstarted(gateway: &str, services: &str) -> Self {
        let application = Application::start();
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        fs::create_dir_all(top.join("uploads/deep")).unwrap();
        fs::write(top.join("uploads/a.txt"), "first").unwrap();
        fs::write(top.join("uploads/deep/b.bin"), vec![7_u8; 100_000]).unwrap();
        let database = rusqlite::Connection::open(top.join("app.db")).unwrap();
        database
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);
                 INSERT INTO t (v) VALUES ('one'), ('two');",
            )
            .unwrap();
        let config = format!(
            "project: test\n\
             environments:\n\
             \x20 main:\n\
             \x20   type: production\n\
             \x20   gateways:\n\
             \x20     web: {{ listen: \"127.0.0.1:0\", upstream: \"http://{}\"{gateway} }}\n\
             \x20   services:\n\
             \x20     local: {{ type: sqlite, path: ./app.db }}\n{services}\
             \x20   mounts:\n\
             \x20     uploads: {{ path: ./uploads }}\n\
             regions:\n\
             \x20 home:\n\
             \x20   locations:\n\
             \x20     a: {{ url: \"file://{}\" }}\n",
            application.address,
            top.join("store").display()
        );
        let (gateway, watchdog, passwords) = (None, None, Vec::new());
        let environment = Self { application, directory, gateway, watchdog, config, passwords };
        environment.configure(&environment.config);
        environment
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.path("stillpoint.yaml"), text).unwrap();
    }

    pub(crate) fn start_gateway(&mut self) {
        let mut command = self.stillpoint(&["gateway", "web"]);
        self.gateway = Some(Server::start(command.stderr(Stdio::inherit())));
    }

    /// Kills the gateway.
    pub(crate) fn stop_gateway(&mut self) {
        self.gateway = None;
    }

    /// The gateway's address.
    pub(crate) fn gateway(&self) -> SocketAddr {
        let ready = &self.gateway.as_ref().expect("the gateway was started").ready;
        ready.rsplit('/').next().unwrap().parse().unwrap()
    }

    /// The gateway's own account of itself.
    pub(crate) fn status(&self) -> stillpoint_gateway::control::Status {
        let socket = self.path("data/run/test.main.web.sock");
        stillpoint_gateway::control::Control::connect(&socket).unwrap().status().unwrap()
    }

    /// A stillpoint command in this environment, with nothing of the surroundings.
    pub(crate) fn stillpoint(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(STILLPOINT), arguments)
    }

    pub(crate) fn command_of(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.args(arguments).arg("--local");
        command.arg("--config").arg(self.path("stillpoint.yaml"));
        command.arg("--data-dir").arg(self.path("data"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.current_dir(self.directory.path());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.stillpoint(arguments).output().unwrap()
    }

    /// Runs a command that has to succeed, and gives its standard output.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// How many backups there are.
    pub(crate) fn backups(&self) -> usize {
        if !self.path("store/test/production/config").exists() {
            return 0;
        }
        let listed = self.succeed(&["backup:list", "--format", "plain"]);
        listed.lines().count()
    }

    /// Stock restic on the environment's repository.
    pub(crate) fn restic(&self, arguments: &[&str]) -> Output {
        Command::new("restic")
            .args(["--no-cache", "-r"])
            .arg(self.path("store/test/production"))
            .arg("--password-file")
            .arg(self.path("data/keys/test-production.password"))
            .args(arguments)
            .output()
            .expect("restic is installed: apt-get install restic")
    }

    /// `restic check --read-data` finds nothing wrong, and no lock in its way.
    pub(crate) fn assert_restic_is_content(&self) {
        let output = self.restic(&["check", "--read-data"]);
        assert!(output.status.success(), "restic check: {}", stderr(&output));
    }
}

/// What a command said to people.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Sends one GET and gives the status line, or the error.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or("no answer").to_owned())
}

/// Customers that go on and on; whatever is not answered with 200 is kept.
pub(crate) struct Customers {
    stop: Arc<AtomicBool>,
    pub answered: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Customers {
    pub(crate) fn start(address: SocketAddr, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let threads = (0..count)
            .map(|_| {
                let (stop, answered, failures) =
                    (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&failures));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        match get(address, "/") {
                            Ok(status) if status.contains(" 200 ") => {
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(status) => failures.lock().unwrap().push(status),
                            Err(error) => failures.lock().unwrap().push(error.to_string()),
                        }
                    }
                })
            })
            .collect();
        Self { stop, answered, failures, threads }
    }

    /// Waits until this many more have been answered: requests flow.
    pub(crate) fn await_answers(&self, more: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        // No hold lasts longer than `max_hold`, which is 30 s where nobody says otherwise.
        let until = Instant::now() + Duration::from_secs(30);
        while self.answered.load(Ordering::Relaxed) < goal {
            assert!(Instant::now() < until, "requests do not flow");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends them, and says what failed.
    pub(crate) fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.failures.lock().unwrap())
    }

    /// Ends them; none may have failed.
    pub(crate) fn end_without_failures(self) {
        let failures = self.end();
        assert!(failures.is_empty(), "{} requests failed: {:?}", failures.len(), &failures[..1]);
    }
}

/// A stillpoint process whose progress is followed line by line.
pub(crate) struct Followed {
    pub child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
    pub said: Vec<String>,
}

impl Followed {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, said: Vec::new() }
    }

    /// Reads until it has said this line.
    pub(crate) fn await_line(&mut self, wanted: &str) {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            let found = line == wanted;
            self.said.push(line);
            if found {
                return;
            }
        }
        panic!("it never said `{wanted}`, only {:?}", self.said);
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end: status, standard output, all it said.
    pub(crate) fn end(mut self) -> (std::process::ExitStatus, String, String) {
        let mut printed = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        for line in self.lines.by_ref() {
            self.said.push(line.unwrap());
        }
        (self.child.wait().unwrap(), printed, self.said.join("\n"))
    }
}
