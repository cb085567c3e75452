//! A pool of connections to one database: a few threads with a connection each, which take orders
//! from one queue.
//!
//! A restore ends sessions and puts other tables, or another database, in the place of these, so a
//! connection that was ended is opened again and the work is done once more. That is safe to repeat
//! even when nobody knows whether the first attempt was committed: an insert of a number that is
//! there already changes nothing, and what is found there is compared with what was to be written.
//! This guards against both lies that a shop could tell then: that an order of somebody else's is
//! this one, and that an order it has written is refused.

use super::{BoxError, Order, Written};
use crossbeam_channel::{Receiver, Sender};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How many connections a pool has.
const CONNECTIONS: usize = 4;
/// How long an order waits for a database that refuses or ends connections.
const RECONNECT: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const RETRY: Duration = Duration::from_millis(25);

/// A database of orders, as its module knows it. All of this blocks.
pub(super) trait Database: Clone + Send + 'static {
    /// Its name in answers and errors.
    const NAME: &'static str;
    /// An open connection.
    type Connection;
    /// What its client says when something fails.
    type Error;

    /// Creates what is missing.
    fn create(&self) -> Result<(), Self::Error>;
    /// Opens a connection.
    fn connect(&self) -> Result<Self::Connection, Self::Error>;
    /// Writes one order, wholly or not at all, and only if its number is free. It is durable when
    /// this returns.
    fn insert(connection: &mut Self::Connection, order: &Order) -> Result<Written, Self::Error>;
    /// Reads one order.
    fn find(connection: &mut Self::Connection, number: u64) -> Result<Option<Order>, Self::Error>;
    /// The highest order number there is.
    fn highest(connection: &mut Self::Connection) -> Result<u64, Self::Error>;
    /// True when the session was ended or could not begin, for a reason that passes: the work can
    /// be tried again on a new connection.
    fn passes(error: &Self::Error) -> bool;
    /// The server's own words.
    fn explain(error: &Self::Error) -> String;
}

type Job = Box<dyn FnOnce(&mut dyn Session) + Send>;

/// The connections to one database. The threads end when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Pool {
    name: &'static str,
    jobs: Sender<Job>,
}

impl Pool {
    /// Creates what is missing in the database and starts the threads. Blocks; not to be called
    /// from async code.
    pub(super) fn open<D: Database>(database: &D) -> Result<Self, BoxError> {
        database.create().map_err(|error| D::explain(&error))?;
        let (jobs, waiting) = crossbeam_channel::unbounded::<Job>();
        for _ in 0..CONNECTIONS {
            let database = database.clone();
            let waiting: Receiver<Job> = waiting.clone();
            std::thread::Builder::new().name(D::NAME.to_owned()).spawn(move || {
                let mut session = Reconnecting { database, open: None };
                for job in waiting {
                    job(&mut session);
                }
            })?;
        }
        Ok(Self { name: D::NAME, jobs })
    }

    /// The database's name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Writes one order, from this moment on, whether or not anybody waits for what is returned:
    /// that resolves once it is committed.
    pub(super) fn insert(&self, order: Order) -> impl Future<Output = Answer<Written>> + use<> {
        self.run(move |session| session.insert(&order))
    }

    /// Reads one order.
    pub(super) fn find(&self, number: u64) -> impl Future<Output = Answer<Option<Order>>> + use<> {
        self.run(move |session| session.find(number))
    }

    /// The highest order number there is.
    pub(super) fn highest(&self) -> impl Future<Output = Answer<u64>> + use<> {
        self.run(|session| session.highest())
    }

    fn run<T, F>(&self, work: F) -> impl Future<Output = Answer<T>> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Session) -> Result<T, String> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |session| {
            // Whoever asked may have gone; that changes nothing about what was done.
            let _ = answer.send(work(session));
        });
        let (name, sent) = (self.name, self.jobs.send(job).is_ok());
        async move {
            if !sent {
                return Err(format!("the pool of connections to {name} has ended").into());
            }
            Ok(answered.await??)
        }
    }
}

/// What came of it.
type Answer<T> = Result<T, BoxError>;

/// What a pool's thread can do, whichever database it is.
trait Session {
    fn insert(&mut self, order: &Order) -> Result<Written, String>;
    fn find(&mut self, number: u64) -> Result<Option<Order>, String>;
    fn highest(&mut self) -> Result<u64, String>;
}

/// One connection; opened when it is first needed, and again after it was ended.
struct Reconnecting<D: Database> {
    database: D,
    open: Option<D::Connection>,
}

impl<D: Database> Session for Reconnecting<D> {
    fn insert(&mut self, order: &Order) -> Result<Written, String> {
        let mut attempts = 0_u32;
        let written = self.retried(|connection| {
            attempts += 1;
            D::insert(connection, order)
        })?;
        if written == Written::Taken && attempts > 1 {
            // The first attempt may have been committed, and its answer lost.
            let found = self.retried(|connection| D::find(connection, order.number))?;
            if found.as_ref() == Some(order) {
                return Ok(Written::New);
            }
        }
        Ok(written)
    }

    fn find(&mut self, number: u64) -> Result<Option<Order>, String> {
        self.retried(|connection| D::find(connection, number))
    }

    fn highest(&mut self) -> Result<u64, String> {
        self.retried(D::highest)
    }
}

impl<D: Database> Reconnecting<D> {
    fn retried<T>(
        &mut self,
        mut work: impl FnMut(&mut D::Connection) -> Result<T, D::Error>,
    ) -> Result<T, String> {
        let until = Instant::now() + RECONNECT;
        loop {
            let outcome = match self.open.take().map_or_else(|| self.database.connect(), Ok) {
                Ok(mut connection) => {
                    let outcome = work(&mut connection);
                    self.open = Some(connection);
                    outcome
                }
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if D::passes(&error) => {
                    self.open = None;
                    if Instant::now() >= until {
                        return Err(D::explain(&error));
                    }
                    std::thread::sleep(RETRY);
                }
                outcome => return outcome.map_err(|error| D::explain(&error)),
            }
        }
    }
}
