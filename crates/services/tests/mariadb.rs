//! The MariaDB driver against a real server on a private socket, with accounts of few rights.

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{capture, capture_prepared, loaded, restore, step, told};
use mysql::prelude::Queryable;
use mysql::{Conn, OptsBuilder};
use stillpoint_services::Driver;
use stillpoint_services::mariadb::{Mariadb, MariadbOptions};

struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const GRANTS: &str = "CREATE USER keeper@localhost IDENTIFIED BY 'secret'; \
    GRANT RELOAD, PROCESS, SET USER ON *.* TO keeper@localhost; \
    GRANT SELECT ON mysql.proc TO keeper@localhost; \
    GRANT ALL ON shop.* TO keeper@localhost; \
    GRANT ALL ON `stillpoint\\_%`.* TO keeper@localhost";

const SHOP: &str = "CREATE DATABASE shop; USE shop; \
    CREATE TABLE customer (id INT PRIMARY KEY, name VARCHAR(50), picture BLOB); \
    CREATE TABLE orders (id INT PRIMARY KEY AUTO_INCREMENT, customer INT, \
      FOREIGN KEY (customer) REFERENCES customer (id)); \
    CREATE TABLE log (said TEXT); \
    CREATE TRIGGER noted AFTER INSERT ON orders FOR EACH ROW INSERT INTO log VALUES (NEW.id); \
    CREATE VIEW of_ann AS SELECT o.id FROM orders o JOIN customer c ON c.id = o.customer; \
    CREATE FUNCTION twice (n INT) RETURNS INT DETERMINISTIC RETURN n * 2; \
    CREATE EVENT sweep ON SCHEDULE EVERY 1 YEAR DISABLE DO DELETE FROM log; \
    INSERT INTO customer VALUES (1, 'Änn', x'00ff27'); \
    INSERT INTO orders (customer) VALUES (1), (1)";

impl Server {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("my").tempdir().unwrap();
        let data = dir.path().join("data");
        let user = stillpoint_testkit::is_root().then_some("--user=mysql");
        if user.is_some() {
            assert!(Command::new("chown").arg("mysql").arg(dir.path()).status().unwrap().success());
        }
        let made = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", data.display()))
            .args(user)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let child = Command::new("/usr/sbin/mariadbd")
            .args(["--no-defaults", "--skip-networking", "--innodb-buffer-pool-size=16M"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", dir.path().join("socket").display()))
            .args(user)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, dir };
        let end = Instant::now() + Duration::from_secs(60);
        while server.try_root().is_err() {
            assert!(Instant::now() < end, "the server starts");
            std::thread::sleep(Duration::from_millis(50));
        }
        server.sql(SHOP);
        server.sql(GRANTS);
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn try_root(&self) -> Result<Conn, mysql::Error> {
        Conn::new(OptsBuilder::new().socket(self.socket().to_str()).user(Some("root")))
    }

    fn sql(&self, statements: &str) {
        let mut root = self.try_root().unwrap();
        for statement in statements.split("; ") {
            root.query_drop(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
        }
    }

    fn ask(&self, question: &str) -> String {
        self.try_root().unwrap().query_first(question).unwrap().unwrap()
    }

    fn driver(&self, password: &str) -> Mariadb {
        Mariadb::new(MariadbOptions {
            kind: "mariadb",
            url: format!("mysql://keeper@localhost/shop?socket={}", self.socket().display()),
            password: Some(password.to_owned()),
            databases: Vec::new(),
            tool_dirs: Vec::new(),
        })
        .unwrap()
    }
}

const STATE: &str = "SELECT CONCAT_WS(',', (SELECT COUNT(*) FROM shop.orders), \
    (SELECT COUNT(*) FROM shop.log), (SELECT name FROM shop.customer), \
    (SELECT HEX(picture) FROM shop.customer), (SELECT COUNT(*) FROM shop.of_ann), shop.twice(4), \
    (SELECT COUNT(*) FROM information_schema.events WHERE event_schema = 'shop'), \
    (SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_schema = 'shop'))";

#[test]
fn a_capture_comes_back_as_it_was_at_the_mark_with_every_kind_of_object() {
    let server = Server::start();
    let driver = server.driver("secret");
    let before = server.ask(STATE);
    let memory = capture(&driver, || server.sql("INSERT INTO shop.orders (customer) VALUES (1)"));
    assert_ne!(server.ask(STATE), before);
    server.sql("DROP EVENT shop.sweep; DROP VIEW shop.of_ann");
    restore(&driver, &memory);
    assert_eq!(server.ask(STATE), before);
    let left = "SELECT CAST(COUNT(*) AS CHAR) FROM information_schema.schemata \
                WHERE schema_name LIKE 'stillpoint%'";
    assert_eq!(server.ask(left), "0");

    // Undone after the swap, each step taken twice.
    server.sql("INSERT INTO shop.orders (customer) VALUES (1)");
    let changed = server.ask(STATE);
    let mut steps = driver.restore();
    let aside = loaded(steps.as_mut(), &memory);
    for _ in 0..2 {
        step("swap", steps.swap(&aside));
    }
    assert_eq!(server.ask(STATE), before);
    assert!(steps.discard(&aside).is_err(), "live data is never discarded");
    for _ in 0..2 {
        step("swap back", steps.swap_back(&aside));
    }
    assert_eq!(server.ask(STATE), changed);
    for _ in 0..2 {
        step("discard", steps.discard(&aside));
    }
    assert_eq!(server.ask(STATE), changed);
}

#[test]
fn what_speaks_against_a_backup_is_said() {
    let server = Server::start();
    let driver = server.driver("secret");
    let wrong = driver_error(&server.driver("wrong"));
    assert!(wrong.contains("Access denied"), "{wrong}");

    // The counter stands still while nobody writes, and a second mark counts.
    server.sql("CREATE TABLE shop.old (a INT) ENGINE=MyISAM");
    let mut prepared = driver.prepare().unwrap_or_else(|e| panic!("{}", told(&e)));
    assert!(prepared.doubts()[0].contains("shop.old"), "{:?}", prepared.doubts());
    let first = prepared.counter().unwrap();
    assert_eq!(prepared.counter().unwrap(), first);
    server.sql("INSERT INTO shop.log VALUES ('x')");
    assert_ne!(prepared.counter().unwrap(), first);
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
    server.sql("INSERT INTO shop.log VALUES ('between marks')");
    let memory = capture_prepared(prepared.as_mut(), || ());
    assert!(memory.text("shop.sql").contains("between marks"));

    // The same instant by the lock that older servers have.
    let mut prepared = driver.clone().with_table_lock().prepare().unwrap();
    let memory = capture_prepared(prepared.as_mut(), || {
        server.sql("INSERT INTO shop.log VALUES ('after the mark')");
    });
    assert!(!memory.text("shop.sql").contains("after the mark"));
    drop(prepared);

    server.sql("REVOKE RELOAD ON *.* FROM keeper@localhost");
    let lacks = driver_error(&driver);
    assert!(lacks.contains("GRANT RELOAD ON *.* TO 'keeper'@'localhost'"), "{lacks}");
    assert!(driver.examine().iter().any(|found| found.what == "the privilege RELOAD"));
}

fn driver_error(driver: &Mariadb) -> String {
    told(&driver.prepare().err().expect("it is refused"))
}
