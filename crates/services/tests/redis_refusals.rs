//! What the Redis driver refuses, and that following its advice helps.

mod common;
mod redis_server;

use common::{Memory, capture, loaded, restore, step, told};
use redis_server::{Server, bytes, driver_at, fill, state};
use stillpoint_services::redis::{Redis, RedisOptions};
use stillpoint_services::{Driver, NeededFor, ServiceError};

fn refusal<T>(outcome: Result<T, ServiceError>) -> String {
    told(&outcome.err().expect("it is refused"))
}

/// The statement in a hint, without its first two words.
fn advised(error: &ServiceError) -> String {
    let hint = error.advice().unwrap_or_else(|| panic!("a hint in {}", told(error)));
    let statement = hint.strip_prefix("ACL SETUSER ");
    statement.unwrap_or_else(|| panic!("a statement in {}", told(error))).to_owned()
}

#[test]
fn a_wrong_password_or_none_is_told_as_such() {
    let server = Server::start();
    let wrong = refusal(server.driver_with("byfile", "wrong").prepare());
    assert!(wrong.contains("password_env"), "{wrong}");
    assert!(!wrong.contains("wrong "), "the password is not repeated: {wrong}");
    let nobody = refusal(server.driver_with("nosuch", "secret").prepare());
    assert!(nobody.contains("check the user in the url"), "{nobody}");
    server.set("requirepass", "hidden");
    let default = |password: Option<&str>| {
        let options = RedisOptions {
            kind: "redis",
            url: format!("unix://{}", server.socket().display()),
            password: password.map(str::to_owned),
            tool_dirs: Vec::new(),
        };
        Redis::new(options).unwrap().by_replication().prepare().map(drop)
    };
    let none = refusal(default(None));
    assert!(none.contains("password_env"), "{none}");
    default(Some("hidden")).unwrap_or_else(|e| panic!("{}", told(&e)));
}

#[test]
fn each_missing_right_is_named_and_the_statements_that_are_given_suffice() {
    for commands in ["file", "replication"] {
        let server = Server::start();
        fill(&server);
        server.allow("poor on >secret");
        let mut driver = server.driver("poor");
        if commands == "replication" {
            driver = driver.by_replication();
        } else {
            server.allow("poor +bgsave +config|get");
        }
        let mut said = String::new();
        for _ in 0..2 {
            let Err(error) = driver.prepare() else { break };
            said += &told(&error);
            server.allow(&advised(&error));
        }
        assert!(said.contains("+info") && said.contains("+time"), "{said}");
        if commands == "replication" {
            assert!(said.contains("+psync +replconf"), "{said}");
        }
        let expected = state(&server);
        let memory = capture(&driver, || server.lines(0, "SET later x"));

        let error = driver.restore().plan("t0ken", &memory).unwrap_err();
        let said = told(&error);
        for right in ["~*", "+restore", "+swapdb", "+flushdb", "+function|restore", "+multi"] {
            // Keys are told once the commands are allowed.
            assert!(said.contains(right) || right == "~*", "{right}: {said}");
        }
        let missing = driver.examine();
        let missing = missing.iter().filter(|found| found.problem.is_some());
        assert!(missing.clone().any(|found| found.what == "the right +swapdb"
            && found.needed_for == NeededFor::Restore
            && found.hint.as_deref() == Some("ACL SETUSER poor +swapdb")));
        assert!(missing.clone().all(|found| found.needed_for == NeededFor::Restore));
        server.allow(&advised(&error));
        let error = driver.restore().plan("t0ken", &memory).unwrap_err();
        assert_eq!(advised(&error), "poor ~*");
        server.allow("poor ~shop:*");
        assert_eq!(advised(&driver.restore().plan("t0ken", &memory).unwrap_err()), "poor ~*");
        server.allow(&advised(&error));
        assert!(driver.examine().iter().all(|found| found.problem.is_none()));
        restore(&driver, &memory);
        assert_eq!(state(&server), expected);
    }
}

#[test]
fn a_command_that_was_renamed_is_named() {
    let server = Server::with(&["--save", "", "--rename-command", "BGSAVE", ""]);
    // Captured by replication, then; but not restored.
    let memory = capture(&server.driver("byreplication"), || ());
    let said = refusal(server.driver("restorer").restore().plan("t0ken", &memory));
    assert!(said.contains("does not know +bgsave") && said.contains("rename-command"), "{said}");
}

#[test]
fn servers_of_another_kind_are_refused_by_name() {
    let sentinel = Server::bare(&["--sentinel"]);
    let said = refusal(driver_of(&sentinel).prepare());
    assert!(said.contains("sentinel"), "{said}");
    let cluster = Server::bare(&["--cluster-enabled", "yes"]);
    let said = refusal(driver_of(&cluster).prepare());
    assert!(said.contains("cluster mode"), "{said}");
    let replica = Server::start();
    replica.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let said = refusal(replica.driver("byreplication").prepare());
    assert!(said.contains("replica of 127.0.0.1:1") && said.contains("master"), "{said}");

    let postgres = stillpoint_testkit::postgres_with(&stillpoint_testkit::ScratchOptions {
        tcp: true,
        ..stillpoint_testkit::ScratchOptions::default()
    });
    let options = RedisOptions {
        kind: "redis",
        url: format!("redis://127.0.0.1:{}", postgres.port()),
        password: None,
        tool_dirs: Vec::new(),
    };
    let said = refusal(Redis::new(options).unwrap().prepare());
    assert!(said.contains("is it a Redis or Valkey server"), "{said}");
}

fn driver_of(server: &Server) -> Redis {
    let options = RedisOptions {
        kind: "redis",
        url: format!("unix://{}", server.socket().display()),
        password: None,
        tool_dirs: Vec::new(),
    };
    Redis::new(options).unwrap()
}

#[test]
fn a_server_that_is_loading_is_refused() {
    let mut server = Server::start();
    let mut admin = server.admin();
    let mut pipe = redis::pipe();
    for n in 0..3000 {
        pipe.cmd("SET").arg(n).arg("x".repeat(100)).ignore();
    }
    pipe.exec(&mut admin).unwrap();
    server.set("rdbcompression", "no");
    server.ask::<String>(&["SAVE"]);
    // Slow for far longer than the test lasts, and it answers in between.
    server.add_settings(&["--key-load-delay", "20000"]);
    server.add_settings(&["--loading-process-events-interval-bytes", "1024"]);
    server.crash_and_begin();
    server.wait_loading();
    let said = refusal(server.driver("byfile").prepare());
    assert!(said.contains("loading"), "{said}");
}

fn plan_refusal(server: &Server, memory: &Memory) -> String {
    let before = state(server);
    let said = refusal(server.driver("restorer").restore().plan("t0ken", memory));
    assert_eq!(state(server), before, "nothing was changed");
    said
}

#[test]
fn a_restore_is_refused_before_anything_changes_where_it_cannot_succeed() {
    let server = Server::with(&["--save", "", "--databases", "4"]);
    server.lines(0, "SET a 1");
    server.lines(1, "SET b 1");
    let driver = server.driver("byfile");
    let memory = capture(&driver, || server.lines(2, "SET c 1"));
    let said = plan_refusal(&server, &memory);
    assert!(said.contains("set `databases 6` in redis.conf"), "{said}");
    server.lines(2, "DEL c");

    let used: u64 = server.info("used_memory").parse().unwrap();
    server.set("maxmemory", &(used + 1000).to_string());
    let said = plan_refusal(&server, &memory);
    assert!(said.contains("maxmemory") && said.contains("CONFIG SET maxmemory"), "{said}");
    server.set("maxmemory", "0");

    let facts = memory.text("facts.json");
    memory
        .replace("facts.json", facts.replace("\"rdb_version\": 10", "\"rdb_version\": 99").into());
    let said = plan_refusal(&server, &memory);
    assert!(said.contains("RDB version 99"), "{said}");
    memory.replace("facts.json", facts.replace("\"format\": 1", "\"format\": 2").into());
    let said = plan_refusal(&server, &memory);
    assert!(said.contains("newer"), "{said}");
    memory.replace("facts.json", facts.into());

    server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let said = plan_refusal(&server, &memory);
    assert!(said.contains("replica"), "{said}");
    server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    loaded(driver_at(&server.socket(), "restorer", "secret").restore().as_mut(), &memory);
}

#[test]
fn a_damaged_capture_is_refused_and_live_data_is_untouched() {
    let server = Server::start();
    fill(&server);
    let memory = capture(&server.driver("byfile"), || ());
    let before = state(&server);
    let (rdb, facts) = (bytes(&memory, "dump.rdb"), memory.text("facts.json"));

    let mut damaged = rdb.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let load = |server: &Server| {
        let driver = server.driver("restorer");
        let mut steps = driver.restore();
        let aside = steps.plan("t0ken", &memory).unwrap_or_else(|e| panic!("{}", told(&e)));
        let outcome = refusal(steps.load(&aside, &memory));
        assert!(steps.verify(&aside, &memory).is_err(), "what was not loaded is not verified");
        assert!(steps.swap(&aside).is_err(), "what was not loaded is not swapped in");
        step("swap back", steps.swap_back(&aside));
        step("discard", steps.discard(&aside));
        outcome
    };
    memory.replace("dump.rdb", damaged.clone());
    let said = load(&server);
    assert!(said.contains("not what was captured"), "{said}");
    assert_eq!(state(&server), before);

    memory.replace("dump.rdb", rdb[..rdb.len() - 100].to_vec());
    let said = load(&server);
    assert!(said.contains("ends before its end"), "{said}");
    assert_eq!(state(&server), before);

    // A capture of fewer keys than there were.
    memory.replace("dump.rdb", rdb.clone());
    memory.replace("facts.json", facts.replace("\"keys\": 1518", "\"keys\": 5000").into());
    let said = load(&server);
    assert!(said.contains("database 0 has 1518 keys, and had 5000"), "{said}");
    assert_eq!(state(&server), before);

    // Were the hash to agree, the server's own checksum still does not.
    memory.replace("dump.rdb", damaged.clone());
    let hash = |bytes: &[u8]| {
        let text =
            std::process::Command::new("sha256sum").arg(file(bytes).path()).output().unwrap();
        String::from_utf8(text.stdout).unwrap()[..64].to_owned()
    };
    memory.replace("facts.json", facts.replace(&hash(&rdb), &hash(&damaged)).into());
    let said = load(&server);
    assert!(said.contains("load the capture into an auxiliary server"), "{said}");
    assert_eq!(state(&server), before);
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    file
}
