//! The MariaDB driver against a real server: what a capture holds comes back, of every kind.

mod common;
#[path = "common/mariadb.rs"]
mod mariadb_server;

use common::{capture, loaded, restore, step};
use mariadb_server::{FOR_OTHERS, Server};
use stillpoint_services::Driver;

const SHOP: &str = "USE shop; \
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

const STATE: &str = "SELECT CONCAT_WS(',', (SELECT COUNT(*) FROM shop.orders), \
    (SELECT COUNT(*) FROM shop.log), (SELECT name FROM shop.customer), \
    (SELECT HEX(picture) FROM shop.customer), (SELECT COUNT(*) FROM shop.of_ann), shop.twice(4), \
    (SELECT COUNT(*) FROM information_schema.events WHERE event_schema = 'shop'), \
    (SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_schema = 'shop'))";

#[test]
fn a_capture_comes_back_as_it_was_at_the_mark_with_every_kind_of_object() {
    let server = Server::start();
    server.sql(SHOP);
    server.sql(FOR_OTHERS);
    let driver = server.driver();
    let before = server.ask(STATE);
    let memory = capture(&driver, || server.sql("INSERT INTO shop.orders (customer) VALUES (1)"));
    assert_ne!(server.ask(STATE), before);
    server.sql("DROP EVENT shop.sweep; DROP VIEW shop.of_ann");
    restore(&driver, &memory);
    assert_eq!(server.ask(STATE), before);
    assert_eq!(server.left(), "0");

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
    assert_eq!(server.left(), "0");
}
