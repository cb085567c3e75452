//! A real application, a real gateway and plain clients for the tests. Everything is on free ports
//! and private sockets, and ends with the test's runtime.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stillpoint_gateway::control::{Control, ControlError, Held, HoldOrder, Purpose, Status};
use stillpoint_gateway::{Gateway, GatewayError, GatewayOptions};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub mod applications;
pub mod load;
pub mod proxies;

pub type Body = BoxBody<Bytes, hyper::Error>;
pub type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// An application's server with one handler for everything. Ends when dropped.
pub struct Application {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Application {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Application {
    pub async fn start(
        handler: impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), handler).await
    }

    pub async fn at(
        address: SocketAddr,
        handler: impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = Arc::new(handler);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let handler = handler.clone();
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(
                            TokioIo::new(stream),
                            service_fn(move |request| {
                                let answer = handler(request);
                                async move { Ok::<_, Infallible>(answer.await) }
                            }),
                        )
                        .with_upgrades(),
                );
            }
        });
        Self { address, task }
    }
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// An application that answers everything with its path.
pub async fn plain() -> Application {
    Application::start(|request| {
        Box::pin(async move { Response::new(full(request.uri().path().to_owned())) })
    })
    .await
}

/// A gateway that serves. It is stopped and waited for with [`TestGateway::stop`], and otherwise
/// ends with the runtime.
pub struct TestGateway {
    pub address: SocketAddr,
    pub endpoint: Option<SocketAddr>,
    pub syslog: Option<SocketAddr>,
    pub socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), GatewayError>>,
    _directory: TempDir,
}

impl TestGateway {
    pub async fn start(upstream: SocketAddr) -> Self {
        Self::with(upstream, |_| {}).await
    }

    pub async fn with(upstream: SocketAddr, change: impl FnOnce(&mut GatewayOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("gateway.sock");
        let mut options = GatewayOptions {
            name: "web".parse().unwrap(),
            listen: "127.0.0.1:0".parse().unwrap(),
            upstream: format!("http://{upstream}").parse().unwrap(),
            max_hold: Duration::from_mins(1),
            max_held: 10_000,
            control: socket.clone(),
            pass: Vec::new(),
            endpoint: None,
        };
        change(&mut options);
        let gateway = Gateway::bind(options).await.unwrap();
        let address = gateway.address();
        let (endpoint, syslog) = (gateway.endpoint_address(), gateway.syslog_address());
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(gateway.serve(async move {
            let _ = stopped.await;
        }));
        Self { address, endpoint, syslog, socket, stop: Some(stop), served, _directory: directory }
    }

    /// Tells it to stop, without waiting.
    pub fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn stop(mut self) {
        self.tell_to_stop();
        self.served.await.unwrap().unwrap();
    }

    pub async fn control(&self) -> Control {
        let socket = self.socket.clone();
        blocking(move || Control::connect(&socket)).await.unwrap()
    }

    pub async fn status(&self) -> Status {
        let mut control = self.control().await;
        blocking(move || control.status()).await.unwrap()
    }

    /// Asks until the gateway is in the state that is waited for.
    pub async fn until(&self, reached: impl Fn(&Status) -> bool) -> Status {
        let mut control = self.control().await;
        loop {
            let (back, status) = blocking(move || {
                let status = control.status();
                (control, status)
            })
            .await;
            control = back;
            let status = status.unwrap();
            if reached(&status) {
                return status;
            }
        }
    }

    pub async fn hold(&self, order: HoldOrder) -> Result<Held, ControlError> {
        let control = self.control().await;
        blocking(move || control.hold(&order)).await
    }

    /// A hold that only its test ends.
    pub async fn hold_long(&self, purpose: Purpose) -> Held {
        self.hold(order(purpose)).await.unwrap()
    }

    /// Sends a request and leaves it to a task.
    pub fn send(&self, path: &str) -> JoinHandle<String> {
        let request = get(path);
        let address = self.address;
        tokio::spawn(async move { exchange(address, &request).await })
    }
}

pub fn order(purpose: Purpose) -> HoldOrder {
    HoldOrder {
        id: "h".to_owned(),
        purpose,
        max_hold: Duration::from_mins(1),
        silence: Duration::from_secs(30),
    }
}

pub async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    tokio::task::spawn_blocking(work).await.unwrap()
}

pub async fn drained(held: Held) -> Held {
    blocking(move || {
        held.wait_drained(Duration::from_mins(1)).unwrap();
        held
    })
    .await
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n")
}

/// One raw request on one connection, and all that comes back.
pub async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

pub async fn rest(stream: &mut TcpStream) -> String {
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    String::from_utf8(response).unwrap()
}

/// Reads until what was read ends with `end`.
pub async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&read)),
        }
    }
    String::from_utf8(read).unwrap()
}
