//! What a machine may run short of, or change, while a backup is taken: open files, the time.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use stillpoint_gateway::control::{Control, HoldOrder, Purpose, StateName as State};
use support::{Customers, Environment, Server, get, stderr};

/// The same command with so many open files at most.
fn limited(command: &Command, files: u32) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {files}; exec \"$@\""), "sh"]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

fn address(gateway: &Server) -> SocketAddr {
    gateway.ready.rsplit('/').next().unwrap().parse().unwrap()
}

/// Far more clients than the gateway may have open files come during a hold, and nobody is lost:
/// those it has no room for wait in the system's queue, and a coordinator is heard all the same.
#[test]
fn clients_for_whom_a_gateway_has_no_open_files_wait_and_are_answered() {
    let environment = Environment::unstarted("", "");
    let gateway = limited(&environment.stillpoint(&["gateway", "web"]), 64);
    let gateway = Server::start({ gateway }.stderr(Stdio::inherit()));
    let address = address(&gateway);
    let socket = environment.path("data/run/test.main.web.sock");
    let order = HoldOrder {
        id: "h".to_owned(),
        purpose: Purpose::Backup,
        max_hold: Duration::from_secs(30),
        silence: Duration::from_secs(30),
    };
    let held = Control::connect(&socket).unwrap().hold(&order).unwrap();
    held.wait_drained(Duration::from_secs(30)).unwrap();
    // They are connected, whoever has accepted them: the system's queue has room for 128.
    let clients: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut client = TcpStream::connect(address).unwrap();
            let ask = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
            std::io::Write::write_all(&mut client, ask).unwrap();
            client
        })
        .collect();
    // As many as it has room for wait in it, and it still has an ear for others.
    let mut waiting = 0;
    while waiting == 0 {
        waiting = Control::connect(&socket).unwrap().status().unwrap().held;
    }
    held.release().unwrap();
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert!(get(address, "/").unwrap().contains(" 200 "));
}

/// However few open files a coordinator may have: either it takes the backup, or it says why not.
/// Requests flow afterwards, and nothing is left that would be in the next one's way.
#[test]
fn a_coordinator_without_open_files_says_so_and_leaves_nothing_behind() {
    let environment = Environment::with("", "");
    environment.succeed(&["backup:create"]);
    let customers = Customers::start(environment.gateway(), 2);
    let (mut failed, mut taken) = (0, 1);
    for files in [6, 9, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40, 64] {
        let command = limited(&environment.stillpoint(&["backup:create"]), files);
        let output = { command }.output().unwrap();
        let said = stderr(&output);
        // A partial one is there as well, and says what it lacks.
        taken += usize::from(matches!(output.status.code(), Some(0 | 3)));
        if !output.status.success() {
            failed += 1;
            // SQLite does not say what it lacks.
            let named = ["open files", "unable to open"];
            assert!(named.iter().any(|words| said.contains(words)), "{files} files: {said}");
        }
        customers.await_answers(4);
        assert!(matches!(environment.status().state, State::Passing), "{files} files");
        assert_eq!(environment.backups(), taken, "{files} files: {said}");
    }
    assert!(failed > 0, "no limit was too low");
    customers.end_without_failures();
    environment.succeed(&["backup:create"]);
    environment.assert_restic_is_content();
}

/// The clock is set by minutes while a request is waited for. The hold goes on, the backup is
/// consistent, and its times are those of a hold that lasted as long as it did.
#[test]
fn a_clock_that_is_set_during_a_hold_changes_nothing() {
    for (set_to, back_to) in [("+600", "-600"), ("-600", "+600")] {
        let mut environment = Environment::unstarted("", "");
        let clock = environment.path("clock");
        std::fs::write(&clock, "+0").unwrap();
        let watchdog = with_clock(environment.stillpoint(&["watchdog"]), &clock);
        let _watchdog = Server::start({ watchdog }.stderr(Stdio::inherit()));
        let gateway = with_clock(environment.stillpoint(&["gateway", "web"]), &clock);
        let gateway = Server::start({ gateway }.stderr(Stdio::inherit()));
        let address = address(&gateway);
        let hanging = std::thread::spawn(move || get(address, "/hang").unwrap());
        environment.application.await_hanging(1);
        let mut backup =
            with_clock(environment.stillpoint(&["backup:create", "--format", "json"]), &clock);
        let backup = backup.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while !matches!(environment.status().state, State::Draining) {}
        std::fs::write(&clock, set_to).unwrap();
        let waiting = std::thread::spawn(move || get(address, "/").unwrap());
        while environment.status().held == 0 {}
        std::fs::write(&clock, back_to).unwrap();
        environment.application.let_go();
        let output = backup.wait_with_output().unwrap();
        assert!(output.status.success(), "{set_to}: {}", stderr(&output));
        assert!(hanging.join().unwrap().contains(" 200 "));
        assert!(waiting.join().unwrap().contains(" 200 "));
        let backup: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let attributes = &backup["attributes"];
        assert_eq!(attributes["consistency"], "consistent", "{set_to}: {backup}");
        let ms = |key: &str| attributes[key].as_str().unwrap().parse::<f64>().unwrap();
        // No hold lasts longer than `max_hold`, 30 s.
        assert!((0.0..=30_000.0).contains(&ms("hold_ms")), "{set_to}: {backup}");
        assert!((0.0..=ms("hold_ms")).contains(&ms("mark_ms")), "{set_to}: {backup}");
        environment.stop_gateway();
    }
}

/// The same command, whose wall clock is as the file says. The clock that never jumps stays.
fn with_clock(mut command: Command, clock: &Path) -> Command {
    command
        .env("LD_PRELOAD", faketime())
        .env("FAKETIME_TIMESTAMP_FILE", clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// The library that sets the clock for one process, wherever this machine's kind has it.
fn faketime() -> PathBuf {
    let kinds = std::fs::read_dir("/usr/lib").unwrap().flatten();
    kinds
        .map(|kind| kind.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime is installed: apt-get install libfaketime")
}
