//! Connections to the application.
//!
//! A connection is driven by the task that serves the client whose request is on it: no other task
//! is woken between reading a request and writing it on, nor on the way back. Where the application
//! answers before it has the whole request, and where it switches protocols, the connection gets a
//! task of its own, since then both directions must move whether or not the client reads.
//!
//! Idle connections are kept for a short time only, and none survives a hold: applications close
//! connections that idle, and a request sent on one of those at the wrong moment fails through no
//! fault of its own. What is left of that race: a request of which nothing was sent yet is sent on
//! another connection, and one that may be repeated (GET, HEAD or OPTIONS without a body) is sent
//! once more on a fresh one.

use crate::options::Upstream;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Shorter than the keep-alive time of common application servers (gunicorn's is 2 s).
const IDLE: Duration = Duration::from_secs(1);

const CONNECT: Duration = Duration::from_secs(5);

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// The application, and connections to it.
pub(crate) struct Pool {
    upstream: Upstream,
    /// Those used last are at the end.
    idle: Mutex<Vec<Idle>>,
    /// A connection of an earlier era is not used again.
    era: AtomicU64,
}

struct Idle {
    link: Link,
    since: Instant,
}

/// Why the application did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("could not connect")]
    Connect(#[source] io::Error),
    #[error("the connection failed")]
    Http(#[source] hyper::Error),
}

impl Pool {
    pub(crate) fn new(upstream: Upstream) -> Arc<Self> {
        Arc::new(Self { upstream, idle: Mutex::default(), era: AtomicU64::new(0) })
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Gives up all idle connections; those in use are dropped when their response ends.
    pub(crate) fn renew(&self) {
        self.era.fetch_add(1, Ordering::SeqCst);
    }

    /// Closes connections that idle too long, for as long as the gateway lives.
    pub(crate) async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(IDLE).await;
            let era = self.era.load(Ordering::SeqCst);
            let fresh = |idle: &mut Idle| idle.link.era == era && idle.since.elapsed() < IDLE;
            let old: Vec<Idle> = self.idle().extract_if(.., |idle| !fresh(idle)).collect();
            // Outside the lock: each is a system call.
            drop(old);
        }
    }

    /// Sends a request to the application. The link must be driven for as long as the response's
    /// body is read.
    pub(crate) async fn send(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Link), SendError> {
        self.address(&mut request);
        while let Some(mut link) = self.take() {
            let again = repeatable(&request);
            match link.send(request).await {
                Ok(response) => return Ok((response, link)),
                Err(mut failed) => match (failed.take_message(), again) {
                    (Some(unsent), _) => request = unsent,
                    (None, Some(again)) => {
                        let error = failed.error();
                        tracing::debug!(%error, "sending a request once more on a fresh connection");
                        request = again;
                        break;
                    }
                    (None, None) => return Err(SendError::Http(failed.into_error())),
                },
            }
        }
        let mut link = self.connect().await?;
        match link.send(request).await {
            Ok(response) => Ok((response, link)),
            Err(failed) => Err(SendError::Http(failed.into_error())),
        }
    }

    /// Keeps a connection whose response has ended, if it can be used again.
    pub(crate) fn keep(&self, link: Link) {
        if link.is_idle() && link.era == self.era.load(Ordering::SeqCst) {
            self.idle().push(Idle { link, since: Instant::now() });
        }
    }

    /// Whether a connection to the application can be opened.
    pub(crate) async fn reach(&self) -> io::Result<()> {
        self.open(Duration::from_secs(1)).await.map(drop)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Link> {
        let era = self.era.load(Ordering::SeqCst);
        loop {
            // Not in the condition of the loop: the lock would be held over a close.
            let idle = self.idle().pop()?;
            if idle.link.era == era && idle.since.elapsed() < IDLE {
                return Some(idle.link);
            }
        }
    }

    async fn connect(&self) -> Result<Link, SendError> {
        let era = self.era.load(Ordering::SeqCst);
        let stream = self.open(CONNECT).await.map_err(SendError::Connect)?;
        // Failing to set an option leaves a connection that works, only with a delay.
        let _ = stream.set_nodelay(true);
        let (sender, connection) =
            Builder::new().handshake(TokioIo::new(stream)).await.map_err(SendError::Http)?;
        let driver: Driver = Box::pin(connection.with_upgrades());
        Ok(Link { sender, driver: Some(driver), era, upload: Weak::new() })
    }

    async fn open(&self, within: Duration) -> io::Result<TcpStream> {
        let connect = TcpStream::connect(self.upstream.host_and_port());
        tokio::time::timeout(within, connect)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Applications are asked by path, and want a host even from those who came without one.
    fn address(&self, request: &mut Request<RequestBody>) {
        if request.uri().authority().is_some() || request.uri().path_and_query().is_none() {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        }
        if !request.headers().contains_key(HOST)
            && let Ok(host) = HeaderValue::from_str(self.upstream.authority().as_str())
        {
            request.headers_mut().insert(HOST, host);
        }
    }
}

/// One connection to the application.
pub(crate) struct Link {
    sender: SendRequest<RequestBody>,
    /// None once the connection has ended or has a task of its own.
    driver: Option<Driver>,
    era: u64,
    /// Alive for as long as the request's body is not read to its end.
    upload: Weak<()>,
}

impl Link {
    /// Lets the connection read and write.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(result) = driver.as_mut().poll(cx)
        {
            self.driver = None;
            if let Err(error) = result {
                // Whoever waits for a response, or for more of one, hears of it there.
                tracing::debug!(%error, "a connection to the application ended early");
            }
        }
    }

    /// Gives the connection a task of its own. It is not used again.
    pub(crate) fn detach(&mut self) {
        if let Some(driver) = self.driver.take() {
            tokio::spawn(async move {
                if let Err(error) = driver.await {
                    tracing::debug!(%error, "a connection to the application ended early");
                }
            });
        }
    }

    async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.upload = request.body().upload.as_ref().map(Arc::downgrade).unwrap_or_default();
        let mut response = pin!(self.sender.try_send_request(request));
        let response = poll_fn(|cx| {
            self.drive(cx);
            response.as_mut().poll(cx)
        })
        .await?;
        if self.upload.strong_count() > 0 {
            self.detach();
        }
        Ok(response)
    }

    fn is_idle(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// A request's body on its way to the application.
pub(crate) struct RequestBody {
    body: Option<Incoming>,
    upload: Option<Arc<()>>,
}

impl RequestBody {
    fn empty() -> Self {
        Self { body: None, upload: None }
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self { body: Some(body), upload: Some(Arc::new(())) }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A copy of a request that does no harm when it is sent twice.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let upgrades = request.headers().contains_key(hyper::header::UPGRADE);
    if !safe || upgrades || request.body().body.is_some() {
        return None;
    }
    let mut again = Request::new(RequestBody::empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}
