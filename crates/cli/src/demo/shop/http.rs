//! The shop's HTTP side: routes, and what each does with the stores.

use super::mariadb::Mariadb;
use super::pool::Pool;
use super::postgres::Postgres;
use super::redis::Redis;
use super::sqlite::Sqlite;
use super::{Body, BoxError, Order, Random, ShopOptions, Written, files};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;

/// A body larger than this is no order.
const LARGEST_BODY: usize = 64 << 10;
/// How long requests in flight may take to end when the shop is told to.
const LAST_ORDERS: Duration = Duration::from_secs(5);

/// Every place that an order is written to.
#[derive(Clone)]
pub(super) struct Stores {
    sqlite: Option<Sqlite>,
    /// The servers' databases, in the order in which answers name them.
    databases: Vec<Pool>,
    uploads: PathBuf,
}

impl Stores {
    /// Opens them all, and creates what is missing. Blocks; not to be called from async code.
    pub(super) fn open(options: &ShopOptions) -> Result<Self, BoxError> {
        std::fs::create_dir_all(&options.uploads)?;
        let mut databases = Vec::new();
        if let Some(target) = &options.postgres {
            databases.push(Pool::open(&Postgres(target.clone()))?);
        }
        if let Some(target) = &options.mariadb {
            databases.push(Pool::open(&Mariadb(target.clone()))?);
        }
        if let Some(target) = &options.redis {
            databases.push(Pool::open(&Redis(target.clone()))?);
        }
        Ok(Self {
            sqlite: options.sqlite.as_deref().map(Sqlite::open).transpose()?,
            databases,
            uploads: options.uploads.clone(),
        })
    }

    /// Writes the order into all databases at once, then its file.
    async fn insert(&self, order: Order) -> Result<Written, BoxError> {
        let begun: Vec<_> =
            self.databases.iter().map(|database| database.insert(order.clone())).collect();
        let mut outcomes = Vec::new();
        if let Some(sqlite) = &self.sqlite {
            outcomes.push(sqlite.insert(order.clone()).await);
        }
        // All are waited for even if one fails: nothing may go on after the answer.
        for insert in begun {
            outcomes.push(insert.await);
        }
        let outcomes = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
        if outcomes.contains(&Written::Taken) {
            return Ok(Written::Taken);
        }
        let uploads = self.uploads.clone();
        tokio::task::spawn_blocking(move || files::write(&uploads, &order))
            .await?
            .map_err(|error| format!("uploads: {error}"))?;
        Ok(Written::New)
    }

    async fn find(&self, number: u64) -> Result<Option<Value>, BoxError> {
        let mut places = Vec::new();
        let mut found = None;
        if let Some(sqlite) = self.sqlite.clone()
            && let Some(order) = tokio::task::spawn_blocking(move || sqlite.find(number)).await??
        {
            places.push("sqlite");
            found = Some(order);
        }
        for database in &self.databases {
            if let Some(order) = database.find(number).await? {
                places.push(database.name());
                found = Some(order);
            }
        }
        if files::exists(&self.uploads, &Order::numbered(number)) {
            places.push("uploads");
        }
        Ok((!places.is_empty()).then(|| json!({ "order": found, "places": places })))
    }

    async fn highest(&self) -> Result<u64, BoxError> {
        let mut highest = 0;
        if let Some(sqlite) = self.sqlite.clone() {
            highest = tokio::task::spawn_blocking(move || sqlite.highest()).await??;
        }
        for database in &self.databases {
            highest = highest.max(database.highest().await?);
        }
        Ok(highest)
    }
}

/// Serves until `end` resolves, then lets requests in flight end.
pub(super) async fn serve(
    listen: SocketAddr,
    stores: Stores,
    ready: impl FnOnce(SocketAddr),
    end: impl Future<Output = ()>,
) -> Result<(), BoxError> {
    let listener = TcpListener::bind(listen).await?;
    let graceful = GracefulShutdown::new();
    ready(listener.local_addr()?);
    let mut end = std::pin::pin!(end);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
        };
        let Ok((stream, _)) = accepted else {
            // The client has gone again, or files have run out: neither ends the shop.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        stream.set_nodelay(true)?;
        let stores = stores.clone();
        let service = service_fn(move |request| {
            let stores = stores.clone();
            async move { Ok::<_, Infallible>(answer(&stores, request).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is its own affair.
            let _ = connection.await;
        });
    }
    let _ = tokio::time::timeout(LAST_ORDERS, graceful.shutdown()).await;
    Ok(())
}

async fn answer(stores: &Stores, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let number = path.strip_prefix("/orders/").map(str::parse::<u64>);
    let outcome = match (request.method().clone(), number) {
        (Method::POST, Some(Ok(number))) if i64::try_from(number).is_ok() => {
            place(stores, number, request).await
        }
        (Method::GET, Some(Ok(number))) => stores.find(number).await.map(|found| match found {
            Some(order) => (StatusCode::OK, order),
            None => (StatusCode::NOT_FOUND, problem(&format!("no order {number}"))),
        }),
        (_, Some(_)) => Ok((StatusCode::BAD_REQUEST, problem("no such order number or method"))),
        (Method::GET, None) if path == "/health" => {
            stores.highest().await.map(|highest| (StatusCode::OK, json!({ "highest": highest })))
        }
        _ => Ok((StatusCode::NOT_FOUND, problem("no such page"))),
    };
    let (status, body) = outcome
        .unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, problem(&error.to_string())));
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

async fn place(
    stores: &Stores,
    number: u64,
    request: Request<Incoming>,
) -> Result<(StatusCode, Value), BoxError> {
    let body = match Limited::new(request.into_body(), LARGEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Ok((StatusCode::BAD_REQUEST, problem(&error.to_string()))),
    };
    let body: Body = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(error) => return Ok((StatusCode::BAD_REQUEST, problem(&error.to_string()))),
    };
    tokio::time::sleep(payment(number)).await;
    // A task of its own: an order that was begun is written everywhere, even if its customer has
    // broken off meanwhile, which drops this handler.
    let stores = stores.clone();
    let inserted = tokio::spawn(async move { stores.insert(Order { number, body }).await });
    Ok(match inserted.await?? {
        Written::New => (StatusCode::CREATED, json!({ "number": number })),
        Written::Taken => {
            (StatusCode::CONFLICT, problem(&format!("there is an order {number} already")))
        }
    })
}

/// How long the payment provider takes, whom every real shop waits for before it writes an order
/// down: 4 to 18 milliseconds. It is the one thing here that is only acted. It keeps orders in
/// flight at any moment, each at another stage.
fn payment(number: u64) -> Duration {
    let beyond = Random::new(!number).below(14_000) as u64;
    Duration::from_millis(4) + Duration::from_micros(beyond)
}

fn problem(text: &str) -> Value {
    json!({ "error": text })
}
