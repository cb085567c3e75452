//! The control socket: who may use it, what it takes the place of, and what becomes of those who
//! speak another language.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use stillpoint_gateway::control::{Control, ControlError, Purpose, StateName};
use stillpoint_gateway::{Gateway, GatewayError, GatewayOptions};
use support::*;

fn options(control: &std::path::Path) -> GatewayOptions {
    GatewayOptions {
        name: "web".parse().unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        upstream: "http://127.0.0.1:9".parse().unwrap(),
        max_hold: Duration::from_secs(1),
        max_held: 1,
        control: control.to_owned(),
        pass: Vec::new(),
        endpoint: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_its_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let _gateway = Gateway::bind(options(&socket)).await.unwrap();
    let metadata = fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let _gateway = Gateway::bind(options(&socket)).await.unwrap();
    UnixStream::connect(&socket).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_someone_answers_on_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let _gateway = Gateway::bind(options(&socket)).await.unwrap();
    let error = Gateway::bind(options(&socket)).await.err().unwrap();
    assert!(matches!(error, GatewayError::ControlTaken { .. }), "{error}");
    UnixStream::connect(&socket).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::disallowed_methods, reason = "a scratch file")]
async fn a_file_in_the_sockets_place_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    fs::write(&path, "precious").unwrap();
    let error = Gateway::bind(options(&path)).await.err().unwrap();
    assert!(matches!(error, GatewayError::ControlInTheWay { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_ends_removes_its_own_socket_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    drop(Gateway::bind(options(&socket)).await.unwrap());
    assert!(!socket.exists());
    let gateway = Gateway::bind(options(&socket)).await.unwrap();
    fs::rename(&socket, directory.path().join("moved")).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    drop(gateway);
    assert!(socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_would_hold_nothing_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let none = GatewayOptions { max_held: 0, ..options(&socket) };
    assert!(matches!(Gateway::bind(none).await, Err(GatewayError::Zero { option: "max_held" })));
    let none = GatewayOptions { max_hold: Duration::ZERO, ..options(&socket) };
    assert!(matches!(Gateway::bind(none).await, Err(GatewayError::Zero { option: "max_hold" })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_what_the_gateway_is_and_does() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    gateway.send("/").await.unwrap();
    let status = gateway.until(|status| status.in_flight == 0).await;
    assert_eq!(status.name.as_str(), "web");
    assert_eq!(status.state, StateName::Passing);
    assert!(status.upstream_reachable);
    assert_eq!(status.upstream, format!("http://{}", application.address));
    assert_eq!((status.max_held, status.max_hold_ms), (10_000, 60_000));
    assert_eq!(status.totals.requests, 1);
    let _held = drained(gateway.hold_long(Purpose::Restore).await).await;
    let hold = gateway.status().await.hold.unwrap();
    assert_eq!((hold.id.as_str(), hold.purpose), ("h", Purpose::Restore));
    assert!(hold.drained.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_another_language_ends_its_connection_and_its_hold() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let mut stream = UnixStream::connect(&gateway.socket).unwrap();
    stream
        .write_all(
            b"{\"type\":\"hold\",\"id\":\"h\",\"purpose\":\"backup\",\"max_hold_ms\":60000,\
              \"silence_ms\":60000}\n",
        )
        .unwrap();
    gateway.until(|status| status.state == StateName::Holding).await;
    stream.write_all(b"{\"type\":\"hold_forever\"}\n").unwrap();
    let lines: Vec<_> =
        blocking(move || BufReader::new(stream).lines().map_while(Result::ok).collect()).await;
    let last = lines.last().cloned().unwrap_or_else(String::new);
    assert!(last.contains(r#""type":"refused""#) && last.contains("hold_forever"), "{last}");
    assert!(gateway.send("/open").await.unwrap().ends_with("/open"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_without_limits_is_refused() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    for (max_hold, silence) in [(0, 1000), (1000, 0)] {
        let order = stillpoint_gateway::control::HoldOrder {
            max_hold: Duration::from_millis(max_hold),
            silence: Duration::from_millis(silence),
            ..order(Purpose::Backup)
        };
        let error = gateway.hold(order).await.unwrap_err();
        assert!(matches!(error, ControlError::Refused { .. }), "{error}");
    }
}

#[test]
fn a_gateway_of_another_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"{\"type\":\"greeting\",\"protocol\":2,\"name\":\"web\"}\n").unwrap();
    });
    let error = Control::connect(&socket).unwrap_err();
    assert!(matches!(error, ControlError::Version { theirs: 2, ours: 1 }), "{error}");
    other.join().unwrap();
}

#[test]
fn a_gateway_that_is_not_there_is_named_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let error = Control::connect(&directory.path().join("s")).unwrap_err();
    assert!(matches!(error, ControlError::Connect { .. }), "{error}");
    assert!(error.hint().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_under_a_hold_is_noticed() {
    let application = plain().await;
    let gateway = TestGateway::start(application.address).await;
    let held = gateway.hold_long(Purpose::Backup).await;
    gateway.stop().await;
    blocking(move || {
        held.check().unwrap_err();
        held.release().unwrap_err();
    })
    .await;
}
