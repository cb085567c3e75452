//! The application dies while requests are held, and comes back. Whoever waited is answered, the
//! hold is not disturbed, and nothing is left of it.

mod support;

use std::net::SocketAddr;
use stillpoint_gateway::control::Purpose;
use support::{TestGateway, blocking, drained, exchange, get};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// An application that answers `/hang` with the beginning of an answer only. All of it, and every
/// connection, ends when it is dropped.
struct Mortal {
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Mortal {
    async fn born(at: SocketAddr, hanging: Option<oneshot::Sender<()>>) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut hanging = hanging;
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let hanging = hanging.take();
                connections.spawn(async move {
                    let mut hanging = hanging;
                    let mut request = vec![0; 4096];
                    loop {
                        let length = stream.read(&mut request).await.unwrap_or(0);
                        if length == 0 {
                            return;
                        }
                        let hangs = request.starts_with(b"GET /hang");
                        let body = if hangs { "be" } else { "whole" };
                        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        if hangs {
                            hanging.take().map(|hanging| hanging.send(()));
                        }
                    }
                });
            }
        });
        Self { address, tasks }
    }

    /// Afterwards nobody listens, and connections break.
    async fn die(mut self) {
        self.tasks.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_dies_during_a_hold_costs_its_own_answers_and_nothing_else() {
    let (hangs, hanging) = oneshot::channel();
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let application = Mortal::born(anywhere, Some(hangs)).await;
    let address = application.address;
    let gateway = TestGateway::start(address).await;
    let cut_off = gateway.send("/hang");
    hanging.await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    let waiting: Vec<_> = (0..20).map(|number| gateway.send(&format!("/{number}"))).collect();
    gateway.until(|status| status.held == 20).await;

    // What was in flight ends with the application, and so the drain comes to its end.
    application.die().await;
    let answer = cut_off.await.unwrap();
    assert!(!answer.contains("whole"), "{answer}");
    let held = drained(held).await;
    let evidence = blocking(move || held.release()).await.unwrap();
    assert_eq!((evidence.in_flight_at_begin, evidence.held), (1, 20));
    for request in waiting {
        let answer = request.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
    let status = gateway.until(|status| status.in_flight == 0).await;
    assert_eq!(status.held, 0);

    let _application = Mortal::born(address, None).await;
    let answer = exchange(gateway.address, &get("/again")).await;
    assert!(answer.ends_with("whole"), "{answer}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_comes_back_before_the_release_answers_all_who_waited() {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let application = Mortal::born(anywhere, None).await;
    let address = application.address;
    let gateway = TestGateway::start(address).await;
    // A kept connection to the one that dies.
    assert!(gateway.send("/first").await.unwrap().ends_with("whole"));
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting: Vec<_> = (0..20).map(|number| gateway.send(&format!("/{number}"))).collect();
    gateway.until(|status| status.held == 20).await;
    application.die().await;
    let _application = Mortal::born(address, None).await;
    blocking(move || held.release()).await.unwrap();
    for request in waiting {
        let answer = request.await.unwrap();
        assert!(answer.ends_with("whole"), "{answer}");
    }
}
