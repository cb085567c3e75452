//! A datastore that has run out of room: a clear refusal without a word of the inside, nothing
//! stored by half, and all is well again once there is room.
//!
//! The server runs in a mount namespace of its own, with the datastore on a file system of a few
//! megabytes, which the test fills from outside, to the page.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::service::{await_that, children_of, client, log_in, send};
use support::{Environment, STILLPOINT, Server};

/// What a file on that file system grows by.
const PAGE: u64 = 4096;

const ENVIRONMENT: &str = "/projects/test/environments/main";

/// A server whose datastore can be filled, with an agent, a gateway and a watchdog.
struct Confined {
    // In this order: the agent ends before the server that it would look for.
    agent: Server,
    server: Server,
    environment: Environment,
    url: String,
    access: String,
}

impl Confined {
    fn start() -> Self {
        let environment = Environment::new();
        let directory = environment.path("data/server");
        let script = format!(
            "set -e; mkdir -p '{0}'; mount -t tmpfs -o size=3m,mode=700 none '{0}'; exec \"$@\"",
            directory.display()
        );
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
        unshare.arg(STILLPOINT);
        let server = client(&environment, &["server", "--listen", "127.0.0.1:0"]);
        unshare.args(server.get_args());
        unshare.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        let server = Server::start(unshare.stderr(Stdio::null()));
        let agent = Server::start(client(&environment, &["agent"]).stderr(Stdio::null()));
        let url = server.ready.clone();
        let token = fs::read_to_string(environment.path("data/admin.token")).unwrap();
        let access = log_in(&url, token.trim());
        Self { agent, server, environment, url, access }
    }

    fn send(&self, method: &str, path: &str) -> (u16, Value) {
        send(&self.url, method, path, Some(&self.access), "{}")
    }

    fn get(&self, path: &str) -> Value {
        let (status, answer) = self.send("GET", path);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// A file beside the datastore, by the server's own view of the world.
    fn filler(&self) -> PathBuf {
        let inside = self.environment.path("data/server/filler");
        let root = PathBuf::from(format!("/proc/{}/root", self.server.id()));
        root.join(inside.strip_prefix("/").unwrap())
    }

    /// Leaves room for so many pages, and no more.
    fn leave(&self, pages: u64) {
        let mut file = File::create(self.filler()).unwrap();
        let page = vec![1; PAGE as usize];
        while file.write_all(&page).is_ok() {}
        let size = file.metadata().unwrap().len() / PAGE * PAGE;
        file.set_len(size.checked_sub(pages * PAGE).unwrap()).unwrap();
    }

    fn make_room(&self) {
        OpenOptions::new().write(true).open(self.filler()).unwrap().set_len(0).unwrap();
    }

    fn activities(&self) -> Vec<Value> {
        self.get("/projects/test/activities").as_array().unwrap().clone()
    }

    /// Waits until nothing is going on, and gives all there was.
    fn await_the_end(&self) -> Vec<Value> {
        let open = |all: &[Value]| all.iter().any(|activity| activity["result"].is_null());
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let all = self.activities();
            if !open(&all) {
                return all;
            }
            assert!(Instant::now() < until, "it does not end: {all:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A backup that is done: its id.
    fn back_up(&self) -> String {
        let (status, answer) = self.send("POST", &format!("{ENVIRONMENT}/backup"));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(self.await_the_end()[0]["result"], "success");
        self.get(&format!("{ENVIRONMENT}/backups"))[0]["id"].as_str().unwrap().to_owned()
    }
}

fn assert_says_only_that_there_is_no_room((status, answer): (u16, Value)) {
    assert_eq!(status, 507, "{answer}");
    let said = answer.to_string().to_lowercase();
    assert!(said.contains("no room left") && said.contains("nothing was changed"), "{said}");
    for inside in ["sqlite", "sqlx", "database", "state.db", "/tmp", "query"] {
        assert!(!said.contains(inside), "the inside was told: {said}");
    }
}

#[test]
fn a_full_datastore_refuses_changes_goes_on_answering_and_works_again_when_there_is_room() {
    let confined = Confined::start();
    let backup = confined.back_up();
    let before = confined.activities();
    confined.leave(0);
    for (method, path) in [
        ("POST", format!("{ENVIRONMENT}/backup")),
        ("POST", format!("{ENVIRONMENT}/backups/{backup}/restore")),
        ("DELETE", format!("{ENVIRONMENT}/backups/{backup}")),
        ("POST", format!("{ENVIRONMENT}/deactivate")),
    ] {
        assert_says_only_that_there_is_no_room(confined.send(method, &path));
    }
    // Who looks is answered, and may log in to look.
    assert_eq!(confined.activities(), before);
    assert_eq!(confined.get(ENVIRONMENT)["status"], "active");
    let token = fs::read_to_string(confined.environment.path("data/admin.token")).unwrap();
    let access = log_in(&confined.url, token.trim());
    let path = format!("{ENVIRONMENT}/backups");
    let (status, backups) = send(&confined.url, "GET", &path, Some(&access), "");
    assert_eq!((status, backups[0]["id"].as_str()), (200, Some(backup.as_str())));
    confined.make_room();
    confined.back_up();
    confined.environment.assert_restic_is_content();
}

#[test]
fn wherever_the_room_ends_a_change_is_stored_whole_or_not_at_all() {
    let confined = Confined::start();
    let backup = confined.back_up();
    let of_it = format!("{ENVIRONMENT}/backups/{backup}");
    let status_of = || confined.get(ENVIRONMENT)["status"].as_str().unwrap().to_owned();
    // Each turn has room for one page more, until all of it fits.
    let mut refused = 0;
    for pages in 0.. {
        let before = confined.activities();
        confined.leave(pages);
        let answer = confined.send("POST", &format!("{ENVIRONMENT}/deactivate"));
        confined.make_room();
        if answer.0 == 200 {
            assert_eq!(
                (status_of(), confined.activities().len()),
                ("inactive".to_owned(), before.len() + 1)
            );
            break;
        }
        refused += 1;
        assert_says_only_that_there_is_no_room(answer);
        assert_eq!((status_of(), confined.activities()), ("active".to_owned(), before));
    }
    assert!(refused > 1, "it was cut off in more than one place");
    assert_eq!(confined.send("POST", &format!("{ENVIRONMENT}/activate")).0, 200);

    let mut refused = 0;
    for pages in 0.. {
        let before = confined.activities();
        confined.leave(pages);
        let answer = confined.send("DELETE", &of_it);
        confined.make_room();
        if answer.0 == 200 {
            break;
        }
        refused += 1;
        assert_says_only_that_there_is_no_room(answer);
        assert_eq!(confined.get(&of_it)["status"], "CREATED");
        assert_eq!(confined.activities(), before);
    }
    assert!(refused > 1, "it was cut off in more than one place");
    // What was accepted is done, though it could perhaps not be begun at first.
    confined.await_the_end();
    assert_eq!(confined.get(&format!("{ENVIRONMENT}/backups")), serde_json::json!([]));
    let snapshots = confined.environment.path("store/test/production/snapshots");
    assert_eq!(fs::read_dir(snapshots).unwrap().count(), 0);
}

#[test]
fn a_backup_whose_course_cannot_be_stored_fails_and_is_cleaned_up_after_when_there_is_room() {
    let confined = Confined::start();
    confined.back_up();
    let gateway = confined.environment.gateway();
    let hanging = std::thread::spawn(move || support::get(gateway, "/hang").unwrap());
    confined.environment.application.await_hanging(1);
    assert_eq!(confined.send("POST", &format!("{ENVIRONMENT}/backup")).0, 200);
    await_that("it holds", || confined.activities()[0]["phase"] == "hold");
    let customers = support::Customers::start(gateway, 2);
    confined.leave(0);
    confined.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    customers.await_answers(10);
    // Its server cannot follow it, so it is asked to stop, or has stopped already.
    let agent = confined.agent.id().try_into().unwrap();
    await_that("the task ends", || children_of(agent).is_empty());
    confined.make_room();
    let all = confined.await_the_end();
    let failed = all.iter().filter(|activity| activity["result"] == "failure").count();
    assert_eq!(failed, 1, "{all:#?}");
    confined.back_up();
    customers.end_without_failures();
    let backups = confined.get(&format!("{ENVIRONMENT}/backups")).as_array().unwrap().len();
    assert_eq!(backups, 2);
    let snapshots = confined.environment.path("store/test/production/snapshots");
    assert_eq!(fs::read_dir(snapshots).unwrap().count(), 2);
    confined.environment.assert_restic_is_content();
}
