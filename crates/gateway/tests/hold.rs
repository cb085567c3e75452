//! The hold, end to end: a real application, real connections, a real control socket.

mod support;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stillpoint_gateway::control::{ControlError, EndReason, Held, HoldOrder, Purpose, StateName};
use support::applications::*;
use support::load::*;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_and_none_is_active_while_held_over_many_cycles_under_load() {
    let shop = Shop::start().await;
    let gateway = TestGateway::start(shop.application.address).await;
    shop.hold_under_load(&gateway, gateway.address, 32, 40).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_waits_for_the_last_byte_of_a_streamed_response() {
    let (chunks, receiver) = mpsc::channel(1);
    let receiver = Mutex::new(Some(receiver));
    let application = Application::start(move |_| {
        let body = Chunks(receiver.lock().unwrap().take().unwrap());
        Box::pin(async move { Response::new(body.boxed()) })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(get("/stream").as_bytes()).await.unwrap();
    chunks.send("first".into()).await.unwrap();
    read_until(&mut stream, "first\r\n").await;

    let held = gateway.hold_long(Purpose::Backup).await;
    assert_eq!(held.in_flight_at_begin, 1);
    for number in 0..200 {
        let chunk = format!("chunk {number}");
        chunks.send(chunk.clone().into()).await.unwrap();
        read_until(&mut stream, &format!("{chunk}\r\n")).await;
        assert_eq!(gateway.status().await.state, StateName::Draining);
    }
    drop(chunks);
    read_until(&mut stream, "0\r\n\r\n").await;
    let held = drained(held).await;
    assert_eq!(blocking(move || held.release()).await.unwrap().in_flight_at_begin, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_its_client_does_not_read_stays_in_flight_until_the_client_goes() {
    // More than the kernel's buffers take.
    let large = Bytes::from(vec![b'x'; 64 << 20]);
    let application = Application::start(move |_| {
        let large = large.clone();
        Box::pin(async move { Response::new(full(large)) })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(get("/large").as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n\r\n").await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let (held, error) = blocking(move || {
        let error = held.wait_drained(Duration::from_millis(1)).unwrap_err();
        (held, error)
    })
    .await;
    assert!(matches!(error, ControlError::DrainTimeout { .. }), "{error}");
    drop(stream);
    let held = drained(held).await;
    blocking(move || held.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_names_the_request_and_keeps_the_hold() {
    let mut slow = Slow::start().await;
    let gateway = TestGateway::start(slow.application.address).await;
    let outer = gateway.send("/slow?card=secret");
    slow.begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    let (held, error) = blocking(move || {
        let error = held.wait_drained(Duration::from_millis(1)).unwrap_err();
        (held, error)
    })
    .await;
    let ControlError::DrainTimeout { unfinished } = &error else { panic!("{error}") };
    assert_eq!(unfinished.len(), 1);
    assert!(unfinished[0].starts_with("GET /slow from 127.0.0.1:"), "{unfinished:?}");
    assert!(!error.to_string().contains("secret"));
    let held = blocking(move || {
        held.check().unwrap();
        held
    })
    .await;
    slow.go.notify_one();
    assert!(outer.await.unwrap().ends_with("/slow"));
    let held = drained(held).await;
    blocking(move || held.release()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn releasing_before_the_drain_yields_no_evidence() {
    let mut slow = Slow::start().await;
    let gateway = TestGateway::start(slow.application.address).await;
    let outer = gateway.send("/slow");
    slow.begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    let inner = gateway.send("/inner");
    gateway.until(|status| status.held == 1).await;
    let error = blocking(move || held.release()).await.unwrap_err();
    assert!(matches!(error, ControlError::Undrained), "{error}");
    assert!(inner.await.unwrap().ends_with("/inner"));
    slow.go.notify_one();
    outer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_hold_releases_at_once() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let waiting = gateway.send("/waiting");
    gateway.until(|status| status.held == 1).await;
    drop(held);
    assert!(waiting.await.unwrap().ends_with("/waiting"));
    let status = gateway.status().await;
    assert_eq!(status.last_end.unwrap().reason, EndReason::ConnectionLost);
    assert_eq!(status.totals.ran_out, 1);
}

/// A coordinator that says one thing and then nothing: what a stopped process looks like.
fn silent_hold(gateway: &TestGateway, silence_ms: u64) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(&gateway.socket).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains(r#""protocol":1"#), "{line}");
    let ask = format!(
        "{{\"type\":\"hold\",\"id\":\"silent\",\"purpose\":\"backup\",\"max_hold_ms\":60000,\
         \"silence_ms\":{silence_ms}}}\n"
    );
    reader.get_mut().write_all(ask.as_bytes()).unwrap();
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains(r#""type":"held""#), "{line}");
    reader
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_falls_silent_loses_its_hold_and_is_told_so() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let mut coordinator = silent_hold(&gateway, 300);
    let waiting = gateway.send("/waiting");
    assert!(waiting.await.unwrap().ends_with("/waiting"));
    let ended = gateway.status().await.last_end.unwrap();
    assert_eq!((ended.hold.as_str(), ended.reason), ("silent", EndReason::Silence));
    // It wakes up and believes that it still holds.
    blocking(move || {
        coordinator.get_mut().write_all(b"{\"type\":\"release\"}\n").unwrap();
        let said: Vec<_> = coordinator.lines().take(3).map(Result::unwrap).collect();
        assert!(said[0].contains(r#""type":"drained""#), "{said:?}");
        assert!(said[1].contains(r#""type":"ended","reason":"silence""#), "{said:?}");
        assert!(said[2].contains(r#""type":"ran_out","reason":"silence""#), "{said:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_keep_a_hold_that_outlasts_its_silence() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let silence = Duration::from_secs(1);
    let held = gateway.hold(HoldOrder { silence, ..order(Purpose::Backup) }).await.unwrap();
    let held = drained(held).await;
    // Another hold of the same silence, without beats, measures the time.
    let measure = TestGateway::start(application.address).await;
    for _ in 0..2 {
        let _silent = silent_hold(&measure, 1000);
        measure.send("/measure").await.unwrap();
    }
    blocking(move || {
        held.check().unwrap();
        held.release().unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn max_hold_releases_and_a_late_release_reports_that_it_ran_out() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let max_hold = Duration::from_millis(300);
    let held = gateway.hold(HoldOrder { max_hold, ..order(Purpose::Backup) }).await.unwrap();
    let waiting = gateway.send("/waiting");
    assert!(waiting.await.unwrap().ends_with("/waiting"));
    blocking(move || {
        let error = held.check().unwrap_err();
        assert!(matches!(error, ControlError::RanOut { reason: EndReason::MaxHold, .. }));
        let error = held.wait_drained(Duration::from_mins(1)).unwrap_err();
        assert!(matches!(error, ControlError::RanOut { reason: EndReason::MaxHold, .. }));
        let error = held.release().unwrap_err();
        assert!(matches!(error, ControlError::RanOut { reason: EndReason::MaxHold, .. }));
    })
    .await;
    assert_eq!(gateway.status().await.totals.ran_out, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_own_max_hold_caps_what_a_coordinator_asks_for() {
    let application = plain().await;
    let cap = Duration::from_millis(300);
    let gateway = TestGateway::with(application.address, |options| options.max_hold = cap).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    assert_eq!(held.max_hold, cap);
    assert!(gateway.send("/waiting").await.unwrap().ends_with("/waiting"));
    let error = blocking(move || held.release()).await.unwrap_err();
    assert!(matches!(error, ControlError::RanOut { .. }), "{error}");
}

// One thread for all tasks: what is woken first runs first, so the order can be seen.
#[tokio::test]
async fn waiting_requests_go_through_in_the_order_of_their_arrival() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let application = Application::start(move |request| {
        record.lock().unwrap().push(request.uri().path().to_owned());
        Box::pin(async move { Response::new(full("")) })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let mut waiting = Vec::new();
    let paths: Vec<_> = (0..20).map(|number| format!("/{number}")).collect();
    for path in &paths {
        waiting.push(gateway.send(path));
        let all = waiting.len() as u64;
        gateway.until(|status| status.held == all).await;
    }
    blocking(move || held.release()).await.unwrap();
    for request in waiting {
        request.await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), paths);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_may_wait_are_answered_503_with_retry_after() {
    let application = plain().await;
    let gateway = TestGateway::with(application.address, |options| options.max_held = 2).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let waiting = [gateway.send("/1"), gateway.send("/2")];
    gateway.until(|status| status.held == 2).await;
    let refused = gateway.send("/3").await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    let retry = refused.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((1..=60).contains(&retry.parse::<u64>().unwrap()), "{retry}");
    let evidence = blocking(move || held.release()).await.unwrap();
    assert_eq!((evidence.held, evidence.refused), (2, 1));
    for request in waiting {
        assert!(request.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_clients_than_the_usual_limit_of_open_files_wait_and_are_all_answered() {
    let application = plain().await;
    // This process holds both ends of each connection.
    let gateway = TestGateway::with(application.address, |options| options.max_held = 4000).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let waiting: Vec<_> = (0..1500).map(|number| gateway.send(&format!("/{number}"))).collect();
    gateway.until(|status| status.held == 1500).await;
    let evidence = blocking(move || held.release()).await.unwrap();
    assert_eq!((evidence.held, evidence.refused), (1500, 0));
    for (number, request) in waiting.into_iter().enumerate() {
        assert!(request.await.unwrap().ends_with(&format!("\r\n\r\n/{number}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_while_it_waits_leaves_the_queue() {
    let seen = Arc::new(AtomicU64::new(0));
    let count = seen.clone();
    let application = Application::start(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { Response::new(full("")) })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    // hyper itself notices the first; unread bodies hide the end of the others from it.
    let body = "x".repeat(30_000);
    let with_body = format!("POST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 30000\r\n\r\n{body}");
    let expecting = "POST /c HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\
                     content-length: 5\r\n\r\n";
    for request in [get("/a"), with_body, expecting.to_owned()] {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        gateway.until(|status| status.held == 1).await;
        drop(client);
        gateway.until(|status| status.held == 0).await;
    }
    blocking(move || held.release()).await.unwrap();
    let status = gateway.until(|status| status.in_flight == 0).await;
    assert_eq!(status.totals.abandoned, 3);
    assert_eq!(seen.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_in_flight_does_not_block_the_drain() {
    let mut slow = Slow::start().await;
    let gateway = TestGateway::start(slow.application.address).await;
    // The second is still sending its body, which the application does not read.
    let with_body = "POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhel".to_owned();
    for request in [get("/slow"), with_body] {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        slow.begun.recv().await.unwrap();
        let held = gateway.hold_long(Purpose::Backup).await;
        assert_eq!(held.in_flight_at_begin, 1);
        drop(client);
        let held = drained(held).await;
        blocking(move || held.release()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_the_application_to_itself_passes_while_draining() {
    let mut reflexive = Reflexive::start().await;
    let gateway = TestGateway::start(reflexive.application.address).await;
    *reflexive.public.lock().unwrap() = Some(gateway.address);
    let outer = gateway.send("/outer");
    reflexive.begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    // One that pretends waits.
    let forged = "GET /forged HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                  x-stillpoint-in-flight: 00000000000000000000000000000000\r\n\r\n";
    let gateway_address = gateway.address;
    let forged = tokio::spawn(async move { exchange(gateway_address, forged).await });
    gateway.until(|status| status.held == 1).await;
    reflexive.go.notify_one();
    let held = drained(held).await;
    let response = outer.await.unwrap();
    assert!(response.ends_with("inner"), "{response}");
    assert_eq!(gateway.status().await.totals.re_entrant, 1);
    blocking(move || held.release()).await.unwrap();
    forged.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_hold_is_refused_while_one_is_on() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let error = gateway.hold(order(Purpose::Backup)).await.unwrap_err();
    assert!(matches!(&error, ControlError::Busy { hold } if hold == "h"), "{error}");
    let held = drained(held).await;
    blocking(move || held.release()).await.unwrap();
    gateway.hold(order(Purpose::Backup)).await.unwrap();
}

async fn refusing(held: Held) -> Held {
    blocking(move || {
        held.refuse_on_silence().unwrap();
        held
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_restore_answers_503_with_retry_after_until_it_is_reopened() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let held = refusing(gateway.hold_long(Purpose::Restore).await).await;
    let waiting = gateway.send("/waiting");
    gateway.until(|status| status.held == 1).await;
    drop(held);
    for response in [waiting.await.unwrap(), gateway.send("/new").await.unwrap()] {
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        assert!(response.contains("\r\nretry-after: 5\r\n"), "{response}");
    }
    assert_eq!(gateway.status().await.refusing.unwrap().reason, EndReason::ConnectionLost);
    let error = gateway.hold(order(Purpose::Backup)).await.unwrap_err();
    assert!(matches!(error, ControlError::Busy { .. }), "{error}");
    let mut control = gateway.control().await;
    blocking(move || {
        assert!(matches!(control.reopen("other").unwrap_err(), ControlError::Busy { .. }));
        control.reopen("h").unwrap();
        control.reopen("h").unwrap();
    })
    .await;
    assert!(gateway.send("/open").await.unwrap().ends_with("/open"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_outlasts_max_hold_refuses_until_its_own_late_release() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let max_hold = Duration::from_millis(300);
    let held = gateway.hold(HoldOrder { max_hold, ..order(Purpose::Restore) }).await.unwrap();
    let held = refusing(held).await;
    assert!(gateway.send("/waiting").await.unwrap().starts_with("HTTP/1.1 503 "));
    let error = blocking(move || held.release()).await.unwrap_err();
    assert!(matches!(error, ControlError::RanOut { .. }), "{error}");
    assert!(gateway.send("/open").await.unwrap().ends_with("/open"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_released_in_time_refuses_nobody() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let held = drained(refusing(gateway.hold_long(Purpose::Restore).await).await).await;
    let waiting = gateway.send("/waiting");
    gateway.until(|status| status.held == 1).await;
    blocking(move || held.release()).await.unwrap();
    assert!(waiting.await.unwrap().ends_with("/waiting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_may_never_refuse_instead_of_releasing() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    blocking(move || {
        assert!(matches!(held.refuse_on_silence().unwrap_err(), ControlError::Refused { .. }));
        held.check().unwrap();
    })
    .await;
    assert!(gateway.send("/open").await.unwrap().ends_with("/open"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_waiting_request_is_not_read() {
    let received = Arc::new(AtomicU64::new(0));
    let count = received.clone();
    let application = Application::start(move |request| {
        let count = count.clone();
        Box::pin(async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            count.fetch_add(body.len() as u64, Ordering::SeqCst);
            Response::new(full("done"))
        })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let length = 64_usize << 20;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    gateway.until(|status| status.held == 1).await;
    // The kernel takes some; then nobody reads, and the client cannot write any more.
    let chunk = vec![b'x'; 1 << 16];
    let mut sent = 0;
    let mut blocked = 0;
    while blocked < 100 {
        if let Ok(written) = client.try_write(&chunk) {
            sent += written;
            blocked = 0;
        } else {
            blocked += 1;
            gateway.status().await;
        }
        assert!(sent < length, "the gateway reads the body of a request that waits");
    }
    blocking(move || held.release()).await.unwrap();
    let (mut read, mut write) = client.into_split();
    let rest = vec![b'x'; length - sent];
    // The write half is kept: a client that closes its side counts as gone.
    let writing = tokio::spawn(async move { write.write_all(&rest).await.map(|()| write) });
    let mut response = String::new();
    read.read_to_string(&mut response).await.unwrap();
    writing.await.unwrap().unwrap();
    assert!(response.ends_with("done"), "{response}");
    assert_eq!(received.load(Ordering::SeqCst), length as u64);
}
