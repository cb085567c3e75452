//! What becomes of the dump programs that a capture has started. In a test program of its own, and
//! one test after the other: they count and kill the dumps that this process has started, and
//! those of other tests must not be among them.

mod common;
#[path = "common/mariadb.rs"]
mod mariadb_server;

use std::io::{self, Read};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::capture_prepared;
use mariadb_server::{Interrupted, LARGE, Server, failed_capture, marked, until};
use stillpoint_services::Sink;

/// Whose turn it is to have dumps.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes that this one started and that still run.
fn children() -> Vec<String> {
    let parent = std::process::id().to_string();
    let found = Command::new("ps").args(["-o", "comm=", "--ppid", &parent]).output().unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    text.lines().filter(|name| name.contains("mariadb-dump")).map(str::to_owned).collect()
}

fn kill_dumps() {
    let parent = std::process::id().to_string();
    let killed = Command::new("pkill")
        .args(["-KILL", "--parent", &parent, "--exact", "mariadb-dump"])
        .status()
        .unwrap();
    assert!(killed.success());
}

#[test]
fn a_dump_that_is_killed_half_way_fails_the_capture_and_leaves_nothing_running() {
    let _turn = alone();
    let server = Server::start();
    server.sql(LARGE);
    let mut prepared = marked(&server);
    let said = failed_capture(prepared.as_mut(), &Interrupted(kill_dumps));
    assert!(said.contains("dump the database shop") && said.contains("SIGKILL"), "{said}");
    assert_eq!(children(), Vec::<String>::new());
    drop(prepared);

    // Parked and marked ones end with what holds them, and their sessions with them.
    let prepared = marked(&server);
    assert_eq!(children().len(), 1);
    drop(prepared);
    assert_eq!(children(), Vec::<String>::new());
    let sessions = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'keeper'";
    until("the sessions end", || server.ask(sessions) == "0");
}

#[test]
fn a_full_store_ends_the_capture_and_the_next_one_works() {
    struct Full;
    impl Sink for Full {
        fn write(&self, _: &str, content: &mut dyn Read) -> io::Result<u64> {
            content.read_exact(&mut [0; 100])?;
            Err(io::Error::other("no space left"))
        }
    }
    let _turn = alone();
    let server = Server::start();
    server.sql(LARGE);
    let mut prepared = marked(&server);
    let said = failed_capture(prepared.as_mut(), &Full);
    assert!(said.contains("no space left"), "{said}");
    assert_eq!(children(), Vec::<String>::new());
    capture_prepared(server.prepared().as_mut(), || ());
}
