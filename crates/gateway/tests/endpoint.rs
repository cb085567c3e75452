//! The hold endpoint with real proxies that ask it: nginx and Caddy as Debian has them, with the
//! configurations of the documentation.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use stillpoint_gateway::control::{Control, ControlError, Held, Purpose};
use stillpoint_model::config::{CompletionsPart, EndpointPart, SyslogAddress};
use stillpoint_model::manifest::{EndpointEvidence, GatewayEvidence};
use support::applications::*;
use support::load::*;
use support::proxies::*;
use support::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;

fn udp() -> SyslogAddress {
    SyslogAddress::Udp("127.0.0.1:0".parse().unwrap())
}

fn endpoint(syslog: SyslogAddress, within: Duration) -> EndpointPart {
    let completions = Some(CompletionsPart { syslog, within });
    EndpointPart { listen: "127.0.0.1:0".parse().unwrap(), completions }
}

/// Long enough that only a lost line is counted out.
const LONG: Duration = Duration::from_secs(50);

async fn start_gateway(application: &Application, within: Duration) -> TestGateway {
    TestGateway::with(application.address, |options| {
        options.endpoint = Some(endpoint(udp(), within));
    })
    .await
}

/// The documented proxy, which asks this gateway.
async fn start_proxy(kind: Kind, application: &Application, gateway: &TestGateway) -> Proxy {
    let (endpoint, syslog) = (gateway.endpoint.unwrap(), gateway.syslog.unwrap());
    Proxy::asking(kind, application, endpoint, &syslog.to_string()).await
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
    let shop = Shop::start().await;
    let gateway = start_gateway(&shop.application, LONG).await;
    let proxy = start_proxy(kind, &shop.application, &gateway).await;
    for evidence in shop.hold_under_load(&gateway, proxy.address, 16, 10).await {
        assert_eq!(doubts(&evidence), Vec::<String>::new(), "{}", proxy.said());
    }
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
    let proxy = start_proxy(kind, &application, &gateway).await;
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

/// Sends a request to a proxy and leaves it to a task.
fn send(proxy: &Proxy, path: &str) -> JoinHandle<String> {
    let (address, request) = (proxy.address, get(path));
    tokio::spawn(async move { exchange(address, &request).await })
}

async fn drains_until_the_end_is_reported(kind: Kind) {
    let mut slow = Slow::start().await;
    let gateway = start_gateway(&slow.application, LONG).await;
    let proxy = start_proxy(kind, &slow.application, &gateway).await;
    let outer = send(&proxy, "/slow?card=secret");
    slow.begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    assert_eq!(held.in_flight_at_begin, 1);
    let (held, error) = blocking(move || {
        let error = held.wait_drained(Duration::from_millis(1)).unwrap_err();
        (held, error.to_string())
    })
    .await;
    assert!(error.contains("GET /slow from 127.0.0.1:0"), "named as the proxy said: {error}");
    assert!(!error.contains("secret"), "{error}");
    slow.go.notify_one();
    assert!(outer.await.unwrap().ends_with("/slow"));
    let evidence = release(drained(held).await).await;
    assert_eq!(evidence.in_flight_at_begin, 1);
    assert_eq!(doubts(&evidence), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_the_drain_lasts_until_its_log_says_that_a_request_has_ended() {
    drains_until_the_end_is_reported(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_the_drain_lasts_until_its_log_says_that_a_request_has_ended() {
    drains_until_the_end_is_reported(Kind::Caddy).await;
}

/// The endpoint is killed while requests wait for it: they pass, and so do later ones; a backup that
/// would begin then cannot.
async fn passes_when_the_endpoint_is_killed(kind: Kind) {
    let application = plain().await;
    let address = application.address;
    // A runtime of its own is killed with all its sockets, and finishes nothing.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let starting = runtime.spawn(TestGateway::with(address, |options| {
        options.endpoint = Some(endpoint(udp(), LONG));
    }));
    let gateway = starting.await.unwrap();
    let proxy = start_proxy(kind, &application, &gateway).await;
    let _held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting: Vec<_> = (0..8).map(|_| send(&proxy, "/waiting")).collect();
    gateway.until(|status| status.held == 8).await;
    runtime.shutdown_background();
    for waiting in waiting {
        let answer = waiting.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("/waiting"), "{answer}");
    }
    let later = send(&proxy, "/later").await.unwrap();
    assert!(later.starts_with("HTTP/1.1 200 ") && later.contains("/later"), "{later}");
    let socket = gateway.socket.clone();
    let error = blocking(move || Control::connect(&socket)).await.unwrap_err();
    assert!(matches!(error, ControlError::Connect { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_requests_pass_when_the_endpoint_is_killed() {
    passes_when_the_endpoint_is_killed(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_requests_pass_when_the_endpoint_is_killed() {
    passes_when_the_endpoint_is_killed(Kind::Caddy).await;
}

/// A request that passed while there was no endpoint ends in a hold: it was at work in it.
async fn notices_what_passed_unasked(kind: Kind) {
    let mut slow = Slow::start().await;
    let (at, syslog) = (free_address(), free_address());
    let proxy = Proxy::asking(kind, &slow.application, at, &syslog.to_string()).await;
    let unasked = send(&proxy, "/slow");
    slow.begun.recv().await.unwrap();
    let gateway = TestGateway::with(slow.application.address, |options| {
        options.endpoint =
            Some(EndpointPart { listen: at, ..endpoint(SyslogAddress::Udp(syslog), LONG) });
    })
    .await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    slow.go.notify_one();
    assert!(unasked.await.unwrap().ends_with("/slow"));
    let evidence = release(held).await;
    let mut endpoint = evidence.endpoint.unwrap();
    while endpoint.unasked == 0 {
        // The line may still be on its way: a later hold hears of it.
        let held = drained(gateway.hold_long(Purpose::Backup).await).await;
        endpoint = release(held).await.endpoint.unwrap();
    }
    assert_eq!((endpoint.unasked, endpoint.unfinished), (1, 0));
    assert!(endpoint.doubts()[0].contains("1 request pass without asking"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nginx_passed_unasked_costs_the_label() {
    notices_what_passed_unasked(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_caddy_passed_unasked_costs_the_label() {
    notices_what_passed_unasked(Kind::Caddy).await;
}

/// A proxy that is killed reports no end. The drain is over all the same, and the label is lost.
async fn counts_out_what_a_killed_proxy_had(kind: Kind) {
    let mut slow = Slow::start().await;
    let gateway = start_gateway(&slow.application, Duration::from_millis(500)).await;
    let mut proxy = start_proxy(kind, &slow.application, &gateway).await;
    let lost = send(&proxy, "/slow");
    slow.begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    proxy.kill();
    // Broken off without an answer.
    assert_eq!(lost.await.unwrap(), "");
    let evidence = release(drained(held).await).await;
    assert_eq!(evidence.endpoint.as_ref().unwrap().unfinished, 1);
    assert!(doubts(&evidence)[0].contains("the end of 1 request"), "{:?}", doubts(&evidence));
    // The next proxy serves and is held.
    let proxy = start_proxy(kind, &slow.application, &gateway).await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting = send(&proxy, "/waiting");
    gateway.until(|status| status.held == 1).await;
    assert_eq!(release(held).await.held, 1);
    assert!(waiting.await.unwrap().ends_with("/waiting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_nginx_had_in_flight_is_counted_out_and_costs_the_label() {
    counts_out_what_a_killed_proxy_had(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_caddy_had_in_flight_is_counted_out_and_costs_the_label() {
    counts_out_what_a_killed_proxy_had(Kind::Caddy).await;
}

async fn lets_the_application_call_itself(kind: Kind) {
    let mut reflexive = Reflexive::start().await;
    let gateway = start_gateway(&reflexive.application, LONG).await;
    let proxy = start_proxy(kind, &reflexive.application, &gateway).await;
    *reflexive.public.lock().unwrap() = Some(proxy.address);
    let outer = send(&proxy, "/outer");
    reflexive.begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    reflexive.go.notify_one();
    let held = drained(held).await;
    let answer = outer.await.unwrap();
    assert!(answer.contains("inner"), "{answer}");
    let evidence = release(held).await;
    assert_eq!((evidence.re_entrant, evidence.held), (1, 0));
    assert_eq!(doubts(&evidence), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_a_request_of_the_application_to_itself_passes_while_draining() {
    lets_the_application_call_itself(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_a_request_of_the_application_to_itself_passes_while_draining() {
    lets_the_application_call_itself(Kind::Caddy).await;
}

/// A client that gives up while it waits leaves the queue, and speaks against nothing.
async fn forgets_a_client_that_leaves(kind: Kind) {
    let application = plain().await;
    let gateway = start_gateway(&application, LONG).await;
    let proxy = start_proxy(kind, &application, &gateway).await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(get("/impatient").as_bytes()).await.unwrap();
    gateway.until(|status| status.held == 1).await;
    drop(client);
    let status = gateway.until(|status| status.held == 0).await;
    assert_eq!(status.totals.abandoned, 1);
    let evidence = release(held).await;
    assert_eq!(doubts(&evidence), Vec::<String>::new());
    assert_eq!(gateway.status().await.in_flight, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_a_client_that_leaves_while_it_waits_is_forgotten() {
    forgets_a_client_that_leaves(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_caddy_a_client_that_leaves_while_it_waits_is_forgotten() {
    forgets_a_client_that_leaves(Kind::Caddy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_passed_the_endpoint_costs_the_label_while_it_is_open() {
    let (application, mut connections) = switching().await;
    let gateway = start_gateway(&application, LONG).await;
    let proxy = start_proxy(Kind::Caddy, &application, &gateway).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 101 "));
    let server = connections.recv().await.unwrap();
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let evidence = release(held).await;
    assert_eq!(evidence.endpoint.as_ref().unwrap().upgraded, 1);
    assert!(doubts(&evidence)[0].contains("1 upgraded connection"), "{:?}", doubts(&evidence));
    drop((client, server));
    loop {
        let held = drained(gateway.hold_long(Purpose::Backup).await).await;
        if release(held).await.endpoint.unwrap().upgraded == 0 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_reports_over_a_unix_socket_as_well() {
    let mut slow = Slow::start().await;
    let directory = tempfile::tempdir().unwrap();
    let everybody = Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), everybody).unwrap();
    let socket = directory.path().join("log.sock");
    let gateway = TestGateway::with(slow.application.address, |options| {
        options.endpoint = Some(endpoint(SyslogAddress::Unix(socket.clone()), LONG));
    })
    .await;
    let server = format!("unix:{}", socket.display());
    let at = gateway.endpoint.unwrap();
    let proxy = Proxy::asking(Kind::Nginx, &slow.application, at, &server).await;
    let outer = send(&proxy, "/slow");
    slow.begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    assert_eq!(held.in_flight_at_begin, 1);
    slow.go.notify_one();
    outer.await.unwrap();
    let evidence = release(drained(held).await).await;
    assert_eq!(doubts(&evidence), Vec::<String>::new());
}

/// A proxy's question, by hand.
async fn ask(gateway: &TestGateway, id: &str) -> String {
    let request = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-request-id: {id}\r\n\
         x-forwarded-method: POST\r\nx-forwarded-uri: /orders\r\n\r\n"
    );
    exchange(gateway.endpoint.unwrap(), &request).await
}

/// A line of a proxy's log, by hand.
async fn report(gateway: &TestGateway, id: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let line = format!("<190>Nov 27 14:38:49 nginx: stillpoint id={id} answer=204");
    socket.send_to(line.as_bytes(), gateway.syslog.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_come_twice_end_a_request_once_and_lost_ones_cost_the_label() {
    let application = plain().await;
    let gateway = start_gateway(&application, LONG).await;
    assert!(ask(&gateway, "a").await.starts_with("HTTP/1.1 204 "));
    assert!(ask(&gateway, "b").await.starts_with("HTTP/1.1 204 "));
    // Asked again while it is in flight: the same request.
    assert!(ask(&gateway, "b").await.starts_with("HTTP/1.1 204 "));
    assert_eq!(gateway.status().await.in_flight, 2);
    report(&gateway, "a").await;
    report(&gateway, "a").await;
    report(&gateway, "b").await;
    gateway.until(|status| status.in_flight == 0).await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    assert_eq!(doubts(&release(held).await), Vec::<String>::new());
    gateway.stop().await;

    let gateway = start_gateway(&application, Duration::from_millis(100)).await;
    ask(&gateway, "lost").await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let evidence = release(held).await;
    assert_eq!(evidence.endpoint.unwrap().unfinished, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_completions_new_requests_wait_and_the_label_is_lost() {
    let application = plain().await;
    let gateway = TestGateway::with(application.address, |options| {
        options.endpoint = Some(EndpointPart { completions: None, ..endpoint(udp(), LONG) });
    })
    .await;
    assert!(ask(&gateway, "a").await.starts_with("HTTP/1.1 204 "));
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let at = gateway.endpoint.unwrap();
    let waiting = tokio::spawn(async move {
        exchange(at, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await
    });
    gateway.until(|status| status.held == 1).await;
    let evidence = release(held).await;
    assert!(doubts(&evidence)[0].contains("`completions` is not set"), "{:?}", doubts(&evidence));
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 204 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_lost_releases_what_waits_at_the_endpoint() {
    let application = plain().await;
    let gateway = start_gateway(&application, LONG).await;
    let proxy = start_proxy(Kind::Nginx, &application, &gateway).await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting = send(&proxy, "/waiting");
    gateway.until(|status| status.held == 1).await;
    drop(held);
    assert!(waiting.await.unwrap().ends_with("/waiting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_told_to_stop_answers_what_waits_at_the_endpoint() {
    let application = plain().await;
    let gateway = start_gateway(&application, LONG).await;
    let proxy = start_proxy(Kind::Nginx, &application, &gateway).await;
    let _held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting = send(&proxy, "/waiting");
    gateway.until(|status| status.held == 1).await;
    gateway.stop().await;
    assert!(waiting.await.unwrap().ends_with("/waiting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_pass_a_hold_by_both_ways_in_and_nothing_that_looks_like_them_does() {
    let application = plain().await;
    let gateway = TestGateway::with(application.address, |options| {
        options.endpoint = Some(endpoint(udp(), LONG));
        options.pass = vec!["/healthz".parse().unwrap(), "/metrics*".parse().unwrap()];
    })
    .await;
    let proxy = start_proxy(Kind::Nginx, &application, &gateway).await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    for path in ["/healthz", "/healthz?full=1", "/metrics/db"] {
        assert!(send(&proxy, path).await.unwrap().starts_with("HTTP/1.1 200 "));
        assert!(gateway.send(path).await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    let mut waiting = Vec::new();
    for path in ["/metrics/../orders", "/metrics/%2e%2e/orders", "/metrics//x", "/%68ealthz"] {
        waiting.push(send(&proxy, path));
        waiting.push(gateway.send(path));
    }
    let post = "POST /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\
                x-forwarded-method: GET\r\n\r\n";
    for address in [proxy.address, gateway.address] {
        waiting.push(tokio::spawn(async move { exchange(address, post).await }));
    }
    gateway.until(|status| status.held == waiting.len() as u64).await;
    let evidence = release(held).await;
    assert_eq!((evidence.excepted, evidence.held), (6, waiting.len() as u64));
    assert_eq!(doubts(&evidence), Vec::<String>::new());
    for waiting in waiting {
        assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(gateway.until(|status| status.in_flight == 0).await.totals.excepted, 6);
}
