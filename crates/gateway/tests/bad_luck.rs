//! What goes wrong around a hold: clients that trickle, too many of them, an application that dies,
//! no descriptors left.

mod support;

use rustix::process::{Resource, Rlimit, setrlimit};
use std::env;
use std::io::BufRead;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;
use stillpoint_gateway::control::{Control, ControlError, Purpose};
use stillpoint_gateway::{Gateway, GatewayOptions};
use support::applications::*;
use support::proxies::free_address;
use support::*;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_trickles_its_body_through_the_drain_is_named() {
    let application = mirror().await;
    let gateway = TestGateway::start(application.address).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /upload?token=secret HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                content-length: 10\r\n\r\n0";
    client.write_all(head.as_bytes()).await.unwrap();
    gateway.until(|status| status.in_flight == 1).await;
    let mut held = gateway.hold_long(Purpose::Backup).await;
    for byte in 1..9_u8 {
        client.write_all(&[b'0' + byte]).await.unwrap();
        let (back, error) = blocking(move || {
            let error = held.wait_drained(Duration::from_millis(1)).unwrap_err();
            (held, error)
        })
        .await;
        held = back;
        let ControlError::DrainTimeout { unfinished } = &error else { panic!("{error}") };
        assert_eq!(unfinished.len(), 1);
        let client = client.local_addr().unwrap();
        assert!(unfinished[0].starts_with(&format!("POST /upload from {client}")), "{error}");
        assert!(error.hint().is_some());
    }
    client.write_all(b"9").await.unwrap();
    assert!(rest(&mut client).await.ends_with("\n\n0123456789"));
    let held = drained(held).await;
    blocking(move || held.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_more_clients_than_may_wait_exactly_the_rest_are_refused_and_the_others_are_answered() {
    let application = plain().await;
    let gateway = TestGateway::with(application.address, |options| options.max_held = 10).await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let clients: Vec<_> = (0..60).map(|_| gateway.send("/crowd")).collect();
    gateway.until(|status| status.totals.refused == 50).await;
    let evidence = blocking(move || held.release()).await.unwrap();
    assert_eq!((evidence.held, evidence.refused), (10, 50));
    let (mut answered, mut refused) = (0, 0);
    for client in clients {
        let response = client.await.unwrap();
        if response.starts_with("HTTP/1.1 200 ") {
            answered += 1;
        } else {
            assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
            assert!(response.contains("\r\nretry-after: "), "{response}");
            refused += 1;
        }
    }
    assert_eq!((answered, refused), (10, 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_dies_in_a_hold_fails_its_requests_alone_and_may_come_back() {
    // One that is killed takes its connections along.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Nobody else may have the address while it is dead.
    let address = free_address();
    let application = runtime.spawn(Slow::at(address)).await.unwrap();
    let gateway = TestGateway::start(address).await;
    let in_flight = gateway.send("/slow");
    gateway.until(|status| status.in_flight == 1).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let waiting = gateway.send("/waiting");
    gateway.until(|status| status.held == 1).await;
    runtime.shutdown_background();
    drop(application);
    // What it had in flight has ended, and so the drain does.
    assert!(in_flight.await.unwrap().starts_with("HTTP/1.1 502 "));
    let held = drained(held).await;
    blocking(move || held.release()).await.unwrap();
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 502 "));
    // In a hold again, it comes back: what waited does not know that it was gone.
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting = gateway.send("/waiting");
    gateway.until(|status| status.held == 1).await;
    let _again =
        Application::at(address, |_| Box::pin(async { hyper::Response::new(full("back")) })).await;
    blocking(move || held.release()).await.unwrap();
    assert!(waiting.await.unwrap().ends_with("back"));
}

/// Where the child below sends requests to, and its control socket.
const UPSTREAM: &str = "STILLPOINT_TEST_UPSTREAM";
const CONTROL: &str = "STILLPOINT_TEST_CONTROL";
const DESCRIPTORS: u64 = 96;
/// A quarter of them is for all else, and each connection has two.
const PLACES: u64 = 36;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process of its own, which the next test starts"]
async fn a_gateway_with_few_descriptors() {
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let options = GatewayOptions {
        name: "web".parse().unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        upstream: format!("http://{}", env::var(UPSTREAM).unwrap()).parse().unwrap(),
        max_hold: Duration::from_mins(1),
        max_held: 10_000,
        control: env::var_os(CONTROL).unwrap().into(),
        pass: Vec::new(),
        endpoint: None,
    };
    let gateway = Gateway::bind(options).await.unwrap();
    println!("\nready {}", gateway.address());
    let ended = async {
        // The end of the parent ends this as well.
        blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap()).await;
    };
    gateway.serve(ended).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_every_descriptor_in_a_hold_are_all_answered_after_it() {
    let application = plain().await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gateway.sock");
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_gateway_with_few_descriptors", "--ignored", "--nocapture"])
        .env(UPSTREAM, application.address.to_string())
        .env(CONTROL, &socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let address: SocketAddr = lines
        .find_map(|line| line.unwrap().strip_prefix("ready ").map(|at| at.parse().unwrap()))
        .unwrap();
    let status = async || {
        let socket = socket.clone();
        blocking(move || Control::connect(&socket).unwrap().status().unwrap()).await
    };

    let control = socket.clone();
    let held = blocking(move || {
        Control::connect(&control).unwrap().hold(&order(Purpose::Backup)).unwrap()
    })
    .await;
    let held = drained(held).await;
    let clients: Vec<_> = (0..4 * PLACES)
        .map(|_| tokio::spawn(async move { exchange(address, &get("/crowd")).await }))
        .collect();
    // It still hears its coordinator, and others.
    while status().await.held < PLACES {}
    let evidence = blocking(move || held.release()).await.unwrap();
    assert_eq!((evidence.held, evidence.refused), (PLACES, 0));
    for client in clients {
        let response = client.await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
    let totals = status().await.totals;
    assert_eq!((totals.requests, totals.bad_gateway), (4 * PLACES, 0));
    drop(child.stdin.take());
    assert!(blocking(move || child.wait().unwrap()).await.success());
}
