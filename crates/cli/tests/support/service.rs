//! An environment under `stillpoint up`, and the API as a client sees it.

use super::{Environment, STILLPOINT, stderr};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// A password, and the variable that `up` finds it in.
pub(crate) const PASSWORD: &str = "secret";
pub(crate) const PASSWORD_ENV: &str = "PASSWORD_OF_THE_TEST";

/// How long what is awaited may take. Only a test that fails waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until it is so.
pub(crate) fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running `up`. It ends, with all its processes, when this is dropped.
pub(crate) struct Service {
    pub environment: Environment,
    up: Child,
    said: Receiver<String>,
    pub gateway: SocketAddr,
    pub url: String,
    port: u16,
}

impl Service {
    pub(crate) fn start() -> Self {
        Self::of(Environment::unstarted("", ""))
    }

    pub(crate) fn of(environment: Environment) -> Self {
        Self::on_port(environment, stillpoint_testkit::free_port())
    }

    fn on_port(environment: Environment, port: u16) -> Self {
        let listen = format!("127.0.0.1:{port}");
        let mut command = up(&environment, &["--listen", &listen]);
        command.envs(environment.passwords.iter().map(|(name, value)| (name, value)));
        let mut up = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env(PASSWORD_ENV, PASSWORD)
            .spawn()
            .unwrap();
        let (say, said) = mpsc::channel();
        let errors = BufReader::new(up.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                say.send(line).ok();
            }
        });
        let mut ready = String::new();
        BufReader::new(up.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let url = ready.trim().strip_prefix("ready ").unwrap_or_else(|| {
            up.wait().unwrap();
            panic!("it said `{ready}`, and {:?}", said.iter().collect::<Vec<_>>())
        });
        let url = url.to_owned();
        let at = "gateway main/web at http://";
        let gateway =
            said.iter().find_map(|line| line.strip_prefix(at).map(str::to_owned)).unwrap();
        let gateway = gateway.parse().unwrap();
        Self { environment, up, said, gateway, url, port }
    }

    /// Kills `up` itself, and gives back what it leaves.
    pub(crate) fn kill_up(mut self) -> (Environment, Vec<i32>) {
        let children = self.children();
        self.up.kill().unwrap();
        self.up.wait().unwrap();
        let empty = Environment::unstarted("", "");
        (
            std::mem::replace(&mut self.environment, empty),
            children.into_iter().map(|c| c.0).collect(),
        )
    }

    /// Waits until `up` has said something with these words.
    pub(crate) fn await_words(&self, words: &str) -> String {
        self.await_words_within(words, PATIENCE)
    }

    /// The same where it may take longer.
    pub(crate) fn await_words_within(&self, words: &str, patience: Duration) -> String {
        loop {
            let line = self.said.recv_timeout(patience).expect(words);
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Each child's process id and command line.
    pub(crate) fn children(&self) -> Vec<(i32, String)> {
        children_of(i32::try_from(self.up.id()).unwrap())
    }

    /// The child that runs this command.
    pub(crate) fn child(&self, command: &str) -> i32 {
        let children = self.children();
        let found = children.iter().find(|(_, line)| line.contains(&format!(" {command} ")));
        found.unwrap_or_else(|| panic!("no {command} in {children:?}")).0
    }

    /// Kills that child, and waits until `up` has noticed.
    pub(crate) fn kill(&self, command: &str) {
        kill(self.child(command));
        self.await_words("started again");
    }

    /// A command that asks the server.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        client(&self.environment, arguments)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A command that has to succeed, and its standard output.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The same for a list or object in JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = arguments.to_vec();
        all.extend(["--format", "json"]);
        serde_json::from_str(&self.succeed(&all)).unwrap()
    }

    /// Asks until the answer is what is awaited.
    pub(crate) fn await_json(
        &self,
        arguments: &[&str],
        done: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut all = arguments.to_vec();
            all.extend(["--format", "json"]);
            let output = self.run(&all);
            let answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if done(&answer) {
                return answer;
            }
            assert!(Instant::now() < until, "{arguments:?}: {answer:#} {}", stderr(&output));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The API token of the first administrator.
    pub(crate) fn admin_token(&self) -> String {
        fs::read_to_string(self.environment.path("data/admin.token")).unwrap().trim().to_owned()
    }

    /// An access token for an API token.
    pub(crate) fn log_in(&self, api_token: &str) -> String {
        log_in(&self.url, api_token)
    }

    /// One request to the API: its status, and the JSON that came.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        access_token: Option<&str>,
        body: &str,
    ) -> (u16, serde_json::Value) {
        send(&self.url, method, path, access_token, body)
    }

    /// Begins again after `up` was killed.
    pub(crate) fn again(environment: Environment) -> Self {
        Self::of(environment)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its standard input ends: an ordered shutdown.
        drop(self.up.stdin.take());
        self.up.wait().ok();
    }
}

/// An access token for an API token.
pub(crate) fn log_in(url: &str, api_token: &str) -> String {
    let form = format!("grant_type=api_token&api_token={api_token}");
    let (status, answer) = send(url, "POST", "/oauth2/token", None, &form);
    assert_eq!(status, 200, "{answer}");
    answer["access_token"].as_str().unwrap().to_owned()
}

/// One request to the API at `url`: its status, and the JSON that came.
pub(crate) fn send(
    url: &str,
    method: &str,
    path: &str,
    access_token: Option<&str>,
    body: &str,
) -> (u16, serde_json::Value) {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("{url}{path}"))
        .header("Content-Type", "application/x-www-form-urlencoded");
    if let Some(token) = access_token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = agent.run(request.body(body.to_owned()).unwrap()).unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    if response.status() != 204 {
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert_eq!(kind, "application/json", "{path}");
    }
    (response.status().as_u16(), serde_json::from_str(&text).unwrap_or_default())
}

/// `up` in this environment, with nothing of the surroundings.
pub(crate) fn up(environment: &Environment, arguments: &[&str]) -> Command {
    let mut command = Command::new(STILLPOINT);
    command.args(["up", "--exit-with-stdin"]).args(arguments);
    surround(environment, command)
}

/// A command that asks the server of this environment.
pub(crate) fn client(environment: &Environment, arguments: &[&str]) -> Command {
    let mut command = Command::new(STILLPOINT);
    command.args(arguments);
    surround(environment, command)
}

fn surround(environment: &Environment, mut command: Command) -> Command {
    command.arg("--config").arg(environment.path("stillpoint.yaml"));
    command.arg("--data-dir").arg(environment.path("data"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.current_dir(environment.directory.path());
    command
}

/// Ends a process that a test has started, by its id.
pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Whether there is such a process that has not ended.
pub(crate) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
}

/// A process's children: id and command line.
pub(crate) fn children_of(parent: i32) -> Vec<(i32, String)> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().map_while(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let of = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        if of == Some(parent) {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            children.push((pid, line.replace('\0', " ")));
        }
    }
    children
}
