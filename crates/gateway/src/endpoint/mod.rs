//! The hold endpoint: for a proxy that cannot send its requests through the gateway, but asks before
//! each whether it may begin (`auth_request` of nginx, `forward_auth` of Caddy).
//!
//! A question is answered 204 when the request may begin, and waits as long as the request has to;
//! past `max_held`, and while a restore is unfinished, it is answered 503 with Retry-After. It goes
//! through the very gate that the gateway's own requests go through, so there is one order of
//! arrival, one `max_held`, one hold. What ends a request is told by the proxy's access log
//! (`syslog`); what is known of each is in the `ledger`.
//!
//! What this cannot do, it says: a hold by an endpoint whose proxy passed requests unasked, or did
//! not report the end of one, is not called consistent.

mod ledger;
mod question;
mod syslog;

use crate::descriptors::{Place, Room};
use crate::gate::{Entered, Gate, Seat};
use crate::options::GatewayError;
use crate::proxy::{headers, refusal_in_words, retry_after};
use crate::state::{Refusal, Token};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ledger::{Asked, Books, Name};
use question::Question;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stillpoint_model::config::EndpointPart;
use stillpoint_model::manifest::EndpointEvidence;
use syslog::Syslog;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// How long a request is waited for when nobody says that it ended.
const MOMENT: Duration = Duration::from_secs(1);

/// How long a proxy's connection may idle. Longer than proxies keep them (nginx: 60 s, Caddy: 2 min).
const IDLE: Duration = Duration::from_mins(5);

/// An endpoint that has its addresses, and does not answer yet.
pub(crate) struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
    room: Room,
    syslog: Option<Syslog>,
    ledger: Arc<Ledger>,
}

/// What the endpoint knows, with its lock. See [`ledger`].
pub(crate) struct Ledger {
    books: Mutex<Books<Seat>>,
    /// Rung when there is something to be counted out again.
    passed: Notify,
    nameless: AtomicU64,
}

/// An endpoint that answers. Dropping it ends what it does beside its connections.
pub(crate) struct Serving(Vec<AbortHandle>);

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl Endpoint {
    /// Takes its addresses.
    pub(crate) async fn bind(part: &EndpointPart, room: Room) -> Result<Self, GatewayError> {
        let failed = |source| GatewayError::Listen { address: part.listen, source };
        let listener = TcpListener::bind(part.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let syslog =
            match &part.completions {
                None => None,
                Some(part) => Some(Syslog::bind(&part.syslog).await.map_err(|source| {
                    GatewayError::Syslog { address: part.syslog.clone(), source }
                })?),
            };
        let within = part.completions.as_ref().map_or(MOMENT, |part| part.within);
        let ledger = Arc::new(Ledger {
            books: Mutex::new(Books::new(Instant::now(), syslog.is_some(), within)),
            passed: Notify::new(),
            nameless: AtomicU64::new(0),
        });
        Ok(Self { listener, address, room, syslog, ledger })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn syslog_address(&self) -> Option<SocketAddr> {
        self.syslog.as_ref().and_then(Syslog::address)
    }

    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        self.ledger.clone()
    }

    /// Answers until `stopping` ticks, and then those that wait.
    pub(crate) fn serve(self, gate: Arc<Gate>, stopping: watch::Receiver<()>) -> Serving {
        let Self { listener, address, room, syslog, ledger } = self;
        tracing::info!(%address, completions = syslog.is_some(), "answering at the hold endpoint");
        let mut tasks = vec![tokio::spawn(ledger.clone().keep_time()).abort_handle()];
        if let Some(syslog) = syslog {
            let ledger = ledger.clone();
            let received = syslog.receive(move |name| ledger.complete(&name));
            tasks.push(tokio::spawn(received).abort_handle());
        }
        tasks.push(tokio::spawn(accept(listener, room, gate, ledger, stopping)).abort_handle());
        Serving(tasks)
    }
}

async fn accept(
    listener: TcpListener,
    room: Room,
    gate: Arc<Gate>,
    ledger: Arc<Ledger>,
    mut stopping: watch::Receiver<()>,
) {
    loop {
        let (stream, proxy, place) = tokio::select! {
            accepted = room.accept(&listener) => accepted,
            _ = stopping.changed() => return,
        };
        let asking = Arc::new(Asking { gate: gate.clone(), ledger: ledger.clone(), proxy });
        tokio::spawn(connection(asking, stream, place, stopping.clone()));
    }
}

async fn connection(
    asking: Arc<Asking>,
    stream: TcpStream,
    _place: Place,
    mut stopping: watch::Receiver<()>,
) {
    // Failing to set an option leaves a connection that works, only with a delay.
    let _ = stream.set_nodelay(true);
    let proxy = asking.proxy;
    let service = service_fn(move |request| {
        let asking = asking.clone();
        async move { Ok::<_, Infallible>(asking.answer(request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .serve_connection(TokioIo::new(stream), service)
    );
    let result = tokio::select! {
        result = &mut connection => result,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%proxy, %error, "a proxy's connection ended early");
    }
}

/// One connection of a proxy.
struct Asking {
    gate: Arc<Gate>,
    ledger: Arc<Ledger>,
    proxy: SocketAddr,
}

impl Asking {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Question { name, about, presented, upgrade } = Question::read(&mut request, self.proxy);
        let name = name.unwrap_or_else(|| self.ledger.nameless());
        if let Asked::Before(token) = self.ledger.books().ask(&name) {
            return may_begin(token);
        }
        // Unless it passes, whatever happens: hyper drops this when the proxy hangs up.
        let turned_away = TurnedAway(&self.ledger, &name);
        let answer = match self.gate.enter(about, presented, std::future::pending()).await {
            Entered::Passed(seat, token) => {
                self.ledger.pass(&name, seat, token, upgrade);
                may_begin(Some(token))
            }
            Entered::Refused(refusal) => refused(refusal),
            Entered::ClientGone => unreachable!("nobody says so here"),
        };
        drop(turned_away);
        answer
    }
}

/// Says of a request that still waits that it is not waited for any more.
struct TurnedAway<'l>(&'l Ledger, &'l Name);

impl Drop for TurnedAway<'_> {
    fn drop(&mut self) {
        self.0.books().turn_away(self.1);
    }
}

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books<Seat>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, name: &Name, seat: Seat, token: Token, upgrade: bool) {
        if !seat.counts() {
            // Nobody waits for what is never held, so nobody needs to hear of its end.
            return self.books().turn_away(name);
        }
        let unneeded = self.books().pass(Instant::now(), name, seat, token, upgrade);
        drop(unneeded);
        self.passed.notify_one();
    }

    fn complete(&self, name: &Name) {
        let seat = self.books().complete(Instant::now(), name);
        drop(seat);
    }

    /// What speaks against a hold that began at `hold` and is about to be released.
    pub(crate) fn report(&self, hold: Instant) -> EndpointEvidence {
        self.books().report(Instant::now(), hold)
    }

    /// A name that no log will ever say.
    fn nameless(&self) -> Name {
        let number = self.nameless.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            tracing::warn!(
                "a proxy asks without a single X-Request-Id: nobody can tell when such requests end"
            );
        }
        format!("nameless {number}").into()
    }

    /// Counts out what is not reported to have ended, for as long as the gateway lives.
    async fn keep_time(self: Arc<Self>) {
        loop {
            let (seats, next) = self.books().sweep(Instant::now());
            drop(seats);
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => self.passed.notified().await,
            }
        }
    }
}

fn may_begin(token: Option<Token>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Some(token) = token {
        response.headers_mut().insert(headers::IN_FLIGHT, headers::token(token));
    }
    response
}

fn refused(refusal: Refusal) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(refusal_in_words(refusal)));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after(refusal)));
    response
}
