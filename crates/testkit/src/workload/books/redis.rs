//! The books in Redis: one hash of balances, one of orders.

use super::{Book, Record, one};
use crate::workload::{ACCOUNTS, BoxError, Login, OPENING};
use redis::{Connection, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, cmd, pipe};
use std::collections::BTreeMap;

pub(super) fn connect(login: &Login) -> Result<Connection, BoxError> {
    // The crate reads no user from the url of a socket.
    let (user, socket) = login
        .url
        .strip_prefix("redis+unix://")
        .and_then(|rest| rest.split_once('@'))
        .ok_or("the url is not `redis+unix://USER@/PATH`")?;
    let settings = RedisConnectionInfo::default().set_username(user).set_password(&login.password);
    let info = ConnectionAddr::Unix(socket.into()).into_connection_info()?;
    Ok(redis::Client::open(info.set_redis_settings(settings))?.get_connection()?)
}

impl Book for Connection {
    fn open(&mut self) -> Result<(), BoxError> {
        let mut accounts = cmd("HSET");
        accounts.arg("accounts");
        for id in 1..=ACCOUNTS {
            accounts.arg(id).arg(OPENING);
        }
        Ok(accounts.exec(self)?)
    }

    fn add(&mut self, account: u32, amount: i64) -> Result<(), BoxError> {
        Ok(cmd("HINCRBY").arg("accounts").arg(account).arg(amount).exec(self)?)
    }

    fn order(&mut self, number: u64, hash: &str, old: Option<u64>) -> Result<(), BoxError> {
        let mut transaction = pipe();
        transaction.atomic().cmd("HSET").arg("orders").arg(number).arg(hash);
        if let Some(old) = old {
            transaction.cmd("HDEL").arg("orders").arg(old);
        }
        let changed: Vec<u64> = transaction.query(self)?;
        changed.into_iter().try_for_each(|changed| one(changed, "order in cache"))
    }

    fn read(&mut self) -> Result<Record, BoxError> {
        let accounts: BTreeMap<u32, i64> = cmd("HGETALL").arg("accounts").query(self)?;
        let orders = cmd("HGETALL").arg("orders").query(self)?;
        Ok(Record { money: accounts.values().sum(), orders })
    }
}
