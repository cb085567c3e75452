//! What order number N holds. Everything follows from the number alone, so that whoever finds an
//! order anywhere can say whether it is still what it was, without having seen it being made.
//!
//! The texts are chosen to be awkward on purpose: quotes, tabs, backslashes, other scripts. A
//! restore that mangles them must be noticed.

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

const CUSTOMERS: [&str; 8] = [
    "Ada Lovelace",
    "Zoë \"Zed\" O'Neill",
    "Bjørn\tTabulator",
    "山田 花子",
    "Back\\slash & Sons",
    "Лев Толстой",
    "María-José; DROP TABLE orders",
    "🜁 Émile",
];
const ITEMS: [&str; 6] = [
    "tea, 250 g",
    "kettle 1.7 l",
    "cup\nand saucer",
    "\\N",
    "100% cotton \"towel\"",
    "spoon 'silver'",
];

/// The part of an order that a customer sends: the body of `POST /orders/{number}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Body {
    /// Who ordered.
    pub(crate) customer: String,
    /// What.
    pub(crate) item: String,
    /// For how much, in cents.
    pub(crate) amount: i64,
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Its number, unique in every store.
    pub(crate) number: u64,
    /// What the customer sent.
    #[serde(flatten)]
    pub(crate) body: Body,
}

impl Order {
    /// The order that this number stands for.
    pub(crate) fn numbered(number: u64) -> Self {
        let mut random = Random::new(number);
        let body = Body {
            customer: CUSTOMERS[random.below(CUSTOMERS.len())].to_owned(),
            item: ITEMS[random.below(ITEMS.len())].to_owned(),
            amount: 100 + i64::try_from(random.below(1_000_000)).unwrap_or(0),
        };
        Self { number, body }
    }

    /// The text of its confirmation in the uploads directory, between half a kilobyte and three.
    pub(crate) fn confirmation(&self) -> String {
        let Body { customer, item, amount } = &self.body;
        let mut text = format!(
            "order {}\ncustomer {customer}\nitem {item}\namount {amount} cents\n",
            self.number
        );
        let mut random = Random::new(self.number ^ 0x5eed);
        for line in 0..8 + random.below(40) {
            let _ = writeln!(text, "{line:02} {:016x} {:016x}", random.next(), random.next());
        }
        text
    }

    /// Where that confirmation is, below the uploads directory.
    pub(crate) fn path(&self) -> String {
        format!("{}/order-{}.txt", self.number % 100, self.number)
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): small, fast, the same everywhere. Not for secrets.
pub(crate) struct Random(u64);

impl Random {
    /// A sequence that depends on the seed alone.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("smaller than a usize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_always_stands_for_the_same_order_and_neighbours_differ() {
        assert_eq!(Order::numbered(7), Order::numbered(7));
        assert_ne!(Order::numbered(7).body, Order::numbered(8).body);
        assert_ne!(Order::numbered(7).confirmation(), Order::numbered(107).confirmation());
    }

    #[test]
    fn every_awkward_text_is_used_by_early_orders() {
        let orders: Vec<Order> = (1..200).map(Order::numbered).collect();
        for text in CUSTOMERS {
            assert!(orders.iter().any(|order| order.body.customer == text), "{text}");
        }
        for text in ITEMS {
            assert!(orders.iter().any(|order| order.body.item == text), "{text}");
        }
    }
}
