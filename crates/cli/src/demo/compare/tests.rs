//! Every kind of problem is found: with real SQLite files, directories and scratch servers.

#![allow(clippy::disallowed_methods, reason = "a test's files need not survive a power cut")]

mod servers;

use super::*;
use crate::demo::ledger::Outcome;
use crate::demo::shop::tests::{RunningShop, options_in, scratch_postgres, target_of};
use crate::demo::shop::{self, Order, ShopOptions};
use std::fs;

const PAST: Past = Past { orders: 20, pictures: 200 };
/// Microseconds since 1970.
const HOLD_BEGIN: i64 = 1_000_000_000;
const DRAINED: i64 = HOLD_BEGIN + 20_000;

/// A restored shop as it should be: the seeded orders, and 21 to 24 of the load. The ledger says
/// that 21 to 23 were acknowledged before the drain ended, 24 and 25 are undecided (one is there,
/// one is not), 26 and 27 were sent after the hold began.
struct Scene {
    _directory: tempfile::TempDir,
    restored: Restored,
    ledger: Ledger,
}

/// Its servers.
#[derive(Default)]
struct Places {
    postgres: Option<ServerPlace>,
    mariadb: Option<ServerPlace>,
    redis: Option<RedisPlace>,
}

impl Scene {
    fn new() -> Self {
        Self::with(Places::default())
    }

    fn with(Places { postgres, mariadb, redis }: Places) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = ShopOptions {
            postgres: postgres.as_ref().map(|place| place.target.clone()),
            mariadb: mariadb.as_ref().map(|place| place.target.clone()),
            redis: redis.as_ref().map(|place| place.server.target.clone()),
            ..options_in(directory.path())
        };
        shop::seed(&options, PAST).unwrap();
        let running = RunningShop::start(&options);
        for number in 21..=24 {
            assert_eq!(running.order(number).0, 201);
        }
        drop(running);
        let created = Outcome::Status(201);
        let line = |number, sent, answered| OrderLine {
            number,
            sent_us: HOLD_BEGIN + sent,
            answered_us: HOLD_BEGIN + answered,
            outcome: created.clone(),
        };
        let orders = vec![
            line(21, -30_000, -10_000),
            line(22, -20_000, 5_000),
            line(23, -500, 8_000),
            line(24, -400, 60_000),
            line(25, -10, 60_000),
            line(26, 1, 60_000),
            line(27, 70_000, 90_000),
        ];
        Self {
            _directory: directory,
            restored: Restored {
                sqlite: options.sqlite,
                postgres,
                mariadb,
                redis,
                uploads: options.uploads,
                past: PAST,
            },
            ledger: Ledger { orders, complete: true },
        }
    }

    fn compare(&self) -> Comparison {
        let at = |us| Timestamp::from_microsecond(us).unwrap();
        compare(&self.ledger, at(HOLD_BEGIN), at(DRAINED), &self.restored).unwrap()
    }

    fn sql(&self, sql: &str) {
        let path = self.restored.sqlite.as_ref().unwrap();
        rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
    }

    fn file(&self, number: u64) -> PathBuf {
        self.restored.uploads.join(Order::numbered(number).path())
    }

    /// Compares and expects exactly these problems.
    fn expect(&self, problems: &[&str]) {
        let comparison = self.compare();
        assert_eq!(comparison.problems, problems);
        assert!(!comparison.identical());
    }
}

#[test]
fn the_still_point_is_identical_and_counted() {
    let comparison = Scene::new().compare();
    assert_eq!(comparison.problems, Vec::<String>::new());
    assert!(comparison.identical());
    assert_eq!(comparison.orders_expected, 23);
    assert_eq!(comparison.orders_found, 24);
    assert_eq!(comparison.acknowledged_before, 3);
    assert_eq!(comparison.undecided, 2);
    assert_eq!(comparison.sent_after, 2);
    assert_eq!(comparison.places, BTreeMap::from([("sqlite", 24), ("uploads", 24)]));
}

#[test]
fn an_acknowledged_order_that_is_missing_is_told_with_its_places() {
    let scene = Scene::new();
    scene.sql("DELETE FROM orders WHERE number = 23");
    fs::remove_file(scene.file(23)).unwrap();
    scene.expect(&["order 23 was acknowledged 12 ms before the drain ended, but is missing from \
                    sqlite and uploads"]);
}

#[test]
fn an_acknowledged_order_that_is_missing_in_one_place_is_told() {
    let scene = Scene::new();
    fs::remove_file(scene.file(22)).unwrap();
    scene.expect(&["order 22 was acknowledged 15 ms before the drain ended, but is missing from \
                    uploads"]);
}

#[test]
fn an_order_that_was_sent_after_the_hold_began_must_not_be_there() {
    let scene = Scene::new();
    fs::create_dir_all(scene.file(26).parent().unwrap()).unwrap();
    fs::write(scene.file(26), Order::numbered(26).confirmation()).unwrap();
    scene.expect(&["order 26 was sent 0.00 ms after the hold began, but is there in uploads"]);
}

#[test]
fn an_undecided_order_may_be_there_or_not_but_never_torn() {
    let scene = Scene::new();
    fs::remove_file(scene.file(24)).unwrap();
    scene
        .expect(&["order 24 was sent 0.40 ms before the hold began and acknowledged 40 ms after \
                    the drain ended and is in sqlite, but not in uploads"]);
    scene.sql("DELETE FROM orders WHERE number = 24");
    assert!(scene.compare().identical());
}

#[test]
fn a_failed_order_that_is_torn_is_told_with_its_failure() {
    let mut scene = Scene::new();
    scene.ledger.orders[2].outcome = Outcome::Status(500);
    assert!(scene.compare().identical());
    fs::remove_file(scene.file(23)).unwrap();
    scene.expect(&["order 23 was not acknowledged (status 500) and is in sqlite, but not in \
                    uploads"]);
}

#[test]
fn altered_orders_and_files_are_told() {
    let scene = Scene::new();
    scene.sql("UPDATE orders SET amount = amount + 1 WHERE number = 3");
    let mut content = fs::read(scene.file(22)).unwrap();
    content[40] ^= 1;
    fs::write(scene.file(22), &content).unwrap();
    let picture = scene.restored.uploads.join(picture_path(5));
    let mut content = fs::read(&picture).unwrap();
    content.pop();
    fs::write(&picture, &content).unwrap();
    let problems = scene.compare().problems;
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems.iter().any(|p| p.contains("picture-005.bin in uploads is altered")));
    assert!(problems.iter().any(|p| p.contains("order 3 is altered in sqlite: the amount is")));
    assert!(problems.iter().any(|p| p.contains("order 22 is altered in uploads")));
}

#[test]
fn missing_seeds_are_told_and_many_of_one_kind_do_not_bury_another() {
    let scene = Scene::new();
    scene.sql("DELETE FROM orders WHERE number <= 12");
    for index in 0..3 {
        fs::remove_file(scene.restored.uploads.join(picture_path(index))).unwrap();
    }
    fs::write(scene.file(7).with_file_name(".order-7.txt.tmp"), "").unwrap();
    let problems = scene.compare().problems;
    assert_eq!(problems.len(), 7, "{problems:?}");
    assert_eq!(problems[5], "and 10 more: seeded orders or pictures are missing");
    assert_eq!(problems[6], "the file 7/.order-7.txt.tmp in uploads was put there by nobody");
}

#[test]
fn an_order_that_nobody_sent_is_a_problem_unless_the_ledger_was_cut_off() {
    let mut scene = Scene::new();
    fs::create_dir_all(scene.file(99).parent().unwrap()).unwrap();
    fs::write(scene.file(99), Order::numbered(99).confirmation()).unwrap();
    scene.sql("INSERT INTO orders (number, customer, item, amount) SELECT 99, '', '', 1");
    let problems = scene.compare().problems;
    assert!(
        problems.contains(&"order 99 was sent by nobody, but is in sqlite and uploads".to_owned())
    );
    let body = Order::numbered(99).body;
    let path = scene.restored.sqlite.as_ref().unwrap();
    rusqlite::Connection::open(path)
        .unwrap()
        .execute(
            "UPDATE orders SET customer = ?1, item = ?2, amount = ?3 WHERE number = 99",
            rusqlite::params![body.customer, body.item, body.amount],
        )
        .unwrap();
    scene.ledger.complete = false;
    assert!(scene.compare().identical());
}

#[test]
fn a_place_that_cannot_be_read_is_a_problem_of_its_own() {
    let scene = Scene::new();
    scene.sql("DROP TABLE orders");
    let problems = scene.compare().problems;
    assert!(problems[0].contains("sqlite cannot be read: no such table"), "{problems:?}");
    assert!(problems.iter().any(|p| p.contains("order 21 was acknowledged")), "{problems:?}");
}

#[test]
fn a_ledger_that_decides_nothing_proves_nothing() {
    let mut scene = Scene::new();
    scene.ledger.orders.drain(..3);
    scene.ledger.complete = false;
    let problems = scene.compare().problems;
    assert!(problems[0].contains("nothing is proven"), "{problems:?}");
}

#[test]
fn what_destroy_says_it_did_is_what_is_gone() {
    let scene = Scene::new();
    assert_eq!(
        destroy(&scene.restored).unwrap(),
        [
            "dropped table orders with 24 rows in the SQLite database",
            "deleted all 224 files in the uploads directory"
        ]
    );
    let comparison = scene.compare();
    assert_eq!(comparison.orders_found, 0);
    assert!(!comparison.identical());
    assert!(fs::read_dir(&scene.restored.uploads).unwrap().next().is_none());
}

#[test]
fn postgresql_is_compared_and_destroyed_through_its_own_client() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_postgres(directory.path());
    let place = ServerPlace { target: target_of(&server), client: server.psql() };
    let scene = Scene::with(Places { postgres: Some(place.clone()), ..Places::default() });
    let comparison = scene.compare();
    assert_eq!(comparison.problems, Vec::<String>::new());
    assert_eq!(
        comparison.places,
        BTreeMap::from([("sqlite", 24), ("postgresql", 24), ("uploads", 24)])
    );

    let psql = |sql| places::psql(&place, sql).unwrap();
    psql("SELECT setval('orders_id_seq', 5)");
    scene
        .expect(&["the next order in postgresql would get the id 6, but ids up to 24 are taken: \
                    its sequence was not restored"]);
    psql("SELECT setval('orders_id_seq', 24)");
    assert!(scene.compare().identical());
    psql("SELECT setval('orders_id_seq', 24, false)");
    assert!(!scene.compare().identical());
    psql("SELECT setval('orders_id_seq', 25, false)");
    assert!(scene.compare().identical());

    psql(
        "DELETE FROM orders WHERE number IN (4, 22); \
          UPDATE orders SET item = item || ' ' WHERE number = 21",
    );
    let problems = scene.compare().problems;
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].ends_with(
        "order 4 was there before the load began, but is missing from \
                                   postgresql"
    ));
    assert!(problems[1].starts_with("order 22 was acknowledged 15 ms before the drain ended"));
    assert!(problems[2].starts_with("order 21 is altered in postgresql: the item is"));

    let done = destroy(&scene.restored).unwrap();
    assert!(done[1].starts_with("dropped table orders with 22 rows, and its sequence"), "{done:?}");
    let problems = scene.compare().problems;
    assert!(problems.iter().any(|p| p.contains("postgresql cannot be read")), "{problems:?}");
}
