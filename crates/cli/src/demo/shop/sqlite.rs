//! The shop's SQLite database: one writer thread with group commit, readers of their own.
//!
//! WAL mode with `synchronous=FULL`: each commit is synced before its orders are acknowledged, so a
//! 201 means that the order survives a power cut (`NORMAL` syncs at checkpoints only, and would
//! lose acknowledged orders then). To keep that affordable, orders that arrive within a few
//! milliseconds share one commit.
//!
//! After any failure the connection is opened anew: a restore may have changed the file beneath it.

use super::{BoxError, Order, Written};
use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long the first order of a group waits for others.
const GATHER: Duration = Duration::from_millis(3);
/// How many orders share one commit at most.
const GROUP: usize = 128;
/// How long a statement waits for a lock, such as that of a restore into the live file.
const BUSY: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        number INTEGER PRIMARY KEY,
        customer TEXT NOT NULL,
        item TEXT NOT NULL,
        amount INTEGER NOT NULL,
        placed_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    );
    CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer);";

type Answer = oneshot::Sender<Result<Written, String>>;

/// The database, as the shop uses it.
#[derive(Clone)]
pub(crate) struct Sqlite {
    path: PathBuf,
    writer: Sender<(Order, Answer)>,
}

impl Sqlite {
    /// Opens the database, creates what is missing, and starts the writer, which ends when the
    /// last clone is dropped.
    pub(crate) fn open(path: &Path) -> Result<Self, BoxError> {
        let connection = connect(path)?;
        connection.execute_batch(SCHEMA)?;
        let (writer, orders) = crossbeam_channel::unbounded();
        let place = path.to_owned();
        std::thread::Builder::new()
            .name("sqlite".to_owned())
            .spawn(move || write_all(&place, connection, &orders))?;
        Ok(Self { path: path.to_owned(), writer })
    }

    /// Writes one order; returns once it is durable.
    pub(crate) async fn insert(&self, order: Order) -> Result<Written, BoxError> {
        let (answer, answered) = oneshot::channel();
        self.writer.send((order, answer))?;
        Ok(answered.await??)
    }

    /// Reads one order. Blocks.
    pub(crate) fn find(&self, number: u64) -> Result<Option<Order>, BoxError> {
        let found = connect(&self.path)?
            .query_row(
                "SELECT customer, item, amount FROM orders WHERE number = ?1",
                [i64::try_from(number)?],
                |row| {
                    Ok(super::Body {
                        customer: row.get(0)?,
                        item: row.get(1)?,
                        amount: row.get(2)?,
                    })
                },
            )
            .optional()?;
        Ok(found.map(|body| Order { number, body }))
    }

    /// The highest order number there is. Blocks.
    pub(crate) fn highest(&self) -> Result<u64, BoxError> {
        let highest: Option<i64> =
            connect(&self.path)?
                .query_row("SELECT max(number) FROM orders", [], |row| row.get(0))?;
        Ok(u64::try_from(highest.unwrap_or(0))?)
    }
}

/// Writes the orders from `first` to `last` in one transaction.
pub(crate) fn seed(path: &Path, first: u64, last: u64) -> Result<(), BoxError> {
    let mut connection = connect(path)?;
    connection.execute_batch(SCHEMA)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for number in first..=last {
        insert(&transaction, &Order::numbered(number))?;
    }
    transaction.commit()?;
    Ok(())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    Ok(connection)
}

fn write_all(path: &Path, connection: Connection, orders: &Receiver<(Order, Answer)>) {
    let mut connection = Some(connection);
    while let Ok(first) = orders.recv() {
        let (group, answers) = gather(first, orders);
        let written = match connection.take().map_or_else(|| connect(path), Ok) {
            Ok(mut open) => commit(&mut open, &group).inspect(|_| connection = Some(open)),
            Err(error) => Err(error),
        };
        // Whoever asked may have gone; that changes nothing about what was written.
        match written {
            Ok(written) => {
                for (answer, written) in answers.into_iter().zip(written) {
                    let _ = answer.send(Ok(written));
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(format!("sqlite: {error}")));
                }
            }
        }
    }
}

fn gather(first: (Order, Answer), orders: &Receiver<(Order, Answer)>) -> (Vec<Order>, Vec<Answer>) {
    let until = Instant::now() + GATHER;
    let (mut group, mut answers) = (vec![first.0], vec![first.1]);
    while group.len() < GROUP {
        let Ok((order, answer)) = orders.recv_deadline(until) else { break };
        group.push(order);
        answers.push(answer);
    }
    (group, answers)
}

fn commit(connection: &mut Connection, group: &[Order]) -> rusqlite::Result<Vec<Written>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let written =
        group.iter().map(|order| insert(&transaction, order)).collect::<Result<_, _>>()?;
    transaction.commit()?;
    Ok(written)
}

fn insert(transaction: &Transaction<'_>, order: &Order) -> rusqlite::Result<Written> {
    let rows = transaction
        .prepare_cached(
            "INSERT INTO orders (number, customer, item, amount) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (number) DO NOTHING",
        )?
        .execute(params![
            order.number.cast_signed(),
            order.body.customer,
            order.body.item,
            order.body.amount
        ])?;
    Ok(if rows == 0 { Written::Taken } else { Written::New })
}
