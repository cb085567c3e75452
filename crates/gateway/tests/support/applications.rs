//! Applications that several tests have in common.

use super::*;
use hyper::StatusCode;
use hyper::body::Frame;
use hyper::header::HeaderValue;
use hyper::upgrade::Upgraded;
use std::fmt::Write as _;
use std::task::{Context, Poll};
use tokio::sync::{Notify, mpsc};

/// An application whose `/slow` waits until the test lets it go on, and says when it has begun.
pub struct Slow {
    pub application: Application,
    pub begun: mpsc::UnboundedReceiver<()>,
    pub go: Arc<Notify>,
}

impl Slow {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn at(address: SocketAddr) -> Self {
        let (begin, begun) = mpsc::unbounded_channel();
        let go = Arc::new(Notify::new());
        let gone = go.clone();
        let application = Application::at(address, move |request| {
            let (begin, go) = (begin.clone(), gone.clone());
            Box::pin(async move {
                if request.uri().path() == "/slow" {
                    begin.send(()).unwrap();
                    go.notified().await;
                }
                Response::new(full(request.uri().path().to_owned()))
            })
        })
        .await;
        Self { application, begun, go }
    }
}

/// An application that answers with the head and body that it received.
pub async fn mirror() -> Application {
    Application::start(|request| {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let mut text = format!("{} {} {:?}\n", head.method, head.uri, head.version);
            for (name, value) in &head.headers {
                writeln!(text, "{name}: {}", value.to_str().unwrap()).unwrap();
            }
            let body = body.collect().await.unwrap();
            if let Some(trailers) = body.trailers() {
                writeln!(text, "trailers: {trailers:?}").unwrap();
            }
            text.push('\n');
            text.push_str(std::str::from_utf8(&body.to_bytes()).unwrap());
            Response::new(full(text))
        })
    })
    .await
}

/// An application that switches every request to a protocol of its own, and hands its side of
/// the connection to the test.
pub async fn switching() -> (Application, mpsc::UnboundedReceiver<TokioIo<Upgraded>>) {
    let (hand_over, connections) = mpsc::unbounded_channel();
    let application = Application::start(move |mut request| {
        let hand_over = hand_over.clone();
        Box::pin(async move {
            assert_eq!(request.headers()["upgrade"], "websocket");
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                hand_over.send(TokioIo::new(upgrade.await.unwrap())).unwrap();
            });
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("connection", HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
            response
        })
    })
    .await;
    (application, connections)
}

/// A response body whose chunks the test sends.
pub struct Chunks(pub mpsc::Receiver<Bytes>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// An application whose `/outer` asks its own public address for `/inner`, once the test lets it go
/// on, and carries the in-flight header on as it should.
pub struct Reflexive {
    pub application: Application,
    pub begun: mpsc::UnboundedReceiver<()>,
    pub go: Arc<Notify>,
    /// Its public address, once that is known.
    pub public: Arc<Mutex<Option<SocketAddr>>>,
}

impl Reflexive {
    pub async fn start() -> Self {
        let public = Arc::<Mutex<Option<SocketAddr>>>::default();
        let (begin, begun) = mpsc::unbounded_channel();
        let go = Arc::new(Notify::new());
        let (own, gone) = (public.clone(), go.clone());
        let application = Application::start(move |request| {
            let (begin, go, public) = (begin.clone(), gone.clone(), *own.lock().unwrap());
            Box::pin(async move {
                if request.uri().path() != "/outer" {
                    return Response::new(full("inner"));
                }
                begin.send(()).unwrap();
                go.notified().await;
                let token = request.headers()["x-stillpoint-in-flight"].to_str().unwrap();
                let again = format!(
                    "GET /inner HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                     x-stillpoint-in-flight: {token}\r\n\r\n"
                );
                Response::new(full(exchange(public.unwrap(), &again).await))
            })
        })
        .await;
        Self { application, begun, go, public }
    }
}
