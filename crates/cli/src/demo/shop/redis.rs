//! The shop's `Redis`: each order is a hash, counted by a counter and listed in a sorted set, all
//! three in one transaction; one more key, the offer of the day, goes away by itself.
//!
//! An order is written only if its key is not there. `WATCH` sees to it that nobody writes it in
//! between: then the transaction does nothing and is tried again. It does so too when a restore
//! puts another database in this one's place (`SWAPDB`).

use super::pool::Database;
use super::{Body, BoxError, Order, Target, Written};
use redis::{
    Connection, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline, RedisConnectionInfo,
    RedisError, ServerErrorKind, cmd, pipe,
};
use std::collections::HashMap;
use std::time::Duration;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How many orders there are.
pub(crate) const COUNTER: &str = "orders";
/// All their numbers, sorted by themselves.
pub(crate) const NUMBERS: &str = "orders:numbers";
/// How the key of an order's hash begins; its number follows.
pub(crate) const ORDER: &str = "order:";
/// A key that goes away by itself: its name, its value, how many seconds it stays.
pub(crate) const OFFER: (&str, &str, u64) = ("offer", "two kettles for one", 24 * 60 * 60);

/// The database, as the shop uses it.
#[derive(Clone)]
pub(super) struct Redis(pub(super) Target);

impl Database for Redis {
    const NAME: &'static str = "redis";
    type Connection = Connection;
    type Error = RedisError;

    fn create(&self) -> Result<(), RedisError> {
        // Keys need no definition; but it must be there.
        cmd("PING").exec(&mut self.connect()?)
    }

    fn connect(&self) -> Result<Connection, RedisError> {
        // The crate reads no user from the url of a socket.
        let (user, socket) = user_and_socket(&self.0.url).ok_or((
            ErrorKind::InvalidClientConfig,
            "the url is not `redis+unix://USER@/PATH/OF/SOCKET`",
        ))?;
        let mut login = RedisConnectionInfo::default().set_username(user);
        if let Some(password) = &self.0.password {
            login = login.set_password(password);
        }
        let info = ConnectionAddr::Unix(socket.into()).into_connection_info()?;
        redis::Client::open(info.set_redis_settings(login))?.get_connection_with_timeout(CONNECT)
    }

    fn insert(connection: &mut Connection, order: &Order) -> Result<Written, RedisError> {
        let key = format!("{ORDER}{}", order.number);
        loop {
            cmd("WATCH").arg(&key).exec(connection)?;
            if cmd("EXISTS").arg(&key).query(connection)? {
                cmd("UNWATCH").exec(connection)?;
                return Ok(Written::Taken);
            }
            let mut transaction = pipe();
            add(transaction.atomic(), order);
            if transaction.query::<Option<Vec<i64>>>(connection)?.is_some() {
                return Ok(Written::New);
            }
        }
    }

    fn find(connection: &mut Connection, number: u64) -> Result<Option<Order>, RedisError> {
        let mut fields: HashMap<String, String> =
            cmd("HGETALL").arg(format!("{ORDER}{number}")).query(connection)?;
        if fields.is_empty() {
            return Ok(None);
        }
        let mut take = |name| {
            fields.remove(name).ok_or_else(|| {
                RedisError::from((
                    ErrorKind::UnexpectedReturnType,
                    "a field of an order is missing",
                ))
            })
        };
        let (customer, item, amount) = (take("customer")?, take("item")?, take("amount")?);
        let amount = amount.parse().map_err(|_| {
            RedisError::from((ErrorKind::UnexpectedReturnType, "an order's amount is no number"))
        })?;
        Ok(Some(Order { number, body: Body { customer, item, amount } }))
    }

    fn highest(connection: &mut Connection) -> Result<u64, RedisError> {
        let highest: Vec<u64> = cmd("ZREVRANGE").arg(NUMBERS).arg(0).arg(0).query(connection)?;
        Ok(highest.first().copied().unwrap_or(0))
    }

    fn passes(error: &RedisError) -> bool {
        matches!(
            error.kind(),
            ErrorKind::Io
                | ErrorKind::Server(
                    ServerErrorKind::BusyLoading
                        | ServerErrorKind::TryAgain
                        | ServerErrorKind::MasterDown
                )
        )
    }

    fn explain(error: &RedisError) -> String {
        format!("redis: {error}")
    }
}

/// Who logs in, and at which socket, in a url `redis+unix://USER@/PATH`.
pub(crate) fn user_and_socket(url: &str) -> Option<(&str, &str)> {
    url.strip_prefix("redis+unix://")?.split_once('@')
}

/// Writes the orders from `first` to `last` in one transaction, and the offer. Blocks.
pub(super) fn seed(target: &Target, first: u64, last: u64) -> Result<(), BoxError> {
    let mut transaction = pipe();
    transaction.atomic();
    for order in (first..=last).map(Order::numbered) {
        add(&mut transaction, &order);
    }
    let (name, value, seconds) = OFFER;
    transaction.cmd("SET").arg(name).arg(value).arg("EX").arg(seconds).ignore();
    let database = Redis(target.clone());
    let written = database.connect().and_then(|mut connection| transaction.exec(&mut connection));
    Ok(written.map_err(|error| Redis::explain(&error))?)
}

/// What is written for an order.
fn add(transaction: &mut Pipeline, order: &Order) {
    let Body { customer, item, amount } = &order.body;
    let number = order.number;
    transaction.cmd("HSET").arg(format!("{ORDER}{number}"));
    transaction.arg("customer").arg(customer).arg("item").arg(item).arg("amount").arg(*amount);
    transaction.cmd("INCR").arg(COUNTER);
    transaction.cmd("ZADD").arg(NUMBERS).arg(number).arg(number);
}
