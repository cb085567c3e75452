//! Restores into a real Redis server: undone, cut off anywhere, and finished.

mod common;
mod redis_server;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Memory, capture, killed_in_swap, loaded, restore, step, swap_if_told, told};
use redis_server::{Server, ask, bytes, driver_at, fill, state};
use stillpoint_services::{Aside, Driver, Restore, Source};

fn steps(server: &Server) -> Box<dyn Restore> {
    server.driver("restorer").restore()
}

/// A server, what was captured of it, its state then, and its state now.
fn captured() -> (Server, Memory, Vec<String>, Vec<String>) {
    let server = Server::start();
    fill(&server);
    let expected = state(&server);
    let memory = capture(&server.driver("byfile"), || ());
    server.lines(0, "SET later x\nDEL list\nXTRIM stream MAXLEN 10");
    server.lines(3, "FLUSHDB");
    server.lines(7, "SET elsewhere x");
    server.ask::<()>(&["FUNCTION", "DELETE", "till"]);
    let changed = state(&server);
    (server, memory, expected, changed)
}

#[test]
fn a_restore_is_undone_after_the_swap_each_step_taken_twice() {
    let (server, memory, expected, changed) = captured();
    let (mut back, mut forth) = (steps(&server), steps(&server));
    let aside = loaded(back.as_mut(), &memory);
    step("load again", forth.load(&aside, &memory));
    step("verify again", forth.verify(&aside, &memory));
    for _ in 0..2 {
        step("swap", steps(&server).swap(&aside));
    }
    assert_ne!(state(&server), changed);
    assert!(steps(&server).discard(&aside).is_err(), "live data is never discarded");
    server.lines(0, "SET written after-the-swap");
    for _ in 0..2 {
        step("swap back", steps(&server).swap_back(&aside));
    }
    assert!(steps(&server).finish(&aside).is_err(), "what was not swapped is not finished");
    for _ in 0..2 {
        step("discard", steps(&server).discard(&aside));
    }
    assert_eq!(state(&server), changed);

    // And once more, to its end.
    let aside = loaded(back.as_mut(), &memory);
    step("swap", back.swap(&aside));
    for _ in 0..2 {
        step("finish", steps(&server).finish(&aside));
    }
    assert_eq!(state(&server), expected, "nothing is left beside what was captured");
}

#[test]
fn live_data_is_undisturbed_until_the_swap_which_is_one_moment() {
    let (server, memory, _, _) = captured();
    let mut reader = server.admin();
    ask::<()>(&mut reader, &["WATCH", "later"]);
    let mut steps = steps(&server);
    let aside = loaded(steps.as_mut(), &memory);
    ask::<()>(&mut reader, &["MULTI"]);
    ask::<()>(&mut reader, &["GET", "later"]);
    let seen: Option<Vec<String>> = ask(&mut reader, &["EXEC"]);
    assert_eq!(seen, Some(vec!["x".to_owned()]), "nothing was touched");
    // A client that waits for a list gets it from what is swapped in.
    let wait = redis::cmd("BLPOP").arg("list").arg(0).get_packed_command();
    reader.send_packed_command(&wait).unwrap();
    server.wait_for("blocked_clients", "1");
    step("swap", steps.swap(&aside));
    let popped: (String, String) =
        redis::from_redis_value(reader.recv_response().unwrap()).unwrap();
    assert_eq!(popped, ("list".to_owned(), "a".to_owned()));
    step("finish", steps.finish(&aside));
}

#[test]
fn keys_that_expire_on_the_way_are_gone_and_others_keep_their_time() {
    let server = Server::start();
    server.lines(0, "SET lasting x PXAT 4102444800123\nSET brief x PX 1500\nSADD s a b c");
    let until: i64 = server.ask(&["PEXPIRETIME", "brief"]);
    let memory = capture(&server.driver("byfile"), || server.lines(0, "SET brief other"));
    let mut steps = steps(&server);
    let aside = steps.plan("t0ken", &memory).unwrap();
    step("load", steps.load(&aside, &memory));
    let now = || {
        let (seconds, micros): (i64, i64) = server.ask(&["TIME"]);
        seconds * 1000 + micros / 1000
    };
    while now() <= until {
        std::thread::sleep(Duration::from_millis(20));
    }
    step("verify", steps.verify(&aside, &memory));
    step("swap", steps.swap(&aside));
    step("finish", steps.finish(&aside));
    assert!(!server.ask::<bool>(&["EXISTS", "brief"]));
    assert_eq!(server.ask::<i64>(&["PEXPIRETIME", "lasting"]), 4_102_444_800_123);
}

#[test]
fn what_differs_from_the_capture_is_found_by_the_comparison() {
    let server = Server::start();
    fill(&server);
    let memory = capture(&server.driver("byfile"), || ());
    let mut steps = steps(&server);
    let aside = steps.plan("t0ken", &memory).unwrap();
    let spare = u32::try_from(aside.0["pairs"][0]["spare"].as_u64().unwrap()).unwrap();
    for (change, words) in [
        ("SET number 7", "the value of the key \"number\""),
        ("SREM set:big member", "the value of the key \"set:big\""),
        ("HSET hash:big more x", "the value of the key \"hash:big\""),
        ("XACK stream readers", "the value of the key \"stream\""),
        ("LSET list 0 z", "the value of the key \"list\""),
        ("PERSIST lasting", "the time to live of the key \"lasting\""),
        ("DEL bits", "the presence of the key \"bits\""),
        ("SET foreign x", "got a key \"foreign\""),
    ] {
        step("load", steps.load(&aside, &memory));
        step("verify", steps.verify(&aside, &memory));
        match change.split_once(' ').unwrap() {
            ("SREM", _) => {
                server.line_in::<i64>(spare, &["SREM", "set:big", "member 7"]);
            }
            ("XACK", _) => {
                let mut admin = server.admin();
                ask::<()>(&mut admin, &["SELECT", &spare.to_string()]);
                let group = ["XREADGROUP", "GROUP", "readers", "cid", "STREAMS", "stream", ">"];
                let _: redis::Value = ask(&mut admin, &group);
            }
            _ => server.lines(spare, change),
        }
        let said = told(&steps.verify(&aside, &memory).unwrap_err());
        assert!(said.contains(words), "{change}: {said}");
        step("discard", steps.discard(&aside));
    }
}

#[test]
fn keys_of_others_in_a_spare_database_are_never_touched() {
    let (server, memory, ..) = captured();
    let mut steps = steps(&server);
    let aside = steps.plan("t0ken", &memory).unwrap();
    let spare = u32::try_from(aside.0["pairs"][1]["spare"].as_u64().unwrap()).unwrap();
    server.lines(spare, "SET somebodys x");
    let said = told(&steps.load(&aside, &memory).unwrap_err());
    assert!(said.contains("has keys now"), "{said}");
    step("discard", steps.discard(&aside));
    assert!(server.line_in::<bool>(spare, &["EXISTS", "somebodys"]));

    // A database that the application begins to use after the plan fails the swap.
    server.lines(spare, "DEL somebodys");
    let aside = loaded(steps.as_mut(), &memory);
    server.lines(5, "SET somebodys x");
    let said = told(&steps.swap(&aside).unwrap_err());
    assert!(said.contains("database 5 was empty before"), "{said}");
    step("discard", steps.discard(&aside));
    assert!(server.line_in::<bool>(5, &["EXISTS", "somebodys"]));
}

#[test]
fn a_server_that_runs_out_of_memory_or_evicts_meanwhile_fails_the_restore() {
    for (policy, words) in [("noeviction", "OOM"), ("allkeys-random", "it has evicted keys")] {
        let server = Server::start();
        fill(&server);
        let memory = capture(&server.driver("byfile"), || ());
        let mut steps = steps(&server);
        let aside = steps.plan("t0ken", &memory).unwrap();
        let used: u64 = server.info("used_memory").parse().unwrap();
        server.set("maxmemory-policy", policy);
        server.set("maxmemory", &(used + 1_000_000).to_string());
        let outcome = steps.load(&aside, &memory).and_then(|()| steps.verify(&aside, &memory));
        let said = told(&outcome.unwrap_err());
        assert!(said.contains(words) || said.contains("loaded to its end"), "{policy}: {said}");
        server.set("maxmemory", "0");
        step("swap back", steps.swap_back(&aside));
        step("discard", steps.discard(&aside));
    }
}

#[test]
fn a_flushall_before_the_swap_is_noticed_and_nothing_is_swapped() {
    let (server, memory, ..) = captured();
    let mut steps = steps(&server);
    let aside = loaded(steps.as_mut(), &memory);
    server.lines(0, "FLUSHALL\nSET fresh x");
    let said = told(&steps.swap(&aside).unwrap_err());
    assert!(said.contains("nothing was loaded to its end"), "{said}");
    step("discard", steps.discard(&aside));
    assert!(server.ask::<bool>(&["EXISTS", "fresh"]));
}

#[test]
fn functions_that_cannot_be_put_back_leave_everything_as_it_was() {
    let (server, memory, _, changed) = captured();
    let mut steps = steps(&server);
    let aside = loaded(steps.as_mut(), &memory);
    let spare = u32::try_from(aside.0["pairs"][0]["spare"].as_u64().unwrap()).unwrap();
    let marker = aside.0["marker"].as_str().unwrap();
    server.line_in::<i64>(spare, &["HSET", marker, "functions", "broken"]);
    let said = told(&steps.swap(&aside).unwrap_err());
    assert!(said.contains("exchange live and spare databases"), "{said}");
    step("swap back", steps.swap_back(&aside));
    step("discard", steps.discard(&aside));
    assert_eq!(state(&server), changed);
}

#[test]
fn a_finished_restore_outlives_a_crash_of_a_server_that_keeps_its_data() {
    for settings in
        [["--save", "3600 1000000", "--appendonly", "no"], ["--save", "", "--appendonly", "yes"]]
    {
        let mut server = Server::with(&settings);
        fill(&server);
        let expected = state(&server);
        let memory = capture(&server.driver("byfile"), || server.lines(0, "FLUSHDB\nSET b 1"));
        restore(&server.driver("restorer"), &memory);
        server.crash_and_start();
        assert_eq!(state(&server), expected, "{settings:?} {}", server.log());
    }
}

#[test]
fn the_old_data_stays_where_the_server_cannot_save_the_swap() {
    let server = Server::with(&["--save", "3600 1000000"]);
    fill(&server);
    let memory = capture(&server.driver("byfile"), || server.lines(0, "FLUSHDB\nSET b 1"));
    let changed = state(&server);
    let mut steps = steps(&server);
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    std::fs::remove_dir_all(server.data()).unwrap();
    let said = told(&steps.finish(&aside).unwrap_err());
    assert!(said.contains("could not write its RDB file"), "{said}");
    server.set("stop-writes-on-bgsave-error", "no");
    step("swap back", steps.swap_back(&aside));
    step("discard", steps.discard(&aside));
    assert_eq!(state(&server), changed);
}

#[test]
fn a_restore_that_the_server_lost_is_not_called_finished() {
    let mut server = Server::start();
    server.lines(0, "SET a 1");
    server.ask::<String>(&["SAVE"]);
    let memory = capture(&server.driver("byreplication"), || server.lines(0, "SET b 1"));
    let mut steps = steps(&server);
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    server.crash_and_start();
    let said = told(&steps.finish(&aside).unwrap_err());
    assert!(said.contains("was started anew"), "{said}");
}

#[test]
fn a_restore_cut_off_between_its_steps_goes_on_or_back_from_anywhere() {
    let (server, memory, expected, changed) = captured();
    // Before the swap, whatever was done: back.
    for done in 0..3 {
        let aside = steps(&server).plan("t0ken", &memory).unwrap();
        if done > 0 {
            step("load", steps(&server).load(&aside, &memory));
        }
        if done > 1 {
            step("verify", steps(&server).verify(&aside, &memory));
        }
        step("swap back", steps(&server).swap_back(&aside));
        step("discard", steps(&server).discard(&aside));
        assert_eq!(state(&server), changed, "after {done} steps");
    }
    // After it: forward.
    let aside = loaded(steps(&server).as_mut(), &memory);
    step("swap", steps(&server).swap(&aside));
    step("finish", steps(&server).finish(&aside));
    assert_eq!(state(&server), expected);
}

#[test]
fn part_of_a_killed_swapper() {
    swap_if_told(|service| Box::new(driver_at(Path::new(&service[0]), "restorer", "secret")));
}

#[test]
fn a_restore_killed_within_its_swap_goes_back_or_on() {
    let (server, memory, expected, changed) = captured();
    let socket = server.socket().display().to_string();
    for moment in [0, 1, 2, 3, 5, 20] {
        let aside = loaded(steps(&server).as_mut(), &memory);
        let after = Duration::from_millis(moment);
        killed_in_swap("part_of_a_killed_swapper", &aside, &[&socket], after);
        let now = state_of_application(&server);
        assert!(now == of_application(&expected) || now == of_application(&changed), "{moment}");
        step("swap back", steps(&server).swap_back(&aside));
        step("discard", steps(&server).discard(&aside));
        assert_eq!(state(&server), changed, "{moment}");
    }
    let aside = loaded(steps(&server).as_mut(), &memory);
    killed_in_swap("part_of_a_killed_swapper", &aside, &[&socket], Duration::from_millis(1));
    step("swap", steps(&server).swap(&aside));
    step("finish", steps(&server).finish(&aside));
    assert_eq!(state(&server), expected);
}

/// The live databases' counts of keys, whatever is aside.
fn state_of_application(server: &Server) -> Vec<String> {
    of_application(&state(server))
}

fn of_application(state: &[String]) -> Vec<String> {
    let live = |line: &&String| ["0:", "3:", "7:", "15:"].iter().any(|db| line.starts_with(db));
    state.iter().filter(live).cloned().collect()
}

/// A capture in a directory, for another process.
struct Files(PathBuf);

impl Source for Files {
    fn paths(&self) -> Vec<String> {
        vec!["dump.rdb".to_owned(), "facts.json".to_owned()]
    }

    fn open(&self, path: &str) -> std::io::Result<Box<dyn std::io::Read + Send + '_>> {
        Ok(Box::new(std::fs::File::open(self.0.join(path))?))
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]
fn a_restore_killed_while_it_fetches_the_capture_leaves_nothing_behind() {
    let (server, memory, _, changed) = captured();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("facts.json"), bytes(&memory, "facts.json")).unwrap();
    // Half a capture, of which the rest never comes.
    let fifo = dir.path().join("dump.rdb");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let private = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(private.path(), open).unwrap();
    let aside = steps(&server).plan("t0ken", &memory).unwrap();
    let mut child = loader(&aside, &server, dir.path(), private.path());
    let mut half = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    std::io::Write::write_all(&mut half, &bytes(&memory, "dump.rdb")[..5000]).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let fetched = || {
        let inner = std::fs::read_dir(private.path()).unwrap().flatten().next();
        inner.is_some_and(|inner| inner.path().join("dump.rdb").exists())
    };
    while !fetched() {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "it fetches");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    while std::fs::read_dir(private.path()).unwrap().next().is_some() {
        assert!(Instant::now() < end, "nothing is left behind");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(state(&server), changed);
}

const LOADER: &str = "STILLPOINT_TEST_LOAD";

/// Starts this test program again, to load the capture in `files`.
fn loader(aside: &Aside, server: &Server, files: &Path, temporary: &Path) -> Child {
    let order = serde_json::to_string(&(aside, server.socket(), files)).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "part_of_a_killed_loader"])
        .env(LOADER, order)
        .env("TMPDIR", temporary)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn part_of_a_killed_loader() {
    let Ok(order) = std::env::var(LOADER) else { return };
    let (aside, socket, files): (Aside, PathBuf, PathBuf) = serde_json::from_str(&order).unwrap();
    let mut restore = driver_at(&socket, "restorer", "secret").restore();
    let _ = restore.load(&aside, &Files(files));
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]
fn a_restore_killed_within_its_load_leaves_nothing_and_is_loaded_again() {
    let (server, memory, expected, changed) = captured();
    let dir = tempfile::tempdir().unwrap();
    for path in ["dump.rdb", "facts.json"] {
        std::fs::write(dir.path().join(path), bytes(&memory, path)).unwrap();
    }
    let private = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(private.path(), open).unwrap();
    let aside = steps(&server).plan("t0ken", &memory).unwrap();
    let spare = u32::try_from(aside.0["pairs"][0]["spare"].as_u64().unwrap()).unwrap();
    let mut child = loader(&aside, &server, dir.path(), private.path());
    // Killed as soon as it has begun to fill the spare database.
    let end = Instant::now() + Duration::from_secs(60);
    while server.line_in::<u64>(spare, &["DBSIZE"]) == 0 {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "it loads");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The auxiliary server ends by itself, and takes the captured data along.
    while std::fs::read_dir(private.path()).unwrap().next().is_some() {
        assert!(Instant::now() < end, "nothing is left behind");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(of_application(&state(&server)), of_application(&changed));

    let mut steps = steps(&server);
    assert!(steps.swap(&aside).is_err() || server.line_in::<u64>(spare, &["DBSIZE"]) > 0);
    step("load", steps.load(&aside, &memory));
    step("verify", steps.verify(&aside, &memory));
    step("swap", steps.swap(&aside));
    step("finish", steps.finish(&aside));
    assert_eq!(state(&server), expected);
}
