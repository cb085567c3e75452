//! Two locations under `stillpoint up`: what one of them misses, the other has, and it is mended.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use support::service::Service;
use support::{Environment, stderr};

const SECOND: &str = "b: { url: \"file://SECOND\" }\n";

/// An environment whose backups go to `store` and to `second`.
fn two() -> Environment {
    let mut environment = Environment::unstarted("", "");
    let second = environment.path("second").display().to_string();
    let line = format!("      {}", SECOND.replace("SECOND", &second));
    environment.config.push_str(&line);
    environment.configure(&environment.config.clone());
    environment
}

/// A location's disk that is not there for as long as this lives.
struct Unmounted {
    from: PathBuf,
    to: PathBuf,
}

impl Unmounted {
    fn new(environment: &Environment, name: &str) -> Self {
        let (from, to) = (environment.path(name), environment.path(&format!("{name} is away")));
        fs::rename(&from, &to).unwrap();
        // A mount point without its disk.
        fs::create_dir(&from).unwrap();
        Self { from, to }
    }
}

impl Drop for Unmounted {
    fn drop(&mut self) {
        // Fails if anything was written where the disk was not.
        fs::remove_dir(&self.from).unwrap();
        fs::rename(&self.to, &self.from).unwrap();
    }
}

fn check(service: &Service, location: &str) -> Output {
    Command::new("restic")
        .args(["--no-cache", "check", "--read-data", "-r"])
        .arg(service.environment.path(location).join("test/production"))
        .arg("--password-file")
        .arg(service.environment.path("data/keys/test-production.password"))
        .output()
        .unwrap()
}

fn assert_whole(service: &Service) {
    for location in ["store", "second"] {
        let output = check(service, location);
        assert!(output.status.success(), "{location}: {}", stderr(&output));
    }
}

fn copies(service: &Service, id: &str) -> (String, String) {
    let backup = service.json(&["backup:get", id]);
    let attribute = |name: &str| backup["attributes"][name].as_str().unwrap().to_owned();
    (attribute("copies"), attribute("replication"))
}

/// Waits for the background to have copied it to both, without being asked to.
fn await_both(service: &Service, id: &str) {
    service.await_json(&["backup:get", id], |backup| backup["attributes"]["copies"] == "2");
    assert_eq!(copies(service, id), ("2".to_owned(), "done".to_owned()));
}

fn await_health(service: &Service, name: &str, health: &str) -> Value {
    let of = |all: &Value| all.as_array()?.iter().find(|l| l["name"] == name).cloned();
    let all = service.await_json(&["location:list"], |all| {
        of(all).is_some_and(|location| location["health"] == health)
    });
    of(&all).unwrap()
}

#[test]
fn a_backup_is_at_both_locations_and_restores_from_either() {
    let service = Service::of(two());
    let id = service.succeed(&["backup:create"]);
    assert_eq!(copies(&service, &id), ("2".to_owned(), "done".to_owned()));
    assert_whole(&service);
    let b = await_health(&service, "b", "healthy");
    assert!(b["warning"].as_str().unwrap().contains("same file system as a"), "{b}");
    for away in ["store", "second"] {
        let unmounted = Unmounted::new(&service.environment, away);
        fs::write(service.environment.path("uploads/a.txt"), "changed").unwrap();
        service.succeed(&["backup:restore", &id, "--yes", "--no-safety-backup"]);
        assert_eq!(fs::read(service.environment.path("uploads/a.txt")).unwrap(), b"first");
        drop(unmounted);
    }
}

#[test]
fn a_location_that_is_down_stops_no_backup_and_gets_what_it_missed() {
    let service = Service::of(two());
    let first = service.succeed(&["backup:create"]);
    let unmounted = Unmounted::new(&service.environment, "second");
    fs::write(service.environment.path("uploads/new"), vec![3; 300_000]).unwrap();
    let output = service.run(&["backup:create"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let missed = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert_eq!(copies(&service, &missed), ("1".to_owned(), "replicating".to_owned()));
    assert_eq!(copies(&service, &first).0, "2", "what is known of others is not forgotten");
    let log = service.succeed(&["activity:log", &activity(&service)]);
    assert!(log.contains("at 1 of 2 locations") && log.contains("location b is left out"), "{log}");
    // It can be restored all the same, and what is deleted meanwhile does not come back.
    fs::remove_file(service.environment.path("uploads/new")).unwrap();
    service.succeed(&["backup:restore", &missed, "--yes", "--no-safety-backup"]);
    assert!(service.environment.path("uploads/new").exists());
    service.succeed(&["backup:delete", &first, "--yes"]);

    let output = service.run(&["location:heal"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("down") && said.contains("is it mounted?"), "{said}");

    drop(unmounted);
    let output = service.run(&["location:heal"]);
    assert!(output.status.success(), "{}", stderr(&output));
    await_both(&service, &missed);
    assert_whole(&service);
    for location in ["store", "second"] {
        let path = service.environment.path(location).join("test/production/snapshots");
        assert_eq!(fs::read_dir(path).unwrap().count(), 1, "{location}");
    }
}

fn activity(service: &Service) -> String {
    service.json(&["activity:list"])[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_location_that_goes_away_in_the_middle_of_a_backup_is_healed_in_the_background() {
    let service = Service::of(two());
    service.succeed(&["backup:create"]);
    let gateway = service.gateway;
    let hanging = std::thread::spawn(move || support::get(gateway, "/hang").unwrap());
    service.environment.application.await_hanging(1);
    fs::write(service.environment.path("uploads/new"), vec![5; 200_000]).unwrap();
    let id = service.succeed(&["backup:create", "--no-wait"]);
    service.await_json(&["activity:list"], |all| all[0]["phase"] == "hold");
    let unmounted = Unmounted::new(&service.environment, "second");
    service.environment.application.let_go();
    hanging.join().unwrap();
    service.await_json(&["activity:list"], |all| all[0]["state"] == "complete");
    assert_eq!(copies(&service, &id), ("1".to_owned(), "replicating".to_owned()));
    drop(unmounted);
    // The next task's end is when the agent looks again.
    service.succeed(&["backup:create"]);
    await_both(&service, &id);
    await_health(&service, "b", "healthy");
    assert_whole(&service);
}

#[test]
fn an_emptied_location_is_filled_anew_only_when_a_person_says_so() {
    let service = Service::of(two());
    let id = service.succeed(&["backup:create"]);
    fs::remove_dir_all(service.environment.path("second")).unwrap();
    let output = service.run(&["location:heal"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("location:heal --replaced b"), "{said}");
    assert!(!service.environment.path("second").exists());
    let output = service.run(&["location:heal", "--replaced", "nowhere"]);
    assert!(stderr(&output).contains("Location not found"), "{}", stderr(&output));
    let output = service.run(&["location:heal", "--replaced", "b"]);
    assert!(output.status.success(), "{}", stderr(&output));
    await_both(&service, &id);
    assert_whole(&service);
}

#[test]
fn a_location_that_is_added_later_is_filled_and_a_foreign_repository_is_left_alone() {
    let service = Service::start();
    let id = service.succeed(&["backup:create"]);
    let other = Service::start();
    other.succeed(&["backup:create"]);
    let foreign = other.environment.path("store");
    let before = fs::read(foreign.join("test/production/config")).unwrap();
    let environment = &service.environment;
    let lines = format!(
        "      b: {{ url: \"file://{}\" }}\n      c: {{ url: \"file://{}\" }}\n",
        environment.path("second").display(),
        foreign.display()
    );
    environment.configure(&format!("{}{lines}", environment.config));
    service.run(&["location:heal"]);
    let c = await_health(&service, "c", "down");
    assert!(c["why"].as_str().unwrap().contains("password does not open"), "{c}");
    await_both(&service, &id);
    assert_whole(&service);
    assert_eq!(fs::read(foreign.join("test/production/config")).unwrap(), before);
    let snapshots = foreign.join("test/production/snapshots");
    assert_eq!(fs::read_dir(snapshots).unwrap().count(), 1);
}

#[test]
fn a_backup_that_only_an_absent_location_has_is_not_called_deleted() {
    let service = Service::of(two());
    service.succeed(&["backup:create"]);
    let unmounted = Unmounted::new(&service.environment, "store");
    fs::write(service.environment.path("uploads/new"), "only at b").unwrap();
    let id = service.succeed(&["backup:create"]);
    assert_eq!(copies(&service, &id).0, "1");
    let other = Unmounted::new(&service.environment, "second");
    drop(unmounted);
    let output = service.run(&["backup:delete", &id, "--yes"]);
    assert!(!output.status.success());
    let log = service.succeed(&["activity:log", &activity(&service)]);
    let said = format!("{}{log}", stderr(&output));
    assert!(said.contains("is at none of the locations that can be used"), "{said}");
    drop(other);
    service.run(&["location:heal"]);
    await_both(&service, &id);
    service.succeed(&["backup:delete", &id, "--yes"]);
    for location in ["store", "second"] {
        let path = service.environment.path(location).join("test/production/snapshots");
        assert_eq!(fs::read_dir(path).unwrap().count(), 1, "{location}");
    }
}

#[test]
fn healing_that_fails_says_why_and_ends() {
    let service = Service::of(two());
    service.succeed(&["backup:create"]);
    let records = service.environment.path("store/test/production/deletions");
    fs::create_dir_all(&records).unwrap();
    fs::write(records.join("0".repeat(64)), "torn").unwrap();
    let output = service.run(&["location:heal"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("deletion") && said.contains("damaged"), "{said}");
}

#[test]
fn only_an_admin_of_the_project_heals() {
    let service = Service::of(two());
    service.succeed(&["user:add", "eve@example.com", "--machine", "-r", "production:admin"]);
    let token = service.succeed(&["api-token:create", "t", "--user", "eve@example.com"]);
    let access = service.log_in(&token);
    let (status, answer) =
        service.send("POST", "/projects/test/locations/heal", Some(&access), "{}");
    assert_eq!(status, 403, "{answer}");
    let (status, _) = service.send("GET", "/projects/test/locations", Some(&access), "");
    assert_eq!(status, 200);
}
