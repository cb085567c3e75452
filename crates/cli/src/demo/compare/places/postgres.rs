//! `PostgreSQL`, read with `psql`.

use super::{Place, client, run};
use crate::demo::compare::ServerPlace;
use crate::demo::shop::{BoxError, Order};
use serde::Deserialize;

/// Reads all orders with `psql`, and whether the next one could get an id.
pub(in super::super) fn read(postgres: &ServerPlace) -> Result<Place, BoxError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Line {
        Order(Order),
        Sequence { next: Option<i64>, highest: i64 },
    }
    let mut place = Place::new("postgresql");
    // As JSON, one object a line: every text comes through unharmed.
    let rows = psql(
        postgres,
        "SELECT json_build_object('number', number, 'customer', customer, 'item', item, \
         'amount', amount) FROM orders; \
         SELECT json_build_object( \
         'next', (SELECT last_value + is_called::int FROM orders_id_seq), \
         'highest', (SELECT coalesce(max(id), 0) FROM orders))",
    )?;
    for row in rows.lines() {
        match serde_json::from_str(row)? {
            Line::Order(order) => place.add(&order),
            Line::Sequence { next, highest } => {
                if next.is_none_or(|next| next <= highest) {
                    place.oddities.push(format!(
                        "the next order in postgresql would get the id {}, but ids up to {highest} \
                         are taken: its sequence was not restored",
                        next.unwrap_or(0)
                    ));
                }
            }
        }
    }
    Ok(place)
}

/// Runs SQL with `psql` in one transaction and returns what it prints.
pub(in super::super) fn psql(postgres: &ServerPlace, sql: &str) -> Result<String, BoxError> {
    let mut command = client(&postgres.client);
    command
        .args(["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--quiet"])
        .args(["--set", "ON_ERROR_STOP=1", "--dbname", &postgres.target.url, "--command", sql])
        .env("PGCLIENTENCODING", "UTF8");
    if let Some(password) = &postgres.target.password {
        command.env("PGPASSWORD", password);
    }
    run("psql", &mut command, String::new())
}
