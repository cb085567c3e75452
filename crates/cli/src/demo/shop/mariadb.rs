//! The shop's `MariaDB` database: orders, and the payment of each in a table of its own, written in
//! one transaction. The unique number makes that safe to repeat.

use super::pool::Database;
use super::{Body, BoxError, Order, Target, Written};
use mysql::prelude::Queryable;
use mysql::{Conn, DriverError, Error, Opts, OptsBuilder, Transaction, TxOpts};
use std::time::Duration;

/// The id has a counter behind it that no transaction takes back, and the payment's foreign key
/// refers to it: a restore has to take care of both.
const SCHEMA: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS orders (
        id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
        number BIGINT NOT NULL UNIQUE,
        customer VARCHAR(200) NOT NULL,
        item VARCHAR(200) NOT NULL,
        amount BIGINT NOT NULL CHECK (amount > 0),
        placed_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
        KEY orders_by_customer (customer)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    "CREATE TABLE IF NOT EXISTS payments (
        order_id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
        amount BIGINT NOT NULL,
        CONSTRAINT payments_are_of_orders FOREIGN KEY (order_id) REFERENCES orders (id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
];

/// Of the errors of a server: the number is taken.
const DUPLICATE: u16 = 1062;
/// Those after which the transaction can be tried again on a new connection: too many connections,
/// shutting down, an aborted connection, too many of this user, a lock that was waited for too
/// long, a deadlock, a statement or connection that was killed.
const PASSING: [u16; 8] = [1040, 1053, 1152, 1203, 1205, 1213, 1317, 1927];

/// The database, as the shop uses it.
#[derive(Clone)]
pub(super) struct Mariadb(pub(super) Target);

impl Database for Mariadb {
    const NAME: &'static str = "mariadb";
    type Connection = Conn;
    type Error = Error;

    fn create(&self) -> Result<(), Error> {
        let mut connection = self.connect()?;
        SCHEMA.iter().try_for_each(|table| connection.query_drop(table))
    }

    fn connect(&self) -> Result<Conn, Error> {
        let options = OptsBuilder::from_opts(Opts::from_url(&self.0.url)?)
            .pass(self.0.password.as_ref())
            // Where the url names a socket, that one and no other.
            .prefer_socket(false)
            .tcp_connect_timeout(Some(Duration::from_secs(5)));
        Conn::new(options)
    }

    fn insert(connection: &mut Conn, order: &Order) -> Result<Written, Error> {
        // Dropped before its commit it is rolled back.
        let mut transaction = connection.start_transaction(TxOpts::default())?;
        match add(&mut transaction, order) {
            Err(Error::MySqlError(error)) if error.code == DUPLICATE => Ok(Written::Taken),
            added => {
                added?;
                transaction.commit()?;
                Ok(Written::New)
            }
        }
    }

    fn find(connection: &mut Conn, number: u64) -> Result<Option<Order>, Error> {
        let row = connection.exec_first(
            "SELECT customer, item, amount FROM orders WHERE number = ?",
            (number.cast_signed(),),
        )?;
        Ok(row.map(|(customer, item, amount)| Order {
            number,
            body: Body { customer, item, amount },
        }))
    }

    fn highest(connection: &mut Conn) -> Result<u64, Error> {
        let highest: Option<u64> =
            connection.query_first("SELECT COALESCE(MAX(number), 0) FROM orders")?;
        Ok(highest.unwrap_or(0))
    }

    fn passes(error: &Error) -> bool {
        match error {
            // No answer from a server at all: refused, reset, closed, cut off.
            Error::IoError(_) | Error::CodecError(_) => true,
            Error::DriverError(error) => matches!(
                error,
                DriverError::ConnectTimeout
                    | DriverError::CouldNotConnect(_)
                    | DriverError::PacketOutOfSync
                    | DriverError::UnexpectedPacket
                    | DriverError::Timeout
            ),
            Error::MySqlError(error) => PASSING.contains(&error.code),
            _ => false,
        }
    }

    fn explain(error: &Error) -> String {
        match error {
            Error::MySqlError(server) => format!("mariadb: {} ({})", server.message, server.code),
            error => format!("mariadb: {error}"),
        }
    }
}

/// Writes the orders from `first` to `last` in one transaction. Blocks.
pub(super) fn seed(target: &Target, first: u64, last: u64) -> Result<(), BoxError> {
    let database = Mariadb(target.clone());
    let explained = |error| Mariadb::explain(&error);
    database.create().map_err(explained)?;
    let mut connection = database.connect().map_err(explained)?;
    let written = connection.start_transaction(TxOpts::default()).and_then(|mut transaction| {
        for order in (first..=last).map(Order::numbered) {
            add(&mut transaction, &order)?;
        }
        transaction.commit()
    });
    Ok(written.map_err(explained)?)
}

fn add(transaction: &mut Transaction<'_>, order: &Order) -> Result<(), Error> {
    let Body { customer, item, amount } = &order.body;
    transaction.exec_drop(
        "INSERT INTO orders (number, customer, item, amount) VALUES (?, ?, ?, ?)",
        (order.number.cast_signed(), customer, item, amount),
    )?;
    transaction.exec_drop(
        "INSERT INTO payments (order_id, amount) VALUES (LAST_INSERT_ID(), ?)",
        (amount,),
    )
}
