//! The demo by the whole binary: what it proves, and what is left when it is killed.

mod support;

use std::fs;
use std::process::{Command, Stdio};
use support::{Followed, STILLPOINT, stderr};

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(STILLPOINT);
    command.arg("demo").args(arguments);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
}

#[test]
fn the_demo_holds_what_it_promises_and_restic_reads_what_it_stored() {
    let keep = tempfile::tempdir().unwrap();
    let keep = keep.path().join("demo");
    let services = ["--services", "all", "--backups", "2", "--orders", "150", "--pictures", "300"];
    let output =
        demo(&["--json", "--seconds", "4", "--keep"]).arg(&keep).args(services).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}{text}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(report["requests_failed"], 0);
    assert_eq!(report["consistency"], "consistent");
    assert_eq!(report["completeness"], "complete");
    assert_eq!(report["restored_identical"], true);
    assert_eq!(report["services"], serde_json::json!(["sqlite", "postgresql", "mariadb", "redis"]));
    assert_eq!(report["problems"], serde_json::json!([]));
    assert_eq!(report["backup_id"].as_str().unwrap().len(), 26);
    assert!(report["requests_held"].as_u64().unwrap() >= 10);
    let (hold, drain, mark) = (&report["hold_ms"], &report["drain_ms"], &report["mark_ms"]);
    let parts = drain.as_f64().unwrap() + mark.as_f64().unwrap();
    assert!((hold.as_f64().unwrap() - parts).abs() < 1.0, "{hold} {drain} {mark}");
    let backups = report["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 2);
    assert_eq!(backups[1]["backup_id"], report["backup_id"]);
    for backup in backups {
        let us = |key| backup[key].as_u64().unwrap();
        let times = ["begun_us", "hold_begin_us", "hold_end_us", "ended_us"].map(us);
        assert!(times.is_sorted(), "{times:?}");
        for part in ["db", "local", "mariadb", "redis", "uploads"] {
            let (marked, mark) = (&backup["marks_ms"][part], &backup["mark_ms"]);
            assert!(marked.as_f64() > Some(0.0) && marked.as_f64() <= mark.as_f64(), "{backup}");
        }
    }
    let checked = Command::new("restic")
        .args(["--no-cache", "-r", report["repository"].as_str().unwrap()])
        .args(["--password-file", report["password_file"].as_str().unwrap()])
        .args(["check", "--read-data"])
        .output()
        .expect("restic is installed: apt-get install restic");
    assert!(checked.status.success(), "{}", stderr(&checked));
}

#[test]
fn a_service_that_is_asked_for_and_missing_is_named_and_the_exit_code_is_3() {
    // Where Redis is not in it.
    let path = tempfile::tempdir().unwrap();
    let mut command = demo(&["--json", "--seconds", "3", "--services", "sqlite,redis"]);
    let output = command.env("PATH", path.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("apt-get install redis-server"), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(report["missing"], serde_json::json!(["redis"]));
    assert_eq!(report["restored_identical"], true);
    let top = std::path::Path::new(report["repository"].as_str().unwrap());
    fs::remove_dir_all(top.ancestors().nth(3).unwrap()).unwrap();
}

#[test]
fn wrong_usage_is_told_apart() {
    for (arguments, said) in [
        (&["--services", "mongodb"][..], "no service `mongodb`"),
        (&["--seconds", "0"][..], "0 is not in 3..=3600"),
        (&["--keep", "/proc"][..], "is not empty"),
    ] {
        let output = demo(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
}

#[test]
fn nothing_goes_on_running_when_the_demo_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("demo");
    let mut command = demo(&["--seconds", "9", "--services", "all", "--keep"]);
    command.arg(&keep).stdout(Stdio::null());
    let mut running = Followed::start(&mut command);
    running.await_line("taking a backup");
    let mark = keep.display().to_string();
    assert!(!processes_of(&mark).is_empty());
    let servers = ["postgres", "mariadbd", "redis-server"].map(|name| server(&running, name));
    running.signal(rustix::process::Signal::KILL);
    running.child.wait().unwrap();
    // Each ends by itself, or is ended by the watchdog, which goes last.
    while !processes_of(&mark).is_empty() {
        std::thread::yield_now();
    }
    // They may not have been waited for yet by whoever inherited them.
    for server in servers {
        assert!(!support::service::is_alive(server));
    }
}

#[test]
fn nothing_is_left_of_postgresql_when_the_demo_is_killed_while_it_starts() {
    kill_while_starting("PostgreSQL", "stillpoint-pg-", "/postgres -D ");
}

#[test]
fn nothing_is_left_of_mariadb_when_the_demo_is_killed_while_it_starts() {
    kill_while_starting("MariaDB", "stillpoint-demo-mariadb-", "--init-file=");
}

#[test]
fn nothing_is_left_of_redis_when_the_demo_is_killed_while_it_starts() {
    kill_while_starting("Redis", "stillpoint-demo-redis-", "/redis-server ");
}

/// Kills the demo as soon as a process runs that has both texts among its arguments.
fn kill_while_starting(name: &str, prefix: &str, argument: &str) {
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("demo");
    let temporary = directory.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for path in [directory.path(), &temporary] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = demo(&["--seconds", "3", "--keep", keep.to_str().unwrap()]);
    let service = name.to_lowercase();
    command.args(["--services", &service]).env("TMPDIR", &temporary).stdout(Stdio::null());
    let mut running = Followed::start(&mut command);
    running.await_line(&format!("starting {name}"));
    // Its server has just been started, and is not ready.
    let mark = format!("{}/{prefix}", temporary.display());
    while !processes_of(&mark).iter().any(|line| line.contains(argument)) {
        assert!(running.child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    running.signal(rustix::process::Signal::KILL);
    running.child.wait().unwrap();
    let mark = directory.path().display().to_string();
    while !processes_of(&mark).is_empty() {
        std::thread::yield_now();
    }
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn only_what_a_demo_has_left_is_cleaned_away() {
    use std::os::unix::fs::symlink;
    let temporary = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let clean = |path: &std::path::Path| {
        let mut command = Command::new(STILLPOINT);
        command.arg("demo-clean").arg(path).env_clear().env("TMPDIR", temporary.path());
        command.output().unwrap().status.code()
    };
    let linked = temporary.path().join("stillpoint-pg-link");
    symlink(other.path(), &linked).unwrap();
    let kept = [
        temporary.path().join("elsewhere"),
        // What a demo keeps, and what a driver works in.
        temporary.path().join("stillpoint-demo-a"),
        temporary.path().join("stillpoint-redis-a"),
        temporary.path().join("deeper/stillpoint-pg-a"),
        other.path().join("stillpoint-pg-a"),
    ];
    for path in &kept {
        fs::create_dir_all(path).unwrap();
    }
    for path in kept.iter().chain([&linked]) {
        assert_eq!(clean(path), Some(2), "{path:?}");
        assert!(path.exists());
    }
    for name in ["stillpoint-pg-a", "stillpoint-demo-mariadb-a", "stillpoint-demo-redis-a"] {
        let left = temporary.path().join(name);
        fs::create_dir_all(left.join("data")).unwrap();
        assert_eq!(clean(&left), Some(0));
        assert!(!left.exists());
        assert_eq!(clean(&left), Some(0));
    }
}

/// Every process that has this text among its arguments.
fn processes_of(mark: &str) -> Vec<String> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(mark))
        .collect()
}

/// The server of this name that the demo has started.
fn server(demo: &Followed, name: &str) -> i32 {
    let pid = demo.child.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children
        .split_whitespace()
        .map(|child| child.parse().unwrap())
        .find(|child: &i32| {
            fs::read(format!("/proc/{child}/cmdline")).is_ok_and(|line| {
                let program = line.split(|byte| [0, b' '].contains(byte)).next().unwrap();
                program.ends_with(format!("/{name}").as_bytes())
            })
        })
        .unwrap_or_else(|| panic!("{name} is a child of the demo"))
}
