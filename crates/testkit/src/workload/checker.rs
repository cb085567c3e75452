//! What must be true of the books at any instant between two requests, and the parts that speak
//! against it.

use super::{Addresses, BoxError, KEPT, MONEY, PARTS, SERVICES, books, receipts};
use std::collections::BTreeMap;
use std::fmt;

/// All five parts, as they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Books {
    /// The money in each service.
    pub money: [i64; SERVICES],
    /// Number and hash of each order, in each part: in the mount it is the file's own.
    pub orders: [BTreeMap<u64, String>; PARTS.len()],
}

impl Books {
    /// Reads what is there now.
    pub fn read(at: &Addresses) -> Result<Self, BoxError> {
        let mut books = Self { money: [0; SERVICES], orders: Default::default() };
        for (part, book) in books::connect(at)?.iter_mut().enumerate() {
            let record = book.read()?;
            (books.money[part], books.orders[part]) = (record.money, record.orders);
        }
        books.orders[SERVICES] = receipts::read(&at.receipts)?;
        Ok(books)
    }

    /// The highest order number that any part has.
    pub fn highest(&self) -> u64 {
        self.orders
            .iter()
            .filter_map(|orders| orders.keys().next_back())
            .max()
            .copied()
            .unwrap_or(0)
    }
}

/// Something that no instant between two requests can show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Money came into being or went away.
    Money {
        /// What each service has.
        found: [i64; SERVICES],
    },
    /// One part has other orders than most.
    Orders {
        /// Which.
        part: &'static str,
        /// What most have and it has not.
        missing: Vec<u64>,
        /// What it has and most have not.
        surplus: Vec<u64>,
    },
    /// The orders that most have are not the last ones, without a hole.
    Holes {
        /// The missing numbers.
        missing: Vec<u64>,
        /// How many there are.
        count: usize,
    },
    /// An order's file, or a service's word about it, is not what it was.
    Receipt {
        /// Where.
        part: &'static str,
        /// Which order.
        number: u64,
    },
    /// An order that was confirmed before the backup began is not there.
    Lost {
        /// The highest one that was confirmed.
        confirmed: u64,
        /// The highest one there is.
        highest: u64,
    },
}

impl Violation {
    /// The part that it blames, if it can tell.
    pub fn part(&self) -> Option<&'static str> {
        match self {
            Self::Orders { part, .. } | Self::Receipt { part, .. } => Some(part),
            Self::Money { .. } | Self::Holes { .. } | Self::Lost { .. } => None,
        }
    }
}

/// What is wrong with the books. `confirmed` is the highest order that had been answered before the
/// backup was begun: it must be in there.
pub fn judge(books: &Books, confirmed: u64) -> Vec<Violation> {
    let mut wrong = Vec::new();
    if books.money.iter().sum::<i64>() != MONEY {
        wrong.push(Violation::Money { found: books.money });
    }
    let most = most_common(&books.orders);
    for (part, orders) in PARTS.into_iter().zip(&books.orders) {
        let without = |a: &BTreeMap<u64, String>, b: &BTreeMap<u64, String>| -> Vec<u64> {
            a.keys().filter(|number| !b.contains_key(number)).copied().collect()
        };
        let (missing, surplus) = (without(most, orders), without(orders, most));
        if !(missing.is_empty() && surplus.is_empty()) {
            wrong.push(Violation::Orders { part, missing, surplus });
        }
        let odd = orders.iter().filter(|(number, hash)| receipts::hash_of(**number) != **hash);
        wrong.extend(odd.map(|(number, _)| Violation::Receipt { part, number: *number }));
    }
    let last = most.keys().next_back().copied().unwrap_or(0);
    let kept = last.saturating_sub(KEPT) + 1..=last;
    let missing: Vec<u64> = kept.clone().filter(|number| !most.contains_key(number)).collect();
    if !missing.is_empty() || most.len() as u64 != last.min(KEPT) {
        wrong.push(Violation::Holes { missing, count: most.len() });
    }
    if books.highest() < confirmed {
        wrong.push(Violation::Lost { confirmed, highest: books.highest() });
    }
    wrong
}

/// The orders that the largest number of parts agree on; among equals, those of the first part.
fn most_common(all: &[BTreeMap<u64, String>]) -> &BTreeMap<u64, String> {
    let votes = |orders: &BTreeMap<u64, String>| {
        all.iter().filter(|other| other.keys().eq(orders.keys())).count()
    };
    // The last one of several is what `max_by_key` gives.
    all.iter().rev().max_by_key(|orders| votes(orders)).expect("there are parts")
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Money { found } => {
                let sum: i64 = found.iter().sum();
                write!(f, "money: {sum} in all, {:+} of what there is;", sum - MONEY)?;
                PARTS.iter().zip(found).try_for_each(|(part, money)| write!(f, " {part} {money}"))
            }
            Self::Orders { part, missing, surplus } => {
                write!(f, "orders: `{part}` lacks {} that most have", Few(missing))?;
                write!(f, ", and has {} that they lack", Few(surplus))
            }
            Self::Holes { missing, count } => {
                write!(f, "orders: {count} of them, without {}", Few(missing))
            }
            Self::Receipt { part, number } => {
                write!(f, "receipt: that of order {number} has another hash in `{part}`")
            }
            Self::Lost { confirmed, highest } => {
                write!(f, "orders: {confirmed} was confirmed, and the highest is {highest}")
            }
        }
    }
}

/// Numbers, of which only the first are told.
struct Few<'a>(&'a [u64]);

impl fmt::Display for Few<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([first, ..]) = self else { return f.write_str("none") };
        write!(f, "{} (from {first})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Books with the orders up to `last`, as an instant between two requests shows them.
    fn good(last: u64) -> Books {
        let first = last.saturating_sub(KEPT) + 1;
        let orders: BTreeMap<u64, String> =
            (first..=last).map(|number| (number, receipts::hash_of(number))).collect();
        let money = [MONEY / 4 - 5, MONEY / 4 + 7, MONEY / 4 - 7, MONEY / 4 + 5];
        Books { money, orders: std::array::from_fn(|_| orders.clone()) }
    }

    #[test]
    fn good_books_are_good() {
        assert_eq!(judge(&good(3), 3), []);
        assert_eq!(judge(&good(KEPT), 0), []);
        assert_eq!(judge(&good(KEPT + 40), KEPT), []);
    }

    #[test]
    fn money_that_is_on_its_way_is_missed() {
        let mut books = good(3);
        books.money[1] -= 9;
        let wrong = judge(&books, 3);
        assert_eq!(wrong, [Violation::Money { found: books.money }]);
        assert!(wrong[0].to_string().contains("-9"), "{}", wrong[0]);
    }

    #[test]
    fn each_part_that_lags_behind_is_named() {
        for (part, name) in PARTS.into_iter().enumerate() {
            let mut books = good(KEPT + 40);
            books.orders[part] = good(KEPT + 38).orders[part].clone();
            let wrong = judge(&books, 0);
            let missing = vec![KEPT + 39, KEPT + 40];
            let surplus = vec![39, 40];
            assert_eq!(wrong, [Violation::Orders { part: name, missing, surplus }]);
        }
    }

    #[test]
    fn a_hole_that_all_parts_have_is_found() {
        let mut books = good(9);
        for orders in &mut books.orders {
            orders.remove(&4);
        }
        assert_eq!(judge(&books, 9), [Violation::Holes { missing: vec![4], count: 8 }]);
    }

    #[test]
    fn an_order_that_should_have_gone_is_found() {
        let mut books = good(KEPT + 40);
        for orders in &mut books.orders {
            orders.insert(40, receipts::hash_of(40));
        }
        let count = KEPT as usize + 1;
        assert_eq!(judge(&books, 0), [Violation::Holes { missing: vec![], count }]);
    }

    #[test]
    fn a_file_with_other_contents_is_found() {
        let mut books = good(9);
        books.orders[SERVICES].insert(4, receipts::hash_of(5));
        assert_eq!(judge(&books, 9), [Violation::Receipt { part: "receipts", number: 4 }]);
    }

    #[test]
    fn books_of_long_ago_are_not_good_though_they_balance() {
        assert_eq!(judge(&good(9), 11), [Violation::Lost { confirmed: 11, highest: 9 }]);
        assert_eq!(judge(&good(0), 1), [Violation::Lost { confirmed: 1, highest: 0 }]);
    }
}
