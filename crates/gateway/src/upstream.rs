//! Connections to the application.
//!
//! Idle connections are kept for a short time only, and none survives a hold: applications close
//! connections that idle, and a request sent on one of those at the wrong moment fails through no
//! fault of its own. What is left of that race: a request of which nothing was sent yet is tried
//! again by the pool itself, and one that may be repeated (GET, HEAD or OPTIONS without a body) is
//! sent once more on a fresh connection.

use crate::options::Upstream;
use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, Uri, http::uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::io;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;

/// Shorter than the keep-alive time of common application servers (gunicorn's is 2 s).
const IDLE: Duration = Duration::from_secs(1);

const CONNECT: Duration = Duration::from_secs(5);

/// A request's body on its way to the application.
pub(crate) type RequestBody = Either<Incoming, Empty<Bytes>>;

type HttpClient = Client<HttpConnector, RequestBody>;

/// The application, and connections to it.
pub(crate) struct Pool {
    upstream: Upstream,
    client: RwLock<HttpClient>,
    /// Keeps no connection.
    fresh: HttpClient,
}

impl Pool {
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self { upstream, client: RwLock::new(client(usize::MAX)), fresh: client(0) }
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Drops all idle connections; those in use are dropped when their response ends.
    pub(crate) fn renew(&self) {
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client(usize::MAX);
    }

    /// Sends a request, whose URI is the path and query alone, to the application.
    pub(crate) async fn send(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Error> {
        *request.uri_mut() = self.absolute(request.uri());
        let again = repeatable(&request);
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        match (client.request(request).await, again) {
            (Err(error), Some(again)) if !error.is_connect() => {
                tracing::debug!(%error, "sending a request once more on a fresh connection");
                self.fresh.request(again).await
            }
            (result, _) => result,
        }
    }

    /// Whether a connection to the application can be opened.
    pub(crate) async fn reach(&self) -> io::Result<()> {
        let connect = TcpStream::connect(self.upstream.host_and_port());
        match tokio::time::timeout(Duration::from_secs(1), connect).await {
            Ok(result) => result.map(drop),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn absolute(&self, path: &Uri) -> Uri {
        let mut parts = uri::Parts::default();
        parts.scheme = Some(uri::Scheme::HTTP);
        parts.authority = Some(self.upstream.authority().clone());
        parts.path_and_query = Some(
            path.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/")),
        );
        Uri::from_parts(parts).expect("scheme, authority and path make a URI")
    }
}

fn client(idle: usize) -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(idle)
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector)
}

/// A copy of a request that does no harm when it is sent twice.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let upgrades = request.headers().contains_key(hyper::header::UPGRADE);
    if !safe || upgrades || !matches!(request.body(), Either::Right(_)) {
        return None;
    }
    let mut again = Request::new(Either::Right(Empty::new()));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}
