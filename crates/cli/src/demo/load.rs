//! The demo's customers: many connections through the gateway, each sending one order after the
//! other and writing down what it was told.
//!
//! A process of its own, so that it measures what a client sees. Nothing is ever retried: each
//! order is sent once, and whatever is not answered with 201 is recorded as failed. A retry would
//! hide exactly the failures that this is here to find. The one exception is an order of which no
//! byte was sent, because the server had closed the idle connection before.

use super::ledger::{LedgerWriter, OrderLine, Outcome};
use super::shop::{BoxError, Order, Random, told_to_end};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// How many orders a second all customers together aim at. They are slower where the shop is.
const RATE: f64 = 800.0;
/// How often progress is reported and the log is handed to the operating system.
const REPORT: Duration = Duration::from_millis(500);
/// A response that takes longer is a failure; no hold is as long.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a customer waits after a failure, so that a shop that is down is not stormed.
const AFTER_FAILURE: Duration = Duration::from_millis(50);
/// How often a connection may be found closed before anything was sent on it.
const REOPENED: u32 = 3;

/// What to send where, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct LoadOptions {
    /// The gateway.
    pub(crate) target: SocketAddr,
    /// How many customers order at once.
    pub(crate) connections: usize,
    /// For how long.
    pub(crate) duration: Duration,
    /// Where the ledger is written.
    pub(crate) log: PathBuf,
    /// Whether the end of standard input ends the load early (in good order).
    pub(crate) stop_on_stdin_eof: bool,
}

/// A line of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Requests sent so far.
    pub(crate) sent: u64,
    /// Of these, answered with 201.
    pub(crate) acknowledged: u64,
    /// Of these, failed.
    pub(crate) failed: u64,
}

/// What the load amounted to: its last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Every request that was sent.
    pub(crate) requests_total: u64,
    /// Those that were not answered with 201.
    pub(crate) requests_failed: u64,
    /// The slowest, in milliseconds, from its first byte to the last byte of its response.
    pub(crate) max_latency_ms: f64,
    /// The median, in milliseconds.
    pub p50: f64,
    /// Of a hundred requests 99 were at most this slow, in milliseconds.
    pub p99: f64,
    /// The first few reasons of failures.
    pub(crate) failures: Vec<String>,
}

/// Sends orders until the time is over, or until told to end; then waits for the answers to what
/// is under way. Prints [`Progress`] lines and at last a [`Summary`], as JSON, to standard output.
pub(crate) fn run(options: &LoadOptions) -> Result<Summary, BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let end = told_to_end(options.stop_on_stdin_eof)?;
        drive(options, end, &mut std::io::stdout()).await
    })
}

/// [`run`], with its ending and its output given.
async fn drive(
    options: &LoadOptions,
    end: impl Future<Output = ()>,
    output: &mut (dyn Write + Send),
) -> Result<Summary, BoxError> {
    let customers = options.connections.max(1);
    let shared = Arc::new(Shared {
        target: options.target,
        cycle: Duration::from_secs_f64(customers as f64 / RATE),
        next: AtomicU64::new(
            tokio::time::timeout(PATIENCE, first_number(options.target))
                .await
                .map_err(|_| "the shop does not say how it is")??,
        ),
        sent: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        closing: AtomicBool::new(false),
        closed: Notify::new(),
        record: Mutex::new(Record {
            log: Some(LedgerWriter::create(&options.log)?),
            trouble: None,
            latencies_us: Vec::new(),
            failures: Vec::new(),
        }),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for customer in 0..customers {
        tasks.spawn(order_on(shared.clone(), customer as u64));
    }

    let mut end = std::pin::pin!(end);
    let mut over = std::pin::pin!(tokio::time::sleep(options.duration));
    let mut report = tokio::time::interval(REPORT);
    let mut closing = false;
    loop {
        tokio::select! {
            () = &mut end, if !closing => closing = true,
            () = &mut over, if !closing => closing = true,
            _ = report.tick() => {
                // Whoever reads this has gone: there is nobody left to order for.
                closing |= writeln!(output, "{}", serde_json::to_string(&shared.progress())?)
                    .and_then(|()| output.flush())
                    .is_err();
                shared.flush();
            }
            ended = tasks.join_next() => match ended {
                Some(ended) => ended?,
                None => break,
            },
        }
        if closing {
            shared.close();
        }
    }
    let summary = shared.finish()?;
    let _ = writeln!(output, "{}", serde_json::to_string(&summary)?);
    let _ = output.flush();
    Ok(summary)
}

struct Shared {
    target: SocketAddr,
    /// How long one customer takes from one order to the next, on average.
    cycle: Duration,
    next: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    closing: AtomicBool,
    closed: Notify,
    record: Mutex<Record>,
}

struct Record {
    log: Option<LedgerWriter>,
    /// The first failure to write the log: without a log, the load proves nothing.
    trouble: Option<std::io::Error>,
    latencies_us: Vec<u64>,
    failures: Vec<String>,
}

impl Shared {
    fn progress(&self) -> Progress {
        Progress {
            sent: self.sent.load(Ordering::Relaxed),
            acknowledged: self.acknowledged.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.closed.notify_waiters();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Waits, but not beyond the end of the load.
    async fn pause(&self, pause: Duration) {
        let closed = self.closed.notified();
        if !self.is_closing() {
            let _ = tokio::time::timeout(pause, closed).await;
        }
    }

    fn add(&self, line: &OrderLine, latency: Duration) {
        let counter = if line.outcome.acknowledged() { &self.acknowledged } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.latencies_us.push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        if !line.outcome.acknowledged() && record.failures.len() < 5 {
            record.failures.push(format!("order {}: {}", line.number, line.outcome));
        }
        record.write(|log| log.add(line));
    }

    fn flush(&self) {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).write(LedgerWriter::flush);
    }

    fn finish(&self) -> Result<Summary, BoxError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trouble) = record.trouble.take() {
            return Err(format!("write the load's log: {trouble}").into());
        }
        if let Some(log) = record.log.take() {
            log.end()?;
        }
        record.latencies_us.sort_unstable();
        let latencies = &record.latencies_us;
        // The smallest latency that this share of all requests did not exceed.
        let at_most = |percent: usize| {
            let rank = (latencies.len() * percent).div_ceil(100).max(1) - 1;
            latencies.get(rank).map_or(0.0, |us| *us as f64 / 1000.0)
        };
        Ok(Summary {
            requests_total: self.sent.load(Ordering::Relaxed),
            requests_failed: self.failed.load(Ordering::Relaxed),
            max_latency_ms: at_most(100),
            p50: at_most(50),
            p99: at_most(99),
            failures: record.failures.clone(),
        })
    }
}

impl Record {
    fn write(&mut self, work: impl FnOnce(&mut LedgerWriter) -> std::io::Result<()>) {
        if let Some(log) = &mut self.log
            && let Err(error) = work(log)
        {
            self.log = None;
            self.trouble = Some(error);
        }
    }
}

/// One customer: orders until the load is over.
async fn order_on(shared: Arc<Shared>, customer: u64) {
    let mut random = Random::new(customer);
    let mut connection = None;
    // Customers do not all come in at the same moment.
    shared.pause(jittered(&mut random, shared.cycle)).await;
    while !shared.is_closing() {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        shared.sent.fetch_add(1, Ordering::Relaxed);
        let mut sent_us = now_us();
        let mut begun = Instant::now();
        let outcome = tokio::time::timeout(
            PATIENCE,
            order(shared.target, &mut connection, number, || {
                sent_us = now_us();
                begun = Instant::now();
            }),
        )
        .await;
        let latency = begun.elapsed();
        let answered_us = now_us();
        let outcome = match outcome {
            Ok(Ok(status)) => Outcome::Status(status.as_u16()),
            Ok(Err(error)) => Outcome::Failed(chain(&*error)),
            Err(_) => Outcome::Failed(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        let acknowledged = outcome.acknowledged();
        if !matches!(outcome, Outcome::Status(_)) {
            connection = None;
        }
        shared.add(&OrderLine { number, sent_us, answered_us, outcome }, latency);
        let pause = jittered(&mut random, shared.cycle).saturating_sub(latency);
        shared.pause(if acknowledged { pause } else { pause.max(AFTER_FAILURE) }).await;
    }
}

/// Between half and one and a half times `mean`: customers do not keep step.
fn jittered(random: &mut Random, mean: Duration) -> Duration {
    mean.mul_f64(0.5 + random.below(1000) as f64 / 1000.0)
}

type Connection = SendRequest<Full<Bytes>>;

/// Sends order `number` once and reads the whole response. `begin` is called just before the first
/// byte is sent.
async fn order(
    target: SocketAddr,
    connection: &mut Option<Connection>,
    number: u64,
    mut begin: impl FnMut(),
) -> Result<StatusCode, BoxError> {
    let body = serde_json::to_vec(&Order::numbered(number).body)?;
    let mut request = Request::post(format!("/orders/{number}"))
        .header(header::HOST, target.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let mut reopened = 0;
    let response = loop {
        let mut open = match usable(connection.take()).await {
            Some(open) => open,
            None => connect(target).await?,
        };
        begin();
        match open.try_send_request(request).await {
            Ok(response) => {
                *connection = Some(open);
                break response;
            }
            Err(mut error) => match error.take_message() {
                // Closed by the server while it was idle; nothing of this request was sent.
                Some(unsent) if reopened < REOPENED => {
                    reopened += 1;
                    request = unsent;
                }
                _ => return Err(error.into_error().into()),
            },
        }
    };
    let status = response.status();
    response.into_body().collect().await?;
    Ok(status)
}

/// The connection, unless the server has closed it.
async fn usable(connection: Option<Connection>) -> Option<Connection> {
    let mut connection = connection?;
    connection.ready().await.ok()?;
    Some(connection)
}

async fn connect(target: SocketAddr) -> Result<Connection, BoxError> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // Its failures reach whoever waits for a response on it.
        let _ = connection.await;
    });
    Ok(sender)
}

/// The first number that the shop does not know yet.
async fn first_number(target: SocketAddr) -> Result<u64, BoxError> {
    #[derive(Deserialize)]
    struct Health {
        highest: u64,
    }
    let request = Request::get("/health")
        .header(header::HOST, target.to_string())
        .body(Full::new(Bytes::new()))?;
    let response = connect(target).await?.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if status != StatusCode::OK {
        let text = String::from_utf8_lossy(&body);
        return Err(format!("the shop is not well, status {status}: {text}").into());
    }
    Ok(serde_json::from_slice::<Health>(&body)?.highest + 1)
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The error's words and those of everything that caused it.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests;
