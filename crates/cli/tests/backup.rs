//! Backups and restores by the whole binary, as a user has them.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use support::{Customers, Environment, stderr};

fn rows(environment: &Environment) -> Vec<String> {
    let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
    let mut statement = database.prepare("SELECT v FROM t ORDER BY id").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_backup_under_load_is_consistent_and_comes_back_as_it_was() {
    let environment = Environment::new();
    let customers = Customers::start(environment.gateway(), 8);
    customers.await_answers(20);
    let id = environment.succeed(&["backup:create"]);
    customers.await_answers(20);
    customers.end_without_failures();
    assert_eq!(id.len(), 26);

    let object: serde_json::Value =
        serde_json::from_str(&environment.succeed(&["backup:get", &id, "--format", "json"]))
            .unwrap();
    assert_eq!(object["attributes"]["consistency"], "consistent");
    assert_eq!(object["attributes"]["completeness"], "complete");
    assert!(object["attributes"].as_object().unwrap().values().all(serde_json::Value::is_string));

    // What happens after the backup is undone by the restore, and nothing else is.
    let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
    database.execute_batch("DELETE FROM t; INSERT INTO t (v) VALUES ('later')").unwrap();
    std::fs::write(environment.path("uploads/a.txt"), "changed").unwrap();
    std::fs::remove_dir_all(environment.path("uploads/deep")).unwrap();
    std::fs::write(environment.path("uploads/later.txt"), "later").unwrap();

    environment.succeed(&["backup:restore", &id, "--yes"]);
    assert_eq!(rows(&environment), ["one", "two"]);
    let read = |name: &str| std::fs::read(environment.path(name)).unwrap();
    assert_eq!(read("uploads/a.txt"), b"first");
    assert_eq!(read("uploads/deep/b.bin"), vec![7_u8; 100_000]);
    let left: Vec<_> = std::fs::read_dir(environment.path("uploads"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // The safety backup holds what the restore replaced.
    assert_eq!(environment.backups(), 2);
    let list = environment.succeed(&["backups", "--format", "plain"]);
    let safety = list.split('\t').next().unwrap();
    assert_ne!(safety, id);
    environment.succeed(&["backup:restore", safety, "--yes", "--no-safety-backup"]);
    assert_eq!(rows(&environment), ["later"]);
    assert_eq!(read("uploads/later.txt"), b"later");
    environment.assert_restic_is_content();
}

#[test]
fn a_restore_of_one_part_leaves_the_others_alone() {
    let environment = Environment::new();
    let id = environment.succeed(&["backup:create"]);
    let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
    database.execute_batch("INSERT INTO t (v) VALUES ('three')").unwrap();
    std::fs::write(environment.path("uploads/a.txt"), "changed").unwrap();
    environment.succeed(&["backup:restore", &id, "--only", "uploads", "-y", "--no-safety-backup"]);
    assert_eq!(std::fs::read(environment.path("uploads/a.txt")).unwrap(), b"first");
    assert_eq!(rows(&environment), ["one", "two", "three"]);

    let output = environment.run(&["backup:restore", &id, "--only", "upload", "-y"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("it holds: local, uploads"), "{}", stderr(&output));
}

#[test]
fn a_live_backup_holds_nothing_and_says_what_it_is_worth() {
    let environment = Environment::new();
    let output = environment.run(&["backup:create", "--live"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("less reliable to restore"));
    assert_eq!(environment.status().totals.holds, 0);
    let list = environment.run(&["backup:list", "--format", "json"]);
    assert!(stderr(&list).contains("less reliable to restore"));
    let objects: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(objects[0]["attributes"]["consistency"], "live");
    assert_eq!(objects[0]["safe"], false);
}

#[test]
fn a_backup_beside_an_endpoint_that_hears_of_no_ends_says_so_and_claims_less() {
    let gateway = ", pass: [\"/healthz\"], endpoint: { listen: \"127.0.0.1:0\" }";
    let environment = Environment::with(gateway, "");
    let id = environment.succeed(&["backup:create"]);
    let got = environment.succeed(&["backup:get", &id, "--format", "json"]);
    let object: serde_json::Value = serde_json::from_str(&got).unwrap();
    assert_eq!(object["attributes"]["consistency"], "crash-consistent");
    let doubt = object["doubts"][0].as_str().unwrap();
    assert!(
        doubt.starts_with("gateway `web`: its endpoint is not told when requests end"),
        "{got}"
    );
    assert_eq!(object["evidence"]["gateways"][0]["endpoint"]["completions"], false);
    assert_eq!(object["evidence"]["gateways"][0]["excepted"], 0);
}

#[test]
fn an_unchanged_file_is_not_read_for_the_next_backup() {
    let environment = Environment::new();
    let create = || {
        let output = environment.run(&["backup:create", "-v"]);
        assert!(output.status.success(), "{}", stderr(&output));
        (String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output))
    };
    let (id, _) = create();
    let got = environment.succeed(&["backup:get", id.trim(), "--format", "json"]);
    let object: serde_json::Value = serde_json::from_str(&got).unwrap();
    let part = &object["parts"][1];
    assert_eq!(part["name"], "uploads");
    // Only on a file system that tells of every change.
    if part["facts"]["file_system"] == "tmpfs" {
        return;
    }
    // A backup relies on the one before it only for what had been left alone for a while then.
    let unread = "mount uploads: pass 1 read 0 files, 0 bytes";
    assert!((0..100).any(|_| create().1.contains(unread)));
}

#[test]
fn a_restore_asks_first_and_needs_a_yes_where_nobody_can_be_asked() {
    let environment = Environment::new();
    let id = environment.succeed(&["backup:create"]);
    let output = environment.run(&["backup:restore", &id]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--yes"), "{}", stderr(&output));
}

/// Every pack of the repository.
fn packs(environment: &Environment) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(environment.path("store/test/production/data"))
        .unwrap()
        .flat_map(|directory| std::fs::read_dir(directory.unwrap().path()).unwrap())
        .map(|pack| pack.unwrap().path())
        .collect()
}

#[test]
fn a_damaged_backup_stops_neither_the_next_one_nor_the_list_of_the_others() {
    let environment = Environment::new();
    let first = environment.succeed(&["backup:create"]);
    let before = packs(&environment);
    let damaged = environment.succeed(&["backup:create"]);
    for pack in packs(&environment).into_iter().filter(|pack| !before.contains(pack)) {
        let length = std::fs::metadata(&pack).unwrap().len() as usize;
        std::fs::remove_file(&pack).unwrap();
        std::fs::write(&pack, vec![0; length]).unwrap();
    }
    std::fs::write(environment.path("uploads/a.txt"), "later").unwrap();
    let output = environment.run(&["backup:create"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("everything is read again"), "{}", stderr(&output));
    let third = String::from_utf8(output.stdout).unwrap();

    let output = environment.run(&["backup:list", "--format", "plain"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&damaged), "{}", stderr(&output));
    let listed = String::from_utf8(output.stdout).unwrap();
    let ids: Vec<&str> = listed.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(ids, [third.trim(), &first]);
    environment.succeed(&["backup:restore", &first, "--yes", "--no-safety-backup"]);
    assert_eq!(std::fs::read(environment.path("uploads/a.txt")).unwrap(), b"first");
}

#[test]
fn a_backup_of_a_newer_program_is_named_and_stops_neither_the_next_one_nor_the_list() {
    let environment = Environment::new();
    environment.succeed(&["backup:create"]);
    let id = "b".repeat(26);
    std::fs::write(environment.path("manifest.json"), r#"{"version": 99, "else": {}}"#).unwrap();
    let saved = std::process::Command::new("restic")
        .args(["--no-cache", "-r"])
        .arg(environment.path("store/test/production"))
        .arg("--password-file")
        .arg(environment.path("data/keys/test-production.password"))
        .args(["backup", "manifest.json", "--time", "2999-01-01 00:00:00"])
        .args(["--tag", &format!("environment=main,backup={id}")])
        .current_dir(environment.directory.path())
        .output()
        .expect("restic is installed: apt-get install restic");
    assert!(saved.status.success(), "{}", stderr(&saved));
    let output = environment.run(&["backup:create"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("version 99"), "{}", stderr(&output));
    let output = environment.run(&["backup:list", "--format", "plain"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains(&id) && said.contains("version 99"), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
}

#[test]
fn a_mount_that_is_gone_comes_back_with_its_mode_and_what_is_excluded_survives() {
    use std::os::unix::fs::PermissionsExt;
    let environment = Environment::new();
    let uploads = environment.path("uploads");
    let exclude = "path: ./uploads, exclude: [\"*.cache\"]";
    environment.configure(&environment.config.replace("path: ./uploads", exclude));
    std::fs::set_permissions(&uploads, std::fs::Permissions::from_mode(0o2750)).unwrap();
    let id = environment.succeed(&["backup:create"]);

    // Excluded at any depth: in no backup, so a restore must not take it away.
    std::fs::write(environment.path("uploads/deep/x.cache"), "precious").unwrap();
    std::fs::write(environment.path("uploads/a.txt"), "changed").unwrap();
    environment.succeed(&["backup:restore", &id, "-y", "--no-safety-backup"]);
    let read = |name: &str| std::fs::read_to_string(environment.path(name)).unwrap();
    assert_eq!(read("uploads/deep/x.cache"), "precious");
    assert_eq!(read("uploads/a.txt"), "first");

    std::fs::remove_dir_all(&uploads).unwrap();
    environment.succeed(&["backup:restore", &id, "-y", "--no-safety-backup"]);
    let mode = std::fs::metadata(&uploads).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o2750);
    assert_eq!(read("uploads/a.txt"), "first");
}

#[test]
fn a_database_that_a_mount_leads_to_by_another_path_is_not_opened_there() {
    let environment = Environment::new();
    let database = environment.path("app.db");
    std::fs::hard_link(&database, environment.path("uploads/hidden.db")).unwrap();
    let output = environment.run(&["backup:create"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("uploads: hidden.db: "), "{}", stderr(&output));
}

#[test]
fn a_damaged_snapshot_is_named_and_hides_no_other_backup() {
    let environment = Environment::new();
    let id = environment.succeed(&["backup:create"]);
    environment.succeed(&["backup:create"]);
    let snapshots = environment.path("store/test/production/snapshots");
    let newest = std::fs::read_dir(&snapshots)
        .unwrap()
        .map(|entry| entry.unwrap())
        .max_by_key(|entry| entry.metadata().unwrap().modified().unwrap())
        .unwrap();
    std::fs::remove_file(newest.path()).unwrap();
    std::fs::write(newest.path(), "").unwrap();
    let name = newest.file_name().into_string().unwrap();

    let output = environment.run(&["backup:list", "--format", "plain"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(&id));
    assert!(stderr(&output).contains(&name), "{}", stderr(&output));
    let output = environment.run(&["backup:restore", "-y", "--no-safety-backup"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains(&name), "{}", stderr(&output));
    environment.succeed(&["backup:create"]);
}
