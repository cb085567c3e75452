//! What bad input and bad luck get, by the whole binary.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use rustix::process::Signal;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use stillpoint_gateway::control::StateName as State;
use support::{Customers, Environment, Followed, STILLPOINT, get, stderr};

#[test]
fn an_unknown_key_is_named_with_its_line_and_what_would_be_right() {
    let environment = Environment::unstarted("", "");
    environment.configure(&environment.config.replace("upstream", "upstrem"));
    let output = environment.run(&["backup:create"]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("stillpoint.yaml:6:"), "{said}");
    assert!(said.contains("upstrem") && said.contains("did you mean `upstream`?"), "{said}");
}

#[test]
fn without_a_watchdog_nothing_is_held() {
    let mut environment = Environment::unstarted("", "");
    environment.start_gateway();
    let output = environment.run(&["backup:create"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`stillpoint watchdog` starts one"), "{}", stderr(&output));
    assert_eq!(environment.status().totals.holds, 0);
}

#[test]
fn a_gateway_that_is_not_running_is_named_in_prepare() {
    let environment = Environment::unstarted("", "");
    let _watchdog =
        support::Server::start(environment.stillpoint(&["watchdog"]).stderr(Stdio::null()));
    let output = environment.run(&["backup:create"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("reach gateway `web`") && said.contains("stillpoint gateway web"),
        "{said}"
    );
}

#[test]
fn a_wrong_database_password_is_named_before_any_request_is_held() {
    let server = stillpoint_testkit::postgres();
    let line = format!(
        "\x20     db: {{ type: postgresql, url: \"{}\", password_env: DB_PASSWORD }}\n",
        server.url()
    );
    let environment = Environment::with("", &line);
    let mut command = environment.stillpoint(&["backup:create"]);
    let output = command.env("DB_PASSWORD", "wrong").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("prepare service `db`") && said.contains("password"), "{said}");
    assert!(!said.contains("wrong\n") && !said.contains("`wrong`"), "{said}");
    assert_eq!(environment.status().totals.holds, 0);
    assert_eq!(environment.backups(), 0);

    let output = environment.run(&["backup:create"]);
    assert!(stderr(&output).contains("DB_PASSWORD"), "{}", stderr(&output));

    let mut command = environment.stillpoint(&["backup:create"]);
    let output = command.env("DB_PASSWORD", server.password()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_service_that_is_down_is_named_before_any_request_is_held() {
    let line = "\x20     db: { type: postgresql, url: \"postgres://shop@127.0.0.1:1/shop\" }\n";
    let environment = Environment::with("", line);
    let output = environment.run(&["backup:create"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("prepare service `db`") && said.contains("127.0.0.1:1"), "{said}");
    assert_eq!(environment.status().totals.holds, 0);
}

#[test]
fn a_request_that_does_not_finish_fails_the_backup_and_is_named_and_all_others_go_on() {
    let environment = Environment::with(", drain_timeout: 300ms", "");
    let address = environment.gateway();
    let hanging = std::thread::spawn(move || get(address, "/hang?secret=1").unwrap());
    environment.application.await_hanging(1);
    let customers = Customers::start(address, 4);
    let output = environment.run(&["backup:create"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("GET /hang") && !said.contains("secret"), "{said}");
    customers.await_answers(20);
    customers.end_without_failures();
    environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    assert_eq!(environment.backups(), 0);
    environment.succeed(&["backup:create"]);
    environment.assert_restic_is_content();
}

/// A request that the application answers only once it is let go; it is in flight by now.
fn hang(environment: &Environment) -> std::thread::JoinHandle<String> {
    let address = environment.gateway();
    let hanging = std::thread::spawn(move || get(address, "/hang").unwrap());
    environment.application.await_hanging(1);
    hanging
}

/// Ends a coordinator in a certain state, and looks at what is left of it.
fn killed(environment: &Environment, customers: &Customers, mut coordinator: Followed) {
    coordinator.signal(Signal::KILL);
    customers.await_answers(20);
    assert!(matches!(environment.status().state, State::Passing));
    coordinator.child.wait().unwrap();
    assert_eq!(environment.backups(), 0);
    await_no_locks(environment);
    environment.assert_restic_is_content();
    environment.succeed(&["backup:create"]);
    assert_eq!(environment.backups(), 1);
    environment.assert_restic_is_content();
}

/// The watchdog removes a dead coordinator's lock from the repository.
fn await_no_locks(environment: &Environment) {
    let locks = environment.path("store/test/production/locks");
    let until = Instant::now() + PATIENCE;
    while std::fs::read_dir(&locks).unwrap().next().is_some() {
        assert!(Instant::now() < until, "a lock is left");
        std::thread::yield_now();
    }
}

/// How long a state may be waited for before it is said that it never came.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the gateway is in a state.
fn await_state(environment: &Environment, wanted: State) {
    let until = Instant::now() + PATIENCE;
    while environment.status().state != wanted {
        assert!(Instant::now() < until, "it was never {wanted:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_coordinator_that_is_killed_in_the_drain_leaves_nothing_behind() {
    let environment = Environment::new();
    let address = environment.gateway();
    let hanging = hang(&environment);
    let customers = Customers::start(address, 4);
    let coordinator = Followed::start(&mut environment.stillpoint(&["backup:create"]));
    await_state(&environment, State::Draining);
    // Let go only after the kill: the drain cannot end before it.
    coordinator.signal(Signal::KILL);
    await_state(&environment, State::Passing);
    environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    killed(&environment, &customers, coordinator);
    customers.end_without_failures();
}

/// Keeps the marks from being taken: a rollback-journal database that another one writes to.
fn blocked_database(environment: &Environment) -> rusqlite::Connection {
    let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
    database.pragma_update(None, "journal_mode", "delete").unwrap();
    database
}

#[test]
fn a_coordinator_that_is_killed_in_the_mark_leaves_nothing_behind() {
    let environment = Environment::new();
    let database = blocked_database(&environment);
    let address = environment.gateway();
    // One request in flight lets us block the database between prepare and mark.
    let hanging = hang(&environment);
    let customers = Customers::start(address, 4);
    let coordinator = Followed::start(&mut environment.stillpoint(&["backup:create"]));
    await_state(&environment, State::Draining);
    database.execute_batch("BEGIN EXCLUSIVE").unwrap();
    environment.application.let_go();
    await_state(&environment, State::Holding);
    coordinator.signal(Signal::KILL);
    await_state(&environment, State::Passing);
    assert!(hanging.join().unwrap().contains(" 200 "));
    database.execute_batch("COMMIT").unwrap();
    killed(&environment, &customers, coordinator);
    customers.end_without_failures();
}

#[test]
fn a_coordinator_that_is_killed_in_the_capture_leaves_nothing_behind() {
    let environment = Environment::new();
    let customers = Customers::start(environment.gateway(), 4);
    // Enough to be captured that the kill comes before its end.
    let database = rusqlite::Connection::open(environment.path("app.db")).unwrap();
    database
        .execute_batch("CREATE TABLE big AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) SELECT randomblob(1000000) b FROM n")
        .unwrap();
    let mut coordinator = Followed::start(&mut environment.stillpoint(&["backup:create"]));
    coordinator.await_line("capture");
    killed(&environment, &customers, coordinator);
    customers.end_without_failures();
}

#[test]
fn a_coordinator_that_sleeps_through_its_hold_does_not_claim_a_backup() {
    let environment = Environment::with(", max_hold: 4s, drain_timeout: 3s", "");
    let address = environment.gateway();
    let hanging = hang(&environment);
    let customers = Customers::start(address, 4);
    let coordinator = Followed::start(&mut environment.stillpoint(&["backup:create"]));
    await_state(&environment, State::Draining);
    coordinator.signal(Signal::STOP);
    // The gateway lets everybody go by itself; only then does the coordinator wake up.
    await_state(&environment, State::Passing);
    customers.await_answers(20);
    environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    coordinator.signal(Signal::CONT);
    let (status, printed, said) = coordinator.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(printed, "");
    customers.end_without_failures();
    assert_eq!(environment.backups(), 0);
    environment.assert_restic_is_content();
    environment.succeed(&["backup:create"]);
}

#[test]
fn a_coordinator_that_sleeps_while_it_blocks_writers_is_ended() {
    let environment = Environment::with(", max_hold: 4s, drain_timeout: 3s", "");
    let database = blocked_database(&environment);
    let hanging = hang(&environment);
    let coordinator = Followed::start(&mut environment.stillpoint(&["backup:create"]));
    await_state(&environment, State::Draining);
    coordinator.signal(Signal::STOP);
    let (status, printed, _) = coordinator.end();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert_eq!(printed, "");
    environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    database.execute_batch("INSERT INTO t (v) VALUES ('free')").unwrap();
    assert_eq!(environment.backups(), 0);
    await_no_locks(&environment);
    environment.assert_restic_is_content();
}

#[test]
fn a_full_repository_fails_the_backup_and_publishes_nothing() {
    let environment = Environment::new();
    environment.succeed(&["backup:create"]);
    let before = environment.backups();
    // In a mount namespace of its own, the store lies on a tiny file system that already holds
    // the repository: full in the middle of the capture.
    let store = environment.path("store");
    let script = format!(
        "set -e; cp -a '{0}' '{0}.copy'; mount -t tmpfs -o size=3m none '{0}'; \
         cp -a '{0}.copy/.' '{0}'; \"$@\" || code=$?; ls '{0}/test/production/snapshots' | wc -l; \
         restic --no-cache -r '{0}/test/production' --password-file '{1}' check --read-data; \
         exit ${{code:-0}}",
        store.display(),
        environment.path("data/keys/test-production.password").display()
    );
    let mut noise = vec![0_u8; 12 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    std::fs::write(environment.path("uploads/noise"), noise).unwrap();
    let customers = Customers::start(environment.gateway(), 4);
    let create = environment.stillpoint(&["backup:create"]);
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    unshare.arg(create.get_program()).args(create.get_args());
    let output = unshare.current_dir(environment.directory.path()).output().unwrap();
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(printed.lines().next(), Some(before.to_string().as_str()), "{printed}");
    customers.await_answers(20);
    customers.end_without_failures();
    assert!(printed.contains("no errors were found"), "{printed} {said}");
}

#[test]
fn an_unreadable_file_makes_the_backup_partial_and_is_named() {
    let environment = Environment::unstarted("", "");
    let (binary, _keep) = readable_by_everyone();
    let secret = environment.path("uploads/secret");
    std::fs::write(&secret, "secret").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    give_to_nobody(&environment);
    let as_nobody = |arguments: &[&str]| {
        let mut command = environment.command_of(&binary, arguments);
        if stillpoint_testkit::is_root() {
            command.uid(65534).gid(65534);
        }
        command
    };
    let _watchdog = support::Server::start(as_nobody(&["watchdog"]).stderr(Stdio::inherit()));
    let _gateway = support::Server::start(as_nobody(&["gateway", "web"]).stderr(Stdio::inherit()));
    let output = as_nobody(&["backup:create"]).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("uploads: secret: ") && said.contains("ermission denied"), "{said}");
    let id = String::from_utf8(output.stdout).unwrap();
    let got = as_nobody(&["backup:get", id.trim(), "--format", "json"]).output().unwrap();
    let object: serde_json::Value = serde_json::from_slice(&got.stdout).unwrap();
    assert_eq!(object["attributes"]["completeness"], "partial");
    assert_eq!(object["gaps"][0]["what"], "secret");

    // So is a safety backup, and whoever restores is told what it lacks.
    let restore = ["backup:restore", id.trim(), "--only", "local", "-y"];
    let output = as_nobody(&restore).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("warning: the safety backup is partial: it lacks 1 things"), "{said}");
    assert!(said.matches("uploads: secret: ").count() == 1, "{said}");

    // One who wants all or nothing gets nothing.
    environment.configure(
        &environment
            .config
            .replace("type: production\n", "type: production\n    on_partial: fail\n"),
    );
    let output = as_nobody(&["backup:create"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("would be partial"), "{}", stderr(&output));

    // Restoring where it may not write: the old data still stands.
    std::fs::write(environment.path("uploads/a.txt"), "newer").unwrap();
    for directory in ["uploads", "uploads/deep"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o555);
        std::fs::set_permissions(environment.path(directory), mode).unwrap();
    }
    let restore = ["backup:restore", id.trim(), "--only", "uploads", "-y", "--no-safety-backup"];
    let output = as_nobody(&restore).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("restore into"), "{}", stderr(&output));
    assert_eq!(std::fs::read(environment.path("uploads/a.txt")).unwrap(), b"newer");
    assert!(!environment.path("data/journal/test.main.json").exists());
}

/// The binary under test, where every user can run it.
fn readable_by_everyone() -> (std::path::PathBuf, tempfile::TempDir) {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), mode.clone()).unwrap();
    let copy = directory.path().join("stillpoint");
    std::fs::copy(STILLPOINT, &copy).unwrap();
    std::fs::set_permissions(&copy, mode).unwrap();
    (copy, directory)
}

fn give_to_nobody(environment: &Environment) {
    if !stillpoint_testkit::is_root() {
        return;
    }
    let top = environment.directory.path().to_owned();
    let status = Command::new("chown").args(["-R", "65534:65534"]).arg(top).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_unknown_backup_is_named_and_nothing_happens() {
    let environment = Environment::new();
    let unknown = "a".repeat(26);
    let output = environment.run(&["backup:restore", &unknown, "-y"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("has no backups yet"), "{}", stderr(&output));
    environment.succeed(&["backup:create"]);
    for command in ["backup:get", "backup:restore"] {
        let output = environment.run(&[command, &unknown]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(&unknown), "{}", stderr(&output));
        let output = environment.run(&[command, "nonsense"]);
        assert_eq!(output.status.code(), Some(2));
    }
    assert_eq!(environment.status().totals.holds, 1);
}

#[test]
fn a_gateway_without_its_application_answers_502_at_once_and_holds_nothing() {
    let mut environment = Environment::unstarted("", "");
    let address = environment.application.address.to_string();
    environment.configure(&environment.config.replace(&address, "127.0.0.1:1"));
    environment.start_gateway();
    let status = get(environment.gateway(), "/").unwrap();
    assert!(status.contains(" 502 "), "{status}");
    assert_eq!(environment.status().held, 0);
}

#[test]
fn a_killed_restore_is_undone_or_finished_by_the_watchdog() {
    let environment = Environment::new();
    let id = environment.succeed(&["backup:create"]);
    std::fs::write(environment.path("uploads/a.txt"), "changed").unwrap();
    let hanging = hang(&environment);
    let restore = ["backup:restore", &id, "-y", "--no-safety-backup"];
    let mut restoring = Followed::start(&mut environment.stillpoint(&restore));
    // Everything has been loaded aside by now, and the drain waits for the request.
    await_state(&environment, State::Draining);
    let journal = environment.path("data/journal/test.main.json");
    assert!(journal.exists());
    // Nothing else is done to the environment meanwhile.
    let output = environment.run(&["backup:create"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is busy with a restore"), "{}", stderr(&output));
    restoring.signal(Signal::KILL);
    restoring.child.wait().unwrap();
    while journal.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    assert_eq!(std::fs::read(environment.path("uploads/a.txt")).unwrap(), b"changed");
    let left: Vec<_> = std::fs::read_dir(environment.path("uploads"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    let files: Vec<_> = std::fs::read_dir(environment.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("stillpoint-"))
        .collect();
    assert!(files.is_empty(), "{files:?}");
    environment.succeed(&restore);
    assert_eq!(std::fs::read(environment.path("uploads/a.txt")).unwrap(), b"first");
}

#[test]
fn an_unmounted_store_is_not_taken_for_a_new_one() {
    let environment = Environment::new();
    environment.succeed(&["backup:create"]);
    let (store, away) = (environment.path("store"), environment.path("away"));
    std::fs::rename(&store, &away).unwrap();
    std::fs::create_dir(&store).unwrap();
    for command in [&["backup:create"][..], &["backup:list"], &["backup:restore", "-y"]] {
        let output = environment.run(command);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.contains("is the location mounted?"), "{said}");
        assert!(said.contains("data/keys/test-production.password"), "{said}");
    }
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
    std::fs::remove_dir(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    environment.succeed(&["backup:create"]);
    assert_eq!(environment.backups(), 2);
}

#[test]
fn a_first_backup_that_was_cut_off_anywhere_is_taken_up_again() {
    let environment = Environment::new();
    environment.succeed(&["backup:create"]);
    let password = environment.path("data/keys/test-production.password");
    let new = environment.path("data/keys/test-production.password.new");
    let store = environment.path("store/test/production");
    let known = std::fs::read_to_string(&password).unwrap();
    assert!(!new.exists());

    // Before the password got its own name: it is kept, and so is the repository.
    std::fs::rename(&password, &new).unwrap();
    assert_eq!(environment.backups(), 1);
    assert_eq!(std::fs::read_to_string(&password).unwrap(), known);

    // Before the repository had its config: one key is left that nothing is encrypted with.
    std::fs::rename(&password, &new).unwrap();
    std::fs::remove_file(store.join("config")).unwrap();
    std::fs::remove_dir_all(store.join("snapshots")).unwrap();
    std::fs::remove_dir_all(store.join("index")).unwrap();
    std::fs::remove_dir_all(store.join("data")).unwrap();
    environment.succeed(&["backup:create"]);
    assert_eq!(environment.backups(), 1);
    assert!(!new.exists());
    environment.assert_restic_is_content();

    // Before anything of the repository was there; and before the password was whole.
    for kept in [known.as_str(), "half"] {
        std::fs::remove_dir_all(&store).unwrap();
        std::fs::remove_file(&password).unwrap();
        std::fs::write(&new, kept).unwrap();
        environment.succeed(&["backup:create"]);
        let now = std::fs::read_to_string(&password).unwrap();
        assert_eq!(now == kept, kept == known);
        assert_eq!(now.len(), 33);
        environment.assert_restic_is_content();
    }
}

#[test]
fn two_first_backups_at_once_make_one_repository() {
    let environment = Environment::new();
    let create = || Followed::start(&mut environment.stillpoint(&["backup:create", "--live"]));
    for backup in [create(), create(), create()] {
        let (status, _, said) = backup.end();
        assert!(status.success(), "{said}");
    }
    assert_eq!(environment.backups(), 3);
    assert!(!environment.path("data/keys/test-production.password.new").exists());
    environment.assert_restic_is_content();
}

#[test]
fn environments_and_gateways_with_names_alike_do_not_share_sockets() {
    let mut environment = Environment::unstarted("", "");
    let named = |name: &str| environment.config.replace("  main:", &format!("  {name}:"));
    let (slash, dash) = (named("feature/a"), named("feature-a"));
    environment.configure(&slash);
    environment.start_gateway();
    environment.configure(&dash);
    let mut command = environment.stillpoint(&["gateway", "web"]);
    let _second = support::Server::start(command.stderr(Stdio::inherit()));
    for name in ["test.feature%a.web.sock", "test.feature-a.web.sock"] {
        let socket = environment.path("data/run").join(name);
        stillpoint_gateway::control::Control::connect(&socket).unwrap().status().unwrap();
    }
}

/// Kills a restore while it waits for the drain, with no watchdog to see it: the journal stays.
fn abandoned_restore(environment: &Environment, watchdog: support::Server) -> std::path::PathBuf {
    let id = environment.succeed(&["backup:create"]);
    std::fs::write(environment.path("uploads/a.txt"), "changed").unwrap();
    let hanging = hang(environment);
    let restore = ["backup:restore", &id, "-y", "--no-safety-backup"];
    let mut restoring = Followed::start(&mut environment.stillpoint(&restore));
    await_state(environment, State::Draining);
    drop(watchdog);
    restoring.signal(Signal::KILL);
    restoring.child.wait().unwrap();
    environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    let journal = environment.path("data/journal/test.main.json");
    assert!(journal.exists());
    journal
}

fn watchdog(environment: &Environment) -> support::Server {
    support::Server::start(environment.stillpoint(&["watchdog"]).stderr(Stdio::inherit()))
}

#[test]
fn a_watchdog_begins_with_the_restores_that_were_left() {
    let mut environment = Environment::unstarted("", "");
    environment.start_gateway();
    let first = watchdog(&environment);
    let journal = abandoned_restore(&environment, first);
    let _second = watchdog(&environment);
    while journal.exists() {
        std::thread::yield_now();
    }
    assert_eq!(std::fs::read(environment.path("uploads/a.txt")).unwrap(), b"changed");
}

#[test]
fn a_gateway_does_not_start_before_data_that_is_half_swapped() {
    let mut environment = Environment::unstarted("", "");
    environment.start_gateway();
    let first = watchdog(&environment);
    let journal = abandoned_restore(&environment, first);
    environment.stop_gateway();
    // As it would be, had the restore been killed a moment later.
    let text = std::fs::read_to_string(&journal).unwrap();
    for phase in ["swapped", "swapping"] {
        let changed = text.replace("\"loading\"", &format!("\"{phase}\""));
        assert_ne!(changed, text);
        std::fs::write(&journal, changed).unwrap();
        let output = environment.run(&["gateway", "web"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("`stillpoint recover`"), "{}", stderr(&output));
    }
    environment.succeed(&["recover"]);
    environment.start_gateway();
    assert!(get(environment.gateway(), "/").unwrap().contains(" 200 "));
}

#[test]
fn a_watchdog_that_ran_out_of_open_files_goes_on_when_there_are_some_again() {
    let environment = Environment::unstarted("", "");
    let watchdog = environment.stillpoint(&["watchdog"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 16; exec \"$@\"", "sh"]);
    limited.arg(watchdog.get_program()).args(watchdog.get_args());
    limited.stderr(Stdio::piped());
    let (server, mut said) = support::Server::start_heard(&mut limited);
    let socket = std::path::Path::new(&server.ready);
    let looking: Vec<_> =
        (0..32).map(|_| std::os::unix::net::UnixStream::connect(socket).unwrap()).collect();
    // It has met the limit, and lives.
    assert!(said.by_ref().any(|line| line.unwrap().contains("Too many open files")));
    drop(looking);
    let silence = Duration::from_secs(60);
    let mut guard = stillpoint_capture::watchdog::Guard::connect(socket, silence);
    while guard.is_err() {
        guard = stillpoint_capture::watchdog::Guard::connect(socket, silence);
    }
    guard.unwrap().goodbye().unwrap();
}
