//! The shop with each server alone: what is taken is refused, what was ended is opened again, and
//! everything awkward comes back as it was.

use super::*;
use crate::demo::shop::mariadb::Mariadb;
use crate::demo::shop::pool::{Database, Pool};
use ::mysql::prelude::Queryable;
use ::mysql::{Conn, OptsBuilder};
use ::redis::{Connection, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use stillpoint_runtimes::{MariadbOptions, RedisOptions, ScratchMariadb, ScratchRedis};

pub(crate) fn scratch_mariadb(directory: &Path) -> ScratchMariadb {
    let installation = ScratchMariadb::find().expect("MariaDB's server is installed");
    ScratchMariadb::start(&installation, &directory.join("my"), &MariadbOptions::default()).unwrap()
}

pub(crate) fn scratch_redis(directory: &Path) -> ScratchRedis {
    let installation = ScratchRedis::find().expect("Redis's server is installed");
    ScratchRedis::start(&installation, &directory.join("rd"), &RedisOptions::default()).unwrap()
}

pub(crate) fn mariadb_target(server: &ScratchMariadb) -> Target {
    Target { url: server.url(), password: Some(server.password().to_owned()) }
}

pub(crate) fn redis_target(server: &ScratchRedis) -> Target {
    Target { url: server.url(), password: Some(server.password().to_owned()) }
}

/// For fixtures: the account that may do everything.
pub(super) fn mariadb_root(server: &ScratchMariadb) -> Conn {
    let options = OptsBuilder::new()
        .socket(server.socket().to_str())
        .prefer_socket(false)
        .user(Some("root"))
        .pass(Some(server.root_password()));
    Conn::new(options).unwrap()
}

/// For fixtures: the account that may do everything.
fn redis_admin(server: &ScratchRedis) -> Connection {
    let login = RedisConnectionInfo::default().set_password(server.admin_password());
    let info = ConnectionAddr::Unix(server.socket()).into_connection_info().unwrap();
    ::redis::Client::open(info.set_redis_settings(login)).unwrap().get_connection().unwrap()
}

/// Orders at once, so many that every connection of a pool is open.
fn order_all(shop: &RunningShop, numbers: std::ops::RangeInclusive<u64>) {
    std::thread::scope(|scope| {
        for number in numbers {
            scope.spawn(move || assert_eq!(shop.order(number).0, 201, "order {number}"));
        }
    });
}

/// What must be true of a shop that has one of the servers alone.
fn takes_each_number_once(options: &ShopOptions) {
    let shop = RunningShop::start(options);
    // Enough to have every awkward text.
    for number in 1..=30 {
        assert_eq!(shop.order(number).0, 201);
        let (_, found) = shop.ask(Method::GET, &format!("/orders/{number}"), "");
        let order: Order = serde_json::from_value(found["order"].clone()).unwrap();
        assert_eq!(order, Order::numbered(number));
    }
    let other = serde_json::to_string(&Order::numbered(8).body).unwrap();
    assert_eq!(shop.ask(Method::POST, "/orders/7", &other).0, 409);
    let (_, found) = shop.ask(Method::GET, "/orders/7", "");
    let order: Order = serde_json::from_value(found["order"].clone()).unwrap();
    assert_eq!(order, Order::numbered(7));
    assert_eq!(shop.ask(Method::GET, "/orders/31", "").0, 404);
    assert_eq!(shop.ask(Method::GET, "/health", "").1["highest"], 30);
    // Many want one number at once: one has it.
    for number in 31..=40 {
        let said: Vec<u16> = std::thread::scope(|scope| {
            let customers: Vec<_> = (0..8).map(|_| scope.spawn(|| shop.order(number).0)).collect();
            customers.into_iter().map(|customer| customer.join().unwrap()).collect()
        });
        assert_eq!(said.iter().filter(|status| **status == 201).count(), 1, "{said:?}");
        assert_eq!(said.iter().filter(|status| **status == 409).count(), 7, "{said:?}");
    }
}

#[test]
fn mariadb_takes_each_number_once_and_the_payment_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_mariadb(directory.path());
    let mariadb = Some(mariadb_target(&server));
    takes_each_number_once(&ShopOptions { sqlite: None, mariadb, ..options_in(directory.path()) });
    let paid: Vec<(u64, u64)> = mariadb_root(&server)
        .query(
            "SELECT COUNT(*), SUM(o.amount = p.amount) FROM shop.orders o \
             JOIN shop.payments p ON p.order_id = o.id",
        )
        .unwrap();
    assert_eq!(paid, [(40, 40)]);
}

#[test]
fn redis_takes_each_number_once_and_counts_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_redis(directory.path());
    let redis = Some(redis_target(&server));
    takes_each_number_once(&ShopOptions { sqlite: None, redis, ..options_in(directory.path()) });
    let mut admin = redis_admin(&server);
    let counted: u64 = ::redis::cmd("GET").arg("orders").query(&mut admin).unwrap();
    let listed: u64 = ::redis::cmd("ZCARD").arg("orders:numbers").query(&mut admin).unwrap();
    assert_eq!((counted, listed), (40, 40));
}

#[test]
fn orders_go_on_after_every_session_in_mariadb_was_killed_and_the_tables_swapped() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_mariadb(directory.path());
    let mariadb = Some(mariadb_target(&server));
    let options = ShopOptions { sqlite: None, mariadb, ..options_in(directory.path()) };
    let shop = RunningShop::start(&options);
    order_all(&shop, 1..=16);
    let mut root = mariadb_root(&server);
    let sessions: Vec<u64> =
        root.query("SELECT id FROM information_schema.processlist WHERE user = 'shop'").unwrap();
    assert_eq!(sessions.len(), 4);
    // What a restore does: other tables take the place of these.
    for statement in [
        "CREATE DATABASE shadow",
        "CREATE TABLE shadow.orders LIKE shop.orders",
        "CREATE TABLE shadow.payments LIKE shop.payments",
        "INSERT INTO shadow.orders SELECT * FROM shop.orders",
        "INSERT INTO shadow.payments SELECT * FROM shop.payments",
        "CREATE DATABASE old",
        "RENAME TABLE shop.payments TO old.payments, shop.orders TO old.orders, \
         shadow.orders TO shop.orders, shadow.payments TO shop.payments",
    ] {
        root.query_drop(statement).unwrap();
    }
    for session in sessions {
        root.query_drop(format!("KILL CONNECTION {session}")).unwrap();
    }
    order_all(&shop, 17..=33);
    let rows: Option<(u64, u64)> = root
        .query_first(
            "SELECT (SELECT COUNT(*) FROM shop.orders), (SELECT COUNT(*) FROM shop.payments)",
        )
        .unwrap();
    assert_eq!(rows, Some((33, 33)));
}

#[test]
fn orders_go_on_while_sessions_in_mariadb_are_killed_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_mariadb(directory.path());
    let mariadb = Some(mariadb_target(&server));
    let options = ShopOptions { sqlite: None, mariadb, ..options_in(directory.path()) };
    let shop = RunningShop::start(&options);
    let mut root = mariadb_root(&server);
    std::thread::scope(|scope| {
        let ordering =
            scope.spawn(|| (0..8).for_each(|n| order_all(&shop, n * 16 + 1..=n * 16 + 16)));
        let mut seen = Some(0);
        while !ordering.is_finished() {
            let rows: Option<u64> = root.query_first("SELECT COUNT(*) FROM shop.orders").unwrap();
            if rows != seen {
                // In the middle of whatever they are doing, and never before they got on.
                root.query_drop("KILL USER shop@localhost").unwrap();
                seen = rows;
            }
        }
    });
    let rows: Option<(u64, u64)> = root
        .query_first(
            "SELECT (SELECT COUNT(*) FROM shop.orders), (SELECT COUNT(*) FROM shop.payments)",
        )
        .unwrap();
    assert_eq!(rows, Some((128, 128)));
}

#[test]
fn orders_go_on_after_every_session_in_redis_was_killed_and_the_databases_swapped() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_redis(directory.path());
    let redis = Some(redis_target(&server));
    let options = ShopOptions { sqlite: None, redis, ..options_in(directory.path()) };
    let shop = RunningShop::start(&options);
    order_all(&shop, 1..=16);
    let mut admin = redis_admin(&server);
    // What a restore does: another database takes the place of this one.
    for key in ["orders", "orders:numbers"] {
        ::redis::cmd("COPY").arg(key).arg(key).arg("DB").arg(5).exec(&mut admin).unwrap();
    }
    ::redis::cmd("SWAPDB").arg(0).arg(5).exec(&mut admin).unwrap();
    let kill = |admin: &mut Connection| -> u64 {
        ::redis::cmd("CLIENT").arg("KILL").arg("USER").arg("shop").query(admin).unwrap()
    };
    assert_eq!(kill(&mut admin), 4);
    order_all(&shop, 17..=33);
    std::thread::scope(|scope| {
        let ordering = scope.spawn(|| order_all(&shop, 34..=65));
        let mut seen = 0;
        while !ordering.is_finished() {
            let counted: u64 = ::redis::cmd("GET").arg("orders").query(&mut admin).unwrap();
            if counted != seen {
                // In the middle of whatever they are doing, and never before they got on.
                kill(&mut admin);
                seen = counted;
            }
        }
    });
    let counted: u64 = ::redis::cmd("GET").arg("orders").query(&mut admin).unwrap();
    let listed: u64 = ::redis::cmd("ZCARD").arg("orders:numbers").query(&mut admin).unwrap();
    assert_eq!((counted, listed), (65, 65));
}

#[test]
fn an_order_of_somebody_elses_is_no_order_of_ones_own_although_the_session_was_ended() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_mariadb(directory.path());
    let mariadb = Some(mariadb_target(&server));
    let options = ShopOptions { sqlite: None, mariadb, ..options_in(directory.path()) };
    let shop = RunningShop::start(&options);
    order_all(&shop, 1..=16);
    let mut root = mariadb_root(&server);
    root.query_drop("KILL USER shop@localhost").unwrap();
    let other = serde_json::to_string(&Order::numbered(8).body).unwrap();
    for _ in 0..4 {
        // Each finds its session gone, tries again, and finds the number taken.
        assert_eq!(shop.ask(Method::POST, "/orders/7", &other).0, 409);
    }
}

/// `MariaDB`, of which one answer gets lost when it is told so.
#[derive(Clone)]
struct Losing {
    database: Mariadb,
    next: Arc<AtomicBool>,
}

impl Database for Losing {
    const NAME: &'static str = "mariadb";
    type Connection = (Conn, Arc<AtomicBool>);
    type Error = ::mysql::Error;

    fn create(&self) -> Result<(), Self::Error> {
        self.database.create()
    }

    fn connect(&self) -> Result<Self::Connection, Self::Error> {
        Ok((self.database.connect()?, Arc::clone(&self.next)))
    }

    fn insert((conn, lose): &mut Self::Connection, order: &Order) -> Result<Written, Self::Error> {
        let written = Mariadb::insert(conn, order)?;
        if lose.swap(false, Ordering::SeqCst) {
            return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into());
        }
        Ok(written)
    }

    fn find((conn, _): &mut Self::Connection, number: u64) -> Result<Option<Order>, Self::Error> {
        Mariadb::find(conn, number)
    }

    fn highest((conn, _): &mut Self::Connection) -> Result<u64, Self::Error> {
        Mariadb::highest(conn)
    }

    fn passes(error: &Self::Error) -> bool {
        Mariadb::passes(error)
    }

    fn explain(error: &Self::Error) -> String {
        Mariadb::explain(error)
    }
}

#[test]
fn an_order_that_was_committed_before_its_answer_was_lost_is_acknowledged_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_mariadb(directory.path());
    let next = Arc::new(AtomicBool::new(true));
    let database = Losing { database: Mariadb(mariadb_target(&server)), next: Arc::clone(&next) };
    let pool = Pool::open(&database).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let insert = |order: Order| runtime.block_on(pool.insert(order)).unwrap();
    assert_eq!(insert(Order::numbered(7)), Written::New);
    assert!(!next.load(Ordering::SeqCst), "the answer was lost");
    // Its customer comes again, and so does another one.
    assert_eq!(insert(Order::numbered(7)), Written::Taken);
    next.store(true, Ordering::SeqCst);
    let other = Order { number: 7, body: Order::numbered(8).body };
    assert_eq!(insert(other), Written::Taken);
    assert_eq!(runtime.block_on(pool.find(7)).unwrap(), Some(Order::numbered(7)));
}
