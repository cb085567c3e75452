//! The reverse proxy, end to end: what passes through, what is changed on the way, and what
//! clients see when the application is not there.

mod support;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::header::HeaderValue;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use stillpoint_gateway::control::{EndReason, Purpose};
use support::applications::*;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};

/// An address that is taken, so that nobody else takes it, and where nobody listens.
struct Nobody(TcpSocket);

impl Nobody {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_down_is_502_at_once_in_plain_words() {
    let nobody = Nobody::new();
    let gateway = TestGateway::start(nobody.address()).await;
    let response = gateway.send("/").await.unwrap();
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    assert!(response.contains("content-type: text/plain"), "{response}");
    assert!(response.contains("no answer from the application at http://127.0.0.1:"), "{response}");
    let status = gateway.until(|status| status.in_flight == 0).await;
    assert!(!status.upstream_reachable);
    assert_eq!(status.totals.bad_gateway, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_request_gets_its_502_after_the_release_and_the_drain_does_not_wait_for_the_dead() {
    let nobody = Nobody::new();
    let gateway = TestGateway::start(nobody.address()).await;
    gateway.send("/").await.unwrap();
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting = gateway.send("/waiting");
    gateway.until(|status| status.held == 1).await;
    blocking(move || held.release()).await.unwrap();
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 502 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_hangs_up_without_an_answer_is_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = TestGateway::start(listener.local_addr().unwrap()).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                read_until(&mut stream, "\r\n\r\n").await;
            });
        }
    });
    let post = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    for request in [get("/"), post.to_owned()] {
        let response = exchange(gateway.address, &request).await;
        assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    }
    gateway.until(|status| status.in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_passes_with_its_host_path_and_body_and_the_forwarding_fields() {
    let application = mirror().await;
    let gateway = TestGateway::start(application.address).await;
    let request = "POST /a%20b?c=d HTTP/1.1\r\nhost: shop.example\r\nconnection: close, x-hop\r\n\
                   x-hop: 1\r\nx-forwarded-for: 203.0.113.9\r\nx-stillpoint-in-flight: forged\r\n\
                   content-length: 5\r\n\r\nhello";
    let response = exchange(gateway.address, request).await;
    assert!(response.contains("\nPOST /a%20b?c=d HTTP/1.1\n"), "{response}");
    assert!(response.contains("\nhost: shop.example\n"), "{response}");
    assert!(response.contains("\nx-forwarded-for: 203.0.113.9, 127.0.0.1\n"), "{response}");
    assert!(response.contains("\nx-forwarded-proto: http\n"), "{response}");
    assert!(response.contains("\nx-forwarded-host: shop.example\n"), "{response}");
    assert!(response.contains("\nx-stillpoint-in-flight: "), "{response}");
    assert!(!response.contains("forged"), "{response}");
    assert!(!response.contains("x-hop"), "{response}");
    assert!(response.ends_with("\n\nhello"), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_target_and_an_http_1_0_client_are_served() {
    let application = mirror().await;
    let gateway = TestGateway::start(application.address).await;
    let absolute =
        "GET http://other.example/x HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n";
    let response = exchange(gateway.address, absolute).await;
    assert!(response.contains("\nGET /x HTTP/1.1\n"), "{response}");
    assert!(response.contains("\nhost: other.example\n"), "{response}");
    let response = exchange(gateway.address, "GET /old HTTP/1.0\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.0 200 "), "{response}");
    assert!(response.contains("GET /old HTTP/1.1\n"), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_is_not_supported_and_a_malformed_request_is_400() {
    let nobody = Nobody::new();
    let gateway = TestGateway::start(nobody.address()).await;
    let connect = "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\nconnection: close\r\n\r\n";
    assert!(exchange(gateway.address, connect).await.starts_with("HTTP/1.1 501 "));
    assert!(exchange(gateway.address, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_to_head_keeps_its_length_and_has_no_body() {
    let application = Application::start(|_| {
        Box::pin(async move {
            let mut response = Response::new(full(""));
            response.headers_mut().insert("content-length", HeaderValue::from_static("1234"));
            response
        })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let head = "HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let response = exchange(gateway.address, head).await;
    assert!(response.contains("\r\ncontent-length: 1234\r\n"), "{response}");
    assert!(response.ends_with("\r\n\r\n"), "{response}");
    gateway.until(|status| status.in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_continue_is_told_to_when_the_application_reads() {
    let application = mirror().await;
    let gateway = TestGateway::start(application.address).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\n\
                content-length: 5\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    gateway.until(|status| status.held == 1).await;
    let mut byte = [0_u8; 1];
    assert!(client.try_read(&mut byte).is_err(), "nothing is said while it waits");
    blocking(move || held.release()).await.unwrap();
    assert_eq!(read_until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.unwrap();
    let response = rest(&mut client).await;
    assert!(response.ends_with("\n\nhello"), "{response}");
    assert!(!response.contains("expect"), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_pass_both_ways_as_they_come_with_their_trailers() {
    let application = mirror().await;
    let gateway = TestGateway::start(application.address).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
                   trailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n";
    let response = exchange(gateway.address, request).await;
    assert!(response.ends_with("\n\nhello"), "{response}");
    assert!(response.contains("trailers: {\"x-sum\": \"42\"}"), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_streams_while_the_application_answers() {
    // The application sends back each piece as it comes: neither side may wait for the other's end.
    let application = Application::start(|request| {
        Box::pin(async move { Response::new(request.into_body().boxed()) })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let head =
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    for number in 100..200 {
        client.write_all(format!("3\r\n{number}\r\n").as_bytes()).await.unwrap();
        read_until(&mut client, &format!("{number}\r\n")).await;
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(rest(&mut client).await, "0\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_passes_both_ways_unchanged() {
    let application = Application::start(|request| {
        Box::pin(async move { Response::new(request.into_body().boxed()) })
    })
    .await;
    let gateway = TestGateway::start(application.address).await;
    let length = 32_usize << 20;
    let data: Vec<u8> = (0..length).map(|place| (place * 31 % 251) as u8).collect();
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    let sent = data.clone();
    let writing = tokio::spawn(async move {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&sent).await.unwrap();
        write
    });
    let mut response = Vec::new();
    read.read_to_end(&mut response).await.unwrap();
    drop(writing.await.unwrap());
    assert!(response.starts_with(b"HTTP/1.1 200 "));
    assert!(response.ends_with(&data), "{} bytes came back", response.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_breaks_off_its_response_breaks_off_the_clients() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = TestGateway::start(listener.local_addr().unwrap()).await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
    });
    let response = gateway.send("/").await.unwrap();
    assert!(response.ends_with("half"), "{response}");
    gateway.until(|status| status.in_flight == 0).await;
}

async fn upgrade(gateway: &TestGateway) -> TcpStream {
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let response = read_until(&mut client, "\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
    assert!(response.contains("upgrade: websocket\r\n"), "{response}");
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_is_joined_and_does_not_block_the_drain() {
    let (application, mut connections) = switching().await;
    let gateway = TestGateway::start(application.address).await;
    let mut client = upgrade(&gateway).await;
    let mut server = connections.recv().await.unwrap();
    client.write_all(b"ping.").await.unwrap();
    assert_eq!(read_until(&mut server, ".").await, "ping.");
    server.write_all(b"pong.").await.unwrap();
    assert_eq!(read_until(&mut client, ".").await, "pong.");
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    assert_eq!(gateway.status().await.upgraded, 1);
    blocking(move || held.release()).await.unwrap();
    drop(client);
    // The client's end is passed on, and the application's then ends the connection.
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    drop(server);
    gateway.until(|status| status.upgraded == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upgraded_connections_client_sends_during_a_hold_arrives_after_it_and_whole() {
    let (application, mut connections) = switching().await;
    let gateway = TestGateway::start(application.address).await;
    let client = upgrade(&gateway).await;
    let mut server = connections.recv().await.unwrap();
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;

    // More than the gateway and both its sockets keep, and then the end.
    let sent: Vec<u8> = (0..16_000_000_u32).map(|number| (number % 251) as u8).collect();
    let expected = sent.clone();
    let (mut read, mut write) = client.into_split();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    // What the application sends passes, however often; nothing comes the other way meanwhile.
    for _ in 0..50 {
        let mut byte = [0];
        tokio::select! {
            biased;
            read = server.read(&mut byte) => panic!("{read:?} came through the hold"),
            status = gateway.status() => assert_eq!(status.upgraded, 1),
        }
        server.write_all(b"news").await.unwrap();
        let mut news = [0; 4];
        read.read_exact(&mut news).await.unwrap();
        assert_eq!(&news, b"news");
    }
    blocking(move || held.release()).await.unwrap();
    let mut arrived = Vec::new();
    server.read_to_end(&mut arrived).await.unwrap();
    assert!(arrived == expected, "{} of {} bytes", arrived.len(), expected.len());
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_an_application_does_not_read_keeps_no_hold_waiting() {
    let (application, mut connections) = switching().await;
    let gateway = TestGateway::start(application.address).await;
    let mut client = upgrade(&gateway).await;
    let mut server = connections.recv().await.unwrap();
    let sending = tokio::spawn(async move {
        client.write_all(&vec![7; 16_000_000]).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    // It has begun to arrive; the rest waits for an application that reads no further.
    assert_eq!(server.read_u8().await.unwrap(), 7);
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    blocking(move || held.release()).await.unwrap();
    let mut arrived = Vec::new();
    server.read_to_end(&mut arrived).await.unwrap();
    assert_eq!(arrived.len(), 15_999_999);
    drop(sending.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_idle_connection_to_the_application_outlives_a_hold() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = TestGateway::start(listener.local_addr().unwrap()).await;
    let (report, mut answered_on) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let report = report.clone();
            tokio::spawn(async move {
                let mut request = [0_u8; 4096];
                while stream.read(&mut request).await.unwrap() > 0 {
                    report.send(number).unwrap();
                    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(response).await.unwrap();
                }
            });
        }
    });
    let post = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    assert!(exchange(gateway.address, post).await.ends_with("ok"));
    let first: i32 = answered_on.recv().await.unwrap();
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let address = gateway.address;
            tokio::spawn(async move { exchange(address, post).await })
        })
        .collect();
    gateway.until(|status| status.held == 3).await;
    blocking(move || held.release()).await.unwrap();
    for request in waiting {
        assert!(request.await.unwrap().ends_with("ok"));
        assert_ne!(answered_on.recv().await.unwrap(), first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_while_its_client_reads_nothing_of_the_answer() {
    // More than all buffers on the way hold, in both directions.
    const UPLOAD: usize = 16 << 20;
    const ANSWER: usize = 64 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = TestGateway::start(listener.local_addr().unwrap()).await;
    let (tell, uploaded) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
        let (mut from, mut to) = stream.into_split();
        let answering = tokio::spawn(async move {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {ANSWER}\r\n\r\n");
            to.write_all(head.as_bytes()).await.unwrap();
            to.write_all(&vec![b'a'; ANSWER]).await.unwrap();
        });
        from.read_exact(&mut vec![0; UPLOAD]).await.unwrap();
        tell.send(()).unwrap();
        answering.await.unwrap();
    });
    let client = TcpStream::connect(gateway.address).await.unwrap();
    let (mut from, mut to) = client.into_split();
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {UPLOAD}\r\n\r\n");
    to.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut from, "\r\n\r\n").await;
    to.write_all(&vec![b'u'; UPLOAD]).await.unwrap();
    uploaded.await.unwrap();
    from.read_exact(&mut vec![0; ANSWER]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_share_connections_to_the_application() {
    const REQUESTS: usize = 50;
    for (head, body) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", "ok"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "2\r\nok\r\n0\r\n\r\n"),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = TestGateway::start(listener.local_addr().unwrap()).await;
        let connections = Arc::new(AtomicUsize::new(0));
        let accepted = connections.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    while stream.read(&mut [0_u8; 4096]).await.unwrap() > 0 {
                        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                    }
                });
            }
        });
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        for _ in 0..REQUESTS {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            read_until(&mut client, "\r\n\r\n").await;
            client.read_exact(&mut vec![0; body.len()]).await.unwrap();
        }
        // A connection is kept for a second; not every request came a second after the one before.
        assert!(connections.load(Ordering::SeqCst) < REQUESTS, "none was kept after {head:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_fails_on_a_kept_connection_is_sent_once_more_on_a_fresh_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = TestGateway::start(listener.local_addr().unwrap()).await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // One answer for each connection; the next request is read and gets none.
                read_until(&mut stream, "\r\n\r\n").await;
                let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(response).await.unwrap();
                let _ = stream.read(&mut [0_u8; 4096]).await;
            });
        }
    });
    for _ in 0..10 {
        let response = gateway.send("/").await.unwrap();
        assert!(response.ends_with("ok"), "{response}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_connection_serves_many_requests_over_a_hold() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    client.write_all(request("/before").as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n/before").await;
    let held = drained(gateway.hold_long(Purpose::Backup).await).await;
    client.write_all(request("/during").as_bytes()).await.unwrap();
    gateway.until(|status| status.held == 1).await;
    blocking(move || held.release()).await.unwrap();
    read_until(&mut client, "\r\n\r\n/during").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_told_to_stop_finishes_what_is_in_flight_and_what_waits() {
    let (begin, mut begun) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (gone, record) = (go.clone(), seen.clone());
    let application = Application::start(move |request| {
        let (begin, go) = (begin.clone(), gone.clone());
        record.lock().unwrap().push(request.uri().path().to_owned());
        Box::pin(async move {
            if request.uri().path() == "/slow" {
                begin.send(()).unwrap();
                go.notified().await;
            }
            Response::new(full("done"))
        })
    })
    .await;
    let mut gateway = TestGateway::start(application.address).await;
    let slow = gateway.send("/slow");
    begun.recv().await.unwrap();
    let held = gateway.hold_long(Purpose::Backup).await;
    let waiting = gateway.send("/waiting");
    gateway.until(|status| status.held == 1).await;
    gateway.tell_to_stop();
    assert!(waiting.await.unwrap().ends_with("done"));
    let ended = gateway.status().await.last_end.unwrap();
    assert_eq!(ended.reason, EndReason::GatewayStopped);
    blocking(move || held.release()).await.unwrap_err();
    go.notify_one();
    assert!(slow.await.unwrap().ends_with("done"));
    let (address, socket) = (gateway.address, gateway.socket.clone());
    gateway.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
    assert!(!socket.exists());
}
