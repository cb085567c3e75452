//! What goes wrong around a hold: clients that trickle, too many of them, an application that dies,
//! no descriptors left.

mod support;

use std::time::Duration;
use stillpoint_gateway::control::{ControlError, Purpose};
use support::applications::*;
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
    let application = runtime.spawn(Slow::start()).await.unwrap();
    let address = application.application.address;
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
