//! The workload's processes: the test program itself, started again with the one test that calls
//! [`play`]. So they are there whatever is built, and end when their standard input does: with the
//! test that started them, however it ends.

use super::{Addresses, BoxError, Site, Summary, Traffic, bank, clients, worker};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Names the file that says which role to play.
const ROLE: &str = "STILLPOINT_WORKLOAD_ROLE";
/// How lines that are meant for the test begin: its harness prints others.
const SAYS: &str = "workload: ";

/// What a process is to be.
#[derive(Serialize, Deserialize)]
enum Role {
    Bank { at: Addresses },
    Clients { gateway: SocketAddr, traffic: Traffic },
    Worker { at: Addresses, directory: PathBuf },
}

/// Plays the role that this process was started for, if it was started for one. To be called by a
/// test of the test program, whose name [`Process`] is told.
///
/// # Panics
/// When it cannot: the test has failed.
pub fn play() {
    let Some(file) = std::env::var_os(ROLE) else { return };
    let role = std::fs::read(file).expect("the role's file can be read");
    let role: Role = serde_json::from_slice(&role).expect("the role is one");
    let ended = Arc::new(AtomicBool::new(false));
    let outcome = match role {
        Role::Bank { at } => {
            std::thread::spawn(|| {
                await_end();
                // Its connections have nobody at their other ends any more.
                std::process::exit(0);
            });
            bank::serve(at, say)
        }
        Role::Clients { gateway, traffic } => {
            end_later(&ended);
            say("");
            let summary = clients::run(gateway, traffic, &ended);
            serde_json::to_string(&summary).map(|text| say(&text)).map_err(BoxError::from)
        }
        Role::Worker { at, directory } => {
            end_later(&ended);
            worker::run(&at, &directory, &ended, || say("")).map(|jobs| say(&jobs.to_string()))
        }
    };
    outcome.expect("the role can be played");
}

fn say(what: &str) {
    let mut out = io::stdout().lock();
    // Whoever listened may have gone; then standard input ends as well.
    let _ = writeln!(out, "\n{SAYS}{what}").and_then(|()| out.flush());
}

fn end_later(ended: &Arc<AtomicBool>) {
    let ended = Arc::clone(ended);
    std::thread::spawn(move || {
        await_end();
        ended.store(true, Ordering::Relaxed);
    });
}

fn await_end() {
    let mut rest = Vec::new();
    // An error is an end as well.
    let _ = io::stdin().lock().read_to_end(&mut rest);
}

/// A running process of the workload. Ended when dropped.
pub struct Process {
    child: Child,
    said: BufReader<ChildStdout>,
    first: String,
}

impl Process {
    /// Starts the application over `site`; `test` names the test that calls [`play`].
    pub fn bank(test: &str, site: &Site) -> Self {
        Self::start(test, site.directory(), "bank", &Role::Bank { at: site.addresses().clone() })
    }

    /// Starts the clients of `gateway`. Their files go to `directory`.
    pub fn clients(test: &str, directory: &Path, gateway: SocketAddr, traffic: Traffic) -> Self {
        Self::start(test, directory, "clients", &Role::Clients { gateway, traffic })
    }

    /// Starts the worker over `site`.
    pub fn worker(test: &str, site: &Site) -> Self {
        let directory = site.directory().join("worker");
        std::fs::create_dir(&directory).expect("the worker has a directory");
        let role = Role::Worker { at: site.addresses().clone(), directory };
        Self::start(test, site.directory(), "worker", &role)
    }

    fn start(test: &str, directory: &Path, name: &str, role: &Role) -> Self {
        use std::os::unix::fs::OpenOptionsExt;
        let path = directory.join(format!("{name}.role"));
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(&path).expect("the role's file");
        serde_json::to_writer(&mut file, role).expect("the role can be written");
        file.flush().expect("the role can be written");
        let program = std::env::current_exe().expect("this program has a file");
        let mut child = Command::new(program)
            .args(["--exact", test, "--nocapture", "--include-ignored", "--test-threads=1"])
            .env(ROLE, &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut process = Self { child, said, first: String::new() };
        process.first = process.line().unwrap_or_else(|| panic!("`{name}` did not begin"));
        process
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where the application listens.
    ///
    /// # Panics
    /// If it is another process.
    pub fn address(&self) -> SocketAddr {
        self.first.parse().expect("the bank says its address")
    }

    /// Ends the clients once their requests have been answered.
    ///
    /// # Panics
    /// If it is another process, or did not end well.
    pub fn summary(mut self) -> Summary {
        serde_json::from_str(&self.last()).expect("the clients say what became of them")
    }

    /// Ends the worker; how many transfers it made.
    ///
    /// # Panics
    /// If it is another process, or did not end well.
    pub fn jobs(mut self) -> u64 {
        self.last().parse().expect("the worker says how much it did")
    }

    fn last(&mut self) -> String {
        drop(self.child.stdin.take());
        self.line().expect("it says how it ended")
    }

    fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.said.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(words) = line.trim_end().strip_prefix(SAYS.trim_end()) {
                return Some(words.trim().to_owned());
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Ended already, or to be ended now: nobody waits for what it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
