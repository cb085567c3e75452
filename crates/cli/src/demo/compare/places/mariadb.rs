//! `MariaDB`, read with its client `mariadb`: the orders with their payments, the counter behind
//! their ids, and the foreign key between them.

use super::{Place, client as command_of, run};
use crate::demo::compare::ServerPlace;
use crate::demo::shop::{Body, BoxError, Order};
use mysql::Opts;
use serde::Deserialize;
use std::io::Write;

/// As JSON, one object a line: every text comes through unharmed. All at one instant.
const READ: &str = "
    START TRANSACTION WITH CONSISTENT SNAPSHOT;
    SELECT JSON_OBJECT('number', number, 'customer', customer, 'item', item,
        'amount', orders.amount, 'paid', payments.amount)
        FROM orders LEFT JOIN payments ON order_id = id;
    SELECT JSON_OBJECT(
        'next', (SELECT AUTO_INCREMENT FROM information_schema.TABLES
            WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'orders'),
        'highest', (SELECT COALESCE(MAX(id), 0) FROM orders),
        'payments', (SELECT COUNT(*) FROM payments),
        'keys', (SELECT COUNT(*) FROM information_schema.REFERENTIAL_CONSTRAINTS
            WHERE CONSTRAINT_SCHEMA = DATABASE() AND TABLE_NAME = 'payments'
            AND REFERENCED_TABLE_NAME = 'orders'));
    COMMIT";

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Order { number: u64, customer: String, item: String, amount: i64, paid: Option<i64> },
    Rest { next: Option<u64>, highest: u64, payments: usize, keys: u64 },
}

/// Reads all orders, and whether the next one could get an id.
pub(in super::super) fn read(mariadb: &ServerPlace) -> Result<Place, BoxError> {
    let mut place = Place::new("mariadb");
    for line in client(mariadb, READ)?.lines() {
        match serde_json::from_str(line)? {
            Line::Order { number, customer, item, amount, paid } => {
                place.add(&Order { number, body: Body { customer, item, amount } });
                if paid != Some(amount) {
                    let paid = paid.map_or_else(|| "missing".to_owned(), |paid| paid.to_string());
                    let wrong = place.orders.entry(number).or_default();
                    wrong.get_or_insert(format!("its payment is {paid} instead of {amount}"));
                }
            }
            Line::Rest { next, highest, payments, keys } => {
                if next.is_none_or(|next| next <= highest) {
                    place.oddities.push(format!(
                        "the next order in mariadb would get the id {}, but ids up to {highest} \
                         are taken: its counter was not restored",
                        next.unwrap_or(0)
                    ));
                }
                if payments > place.orders.len() {
                    place.oddities.push("mariadb has payments without an order".to_owned());
                }
                if keys != 1 {
                    place.oddities.push(
                        "payments in mariadb do not refer to orders: the foreign key was not \
                         restored"
                            .to_owned(),
                    );
                }
            }
        }
    }
    Ok(place)
}

/// Runs SQL with the client `mariadb` as the application's account and returns what it prints.
pub(in super::super) fn client(mariadb: &ServerPlace, sql: &str) -> Result<String, BoxError> {
    let target = &mariadb.target;
    let options = Opts::from_url(&target.url)?;
    // Nobody else can read it, and no password is among the arguments.
    let mut file = tempfile::Builder::new().prefix("stillpoint-demo-").tempfile()?;
    writeln!(file, "[client]")?;
    for (name, value) in [
        ("user", options.get_user()),
        ("password", target.password.as_deref()),
        ("socket", options.get_socket()),
    ] {
        let value = value.unwrap_or_default().replace('\\', "\\\\").replace('"', "\\\"");
        writeln!(file, "{name}=\"{value}\"")?;
    }
    let mut command = command_of(&mariadb.client);
    command
        // First, or it is not heeded.
        .arg(format!("--defaults-file={}", file.path().display()))
        .args(["--batch", "--raw", "--skip-column-names", "--default-character-set=utf8mb4"])
        .args(["--database", options.get_db_name().unwrap_or_default(), "--execute", sql]);
    run("mariadb", &mut command, String::new())
}
