//! Redis, read with `redis-cli`: the orders' hashes, and whether the counter, the sorted set and the
//! key that goes away by itself agree with them.

use super::{Place, client, run};
use crate::demo::compare::{RedisPlace, ServerPlace};
use crate::demo::shop::{Body, BoxError, COUNTER, NUMBERS, OFFER, ORDER, Order, user_and_socket};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How many keys are asked for at once.
const AT_ONCE: &str = "10000";

/// Reads all keys of the application's database. `seeded` says whether the offer must be there.
pub(in super::super) fn read(redis: &ServerPlace, seeded: bool) -> Result<Place, BoxError> {
    let mut place = Place::new("redis");
    let mut numbers = BTreeSet::new();
    for key in keys(redis)? {
        match key.strip_prefix(ORDER).and_then(|number| number.parse::<u64>().ok()) {
            Some(number) if key == format!("{ORDER}{number}") => {
                numbers.insert(number);
            }
            _ if [COUNTER, NUMBERS].contains(&key.as_str()) || (seeded && key == OFFER.0) => {}
            _ => place.oddities.push(format!("the key {key:?} in redis was put there by nobody")),
        }
    }
    read_orders(redis, &numbers, &mut place)?;

    let counter = ask(redis, &["GET", COUNTER])?;
    let counted = counter.as_str().unwrap_or("0");
    if counted != numbers.len().to_string() {
        place.oddities.push(format!("redis counts {counted} orders, but has {}", numbers.len()));
    }
    let listed = ask(redis, &["ZRANGE", NUMBERS, "0", "-1", "WITHSCORES"])?;
    let listed: Vec<(String, f64)> = serde_json::from_value(listed)?;
    check_list(&listed, &numbers, &mut place);
    if seeded {
        check_offer(redis, &mut place)?;
    }
    let databases = cli(redis, &["INFO", "keyspace"], String::new())?;
    for line in databases.lines().filter(|l| l.starts_with("db") && !l.starts_with("db0:")) {
        place.oddities.push(format!("redis holds keys that the shop never wrote: {}", line.trim()));
    }
    Ok(place)
}

fn keys(redis: &ServerPlace) -> Result<BTreeSet<String>, BoxError> {
    let mut keys = BTreeSet::new();
    let mut cursor = "0".to_owned();
    loop {
        let answer = ask(redis, &["SCAN", &cursor, "COUNT", AT_ONCE])?;
        // The cursor is a text, and a number in some versions.
        let (next, some): (Value, Vec<String>) = serde_json::from_value(answer)?;
        keys.extend(some);
        cursor = next.as_str().map_or_else(|| next.to_string(), str::to_owned);
        if cursor == "0" {
            return Ok(keys);
        }
    }
}

fn read_orders(
    redis: &ServerPlace,
    numbers: &BTreeSet<u64>,
    place: &mut Place,
) -> Result<(), BoxError> {
    let mut commands = String::new();
    for number in numbers {
        writeln!(commands, "HGETALL {ORDER}{number}")?;
    }
    let answers = cli(redis, &[], commands)?;
    let answers: Vec<&str> = answers.lines().collect();
    if answers.len() != numbers.len() {
        let (got, asked) = (answers.len(), numbers.len());
        return Err(format!("redis-cli gave {got} answers to {asked} questions").into());
    }
    for (number, answer) in numbers.iter().zip(answers) {
        if let Some(order) = order(*number, answer) {
            place.add(&order);
        } else {
            let wrong = format!("it is not customer, item and amount, but {answer}");
            place.orders.insert(*number, Some(wrong));
        }
    }
    Ok(())
}

/// An order from what its hash holds: these three fields and no other.
fn order(number: u64, answer: &str) -> Option<Order> {
    let mut fields: BTreeMap<String, String> = serde_json::from_str(answer).ok()?;
    let body = Body {
        customer: fields.remove("customer")?,
        item: fields.remove("item")?,
        amount: fields.remove("amount")?.parse().ok()?,
    };
    fields.is_empty().then_some(Order { number, body })
}

fn check_list(listed: &[(String, f64)], numbers: &BTreeSet<u64>, place: &mut Place) {
    let mut unlisted = numbers.clone();
    for (member, score) in listed {
        let number = member.parse::<u64>().ok();
        if !number.is_some_and(|number| unlisted.remove(&number)) {
            place.oddities.push(format!("redis lists the order {member}, but does not have it"));
        }
        if member.parse::<f64>().ok() != Some(*score) {
            place.oddities.push(format!("redis lists the order {member} as the {score}th"));
        }
    }
    for number in unlisted {
        place.oddities.push(format!("redis has the order {number}, but does not list it"));
    }
}

fn check_offer(redis: &ServerPlace, place: &mut Place) -> Result<(), BoxError> {
    let (name, value, seconds) = OFFER;
    let found = ask(redis, &["GET", name])?;
    let left = ask(redis, &["TTL", name])?.as_i64().unwrap_or(-2);
    if found.as_str() != Some(value) {
        place.oddities.push(format!("the key {name} in redis holds {found}, not {value:?}"));
    } else if left < 0 || left.cast_unsigned() > seconds {
        place.oddities.push(format!(
            "the key {name} in redis does not go away within {seconds} s any more: its time to \
             live is {left}"
        ));
    }
    Ok(())
}

/// Removes everything from the server and says how many keys of the application's database that
/// were. By the account `default`: the application's has no right to `FLUSHALL`.
pub(in super::super) fn flush(redis: &RedisPlace) -> Result<u64, BoxError> {
    let keys = ask(&redis.server, &["DBSIZE"])?.as_u64().unwrap_or(0);
    let mut admin = redis.server.clone();
    let (_, socket) = login(&admin)?;
    admin.target.url = format!("redis+unix://default@{socket}");
    admin.target.password = Some(redis.admin_password.clone());
    ask(&admin, &["FLUSHALL"])?;
    Ok(keys)
}

/// One command's answer.
fn ask(redis: &ServerPlace, command: &[&str]) -> Result<Value, BoxError> {
    let answer = cli(redis, command, String::new())?;
    let answer = answer.trim();
    serde_json::from_str(answer).map_err(|_| format!("redis-cli says {answer:?}").into())
}

/// Runs one command, or those in `input`, one a line, and returns the answers, one a line as JSON.
fn cli(redis: &ServerPlace, command: &[&str], input: String) -> Result<String, BoxError> {
    let (user, socket) = login(redis)?;
    let mut program = client(&redis.client);
    program.args(["-s", socket, "--user", user, "--no-auth-warning", "--json", "-e"]).args(command);
    if let Some(password) = &redis.target.password {
        program.env("REDISCLI_AUTH", password);
    }
    run("redis-cli", &mut program, input)
}

fn login(redis: &ServerPlace) -> Result<(&str, &str), BoxError> {
    let url = &redis.target.url;
    user_and_socket(url).ok_or_else(|| format!("{url} does not name a user and a socket").into())
}
