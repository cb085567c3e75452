//! The shop's PostgreSQL database: a few pooled connections, each with a thread of its own.
//!
//! A restore ends every session and puts another database in this one's place, so a connection
//! that was ended is opened again and the order is tried once more. That is safe to repeat even
//! when nobody knows whether the first attempt was committed: the number is unique, and an insert
//! of a number that is there already does nothing.

use super::{BoxError, Order, PostgresTarget, Written};
use crossbeam_channel::{Receiver, Sender};
use postgres::error::SqlState;
use postgres::{Client, NoTls, Statement};
use std::error::Error;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How many connections the pool has.
const CONNECTIONS: usize = 4;
/// How long an order waits for a database that refuses or ends connections.
const RECONNECT: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const RETRY: Duration = Duration::from_millis(25);

/// The serial id has a sequence behind it: sequences are not part of a PostgreSQL snapshot, so a
/// backup has to take care of them on their own.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id bigserial PRIMARY KEY,
        number bigint NOT NULL UNIQUE,
        customer text NOT NULL,
        item text NOT NULL,
        amount bigint NOT NULL CHECK (amount > 0),
        placed_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer);";

const INSERT: &str = "INSERT INTO orders (number, customer, item, amount)
    VALUES ($1, $2, $3, $4) ON CONFLICT (number) DO NOTHING";

type Job = Box<dyn FnOnce(&mut Session) + Send>;

/// The database, as the shop uses it.
#[derive(Clone)]
pub(crate) struct Postgres {
    jobs: Sender<Job>,
}

impl Postgres {
    /// Creates what is missing and starts the pool, whose threads end when the last clone is
    /// dropped. Blocks; not to be called from async code.
    pub(crate) fn open(target: &PostgresTarget) -> Result<Self, BoxError> {
        connect(target)?.batch_execute(SCHEMA)?;
        let (jobs, waiting) = crossbeam_channel::unbounded::<Job>();
        for _ in 0..CONNECTIONS {
            let mut session = Session { target: target.clone(), open: None };
            let waiting: Receiver<Job> = waiting.clone();
            std::thread::Builder::new().name("postgresql".to_owned()).spawn(move || {
                for job in waiting {
                    job(&mut session);
                }
            })?;
        }
        Ok(Self { jobs })
    }

    /// Writes one order; returns once it is committed.
    pub(crate) async fn insert(&self, order: Order) -> Result<Written, BoxError> {
        self.run(move |session| session.insert(&order)).await
    }

    /// Reads one order.
    pub(crate) async fn find(&self, number: u64) -> Result<Option<Order>, BoxError> {
        self.run(move |session| session.find(number)).await
    }

    /// The highest order number there is.
    pub(crate) async fn highest(&self) -> Result<u64, BoxError> {
        self.run(Session::highest).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<T, postgres::Error> + Send + 'static,
    ) -> Result<T, BoxError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |session| {
            // Whoever asked may have gone; that changes nothing about what was done.
            let _ = answer.send(work(session));
        });
        self.jobs.send(job).map_err(|_| "the pool of connections to postgresql has ended")?;
        answered.await?.map_err(|error| explain(&error).into())
    }
}

/// Writes the orders from `first` to `last` in one transaction. Blocks.
pub(crate) fn seed(target: &PostgresTarget, first: u64, last: u64) -> Result<(), BoxError> {
    let mut client = connect(target)?;
    client.batch_execute(SCHEMA)?;
    let mut transaction = client.transaction()?;
    let insert = transaction.prepare(INSERT)?;
    for order in (first..=last).map(Order::numbered) {
        let number = order.number.cast_signed();
        let super::Body { customer, item, amount } = &order.body;
        transaction.execute(&insert, &[&number, customer, item, amount])?;
    }
    transaction.commit()?;
    Ok(())
}

/// One pooled connection; opened when it is first needed, and again after it was ended.
struct Session {
    target: PostgresTarget,
    open: Option<(Client, Statement)>,
}

impl Session {
    fn insert(&mut self, order: &Order) -> Result<Written, postgres::Error> {
        let number = order.number.cast_signed();
        let super::Body { customer, item, amount } = &order.body;
        let mut attempts = 0_u32;
        let rows = self.retried(|client, insert| {
            attempts += 1;
            client.execute(insert, &[&number, customer, item, amount])
        })?;
        // Found there at the second attempt: the first one was committed, its answer was lost.
        Ok(if rows == 0 && attempts == 1 { Written::Taken } else { Written::New })
    }

    fn find(&mut self, number: u64) -> Result<Option<Order>, postgres::Error> {
        let row = self.retried(|client, _| {
            client.query_opt(
                "SELECT customer, item, amount FROM orders WHERE number = $1",
                &[&number.cast_signed()],
            )
        })?;
        row.map(|row| {
            let body = super::Body {
                customer: row.try_get(0)?,
                item: row.try_get(1)?,
                amount: row.try_get(2)?,
            };
            Ok(Order { number, body })
        })
        .transpose()
    }

    fn highest(&mut self) -> Result<u64, postgres::Error> {
        let row = self.retried(|client, _| {
            client.query_one("SELECT coalesce(max(number), 0) FROM orders", &[])
        })?;
        Ok(row.try_get::<_, i64>(0)?.cast_unsigned())
    }

    fn retried<T>(
        &mut self,
        mut work: impl FnMut(&mut Client, &Statement) -> Result<T, postgres::Error>,
    ) -> Result<T, postgres::Error> {
        let until = Instant::now() + RECONNECT;
        loop {
            let outcome = self.opened().and_then(|(client, insert)| work(client, insert));
            match outcome {
                Err(error) if connection_is_gone(&error) => {
                    self.open = None;
                    if Instant::now() >= until {
                        return Err(error);
                    }
                    std::thread::sleep(RETRY);
                }
                outcome => return outcome,
            }
        }
    }

    fn opened(&mut self) -> Result<&mut (Client, Statement), postgres::Error> {
        if self.open.is_none() {
            let mut client = connect(&self.target)?;
            let insert = client.prepare(INSERT)?;
            self.open = Some((client, insert));
        }
        Ok(self.open.as_mut().expect("opened above"))
    }
}

fn connect(target: &PostgresTarget) -> Result<Client, postgres::Error> {
    let mut config: postgres::Config = target.url.parse()?;
    if let Some(password) = &target.password {
        config.password(password);
    }
    config.application_name("shop").connect_timeout(Duration::from_secs(5)).connect(NoTls)
}

/// True when the session was ended or could not begin, for a reason that passes: the statement can
/// be tried again on a new connection.
fn connection_is_gone(error: &postgres::Error) -> bool {
    match error.code() {
        // No answer from a server at all: refused, reset, closed.
        None => error.is_closed() || cause(error).is_some_and(<dyn Error>::is::<std::io::Error>),
        Some(code) => {
            [
                SqlState::ADMIN_SHUTDOWN,
                SqlState::CRASH_SHUTDOWN,
                SqlState::CANNOT_CONNECT_NOW,
                SqlState::TOO_MANY_CONNECTIONS,
                // Between the two renames of a restore, or while it refuses connections.
                SqlState::INVALID_CATALOG_NAME,
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            ]
            .contains(code)
                || code.code().starts_with("08")
        }
    }
}

fn cause(error: &postgres::Error) -> Option<&(dyn Error + 'static)> {
    error.source()
}

/// The server's own words, which `postgres::Error` keeps in its source.
fn explain(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(server) => format!("postgresql: {} ({})", server.message(), server.code().code()),
        None => match cause(error) {
            Some(source) => format!("postgresql: {error}: {source}"),
            None => format!("postgresql: {error}"),
        },
    }
}
