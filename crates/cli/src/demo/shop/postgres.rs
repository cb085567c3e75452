//! The shop's `PostgreSQL` database: one table, whose unique number makes an insert safe to repeat.

use super::pool::Database;
use super::{Body, BoxError, Order, Target, Written};
use postgres::error::SqlState;
use postgres::{Client, NoTls, Statement};
use std::error::Error;
use std::time::Duration;

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

/// The database, as the shop uses it.
#[derive(Clone)]
pub(super) struct Postgres(pub(super) Target);

impl Database for Postgres {
    const NAME: &'static str = "postgresql";
    type Connection = (Client, Statement);
    type Error = postgres::Error;

    fn create(&self) -> Result<(), Self::Error> {
        connect(&self.0)?.batch_execute(SCHEMA)
    }

    fn connect(&self) -> Result<Self::Connection, Self::Error> {
        let mut client = connect(&self.0)?;
        let insert = client.prepare(INSERT)?;
        Ok((client, insert))
    }

    fn insert(
        (client, insert): &mut Self::Connection,
        order: &Order,
    ) -> Result<Written, Self::Error> {
        let number = order.number.cast_signed();
        let Body { customer, item, amount } = &order.body;
        let rows = client.execute(&*insert, &[&number, customer, item, amount])?;
        Ok(if rows == 0 { Written::Taken } else { Written::New })
    }

    fn find((client, _): &mut Self::Connection, number: u64) -> Result<Option<Order>, Self::Error> {
        let row = client.query_opt(
            "SELECT customer, item, amount FROM orders WHERE number = $1",
            &[&number.cast_signed()],
        )?;
        row.map(|row| {
            let body =
                Body { customer: row.try_get(0)?, item: row.try_get(1)?, amount: row.try_get(2)? };
            Ok(Order { number, body })
        })
        .transpose()
    }

    fn highest((client, _): &mut Self::Connection) -> Result<u64, Self::Error> {
        let row = client.query_one("SELECT coalesce(max(number), 0) FROM orders", &[])?;
        Ok(row.try_get::<_, i64>(0)?.cast_unsigned())
    }

    fn passes(error: &Self::Error) -> bool {
        connection_is_gone(error)
    }

    fn explain(error: &Self::Error) -> String {
        explain(error)
    }
}

/// Writes the orders from `first` to `last` in one transaction. Blocks.
pub(super) fn seed(target: &Target, first: u64, last: u64) -> Result<(), BoxError> {
    let mut client = connect(target)?;
    client.batch_execute(SCHEMA)?;
    let mut transaction = client.transaction()?;
    let insert = transaction.prepare(INSERT)?;
    for order in (first..=last).map(Order::numbered) {
        let number = order.number.cast_signed();
        let Body { customer, item, amount } = &order.body;
        transaction.execute(&insert, &[&number, customer, item, amount])?;
    }
    transaction.commit()?;
    Ok(())
}

fn connect(target: &Target) -> Result<Client, postgres::Error> {
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
