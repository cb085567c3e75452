//! Captures of a real Redis server, with accounts of few rights.

mod common;
mod redis_server;

use std::process::Command;

use common::{Memory, capture, capture_prepared, restore, told};
use redis_server::{Server, ask, fill, hasty, state};
use stillpoint_services::redis::Redis;
use stillpoint_services::{Driver, Prepared, ServiceError};

const WAYS: [(&str, &str); 2] = [("byfile", "file"), ("byreplication", "replication")];

fn prepared(driver: &Redis) -> Box<dyn Prepared> {
    driver.prepare().unwrap_or_else(|e| panic!("{}", told(&e)))
}

fn refusal<T>(outcome: Result<T, ServiceError>) -> String {
    told(&outcome.err().expect("it is refused"))
}

#[test]
fn both_ways_hold_the_instant_of_the_mark_and_come_back_whole() {
    for (account, way) in WAYS {
        let server = Server::start();
        fill(&server);
        let expected = state(&server);
        let memory = capture(&server.driver(account), || {
            server.lines(0, "SET later x\nDEL list\nHSET hash f changed\nXADD stream * n last");
            server.lines(7, "SET elsewhere x");
            server.lines(3, "FLUSHDB");
            server.ask::<()>(&["FUNCTION", "FLUSH"]);
        });
        assert!(memory.text("facts.json").contains(&format!("\"way\": \"{way}\"")));
        assert!(memory.text("facts.json").contains("\"counts_exact\": true"));
        assert_ne!(state(&server), expected);
        restore(&server.driver("restorer"), &memory);
        assert_eq!(state(&server), expected, "{way}");
    }
}

#[test]
fn an_empty_server_is_captured_and_restored_over_a_full_one() {
    for (account, _) in WAYS {
        let server = Server::start();
        let expected = state(&server);
        let memory = capture(&server.driver(account), || fill(&server));
        restore(&server.driver("restorer"), &memory);
        assert_eq!(state(&server), expected);
    }
}

#[test]
fn clients_that_block_or_are_in_a_transaction_do_not_disturb_the_instant() {
    for (account, _) in WAYS {
        let server = Server::start();
        server.lines(0, "SET before x");
        let (mut blocked, mut open) = (server.admin(), server.admin());
        blocked
            .send_packed_command(&redis::cmd("BLPOP").arg("queue").arg(0).get_packed_command())
            .unwrap();
        server.wait_for("blocked_clients", "1");
        ask::<()>(&mut open, &["MULTI"]);
        ask::<()>(&mut open, &["SET", "queued", "x"]);
        let expected = state(&server);
        let memory = capture(&server.driver(account), || {
            let _: redis::Value = ask(&mut open, &["EXEC"]);
            server.lines(0, "RPUSH queue job");
        });
        let popped: (String, String) =
            redis::from_redis_value(blocked.recv_response().unwrap()).unwrap();
        assert_eq!(popped, ("queue".to_owned(), "job".to_owned()));
        restore(&server.driver("restorer"), &memory);
        assert_eq!(state(&server), expected);
    }
}

#[test]
fn the_counter_sees_every_kind_of_write_and_no_save() {
    let server = Server::start();
    fill(&server);
    let mut prepared = prepared(&server.driver("byfile"));
    let mut last = prepared.counter().unwrap();
    assert_eq!(prepared.counter().unwrap(), last);
    server.ask::<String>(&["BGSAVE"]);
    server.wait_for("rdb_bgsave_in_progress", "0");
    server.lines(0, "GET number\nHGETALL hash\nSCAN 0");
    assert_eq!(prepared.counter().unwrap(), last, "saves and reads are no writes");
    for write in [
        "SET number 1",
        "EXPIRE number 1000",
        "XGROUP CREATE stream others 0",
        "EVAL return(redis.call('INCR','number')) 0",
        "FUNCTION DELETE till",
        "SWAPDB 3 4",
    ] {
        server.lines(0, write);
        let now = prepared.counter().unwrap();
        assert_ne!(now, last, "{write}");
        last = now;
    }
}

#[test]
fn the_last_mark_counts_and_a_lost_session_is_made_anew() {
    for (account, _) in WAYS {
        let server = Server::start();
        let mut prepared = prepared(&server.driver(account));
        prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
        server.lines(0, "SET between marks");
        server.ask::<()>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        let expected = state(&server);
        let memory = capture_prepared(prepared.as_mut(), || server.lines(0, "SET after marks"));
        restore(&server.driver("restorer"), &memory);
        assert_eq!(state(&server), expected);
    }
}

#[test]
fn a_save_that_runs_is_waited_for_in_prepare_and_named_when_it_takes_too_long() {
    for (account, _) in WAYS {
        let server = Server::start();
        server.lines(0, "MSET a 1 b 2 c 3 d 4 e 5");
        let mut ready = prepared(&server.driver(account).with_patience(hasty()));
        // A minute for each key: it runs for as long as the test needs it.
        server.set("rdb-key-save-delay", "60000000");
        server.ask::<String>(&["BGSAVE"]);
        let at_prepare = refusal(server.driver(account).with_patience(hasty()).prepare());
        assert!(at_prepare.contains("a save (BGSAVE) runs"), "{at_prepare}");
        let at_mark = refusal(ready.mark());
        assert!(at_mark.contains("a save (BGSAVE) runs"), "{at_mark}");

        // Once it ends, prepare goes on by itself.
        let prepare = std::thread::spawn({
            let driver = server.driver(account);
            move || driver.prepare().map(drop)
        });
        // Ends the save without the word "failed": as the server itself does with such children.
        let child = children(server.pid());
        assert!(Command::new("kill").args(["-USR1", &child]).status().unwrap().success());
        prepare.join().unwrap().unwrap_or_else(|e| panic!("{}", told(&e)));
    }
}

fn children(of: u32) -> String {
    let found = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
    found.trim().to_owned()
}

#[test]
fn a_rewrite_of_the_append_only_file_is_waited_for_and_named() {
    let server = Server::with(&["--save", "", "--appendonly", "yes"]);
    server.lines(0, "MSET a 1 b 2 c 3");
    let mut ready = prepared(&server.driver("byfile").with_patience(hasty()));
    server.set("rdb-key-save-delay", "60000000");
    server.ask::<String>(&["BGREWRITEAOF"]);
    let words = "a rewrite of the append-only file runs";
    let at_prepare = refusal(server.driver("byfile").with_patience(hasty()).prepare());
    assert!(at_prepare.contains(words), "{at_prepare}");
    let at_mark = refusal(ready.mark());
    assert!(at_mark.contains(words), "{at_mark}");
    server.set("rdb-key-save-delay", "0");
    let child = children(server.pid());
    assert!(Command::new("kill").args(["-USR1", &child]).status().unwrap().success());
    prepared(&server.driver("byfile"));
}

#[test]
fn a_server_that_cannot_write_fails_the_capture_and_is_refused_from_then_on() {
    for (account, way) in WAYS {
        let server = Server::with(&["--save", "3600 1"]);
        server.lines(0, "SET a 1");
        let mut marked = prepared(&server.driver(account));
        std::fs::remove_dir_all(server.data()).unwrap();
        marked.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
        let failed = refusal(marked.capture(&Memory::default()));
        assert!(failed.contains("the server could not write its RDB file"), "{way}: {failed}");
        assert!(failed.contains("stop-writes-on-bgsave-error"), "{way}: {failed}");
        let at_mark = refusal(marked.mark());
        assert!(at_mark.contains("its last save failed"), "{way}: {at_mark}");
        let at_prepare = refusal(server.driver(account).prepare());
        assert!(at_prepare.contains("its last save failed"), "{way}: {at_prepare}");
    }
}

#[test]
fn a_server_that_cannot_fork_fails_the_mark_and_the_reason_is_said() {
    for (account, way) in WAYS {
        let server = Server::start();
        server.lines(0, "SET a 1");
        let mut ready = prepared(&server.driver(account));
        let pid = server.pid().to_string();
        let mut limit = Command::new("prlimit");
        redis_server::without_rights(&mut limit);
        assert!(limit.args(["--pid", &pid, "--nproc=0:0"]).status().unwrap().success());
        let failed = refusal(ready.mark());
        assert!(failed.contains("could not fork"), "{way}: {failed}");
    }
}

/// The names of the files that this process has open.
fn open_files() -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|path| path.display().to_string())
        .collect()
}

#[test]
fn a_later_save_does_not_replace_the_file_that_was_opened() {
    let server = Server::start();
    server.lines(0, "SET before x");
    let expected = state(&server);
    let memory = capture(&server.driver("byfile"), || {
        let file = server.data().join("dump.rdb").display().to_string();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !open_files().contains(&file) {
            assert!(std::time::Instant::now() < end, "the file is opened before it is asked for");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        server.lines(0, "SET after x");
        server.set("save", "1 1");
        server.wait_for("rdb_saves", "2");
        server.wait_for("rdb_bgsave_in_progress", "0");
    });
    restore(&server.driver("restorer"), &memory);
    assert_eq!(state(&server), expected);
}

#[test]
fn a_file_that_was_replaced_before_it_was_opened_fails_the_capture() {
    let server = Server::start();
    server.lines(0, "MSET a 1 b 2");
    server.set("rdb-key-save-delay", "500000");
    let mut ready = prepared(&server.driver("byfile"));
    ready.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
    // Ours ends while nobody can ask for it, and an automatic one follows.
    server.set("save", "1 1");
    server.set("rdb-key-save-delay", "0");
    server.lines(0, "SET after x");
    server.ask::<()>(&["CLIENT", "PAUSE", "6000", "ALL"]);
    let failed = refusal(ready.capture(&Memory::default()));
    assert!(failed.contains("came before it was opened"), "{failed}");
    assert_eq!(server.info("rdb_saves"), "2", "{}", server.log());
}

#[test]
fn diskless_replication_with_a_delay_does_not_delay_the_mark() {
    let server = Server::start();
    server.set("repl-diskless-sync", "yes");
    // Were it waited for, the mark would run out of patience.
    server.set("repl-diskless-sync-delay", "1000");
    server.lines(0, "SET before x");
    let expected = state(&server);
    let memory = capture(&server.driver("byreplication"), || server.lines(0, "SET after x"));
    restore(&server.driver("restorer"), &memory);
    assert_eq!(state(&server), expected);
}

#[test]
fn a_server_behind_a_port_is_captured_by_either_way() {
    let port = stillpoint_testkit::free_port().to_string();
    let server = Server::with(&["--save", "", "--port", &port, "--bind", "127.0.0.1"]);
    server.lines(0, "SET before x");
    for (account, way) in WAYS {
        let driver = Redis::new(stillpoint_services::redis::RedisOptions {
            kind: "redis",
            url: format!("redis://{account}@127.0.0.1:{port}"),
            password: Some("secret".to_owned()),
            tool_dirs: Vec::new(),
        });
        let memory = capture(&driver.unwrap(), || ());
        assert!(memory.text("facts.json").contains(&format!("\"way\": \"{way}\"")));
    }
    // The rights of both: the file is nearer, unless replication is asked for.
    server.allow(&format!("byfile {}", redis_server::BY_REPLICATION));
    let facts = prepared(&server.driver("byfile").by_replication()).facts();
    assert_eq!(facts["way"], "replication");
    assert_eq!(prepared(&server.driver("byfile")).facts()["way"], "file");
}

#[test]
fn a_flushall_that_ends_the_save_fails_the_capture() {
    for settings in [["--save", "3600 1000000"], ["--save", ""]] {
        for (account, way) in WAYS {
            let server = Server::with(&settings);
            server.lines(0, "MSET a 1 b 2 c 3");
            // There is an older file too.
            server.ask::<String>(&["SAVE"]);
            let mut ready = prepared(&server.driver(account));
            server.set("rdb-key-save-delay", "60000000");
            ready.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
            server.lines(0, "FLUSHALL");
            server.wait_for("rdb_bgsave_in_progress", "0");
            let failed = refusal(ready.capture(&Memory::default()));
            let words = if way == "file" { "FLUSHALL" } else { "receive the server's data" };
            assert!(failed.contains(words), "{way}: {failed}");
        }
    }
}

#[test]
fn the_accounts_of_the_documentation_are_those_of_these_tests() {
    let documentation = include_str!("../../../docs/services.md");
    let words: Vec<&str> = documentation.split_whitespace().filter(|word| *word != "\\").collect();
    for rights in [redis_server::BY_FILE, redis_server::BY_REPLICATION, redis_server::RESTORE] {
        let statement = format!("ACL SETUSER stillpoint on >PASSWORD {rights}");
        assert!(words.join(" ").contains(&statement), "{statement}");
    }
}

#[test]
fn replicas_neither_disturb_the_instant_nor_are_left_behind_by_a_restore() {
    let port = stillpoint_testkit::free_port().to_string();
    let server = Server::with(&["--save", "", "--port", &port, "--bind", "127.0.0.1"]);
    let replica = Server::start();
    replica.ask::<()>(&["REPLICAOF", "127.0.0.1", &port]);
    replica.wait_for("master_link_status", "up");
    fill(&server);
    let expected = state(&server);
    for (account, way) in WAYS {
        let memory = capture(&server.driver(account), || server.lines(0, "SET later x\nDEL set"));
        restore(&server.driver("restorer"), &memory);
        assert_eq!(state(&server), expected, "{way}");
        let offset = server.info("master_repl_offset");
        replica.wait_for("slave_repl_offset", &offset);
        assert_eq!(state(&replica), expected, "{way}");
    }
    assert_eq!(server.info("connected_slaves"), "1", "nothing of ours is left");
}
