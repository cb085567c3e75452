//! The shop with its real stores: SQLite files, scratch servers, directories.

mod servers;

use super::http::{Stores, serve};
use super::*;
use ::mysql::prelude::Queryable;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use servers::mariadb_root;
pub(crate) use servers::{mariadb_target, redis_target, scratch_mariadb, scratch_redis};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use stillpoint_runtimes::{ScratchOptions, ScratchPostgres};
use tokio::sync::oneshot;

/// A shop that serves from a thread of its own until it is dropped.
pub(crate) struct RunningShop {
    pub(crate) address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl RunningShop {
    pub(crate) fn start(options: &ShopOptions) -> Self {
        let stores = Stores::open(options).unwrap();
        let listen = options.listen;
        let (end, ended) = oneshot::channel::<()>();
        let (ready, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let ended = async { drop(ended.await) };
            let ready = |address| ready.send(address).unwrap();
            runtime.block_on(serve(listen, stores, ready, ended)).unwrap();
        });
        Self { address: address.recv().unwrap(), end: Some(end), thread: Some(thread) }
    }

    fn ask(&self, method: Method, path: &str, body: &str) -> (u16, Value) {
        ask(self.address, method, path, body)
    }

    pub(crate) fn order(&self, number: u64) -> (u16, Value) {
        let body = serde_json::to_string(&Order::numbered(number).body).unwrap();
        self.ask(Method::POST, &format!("/orders/{number}"), &body)
    }
}

impl Drop for RunningShop {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

fn ask(address: SocketAddr, method: Method, path: &str, body: &str) -> (u16, Value) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "shop")
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    })
}

/// A shop without a server in this directory.
pub(crate) fn options_in(directory: &Path) -> ShopOptions {
    ShopOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        sqlite: Some(directory.join("shop.db")),
        postgres: None,
        mariadb: None,
        redis: None,
        uploads: directory.join("uploads"),
    }
}

pub(crate) fn scratch_postgres(directory: &Path) -> ScratchPostgres {
    let installation = ScratchPostgres::find().expect("PostgreSQL's server is installed");
    ScratchPostgres::start(&installation, &directory.join("pg"), &ScratchOptions::default())
        .unwrap()
}

pub(crate) fn target_of(server: &ScratchPostgres) -> Target {
    Target { url: server.url(), password: Some(server.password().to_owned()) }
}

fn superuser(server: &ScratchPostgres, database: &str) -> ::postgres::Client {
    let mut config: ::postgres::Config = server.superuser_url().parse().unwrap();
    config.dbname(database).connect(::postgres::NoTls).unwrap()
}

#[test]
fn an_order_is_in_every_place_when_it_is_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let postgres = scratch_postgres(directory.path());
    let mariadb = scratch_mariadb(directory.path());
    let redis = scratch_redis(directory.path());
    let options = ShopOptions {
        postgres: Some(target_of(&postgres)),
        mariadb: Some(mariadb_target(&mariadb)),
        redis: Some(redis_target(&redis)),
        ..options_in(directory.path())
    };
    let shop = RunningShop::start(&options);
    assert_eq!(shop.order(7).0, 201);
    let (status, found) = shop.ask(Method::GET, "/orders/7", "");
    assert_eq!(status, 200);
    assert_eq!(
        found["places"],
        serde_json::json!(["sqlite", "postgresql", "mariadb", "redis", "uploads"])
    );
    let order: Order = serde_json::from_value(found["order"].clone()).unwrap();
    assert_eq!(order, Order::numbered(7));
    let file = std::fs::read_to_string(options.uploads.join("7/order-7.txt")).unwrap();
    assert_eq!(file, Order::numbered(7).confirmation());
    assert_eq!(shop.ask(Method::GET, "/health", "").1["highest"], 7);
    // And not when one of them is missing.
    redis.stop().unwrap();
    mariadb_root(&mariadb).query_drop("DROP TABLE shop.payments").unwrap();
    let (status, problem) = shop.order(8);
    assert_eq!(status, 500);
    assert!(problem["error"].as_str().unwrap().contains("mariadb: Table"), "{problem}");
}

#[test]
fn a_number_that_is_taken_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let options = options_in(directory.path());
    let shop = RunningShop::start(&options);
    assert_eq!(shop.order(7).0, 201);
    let other = serde_json::to_string(&Order::numbered(8).body).unwrap();
    assert_eq!(shop.ask(Method::POST, "/orders/7", &other).0, 409);
    let file = std::fs::read_to_string(options.uploads.join("7/order-7.txt")).unwrap();
    assert_eq!(file, Order::numbered(7).confirmation());
}

#[test]
fn what_is_no_order_is_refused_and_leaves_no_trace() {
    let directory = tempfile::tempdir().unwrap();
    let shop = RunningShop::start(&options_in(directory.path()));
    let large = format!("{{\"customer\":\"{}\"}}", "x".repeat(100_000));
    for (path, body, expected) in [
        ("/orders/7", "{", 400),
        ("/orders/7", r#"{"customer":"a","item":"b","amount":1,"more":2}"#, 400),
        ("/orders/7", large.as_str(), 400),
        ("/orders/x", "{}", 400),
        ("/orders/18446744073709551615", "{}", 400),
        ("/nowhere", "{}", 404),
    ] {
        assert_eq!(shop.ask(Method::POST, path, body).0, expected, "{path}");
    }
    assert_eq!(shop.ask(Method::GET, "/orders/7", "").0, 404);
}

#[test]
fn orders_go_on_after_every_session_was_ended_and_the_database_swapped() {
    let directory = tempfile::tempdir().unwrap();
    let server = scratch_postgres(directory.path());
    let options =
        ShopOptions { postgres: Some(target_of(&server)), ..options_in(directory.path()) };
    let shop = RunningShop::start(&options);
    // Enough orders at once that every connection of the pool is open.
    std::thread::scope(|scope| {
        for number in 1..=16 {
            let shop = &shop;
            scope.spawn(move || assert_eq!(shop.order(number).0, 201));
        }
    });
    // What a restore does: another database takes this one's place and name.
    let mut admin = superuser(&server, "postgres");
    admin.batch_execute("ALTER DATABASE shop ALLOW_CONNECTIONS false").unwrap();
    let ended = admin
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shop'",
            &[],
        )
        .unwrap();
    assert!(ended > 0);
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| shop.order(17).0);
        admin.batch_execute("CREATE DATABASE next OWNER shop TEMPLATE shop").unwrap();
        admin
            .batch_execute(
                "BEGIN; ALTER DATABASE shop RENAME TO old; ALTER DATABASE next RENAME TO shop; \
                 COMMIT",
            )
            .unwrap();
        admin.batch_execute("ALTER DATABASE shop ALLOW_CONNECTIONS true").unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(waiting, 201);
    std::thread::scope(|scope| {
        for number in 18..=33 {
            let shop = &shop;
            scope.spawn(move || assert_eq!(shop.order(number).0, 201));
        }
    });
    let mut restored = superuser(&server, "shop");
    let rows: i64 = restored.query_one("SELECT count(*) FROM orders", &[]).unwrap().get(0);
    assert_eq!(rows, 33);
}

#[test]
fn a_restore_into_the_live_sqlite_file_is_taken_up_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = options_in(directory.path());
    let path = options.sqlite.clone().unwrap();
    seed(&options, Past { orders: 10, pictures: 20 }).unwrap();
    let saved = directory.path().join("saved.db");
    let live = rusqlite::Connection::open(&path).unwrap();
    live.execute("VACUUM INTO ?1", [saved.to_str().unwrap()]).unwrap();

    let shop = RunningShop::start(&options);
    assert_eq!(shop.order(11).0, 201);
    live.execute_batch("DROP TABLE orders").unwrap();
    let (status, problem) = shop.order(12);
    assert_eq!(status, 500);
    assert!(problem["error"].as_str().unwrap().contains("no such table"), "{problem}");

    let source = rusqlite::Connection::open(&saved).unwrap();
    let mut live = rusqlite::Connection::open(&path).unwrap();
    rusqlite::backup::Backup::new(&source, &mut live).unwrap().step(-1).unwrap();
    assert_eq!(shop.order(13).0, 201);
    assert_eq!(shop.ask(Method::GET, "/health", "").1["highest"], 13);
}

#[test]
fn a_deleted_uploads_directory_is_made_again_when_it_is_needed() {
    let directory = tempfile::tempdir().unwrap();
    let options = options_in(directory.path());
    let shop = RunningShop::start(&options);
    assert_eq!(shop.order(7).0, 201);
    std::fs::remove_dir_all(options.uploads.join("7")).unwrap();
    assert_eq!(shop.order(107).0, 201);
    assert!(options.uploads.join("7/order-107.txt").is_file());
}

/// Plays both parts: started without the variable it starts itself as the shop's process.
#[test]
fn the_shop_ends_when_its_standard_input_ends() {
    const DIRECTORY: &str = "STILLPOINT_TEST_SHOP_DIRECTORY";
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        run(&options_in(Path::new(&directory)), |address| println!("\nready {address}")).unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("demo::shop::tests::the_shop_ends_when_its_standard_input_ends")
        .env(DIRECTORY, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines
        .find_map(|line| Some(line.unwrap().strip_prefix("ready ")?.parse().unwrap()))
        .expect("the shop got ready");
    assert_eq!(ask(address, Method::GET, "/health", "").0, 200);
    drop(input);
    assert!(child.wait().unwrap().success());
}
