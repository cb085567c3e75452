//! The hold endpoint with real proxies that ask it: nginx and Caddy as Debian has them, with the
//! configurations of the documentation.

mod support;

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use stillpoint_gateway::control::{Held, Purpose};
use stillpoint_model::config::{CompletionsPart, EndpointPart, SyslogAddress};
use stillpoint_model::manifest::{EndpointEvidence, GatewayEvidence};
use support::proxies::*;
use support::*;
use tokio::net::TcpStream;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Nginx,
    Caddy,
}

fn udp() -> SyslogAddress {
    SyslogAddress::Udp("127.0.0.1:0".parse().unwrap())
}

fn endpoint(syslog: SyslogAddress, within: Duration) -> EndpointPart {
    let completions = Some(CompletionsPart { syslog, within });
    EndpointPart { listen: "127.0.0.1:0".parse().unwrap(), completions }
}

/// Long enough that only a lost line is counted out.
const LONG: Duration = Duration::from_secs(50);

async fn gateway(application: &Application, within: Duration) -> TestGateway {
    TestGateway::with(application.address, |options| {
        options.endpoint = Some(endpoint(udp(), within));
    })
    .await
}

/// The documented proxy, which asks this gateway.
async fn proxy(kind: Kind, application: &Application, gateway: &TestGateway) -> Proxy {
    let heading = match kind {
        Kind::Nginx => "nginx and the hold endpoint",
        Kind::Caddy => "Caddy and the hold endpoint",
    };
    let text = put(&documented(heading), "127.0.0.1:8080", application.address);
    let text = put(&text, "127.0.0.1:8001", gateway.endpoint.unwrap());
    let text = put(&text, "127.0.0.1:8514", gateway.syslog.unwrap());
    match kind {
        Kind::Nginx => Proxy::nginx(&text).await,
        Kind::Caddy => Proxy::caddy(&put_site(&text, 8002, free_address())).await,
    }
}

async fn release(held: Held) -> GatewayEvidence {
    blocking(move || held.release()).await.unwrap()
}

/// The doubts, but for the one that this endpoint is a young one.
fn doubts(evidence: &GatewayEvidence) -> Vec<String> {
    let endpoint = evidence.endpoint.clone().unwrap();
    EndpointEvidence { up_ms: EndpointEvidence::YOUNG_MS, ..endpoint }.doubts()
}

async fn holds_under_load(kind: Kind) {
    let active = Arc::new(AtomicU64::new(0));
    let served = Arc::new(AtomicU64::new(0));
    let (counting, serving) = (active.clone(), served.clone());
    let application = Application::start(move |request| {
        let (active, served) = (counting.clone(), serving.clone());
        Box::pin(async move {
            active.fetch_add(1, Ordering::SeqCst);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            tokio::task::yield_now().await;
            served.fetch_add(1, Ordering::SeqCst);
            active.fetch_sub(1, Ordering::SeqCst);
            Response::new(full(body))
        })
    })
    .await;
    let gateway = gateway(&application, LONG).await;
    let proxy = proxy(kind, &application, &gateway).await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for client in 0..16 {
        let (stop, address) = (stop.clone(), proxy.address);
        clients.push(tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let mut answered = 0_u64;
            while !stop.load(Ordering::SeqCst) {
                let order = format!("order {client} {answered}");
                let request = Request::post("/orders").header("host", "shop.example");
                let request = request.body(Full::<bytes::Bytes>::from(order.clone())).unwrap();
                sender.ready().await.unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), order);
                answered += 1;
            }
            answered
        }));
    }

    for _ in 0..10 {
        // Traffic must have flowed since the hold before.
        let before = served.load(Ordering::SeqCst);
        gateway.until(|_| served.load(Ordering::SeqCst) > before + 32).await;
        let held = drained(gateway.hold_long(Purpose::Backup).await).await;
        let at_drain = served.load(Ordering::SeqCst);
        assert_eq!(active.load(Ordering::SeqCst), 0);
        gateway.until(|status| status.held == 16).await;
        assert_eq!(served.load(Ordering::SeqCst), at_drain, "nothing got through");
        let evidence = release(held).await;
        assert_eq!(evidence.held, 16);
        assert_eq!(doubts(&evidence), Vec::<String>::new(), "{}", proxy.said());
    }
    stop.store(true, Ordering::SeqCst);
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }
    assert_eq!(answered, served.load(Ordering::SeqCst));
    let status = gateway.until(|status| status.in_flight == 0).await;
    assert_eq!(status.totals.requests, answered, "each was asked about once");
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

/// More clients than may wait: 503 with Retry-After, for the client and not only for the proxy.
async fn refuses_past_max_held(kind: Kind) {
    let application = plain().await;
    let gateway = TestGateway::with(application.address, |options| {
        options.endpoint = Some(endpoint(udp(), LONG));
        options.max_held = 2;
    })
    .await;
    let proxy = proxy(kind, &application, &gateway).await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let address = proxy.address;
            tokio::spawn(async move { exchange(address, &get("/waits")).await })
        })
        .collect();
    gateway.until(|status| status.held == 2).await;
    let refused = exchange(proxy.address, &get("/refused")).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    let seconds = refused
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("retry-after: ").map(str::to_owned))
        .unwrap_or_else(|| panic!("{refused}"));
    assert!((1..=60).contains(&seconds.trim().parse::<u64>().unwrap()), "{refused}");
    let evidence = release(held).await;
    assert_eq!((evidence.held, evidence.refused), (2, 1));
    assert_eq!(doubts(&evidence), Vec::<String>::new(), "what was refused did not pass");
    for waiting in waiting {
        let answer = waiting.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("/waits"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_a_client_too_many_gets_503_with_retry_after() {
    refuses_past_max_held(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_a_client_too_many_gets_503_with_retry_after() {
    refuses_past_max_held(Kind::Caddy).await;
}
