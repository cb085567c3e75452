//! The gateway between a real proxy and the application, as the documentation recommends it.

mod support;

use http_body_util::BodyExt;
use hyper::Response;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use stillpoint_gateway::control::Purpose;
use support::applications::*;
use support::load::*;
use support::proxies::*;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

async fn holds_under_load(kind: Kind) {
    let shop = Shop::start().await;
    let gateway = TestGateway::start(shop.application.address).await;
    let proxy = Proxy::before(kind, gateway.address).await;
    let all = shop.hold_under_load(&gateway, proxy.address, 16, 10).await;
    assert!(all.iter().all(|evidence| evidence.endpoint.is_none()), "it saw each request end");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_no_request_fails_and_none_is_active_while_held() {
    holds_under_load(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_no_request_fails_and_none_is_active_while_held() {
    holds_under_load(Kind::Caddy).await;
}

/// One request from 127.0.0.2, which is nobody else here.
async fn from_another_address(address: SocketAddr, request: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

async fn tells_the_application_who_the_client_is(kind: Kind) {
    let application = mirror().await;
    let gateway = TestGateway::start(application.address).await;
    let proxy = Proxy::before(kind, gateway.address).await;
    let request = "POST /orders?card=1 HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\
                   content-length: 5\r\n\r\nhello";
    let mut ids = BTreeSet::new();
    for _ in 0..3 {
        let response = from_another_address(proxy.address, request).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        let field = |name: &str| {
            let line = |line: &str| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned);
            let values: Vec<String> = response.lines().filter_map(line).collect();
            assert_eq!(values.len(), 1, "{name} once in {response}");
            values[0].clone()
        };
        assert!(response.contains("POST /orders?card=1 HTTP/1.1\n"), "{response}");
        assert_eq!(field("host"), "shop.example");
        assert_eq!(field("x-forwarded-for"), "127.0.0.2, 127.0.0.1");
        assert_eq!(field("x-forwarded-proto"), "http");
        assert_eq!(field("x-forwarded-host"), "shop.example");
        // The older fields say it all; a second account of it would only differ.
        assert!(!response.contains("\nforwarded:"), "{response}");
        ids.insert(field("x-request-id"));
        assert!(response.ends_with("\n\nhello"), "{response}");
    }
    assert_eq!(ids.len(), 3, "each request has an id of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_the_application_knows_client_host_protocol_and_request_id() {
    tells_the_application_who_the_client_is(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_the_application_knows_client_host_protocol_and_request_id() {
    tells_the_application_who_the_client_is(Kind::Caddy).await;
}

async fn keeps_a_clients_connection_over_a_hold(kind: Kind) {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let proxy = Proxy::before(kind, gateway.address).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    for round in 0..4 {
        let held = drained(gateway.hold_long(Purpose::Backup).await).await;
        let request = format!("GET /round{round} HTTP/1.1\r\nhost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        gateway.until(|status| status.held == 1).await;
        blocking(move || held.release()).await.unwrap();
        let response = read_until(&mut client, &format!("/round{round}")).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
    assert_eq!(gateway.until(|status| status.in_flight == 0).await.totals.requests, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_a_clients_connection_outlives_holds() {
    keeps_a_clients_connection_over_a_hold(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_a_clients_connection_outlives_holds() {
    keeps_a_clients_connection_over_a_hold(Kind::Caddy).await;
}

async fn holds_what_comes_over_a_websocket(kind: Kind) {
    let (application, mut connections) = switching().await;
    let gateway = TestGateway::start(application.address).await;
    let proxy = Proxy::before(kind, gateway.address).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let response = read_until(&mut client, "\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
    let mut server = connections.recv().await.unwrap();
    client.write_all(b"before.").await.unwrap();
    assert_eq!(read_until(&mut server, ".").await, "before.");

    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    assert_eq!(gateway.status().await.upgraded, 1);
    client.write_all(b"during.").await.unwrap();
    // What the application says passes, and nothing comes the other way meanwhile.
    for _ in 0..50 {
        let mut byte = [0];
        tokio::select! {
            biased;
            read = server.read(&mut byte) => panic!("{read:?} came through the hold"),
            status = gateway.status() => assert_eq!(status.upgraded, 1),
        }
        server.write_all(b"news.").await.unwrap();
        assert_eq!(read_until(&mut client, ".").await, "news.");
    }
    blocking(move || held.release()).await.unwrap();
    assert_eq!(read_until(&mut server, ".").await, "during.");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_what_comes_over_a_websocket_is_held() {
    holds_what_comes_over_a_websocket(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_what_comes_over_a_websocket_is_held() {
    holds_what_comes_over_a_websocket(Kind::Caddy).await;
}

/// Each piece of a body arrives before the next is sent, in both directions.
async fn streams_both_ways(kind: Kind) {
    let (chunks, receiver) = mpsc::channel(1);
    let (arrive, mut arrived) = mpsc::unbounded_channel();
    let receiver = Mutex::new(Some(receiver));
    let application = Application::start(move |mut request| {
        let body = Chunks(receiver.lock().unwrap().take().unwrap());
        let arrive = arrive.clone();
        Box::pin(async move {
            while let Some(frame) = request.body_mut().frame().await {
                arrive.send(frame.unwrap().into_data().unwrap()).unwrap();
            }
            Response::new(body.boxed())
        })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let proxy = Proxy::before(kind, gateway.address).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let head =
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    for number in 100..150 {
        client.write_all(format!("3\r\n{number}\r\n").as_bytes()).await.unwrap();
        assert_eq!(arrived.recv().await.unwrap(), number.to_string());
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    for number in 100..150 {
        chunks.send(number.to_string().into()).await.unwrap();
        read_until(&mut client, &format!("{number}\r\n")).await;
    }
    drop(chunks);
    assert_eq!(rest(&mut client).await, "0\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_bodies_stream_both_ways() {
    streams_both_ways(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_bodies_stream_both_ways() {
    streams_both_ways(Kind::Caddy).await;
}

async fn lets_the_application_call_itself(kind: Kind) {
    let mut reflexive = Reflexive::start().await;
    let gateway = TestGateway::start(reflexive.application.address).await;
    let proxy = Proxy::before(kind, gateway.address).await;
    *reflexive.public.lock().unwrap() = Some(proxy.address);
    let address = proxy.address;
    let outer = tokio::spawn(async move { exchange(address, &get("/outer")).await });
    reflexive.begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    reflexive.go.notify_one();
    let held = drained(held).await;
    let answer = outer.await.unwrap();
    assert!(answer.contains("inner"), "{answer}");
    let evidence = blocking(move || held.release()).await.unwrap();
    assert_eq!((evidence.re_entrant, evidence.held), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_a_request_of_the_application_to_itself_passes_while_draining() {
    lets_the_application_call_itself(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_a_request_of_the_application_to_itself_passes_while_draining() {
    lets_the_application_call_itself(Kind::Caddy).await;
}
