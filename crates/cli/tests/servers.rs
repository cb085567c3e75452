//! Real database servers under `stillpoint up`, each by an account of few rights: backed up, wiped,
//! restored, compared; and what `doctor` says of their rights.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use std::fs;
use stillpoint_testkit::{Mariadb, Postgres, Redis, mariadb, postgres, redis};
use support::service::Service;
use support::{Customers, Environment, stderr};

/// PostgreSQL, MariaDB and Redis, with a little of everything in them.
struct Servers {
    postgres: Postgres,
    mariadb: Mariadb,
    redis: Redis,
}

impl Servers {
    fn start() -> Self {
        let servers = Self { postgres: postgres(), mariadb: mariadb(), redis: redis() };
        servers
            .postgres
            .client()
            .batch_execute("CREATE TABLE account (id int PRIMARY KEY, cents bigint NOT NULL)")
            .unwrap();
        servers.mariadb.sql(
            "CREATE TABLE account (id INT PRIMARY KEY, cents BIGINT NOT NULL); \
             CREATE TABLE entry (id INT AUTO_INCREMENT PRIMARY KEY, account INT, \
             FOREIGN KEY (account) REFERENCES account (id)); \
             CREATE VIEW total AS SELECT SUM(cents) AS cents FROM account",
        );
        servers.set(100);
        servers
    }

    /// Puts the same amount into every place.
    fn set(&self, cents: u32) {
        let statement = format!("DELETE FROM account; INSERT INTO account VALUES (1, {cents})");
        self.postgres.client().batch_execute(&statement).unwrap();
        self.mariadb.sql(&format!(
            "INSERT INTO account VALUES (1, {cents}) ON DUPLICATE KEY UPDATE cents = {cents}; \
             INSERT INTO entry (account) VALUES (1)"
        ));
        self.redis.ask(&["SET", "account:1", &cents.to_string()]);
        self.redis.ask(&["ZADD", "accounts", &cents.to_string(), "1"]);
    }

    /// The amounts as each place has them.
    fn amounts(&self) -> [String; 4] {
        let cents: i64 =
            self.postgres.client().query_one("SELECT cents FROM account", &[]).unwrap().get(0);
        [
            cents.to_string(),
            self.mariadb.sql("SELECT cents FROM total"),
            self.redis.ask(&["GET", "account:1"]),
            self.redis.ask(&["ZSCORE", "accounts", "1"]),
        ]
    }

    fn environment(&self) -> Environment {
        let line = |name: &str, kind: &str, url: &str| {
            let variable = format!("{}_PASSWORD", name.to_uppercase());
            format!(
                "\x20     {name}: {{ type: {kind}, url: \"{url}\", password_env: {variable} }}\n"
            )
        };
        let lines = [
            line("pg", "postgresql", &self.postgres.url()),
            line("my", "mariadb", &self.mariadb.url()),
            line("re", "redis", &self.redis.url()),
        ];
        let mut environment = Environment::unstarted("", &lines.concat());
        environment.passwords = vec![
            ("PG_PASSWORD".to_owned(), self.postgres.password().to_owned()),
            ("MY_PASSWORD".to_owned(), self.mariadb.password().to_owned()),
            ("RE_PASSWORD".to_owned(), self.redis.password().to_owned()),
        ];
        environment
    }
}

#[test]
fn every_server_and_file_comes_back_at_one_instant_while_customers_go_on() {
    let servers = Servers::start();
    let service = Service::of(servers.environment());
    let customers = Customers::start(service.gateway, 4);
    customers.await_answers(10);
    let id = service.succeed(&["backup:create"]);
    let backup = service.json(&["backup:get", &id]);
    assert_eq!(backup["attributes"]["consistency"], "consistent", "{:#}", backup["doubts"]);
    assert_eq!(backup["attributes"]["completeness"], "complete", "{:#}", backup["gaps"]);
    let parts = backup["parts"].as_array().unwrap();
    assert_eq!(parts.len(), 5, "{parts:#?}");

    servers.set(7);
    servers.redis.ask(&["SET", "later", "1"]);
    servers.mariadb.sql("DROP VIEW total; CREATE VIEW total AS SELECT 3 AS cents");
    fs::write(service.environment.path("uploads/a.txt"), "changed").unwrap();
    service.succeed(&["backup:restore", &id, "--yes"]);
    assert_eq!(servers.amounts(), ["100"; 4]);
    assert_eq!(servers.redis.ask(&["EXISTS", "later"]), "0");
    assert_eq!(servers.mariadb.sql("SELECT COUNT(*) FROM entry"), "1");
    assert_eq!(fs::read(service.environment.path("uploads/a.txt")).unwrap(), b"first");

    // Back to what was there before, by the safety backup; and from nothing at all.
    let backups = service.json(&["backups"]);
    let safety = backups[0]["id"].as_str().unwrap();
    service.succeed(&["backup:restore", safety, "--yes", "--no-safety-backup"]);
    assert_eq!(servers.amounts(), ["7", "3", "7", "7"]);
    servers.postgres.client().batch_execute("DROP TABLE account").unwrap();
    servers.mariadb.sql("DROP VIEW total; DROP TABLE entry; DROP TABLE account");
    servers.redis.ask(&["DEL", "account:1", "accounts", "later"]);
    service.succeed(&["backup:restore", &id, "--yes", "--no-safety-backup"]);
    assert_eq!(servers.amounts(), ["100"; 4]);
    customers.end_without_failures();
    service.environment.assert_restic_is_content();
}

#[test]
fn doctor_names_every_right_that_is_missing_with_what_gives_it() {
    let servers = Servers::start();
    let service = Service::of(servers.environment());
    let doctor = || {
        let mut command = service.command(&["doctor", "--format", "json"]);
        command.envs(service.environment.passwords.iter().map(|(name, value)| (name, value)));
        command.output().unwrap()
    };
    let output = doctor();
    assert!(
        output.status.success(),
        "{} {}",
        stderr(&output),
        String::from_utf8_lossy(&output.stdout)
    );
    let root = std::process::Command::new(servers.mariadb.client())
        .args(["--no-defaults", "-u", "root", "-S"])
        .arg(servers.mariadb.socket())
        .args(["-e", "REVOKE RELOAD ON *.* FROM shop@localhost"])
        .env("MYSQL_PWD", servers.mariadb.root_password())
        .status();
    assert!(root.unwrap().success());
    let output = doctor();
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let missing: Vec<_> =
        found.as_array().unwrap().iter().filter(|finding| finding["ok"] == false).collect();
    assert_eq!(missing.len(), 1, "{missing:#?}");
    assert!(missing[0]["hint"].as_str().unwrap().contains("GRANT RELOAD ON *.*"), "{missing:#?}");
    let refused = service.run(&["backup:create"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("GRANT RELOAD ON *.*"), "{}", stderr(&refused));
}
