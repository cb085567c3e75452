//! The whole service: `stillpoint up`, the API, the command line over it.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::service::{Service, await_that, children_of, client, is_alive, kill, up};
use support::{Customers, Environment, Followed, stderr};

/// A request that hangs in the application keeps a backup in its drain, until it is let go.
fn keep_draining(service: &Service) -> std::thread::JoinHandle<String> {
    let gateway = service.gateway;
    let hanging = std::thread::spawn(move || support::get(gateway, "/hang").unwrap());
    service.environment.application.await_hanging(1);
    hanging
}

/// Asks for a backup and waits until it holds.
fn hold(service: &Service) -> String {
    let id = service.succeed(&["backup:create", "--no-wait"]);
    service.await_json(&["activity:list"], |all| all[0]["phase"] == "hold");
    id
}

#[test]
fn a_backup_is_taken_restored_and_deleted_while_customers_go_on() {
    let service = Service::start();
    let customers = Customers::start(service.gateway, 4);
    customers.await_answers(10);
    let id = service.succeed(&["backup:create"]);
    let backup = service.json(&["backup:get", &id]);
    assert_eq!(backup["attributes"]["consistency"], "consistent");
    assert_eq!(backup["attributes"]["completeness"], "complete");
    assert!(backup["attributes"]["hold_ms"].as_str().unwrap().parse::<f64>().unwrap() > 0.0);

    fs::write(service.environment.path("uploads/a.txt"), "changed").unwrap();
    service.succeed(&["backup:restore", &id, "--yes"]);
    assert_eq!(fs::read(service.environment.path("uploads/a.txt")).unwrap(), b"first");
    // What was there before is in a safety backup.
    let backups = service.json(&["backups"]);
    assert_eq!(backups.as_array().unwrap().len(), 2);
    let safety = backups[0]["id"].as_str().unwrap();
    service.succeed(&["backup:restore", safety, "-y", "--only", "uploads", "--no-safety-backup"]);
    assert_eq!(fs::read(service.environment.path("uploads/a.txt")).unwrap(), b"changed");

    service.succeed(&["backup:delete", &id, "--yes"]);
    let output = service.run(&["backup:get", &id]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("Backup not found"), "{}", stderr(&output));
    assert_eq!(service.json(&["backups"]).as_array().unwrap().len(), 1);
    customers.end_without_failures();
    service.environment.assert_restic_is_content();
}

#[test]
fn the_unmodified_javascript_client_lists_backs_up_waits_and_restores() {
    let service = Service::start();
    let directory = tempfile::tempdir().unwrap();
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/js_client");
    for file in ["package.json", "package-lock.json", "drive.js"] {
        fs::copy(client.join(file), directory.path().join(file)).unwrap();
    }
    let installed = Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(directory.path())
        .output()
        .expect("npm is installed");
    assert!(installed.status.success(), "npm ci: {}", stderr(&installed));
    let driven = Command::new("node")
        .args(["drive.js", &service.url, &service.admin_token(), "test"])
        .current_dir(directory.path())
        .output()
        .expect("node is installed");
    assert!(driven.status.success(), "drive.js: {}", stderr(&driven));
    let printed = String::from_utf8(driven.stdout).unwrap();
    let result: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    assert_eq!(result["user"], "admin");
    assert_eq!(result["projects"], serde_json::json!(["test"]));
    assert_eq!(result["environments"], serde_json::json!(["main"]));
    assert_eq!(result["backup"]["result"], "success");
    assert!(result["backup"]["log"].as_str().unwrap().ends_with("{\"seal\":true}\n"));
    assert_eq!(result["backups"][0]["id"], result["backup"]["name"]);
    assert_eq!(result["backups"][0]["restorable"], true);
    assert_eq!(result["restored"], "success");
    assert_eq!(result["refusal"], 404);
}

#[test]
fn a_viewer_sees_but_may_neither_back_up_nor_restore_and_that_is_on_record() {
    let service = Service::start();
    let id = service.succeed(&["backup:create"]);
    let user = service.succeed(&[
        "user:add",
        "eve@example.com",
        "--machine",
        "-r",
        "viewer",
        "-r",
        "production:viewer",
    ]);
    let token = service.succeed(&["api-token:create", "t", "--user", "eve@example.com"]);
    let access = service.log_in(&token);
    let (status, environment) =
        service.send("GET", "/projects/test/environments/main", Some(&access), "");
    assert_eq!(status, 200);
    assert!(environment["_links"].get("#backup").is_none(), "{environment}");
    assert!(environment["_links"].get("backups").is_some());
    let path = format!("/projects/test/environments/main/backups/{id}");
    let (status, backup) = service.send("GET", &path, Some(&access), "");
    assert_eq!((status, &backup["_links"]["#restore"]), (200, &serde_json::Value::Null));
    for (method, path) in [
        ("POST", "/projects/test/environments/main/backup".to_owned()),
        ("POST", format!("{path}/restore")),
        ("DELETE", path.clone()),
        ("POST", "/projects/test/environments/main/deactivate".to_owned()),
        ("POST", "/projects/test/invitations".to_owned()),
    ] {
        let (status, answer) = service.send(method, &path, Some(&access), "{}");
        assert_eq!(status, 403, "{method} {path}: {answer}");
    }
    assert_eq!(service.json(&["backups"]).as_array().unwrap().len(), 1);
    let database =
        rusqlite::Connection::open(service.environment.path("data/server/state.db")).unwrap();
    let refused: i64 = database
        .query_row("SELECT count(*) FROM audit WHERE NOT allowed AND user = ?1", [&user], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(refused, 5);
}

#[test]
fn a_wrong_token_is_refused_and_a_revoked_one_at_once() {
    let service = Service::start();
    let (status, answer) =
        service.send("POST", "/oauth2/token", None, "grant_type=api_token&api_token=wrong");
    assert_eq!((status, answer["error"].as_str()), (400, Some("invalid_grant")));
    assert_eq!(answer["error_description"], "Invalid API token");
    let output = service.command(&["backups"]).env("STILLPOINT_CLI_TOKEN", "wrong").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the API token is invalid"), "{}", stderr(&output));
    assert_eq!(service.send("GET", "/me", None, "").0, 401);
    assert_eq!(service.send("GET", "/me", Some("wrong"), "").0, 401);

    let token = service.succeed(&["api-token:create", "ci"]);
    let access = service.log_in(&token);
    assert_eq!(service.send("GET", "/me", Some(&access), "").0, 200);
    service.succeed(&["api-token:delete", "ci", "--yes"]);
    assert_eq!(service.send("GET", "/me", Some(&access), "").0, 401);
    let body = format!("{{\"grant_type\":\"api_token\",\"api_token\":\"{token}\"}}");
    assert_eq!(service.send("POST", "/oauth2/token", None, &body).0, 400);
}

#[test]
fn an_inactive_environment_says_activate_it_first() {
    let service = Service::start();
    service.succeed(&["environment:deactivate"]);
    let output = service.run(&["backup:create"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("activate it first, `stillpoint environment:activate main`"),
        "{}",
        stderr(&output)
    );
    assert_eq!(service.succeed(&["environment:info", "status"]), "inactive");
    service.succeed(&["environment:activate"]);
    service.succeed(&["backup:create"]);
}

#[test]
fn what_is_unknown_or_somebody_elses_is_not_found() {
    let service = Service::start();
    let access = service.log_in(&service.admin_token());
    for path in [
        "/projects/other",
        "/projects/other/environments/main/backups",
        "/projects/test/environments/nowhere",
        "/projects/test/environments/main/backups/aaaaaaaaaaaaaaaaaaaaaaaaaa",
        "/projects/test/activities/aaaaaaaaaaaaa",
        "/users/11111111-2222-4333-8444-555555555555",
        "/nothing/of/the/kind",
    ] {
        let (status, answer) = service.send("GET", path, Some(&access), "");
        assert_eq!((status, answer["code"].as_u64()), (404, Some(404)), "{path}: {answer}");
    }
    // A doubled slash is read as one.
    let (status, _) = service.send("GET", "/projects/test//environments/main", Some(&access), "");
    assert_eq!(status, 200);
}

#[test]
fn malformed_and_oversized_bodies_are_refused_and_start_nothing() {
    let service = Service::start();
    let access = service.log_in(&service.admin_token());
    let path = "/projects/test/environments/main/backup";
    for bad in ["{", "[1", "\"text\"", "{\"safe\": \"yes\"}", "safe=true"] {
        assert_eq!(service.send("POST", path, Some(&access), bad).0, 400, "{bad}");
    }
    let huge = format!("{{\"safe\": true, \"x\": \"{}\"}}", "a".repeat(300_000));
    assert_eq!(service.send("POST", path, Some(&access), &huge).0, 413);
    assert_eq!(service.json(&["activity:list"]), serde_json::json!([]));
}

#[test]
fn a_second_backup_waits_for_the_first() {
    let service = Service::start();
    let hanging = keep_draining(&service);
    let first = hold(&service);
    let second = service.succeed(&["backup:create", "--no-wait"]);
    let all = service.json(&["activity:list"]);
    assert_eq!(all[0]["payload"]["backup_name"], second.as_str());
    assert_eq!((&all[0]["state"], &all[1]["state"]), (&"pending".into(), &"in_progress".into()));
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    let all = service.await_json(&["activity:list"], |all| all[0]["result"] == "success");
    assert_eq!(all[1]["result"], "success");
    let backups = service.json(&["backups"]);
    let ids: Vec<&str> = (0..2).map(|i| backups[i]["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [second.as_str(), first.as_str()]);
}

#[test]
fn a_backup_that_waits_or_holds_can_be_cancelled_and_leaves_nothing() {
    let service = Service::start();
    let hanging = keep_draining(&service);
    hold(&service);
    service.succeed(&["backup:create", "--no-wait"]);
    let all = service.json(&["activity:list"]);
    let (waiting, holding) = (all[0]["id"].as_str().unwrap(), all[1]["id"].as_str().unwrap());
    service.succeed(&["activity:cancel", waiting]);
    service.succeed(&["activity:cancel", holding]);
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    service.await_json(&["activity:list"], |all| {
        all[0]["state"] == "cancelled" && all[1]["state"] == "cancelled"
    });
    let log = service.succeed(&["activity:log", holding]);
    assert!(log.ends_with("cancelled"), "{log}");
    assert_eq!(service.json(&["backups"]), serde_json::json!([]));
    let output = service.run(&["activity:cancel", holding]);
    assert!(
        stderr(&output).contains("cannot be cancelled in its current state"),
        "{}",
        stderr(&output)
    );
    service.succeed(&["backup:create"]);
    service.environment.assert_restic_is_content();
}

/// Kills one of the processes while a backup holds: requests flow on, the backup fails or is
/// done, what it left is cleaned up, and the next one succeeds.
fn survives_the_death_of(command: &str) {
    let service = Service::start();
    service.succeed(&["backup:create"]);
    let hanging = keep_draining(&service);
    let id = hold(&service);
    let customers = Customers::start(service.gateway, 2);
    service.kill(command);
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    customers.await_answers(10);
    let ended = service.await_json(&["activity:list"], |all| {
        let Some(all) = all.as_array() else { return false };
        !all.is_empty() && all.iter().all(|activity| !activity["result"].is_null())
    });
    let of_it = ended.as_array().unwrap().iter().find(|a| a["payload"]["backup_name"] == id);
    let is_listed = service.json(&["backups"]).as_array().unwrap().iter().any(|b| b["id"] == id);
    assert_eq!(of_it.unwrap()["result"] == "success", is_listed, "{ended:#}");
    // It is started again after a pause, and without it nothing is held.
    let watchdog = service.environment.path("data/run/watchdog.sock");
    await_that("the watchdog listens", || UnixStream::connect(&watchdog).is_ok());
    service.succeed(&["backup:create"]);
    customers.end_without_failures();
    service.environment.assert_restic_is_content();
}

#[test]
fn a_server_killed_in_mid_backup_comes_back_fails_it_and_cleans_up() {
    survives_the_death_of("server");
}

#[test]
fn an_agent_killed_in_mid_backup_is_started_again_and_cleans_up() {
    survives_the_death_of("agent");
}

#[test]
fn a_watchdog_killed_in_mid_backup_is_started_again() {
    survives_the_death_of("watchdog");
}

#[test]
fn a_task_killed_in_mid_backup_fails_it_and_nothing_else() {
    let service = Service::start();
    let hanging = keep_draining(&service);
    hold(&service);
    let customers = Customers::start(service.gateway, 2);
    let task = children_of(service.child("agent")).pop().unwrap().0;
    kill(task);
    let all = service.await_json(&["activity:list"], |all| all[0]["result"] == "failure");
    let reason = all[0]["failure_reason"].as_str().unwrap();
    assert!(reason.contains("killed by signal 9"), "{reason}");
    customers.await_answers(10);
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    service.succeed(&["backup:create"]);
    customers.end_without_failures();
    service.environment.assert_restic_is_content();
}

/// Asks for a restore, changes the data, and waits until the restore holds, just before its swap.
fn hold_a_restore(service: &Service) -> std::thread::JoinHandle<String> {
    let id = service.succeed(&["backup:create"]);
    fs::write(service.environment.path("uploads/a.txt"), "changed").unwrap();
    let hanging = keep_draining(service);
    service.succeed(&["backup:restore", &id, "--yes", "--no-wait", "--no-safety-backup"]);
    service.await_json(&["activity:list"], |all| all[0]["phase"] == "hold and swap");
    hanging
}

/// Nothing was restored, nothing is left of it, and the next restore does what it should.
fn assert_not_restored(service: &Service) {
    service.await_json(&["activity:list"], |all| {
        let Some(all) = all.as_array() else { return false };
        !all.is_empty() && all.iter().all(|activity| !activity["result"].is_null())
    });
    let until = Instant::now() + Duration::from_secs(60);
    let journal = service.environment.path("data/journal/test.main.json");
    while journal.exists() {
        assert!(Instant::now() < until, "the restore's journal is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    let uploads = service.environment.path("uploads");
    assert_eq!(fs::read(uploads.join("a.txt")).unwrap(), b"changed");
    assert_eq!(fs::read_dir(&uploads).unwrap().count(), 2, "something is left in the mount");
    service.succeed(&["backup:restore", "--yes", "--no-safety-backup"]);
    assert_eq!(fs::read(uploads.join("a.txt")).unwrap(), b"first");
}

#[test]
fn a_restore_that_is_cancelled_before_its_swap_changes_nothing() {
    let service = Service::start();
    let hanging = hold_a_restore(&service);
    service.succeed(&["activity:cancel"]);
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    let all = service.await_json(&["activity:list"], |all| !all[0]["result"].is_null());
    assert_eq!(all[0]["state"], "cancelled", "{all:#}");
    assert_not_restored(&service);
}

#[test]
fn a_task_killed_in_mid_restore_is_undone_by_the_watchdog() {
    let service = Service::start();
    let hanging = hold_a_restore(&service);
    let customers = Customers::start(service.gateway, 2);
    kill(children_of(service.child("agent")).pop().unwrap().0);
    customers.await_answers(10);
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    assert_not_restored(&service);
    customers.end_without_failures();
}

#[test]
fn an_agent_killed_in_mid_restore_recovers_it_before_anything_else() {
    let service = Service::start();
    let hanging = hold_a_restore(&service);
    let customers = Customers::start(service.gateway, 2);
    let task = children_of(service.child("agent")).pop().unwrap().0;
    service.kill("agent");
    // Let go before it has seen that its agent is gone, it would rightly finish the restore.
    await_that("the task ends", || !is_alive(task));
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    service.await_json(&["activity:list"], |all| {
        all.as_array().is_some_and(|all| {
            all.iter().any(|a| a["payload"]["after"].is_string() && a["result"] == "success")
        })
    });
    assert_not_restored(&service);
    customers.end_without_failures();
}

#[test]
fn a_datastore_that_somebody_locks_refuses_for_a_while_and_then_works() {
    let service = Service::start();
    let access = service.log_in(&service.admin_token());
    let path = service.environment.path("data/server/state.db");
    let database = rusqlite::Connection::open(path).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let backup = "/projects/test/environments/main/backup";
    let (status, answer) = service.send("POST", backup, Some(&access), "");
    assert_eq!(status, 503, "{answer}");
    assert!(!answer.to_string().contains("sqlite"), "the inside was told: {answer}");
    database.execute_batch("ROLLBACK").unwrap();
    assert_eq!(service.send("POST", backup, Some(&access), "").0, 200);
}

#[test]
fn a_gateway_that_dies_is_started_again() {
    let mut environment = Environment::unstarted("", "");
    let port = stillpoint_testkit::free_port();
    environment.config = environment.config.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    environment.configure(&environment.config);
    let service = Service::of(environment);
    service.kill("gateway");
    let until = Instant::now() + Duration::from_secs(30);
    while support::get(service.gateway, "/").is_err() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    service.succeed(&["backup:create"]);
}

#[test]
fn nothing_outlives_an_up_that_was_killed_and_the_next_one_goes_on() {
    let service = Service::start();
    let id = service.succeed(&["backup:create"]);
    let hanging = keep_draining(&service);
    hold(&service);
    let (environment, children) = service.kill_up();
    // The gateway lets the request in flight end, then ends itself.
    environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    assert!(children.len() >= 4, "{children:?}");
    let until = Instant::now() + Duration::from_secs(60);
    while children.iter().any(|child| is_alive(*child)) {
        assert!(Instant::now() < until, "{children:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let service = Service::again(environment);
    let all = service.await_json(&["activity:list"], |all| {
        let Some(all) = all.as_array() else { return false };
        all.len() >= 2 && all.iter().all(|activity| !activity["result"].is_null())
    });
    assert!(all.as_array().unwrap().iter().any(|a| a["result"] == "failure"), "{all:#}");
    assert_eq!(service.json(&["backups"])[0]["id"], id.as_str());
    service.succeed(&["backup:create"]);
    service.environment.assert_restic_is_content();
}

#[test]
fn a_second_up_on_the_same_data_is_refused() {
    let service = Service::start();
    let listen = format!("127.0.0.1:{}", service.port());
    let output = up(&service.environment, &["--listen", &listen]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`stillpoint up` runs already"), "{}", stderr(&output));
    // A server alone is refused too: the datastore has one already.
    let arguments = ["server", "--listen", "127.0.0.1:0"];
    let output = client(&service.environment, &arguments).output().unwrap();
    assert!(stderr(&output).contains("another server uses it"), "{}", stderr(&output));
}

#[test]
fn neither_gateway_nor_server_sees_a_password_and_the_gateway_is_not_root() {
    let service = Service::start();
    let environment_of = |command: &str| {
        let pid = service.child(command);
        let text = fs::read(format!("/proc/{pid}/environ")).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    };
    assert!(environment_of("agent").contains("PASSWORD_OF_THE_TEST=secret"));
    assert!(!environment_of("server").contains("PASSWORD_OF_THE_TEST"));
    if stillpoint_testkit::is_root() {
        let status = fs::read_to_string(format!("/proc/{}/status", service.child("gateway")));
        let status = status.unwrap();
        let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned();
        assert!(uids.split_whitespace().skip(1).all(|uid| uid != "0"), "{uids}");
        let groups = status.lines().find(|line| line.starts_with("Groups:")).unwrap();
        assert_eq!(groups.split_whitespace().count(), 1, "{groups}");
    } else {
        assert!(!environment_of("gateway").contains("PASSWORD_OF_THE_TEST"));
    }
}

#[test]
fn plain_http_is_for_loopback_only_unless_it_was_asked_for() {
    let environment = Environment::unstarted("", "");
    let output = up(&environment, &["--listen", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("not a loopback address") && said.contains("--tls-cert"), "{said}");
    let mut command = client(&environment, &["server", "--listen", "0.0.0.0:0", "--insecure-http"]);
    let server = support::Server::start(command.stderr(Stdio::null()));
    assert!(server.ready.starts_with("http://0.0.0.0:"), "{}", server.ready);
}

#[test]
fn the_api_is_served_over_tls_with_a_certificate() {
    let environment = Environment::unstarted("", "");
    let (certificate, key) = (environment.path("cert.pem"), environment.path("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", stderr(&made));
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let arguments =
        ["server", "--listen", "127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key];
    let server = support::Server::start(client(&environment, &arguments).stderr(Stdio::null()));
    assert!(server.ready.starts_with("https://"), "{}", server.ready);
    let ask = |trusted: Option<&str>| {
        let mut command = client(&environment, &["user:list", "-p", "test"]);
        if let Some(file) = trusted {
            command.env("STILLPOINT_CA_FILE", file);
        }
        stderr(&command.output().unwrap())
    };
    // No agent has connected, so there is no project; but the answer came over TLS.
    assert!(ask(Some(certificate)).contains("Project not found"), "{}", ask(Some(certificate)));
    assert!(ask(None).contains("reach the server"), "{}", ask(None));
    let output =
        client(&environment, &["server", "--tls-cert", key, "--tls-key", key]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("use the certificate"), "{}", stderr(&output));
}

#[test]
fn a_datastore_of_a_newer_version_is_refused_and_left_alone() {
    let service = Service::start();
    let environment = service.kill_up().0;
    let path = environment.path("data/server/state.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    database
        .execute("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_later', 0)", [])
        .unwrap();
    let tables = |database: &rusqlite::Connection| -> i64 {
        database.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).unwrap()
    };
    let before = tables(&database);
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let arguments = ["server", "--listen", "127.0.0.1:0"];
        let output = client(&environment, &arguments).output().unwrap();
        let said = stderr(&output);
        if said.contains("written by a newer version") {
            assert_eq!(output.status.code(), Some(1));
            break;
        }
        // The server of the killed `up` may not have ended yet.
        assert!(said.contains("another server uses it") && Instant::now() < until, "{said}");
    }
    assert_eq!(tables(&database), before);
}

#[test]
fn a_restore_to_what_does_not_exist_is_refused_with_the_reason() {
    let service = Service::start();
    let id = service.succeed(&["backup:create"]);
    let output = service.run(&["backup:restore", &id, "--target", "new", "--yes"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("not supported by this version yet"), "{}", stderr(&output));
    let output = service.run(&["backup:restore", &id, "--only", "nothing", "--yes"]);
    assert!(stderr(&output).contains("the backup holds no `nothing`"), "{}", stderr(&output));
    let output = service.run(&["backup:restore", &id]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--yes answers it"), "{}", stderr(&output));
}

#[test]
fn doctor_says_what_works_and_fails_for_what_does_not() {
    let service = Service::start();
    service.succeed(&["backup:create"]);
    let found = service.json(&["doctor"]);
    assert!(found.as_array().unwrap().iter().all(|finding| finding["ok"] == true), "{found:#}");
    fs::rename(service.environment.path("app.db"), service.environment.path("gone.db")).unwrap();
    let output = service.run(&["doctor", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let wrong: Vec<_> =
        found.as_array().unwrap().iter().filter(|finding| finding["ok"] == false).collect();
    assert_eq!(wrong.len(), 1, "{found:#}");
    assert_eq!(wrong[0]["part"], "main/local");
}

#[test]
fn without_a_server_the_command_says_how_to_get_one() {
    let environment = Environment::unstarted("", "");
    let output = client(&environment, &["backups"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no API token"), "{}", stderr(&output));
    let port = stillpoint_testkit::free_port();
    let output = client(&environment, &["backups"])
        .env("STILLPOINT_CLI_TOKEN", "x")
        .env("STILLPOINT_API_URL", format!("http://127.0.0.1:{port}"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`stillpoint up` starts it"), "{}", stderr(&output));
}

#[test]
fn a_command_that_waits_goes_on_when_the_server_comes_back() {
    let service = Service::start();
    let hanging = keep_draining(&service);
    let mut waiting = Followed::start(&mut service.command(&["backup:create"]));
    waiting.await_line("hold");
    service.kill("server");
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    let (status, _, said) = waiting.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("the server was restarted") || said.contains("the agent was lost"),
        "{said}"
    );
}
