//! Problems, collected so that thousands of one kind do not bury a single one of another.

use std::collections::BTreeMap;

/// How many problems of one kind are told in full.
const TOLD: usize = 5;

/// What kind of problem it is, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The comparison itself shows nothing.
    NothingProven,
    /// A place is not as it must be.
    Place,
    /// An order that was there before the load began is missing.
    SeedMissing,
    /// An acknowledged order is missing.
    Missing,
    /// An order is there that came after the hold began.
    Extra,
    /// An order is in some places only.
    Torn,
    /// An order or a file holds something else than it must.
    Altered,
    /// Something is there that nobody sent.
    Unexplained,
}

/// Collects problems.
#[derive(Debug, Default)]
pub(super) struct Problems(BTreeMap<Kind, (Vec<String>, u64)>);

impl Problems {
    /// Adds one.
    pub(super) fn add(&mut self, kind: Kind, text: impl FnOnce() -> String) {
        let (told, more) = self.0.entry(kind).or_default();
        if told.len() < TOLD {
            told.push(text());
        } else {
            *more += 1;
        }
    }

    /// All of them as texts: the first few of each kind, then how many more of it there are.
    pub(super) fn told(self) -> Vec<String> {
        let mut texts = Vec::new();
        for (kind, (told, more)) in self.0 {
            texts.extend(told);
            if more > 0 {
                let what = match kind {
                    Kind::NothingProven | Kind::Place => "like this",
                    Kind::SeedMissing => "seeded orders or pictures are missing",
                    Kind::Missing => "acknowledged orders are missing",
                    Kind::Extra => "orders came after the hold began",
                    Kind::Torn => "orders are in some places only",
                    Kind::Altered => "orders or files are altered",
                    Kind::Unexplained => "orders or files cannot be explained",
                };
                texts.push(format!("and {more} more: {what}"));
            }
        }
        texts
    }
}
