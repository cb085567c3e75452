//! Whether what was restored is exactly the still point, judged from outside: by the load's own
//! ledger, the evidence's two instants, and each place's own client.
//!
//! - An order that was acknowledged before the drain ended must be there.
//! - An order that was sent after the hold began must not.
//! - An order in between may be either, but in all places or in none; so must every other.
//! - What is there must hold what its number stands for, and nothing else may be there.
//!
//! The ledger's times are taken on this machine, just before sending and just after the answer, so
//! they can only widen what is undecided, never turn it. The comparison guards against being
//! empty as well: a ledger that decides nothing is a problem, not a success.

mod destroy;
mod places;
mod problems;

pub(crate) use destroy::destroy;

use super::ledger::{Ledger, OrderLine};
use super::shop::{BoxError, Past, Target, picture, picture_path};
use jiff::Timestamp;
use places::Place;
use problems::{Kind, Problems};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

/// A server's database and the client to read it with.
#[derive(Debug, Clone)]
pub(crate) struct ServerPlace {
    /// The database, and the application's account.
    pub(crate) target: Target,
    /// The path of the server's own client: `psql`, `mariadb`, `redis-cli`.
    pub(crate) client: PathBuf,
}

/// A Redis server.
#[derive(Clone)]
pub(crate) struct RedisPlace {
    /// As the application sees it.
    pub(crate) server: ServerPlace,
    /// The password of the account `default`: the application's may not flush everything.
    pub(crate) admin_password: String,
}

impl fmt::Debug for RedisPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPlace").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The stores of the shop.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    /// Its SQLite database.
    pub(crate) sqlite: Option<PathBuf>,
    /// Its PostgreSQL database.
    pub(crate) postgres: Option<ServerPlace>,
    /// Its MariaDB database.
    pub(crate) mariadb: Option<ServerPlace>,
    /// Its Redis.
    pub(crate) redis: Option<RedisPlace>,
    /// Its uploads directory.
    pub(crate) uploads: PathBuf,
    /// What it was seeded with.
    pub(crate) past: Past,
}

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Everything that is wrong, in words; the first few of each kind, then how many more.
    pub(crate) problems: Vec<String>,
    /// Orders that must be there: seeded ones and those acknowledged before the drain ended.
    pub(crate) orders_expected: u64,
    /// Orders that are in at least one place.
    pub(crate) orders_found: u64,
    /// Of the load's orders, those that must be there.
    pub(crate) acknowledged_before: u64,
    /// Of the load's orders, those that must not be there.
    pub(crate) sent_after: u64,
    /// Of the load's orders, those that may be there or not.
    pub(crate) undecided: u64,
    /// How many orders each place holds: `sqlite`, `postgresql`, `mariadb`, `redis`,
    /// `uploads`.
    pub(crate) places: BTreeMap<&'static str, u64>,
}

impl Comparison {
    /// True if what was restored is the still point.
    pub(crate) fn identical(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Compares what was restored with what the ledger says it must be. `hold_begin` and `drained` are
/// those of the backup's evidence. An error means that it could not be compared at all.
pub(crate) fn compare(
    ledger: &Ledger,
    hold_begin: Timestamp,
    drained: Timestamp,
    restored: &Restored,
) -> Result<Comparison, BoxError> {
    let mut problems = Problems::default();
    let mut places = Vec::new();
    if let Some(path) = &restored.sqlite {
        places.push(unless_unreadable("sqlite", places::sqlite(path), &mut problems));
    }
    if let Some(postgres) = &restored.postgres {
        places.push(unless_unreadable("postgresql", places::postgres(postgres), &mut problems));
    }
    if let Some(mariadb) = &restored.mariadb {
        places.push(unless_unreadable("mariadb", places::mariadb(mariadb), &mut problems));
    }
    if let Some(redis) = &restored.redis {
        let read = places::redis(&redis.server, restored.past.orders > 0);
        places.push(unless_unreadable("redis", read, &mut problems));
    }
    let (uploads, others) = places::uploads(&restored.uploads)
        .map_err(|error| format!("compare the uploads directory: {error}"))?;
    places.push(uploads);
    check_pictures(restored.past.pictures, &others, &mut problems);

    let instant = Instant { hold_begin, drained };
    let mut comparison = Comparison::default();
    let mut expected: BTreeMap<u64, Why<'_>> =
        (1..=restored.past.orders).map(|number| (number, Why::Seeded)).collect();
    for line in &ledger.orders {
        let why = instant.judge(line);
        match why {
            Why::AcknowledgedBefore(_) => comparison.acknowledged_before += 1,
            Why::SentAfter(_) => comparison.sent_after += 1,
            _ => comparison.undecided += 1,
        }
        if expected.insert(line.number, why).is_some() {
            return Err(format!("the load sent order {}, a seeded one", line.number).into());
        }
    }
    comparison.orders_expected = restored.past.orders + comparison.acknowledged_before;
    if comparison.acknowledged_before == 0 {
        problems.add(Kind::NothingProven, || {
            "the load has no order that was acknowledged before the drain ended: nothing is proven"
                .to_owned()
        });
    }

    let found: BTreeSet<u64> =
        places.iter().flat_map(|place| place.orders.keys().copied()).collect();
    comparison.orders_found = found.len() as u64;
    for number in found.iter().chain(expected.keys()).copied().collect::<BTreeSet<_>>() {
        let why = expected.get(&number).copied().unwrap_or(if ledger.complete {
            Why::Unknown
        } else {
            // It may have been sent just before the load was cut off.
            Why::Unrecorded
        });
        check_order(number, why, &instant, &places, &mut problems);
    }
    for place in &places {
        comparison.places.insert(place.name, place.orders.len() as u64);
        for oddity in &place.oddities {
            problems.add(Kind::Place, || oddity.clone());
        }
    }
    comparison.problems = problems.told();
    Ok(comparison)
}

/// A place that cannot be read holds nothing; that is a finding, not an end of the comparison.
fn unless_unreadable(
    name: &'static str,
    read: Result<Place, BoxError>,
    problems: &mut Problems,
) -> Place {
    read.unwrap_or_else(|error| {
        problems.add(Kind::Place, || format!("{name} cannot be read: {error}"));
        Place { name, ..Place::default() }
    })
}

/// The instant that is compared with.
struct Instant {
    hold_begin: Timestamp,
    drained: Timestamp,
}

/// Why an order must be there, or not.
#[derive(Debug, Clone, Copy)]
enum Why<'a> {
    Seeded,
    AcknowledgedBefore(&'a OrderLine),
    SentAfter(&'a OrderLine),
    Undecided(&'a OrderLine),
    Unrecorded,
    Unknown,
}

impl Instant {
    fn judge<'a>(&self, line: &'a OrderLine) -> Why<'a> {
        // Both clocks are cut to microseconds, so only a strict comparison is certain.
        if line.sent_us > self.hold_begin.as_microsecond() {
            Why::SentAfter(line)
        } else if line.outcome.acknowledged() && line.answered_us < self.drained.as_microsecond() {
            Why::AcknowledgedBefore(line)
        } else {
            Why::Undecided(line)
        }
    }

    fn explain(&self, why: Why<'_>) -> String {
        let before_drained =
            |line: &OrderLine| milliseconds(self.drained.as_microsecond() - line.answered_us);
        let after_hold =
            |line: &OrderLine| milliseconds(line.sent_us - self.hold_begin.as_microsecond());
        match why {
            Why::Seeded => "was there before the load began".to_owned(),
            Why::AcknowledgedBefore(line) => {
                format!("was acknowledged {} before the drain ended", before_drained(line))
            }
            Why::SentAfter(line) => format!("was sent {} after the hold began", after_hold(line)),
            Why::Undecided(line) if line.outcome.acknowledged() => format!(
                "was sent {} before the hold began and acknowledged {} after the drain ended",
                milliseconds(self.hold_begin.as_microsecond() - line.sent_us),
                milliseconds(line.answered_us - self.drained.as_microsecond()),
            ),
            Why::Undecided(line) => format!("was not acknowledged ({})", line.outcome),
            Why::Unrecorded => "is not in the load's log, which was cut off".to_owned(),
            Why::Unknown => "was sent by nobody".to_owned(),
        }
    }
}

fn check_order(
    number: u64,
    why: Why<'_>,
    instant: &Instant,
    places: &[Place],
    problems: &mut Problems,
) {
    let (present, absent): (Vec<&Place>, Vec<&Place>) =
        places.iter().partition(|place| place.orders.contains_key(&number));
    let (there, missing) = (names(&present), names(&absent));
    let torn = !present.is_empty() && !absent.is_empty();
    let told = || instant.explain(why);
    match why {
        Why::Seeded | Why::AcknowledgedBefore(_) if !absent.is_empty() => {
            let kind = match why {
                Why::Seeded => Kind::SeedMissing,
                _ => Kind::Missing,
            };
            problems
                .add(kind, || format!("order {number} {}, but is missing from {missing}", told()));
        }
        Why::SentAfter(_) if !present.is_empty() => problems
            .add(Kind::Extra, || format!("order {number} {}, but is there in {there}", told())),
        Why::Unknown => problems
            .add(Kind::Unexplained, || format!("order {number} {}, but is in {there}", told())),
        _ if torn => problems.add(Kind::Torn, || {
            format!("order {number} {} and is in {there}, but not in {missing}", told())
        }),
        _ => {}
    }
    for place in present {
        if let Some(Some(wrong)) = place.orders.get(&number) {
            problems.add(Kind::Altered, || {
                format!("order {number} is altered in {}: {wrong}", place.name)
            });
        }
    }
}

fn check_pictures(count: usize, others: &BTreeMap<PathBuf, Vec<u8>>, problems: &mut Problems) {
    let pictures: BTreeMap<PathBuf, usize> =
        (0..count).map(|index| (picture_path(index), index)).collect();
    for (path, content) in others {
        match pictures.get(path) {
            Some(index) if *content == picture(*index) => {}
            Some(_) => problems.add(Kind::Altered, || {
                format!("the file {} in uploads is altered", path.display())
            }),
            None => problems.add(Kind::Unexplained, || {
                format!("the file {} in uploads was put there by nobody", path.display())
            }),
        }
    }
    for path in pictures.keys().filter(|path| !others.contains_key(*path)) {
        problems.add(Kind::SeedMissing, || {
            format!("the file {} is missing from uploads", path.display())
        });
    }
}

fn names(places: &[&Place]) -> String {
    let names: Vec<&str> = places.iter().map(|place| place.name).collect();
    match names.as_slice() {
        [] => "no place".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

fn milliseconds(us: i64) -> String {
    let us = us.max(0);
    if us < 10_000 {
        format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
    } else {
        format!("{} ms", us / 1000)
    }
}

#[cfg(test)]
mod tests;
