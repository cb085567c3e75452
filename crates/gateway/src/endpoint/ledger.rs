//! What is known of the requests that a proxy asked about: which wait, which are in flight, of
//! which the end was reported.
//!
//! A seat at the gate stands for a request from its answer until the proxy's log says that it ended.
//! Logs come as datagrams: they get lost, twice, too early, or not at all when the proxy ends. So a
//! seat is given up after a bounded time, and what is not known then is written down: a hold is never
//! kept waiting by a lost datagram, and never claims to have seen an end that nobody reported.
//!
//! No I/O and no clock here. `S` is a seat: whoever gets one back drops it, outside any lock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stillpoint_model::manifest::EndpointEvidence;

/// A request whose end was not reported for so long is taken to have ended unseen. Until then it
/// costs every hold its label.
pub(super) const FORGET: Duration = Duration::from_hours(1);

/// More than these are not remembered: the label is lost as well with fewer.
const MOST_OVERDUE: usize = 10_000;

/// How many ends are remembered, so that a second report of one is no riddle.
const MOST_ENDED: usize = 65_536;

/// From how long before a hold on a request that passed unasked speaks against it.
const UNASKED: Duration = Duration::from_secs(60);

/// How many late pieces of news are remembered, and for how long: longer than any hold.
const MOST_NEWS: usize = 10_000;
const OLDEST_NEWS: Duration = Duration::from_hours(1);

/// How the proxy names a request.
pub(super) type Name = Arc<str>;

/// What is known of one request.
enum Known<S> {
    /// It waits at the gate.
    Asked,
    /// It passed at this time; its seat, and the token that the application was given for it.
    InFlight { since: Instant, seat: S, token: u128 },
    /// It passed at this time, and nobody said in time that it ended.
    Overdue { since: Instant },
    /// It passed, and became a connection that may stay open for days.
    Upgraded,
    /// It ended, or was refused, or its client left.
    Ended,
}

/// What came too late to be told by what is known now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Unasked,
    /// The end of an overdue request.
    Overdue,
    /// The end of an upgraded connection.
    Upgraded,
}

/// What becomes of a request that asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It has to go through the gate.
    New,
    /// It has passed already: a proxy that sends a request on within itself asks once more.
    /// With the token that is still good for it, if one is.
    Before(Option<u128>),
}

/// See the module.
pub(super) struct Books<S> {
    began: Instant,
    /// Whether ends are reported at all.
    completions: bool,
    within: Duration,
    known: HashMap<Name, Known<S>>,
    /// In the order in which they passed; some have ended since.
    passed: VecDeque<(Instant, Name)>,
    overdue: VecDeque<(Instant, Name)>,
    overdue_count: u64,
    upgraded_count: u64,
    ended: VecDeque<Name>,
    news: VecDeque<(Instant, News)>,
}

impl<S> Books<S> {
    /// Nothing is known. `within`: how long a request without a reported end is in flight.
    pub(super) fn new(now: Instant, completions: bool, within: Duration) -> Self {
        Self {
            began: now,
            completions,
            within,
            known: HashMap::new(),
            passed: VecDeque::new(),
            overdue: VecDeque::new(),
            overdue_count: 0,
            upgraded_count: 0,
            ended: VecDeque::new(),
            news: VecDeque::new(),
        }
    }

    /// A request asks whether it may begin.
    pub(super) fn ask(&mut self, name: &Name) -> Asked {
        match self.known.get(name) {
            Some(Known::InFlight { token, .. }) => return Asked::Before(Some(*token)),
            Some(Known::Overdue { .. } | Known::Upgraded) => return Asked::Before(None),
            // The same name for two requests at once is the proxy's fault; both go to the gate.
            Some(Known::Asked | Known::Ended) | None => {}
        }
        self.known.insert(name.clone(), Known::Asked);
        Asked::New
    }

    /// It passed the gate. The seat comes back if it is not needed: the request has been reported
    /// to have ended, or is an upgrade, which no drain waits for.
    pub(super) fn pass(
        &mut self,
        now: Instant,
        name: &Name,
        seat: S,
        token: u128,
        upgrade: bool,
    ) -> Option<S> {
        let Some(known @ Known::Asked) = self.known.get_mut(name) else { return Some(seat) };
        if upgrade && self.completions {
            *known = Known::Upgraded;
            self.upgraded_count += 1;
            return Some(seat);
        }
        *known = Known::InFlight { since: now, seat, token };
        self.passed.push_back((now, name.clone()));
        None
    }

    /// It was refused, or its client left while it waited.
    pub(super) fn turn_away(&mut self, name: &Name) {
        if matches!(self.known.get(name), Some(Known::Asked)) {
            self.end(name);
        }
    }

    /// The proxy says that it ended. The seat comes back if it still had one. A name that nobody
    /// asked for is of a request that passed without.
    pub(super) fn complete(&mut self, now: Instant, name: &Name) -> Option<S> {
        match self.known.get(name) {
            Some(Known::Ended) => return None,
            None => self.tell(now, News::Unasked),
            Some(Known::Overdue { .. }) => {
                self.overdue_count -= 1;
                self.tell(now, News::Overdue);
            }
            Some(Known::Upgraded) => {
                self.upgraded_count -= 1;
                self.tell(now, News::Upgraded);
            }
            Some(Known::Asked | Known::InFlight { .. }) => {}
        }
        match self.end(name) {
            Some(Known::InFlight { seat, .. }) => Some(seat),
            _ => None,
        }
    }

    /// Counts out what has been in flight for too long. The seats come back, with the time of the
    /// next look if there is one to come.
    pub(super) fn sweep(&mut self, now: Instant) -> (Vec<S>, Option<Instant>) {
        let mut seats = Vec::new();
        let next = loop {
            let Some((since, _)) = self.passed.front() else { break None };
            let due = *since + self.within;
            if due > now {
                break Some(due);
            }
            let Some((since, name)) = self.passed.pop_front() else { break None };
            let Some(known) = self.known.get_mut(&name) else { continue };
            if !matches!(known, Known::InFlight { since: passed, .. } if *passed == since) {
                continue;
            }
            let counted_out = if self.completions {
                self.overdue_count += 1;
                self.overdue.push_back((since, name));
                Some(std::mem::replace(known, Known::Overdue { since }))
            } else {
                self.known.remove(&name)
            };
            if let Some(Known::InFlight { seat, .. }) = counted_out {
                seats.push(seat);
            }
        };
        self.forget(now);
        (seats, next)
    }

    /// What speaks against a hold that began at `hold` and is about to be released.
    pub(super) fn report(&mut self, now: Instant, hold: Instant) -> EndpointEvidence {
        self.forget(now);
        let count = |what: News, from: Instant| {
            self.news.iter().filter(|(at, news)| *news == what && *at >= from).count() as u64
        };
        // An end that was reported during the hold is one of a request that was at work in it.
        EndpointEvidence {
            completions: self.completions,
            unfinished: self.overdue_count + count(News::Overdue, hold),
            upgraded: self.upgraded_count + count(News::Upgraded, hold),
            unasked: count(News::Unasked, hold.checked_sub(UNASKED).unwrap_or(self.began)),
            up_ms: hold.saturating_duration_since(self.began).as_millis() as u64,
        }
    }

    fn end(&mut self, name: &Name) -> Option<Known<S>> {
        let before = self.known.insert(name.clone(), Known::Ended);
        self.ended.push_back(name.clone());
        while self.ended.len() > MOST_ENDED {
            let Some(oldest) = self.ended.pop_front() else { break };
            // The name may have been used again since.
            if matches!(self.known.get(&oldest), Some(Known::Ended)) {
                self.known.remove(&oldest);
            }
        }
        before
    }

    fn tell(&mut self, now: Instant, news: News) {
        self.news.push_back((now, news));
        while self.news.len() > MOST_NEWS {
            self.news.pop_front();
        }
    }

    fn forget(&mut self, now: Instant) {
        let known = &self.known;
        let still_overdue = |(since, name): &(Instant, Name)| matches!(known.get(name), Some(Known::Overdue { since: at }) if at == since);
        // Those that were only slow must not push out the lost ones.
        if self.overdue.len() > 2 * MOST_OVERDUE {
            self.overdue.retain(still_overdue);
        }
        while let Some(oldest) = self.overdue.front()
            && (now.saturating_duration_since(oldest.0) > FORGET
                || self.overdue_count > MOST_OVERDUE as u64)
        {
            let Some((since, name)) = self.overdue.pop_front() else { break };
            if matches!(self.known.get(&name), Some(Known::Overdue { since: at }) if *at == since) {
                self.overdue_count -= 1;
                self.end(&name);
            }
        }
        while let Some((at, _)) = self.news.front()
            && now.saturating_duration_since(*at) > OLDEST_NEWS
        {
            self.news.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    const WITHIN: Duration = Duration::from_secs(5);

    /// Counts the seats that are taken.
    struct Seat(Rc<Cell<i32>>);

    impl Drop for Seat {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    struct World {
        books: Books<Seat>,
        now: Instant,
        seats: Rc<Cell<i32>>,
    }

    impl World {
        fn new(completions: bool) -> Self {
            let now = Instant::now();
            let mut world =
                Self { books: Books::new(now, completions, WITHIN), now, seats: Rc::default() };
            // Old enough to be believed.
            world.wait(Duration::from_secs(3600));
            world
        }

        fn wait(&mut self, time: Duration) {
            self.now += time;
            drop(self.books.sweep(self.now));
        }

        fn pass_as(&mut self, name: &str, upgrade: bool) {
            let name = Name::from(name);
            assert_eq!(self.books.ask(&name), Asked::New);
            self.seats.set(self.seats.get() + 1);
            let seat = Seat(self.seats.clone());
            drop(self.books.pass(self.now, &name, seat, 7, upgrade));
        }

        fn pass(&mut self, name: &str) {
            self.pass_as(name, false);
        }

        fn complete(&mut self, name: &str) {
            drop(self.books.complete(self.now, &Name::from(name)));
        }

        /// Of a hold that begins and is released now.
        fn report(&mut self) -> EndpointEvidence {
            self.books.report(self.now, self.now)
        }

        fn in_flight(&self) -> i32 {
            self.seats.get()
        }
    }

    #[test]
    fn a_request_is_in_flight_until_its_end_is_reported_once_or_twice() {
        let mut world = World::new(true);
        world.pass("a");
        world.pass("b");
        assert_eq!(world.in_flight(), 2);
        world.complete("a");
        world.complete("a");
        assert_eq!(world.in_flight(), 1);
        world.complete("b");
        assert_eq!(world.in_flight(), 0);
        assert_eq!(world.report().doubts(), Vec::<String>::new());
    }

    #[test]
    fn an_end_that_is_not_reported_is_counted_out_and_costs_the_label_for_an_hour() {
        let mut world = World::new(true);
        world.pass("lost");
        let almost = Duration::from_millis(4_999);
        world.wait(almost);
        assert_eq!(world.in_flight(), 1);
        world.wait(Duration::from_millis(1));
        assert_eq!(world.in_flight(), 0);
        assert_eq!(world.report().unfinished, 1);
        assert_eq!(
            world.report().doubts(),
            ["nobody reported the end of 1 request that had passed before the hold"]
        );
        world.wait(FORGET);
        assert_eq!(world.report().unfinished, 0);
    }

    #[test]
    fn an_end_that_is_reported_late_costs_only_the_hold_that_it_falls_into() {
        let mut world = World::new(true);
        world.pass("slow");
        world.wait(WITHIN);
        let hold = world.now;
        world.wait(Duration::from_millis(10));
        world.complete("slow");
        assert_eq!(world.books.report(world.now, hold).unfinished, 1);
        world.wait(Duration::from_millis(10));
        assert_eq!(world.report().unfinished, 0);
    }

    #[test]
    fn an_end_of_what_nobody_asked_for_costs_the_label_for_a_minute() {
        let mut world = World::new(true);
        world.complete("unasked");
        world.complete("unasked");
        assert_eq!(world.report().unasked, 1);
        world.wait(UNASKED + Duration::from_millis(1));
        assert_eq!(world.report().unasked, 0);
    }

    #[test]
    fn an_end_that_comes_while_the_request_still_waits_leaves_nothing_in_flight() {
        let mut world = World::new(true);
        let name = Name::from("impatient");
        assert_eq!(world.books.ask(&name), Asked::New);
        world.complete("impatient");
        world.seats.set(1);
        drop(world.books.pass(world.now, &name, Seat(world.seats.clone()), 7, false));
        assert_eq!(world.in_flight(), 0);
        assert_eq!(world.report().doubts(), Vec::<String>::new());
    }

    #[test]
    fn what_was_turned_away_is_no_riddle_when_its_end_is_reported() {
        let mut world = World::new(true);
        let name = Name::from("refused");
        assert_eq!(world.books.ask(&name), Asked::New);
        world.books.turn_away(&name);
        world.complete("refused");
        assert_eq!(world.report().unasked, 0);
    }

    #[test]
    fn a_request_that_asks_again_while_it_is_in_flight_passes_with_the_same_token() {
        let mut world = World::new(true);
        world.pass("a");
        assert_eq!(world.books.ask(&Name::from("a")), Asked::Before(Some(7)));
        world.wait(WITHIN);
        assert_eq!(world.books.ask(&Name::from("a")), Asked::Before(None));
        world.complete("a");
        assert_eq!(world.books.ask(&Name::from("a")), Asked::New);
    }

    #[test]
    fn an_upgraded_connection_is_not_waited_for_and_costs_the_label_while_it_is_open() {
        let mut world = World::new(true);
        world.pass_as("socket", true);
        assert_eq!(world.in_flight(), 0);
        world.wait(FORGET * 30);
        assert_eq!(world.report().upgraded, 1);
        world.complete("socket");
        assert_eq!(world.report().upgraded, 1, "it was open in this hold");
        world.wait(Duration::from_millis(1));
        assert_eq!(world.report().upgraded, 0);
    }

    #[test]
    fn without_completions_a_request_is_waited_for_a_moment_and_the_label_is_always_lost() {
        let mut world = World::new(false);
        world.pass("a");
        assert_eq!(world.in_flight(), 1);
        world.wait(WITHIN);
        assert_eq!(world.in_flight(), 0);
        assert!(world.books.known.is_empty());
        assert_eq!(world.report().doubts().len(), 1);
    }

    #[test]
    fn an_endpoint_that_has_just_begun_is_not_believed() {
        let mut books = Books::<Seat>::new(Instant::now(), true, WITHIN);
        let hold = books.began + Duration::from_millis(1500);
        let doubts = books.report(hold, hold).doubts();
        assert!(doubts[0].contains("begun only 1.5 s before"), "{doubts:?}");
    }

    #[test]
    fn requests_that_are_only_slow_do_not_make_a_lost_one_forgotten() {
        let mut world = World::new(true);
        world.pass("lost");
        for _ in 0..4 {
            let slow: Vec<String> = (0..MOST_OVERDUE - 1).map(|n| format!("slow {n}")).collect();
            for name in &slow {
                world.pass(name);
            }
            world.wait(WITHIN);
            for name in &slow {
                world.complete(name);
            }
        }
        world.wait(Duration::from_secs(1));
        assert_eq!(world.report().unfinished, 1);
        assert!(world.books.overdue.len() <= 2 * MOST_OVERDUE);
    }

    #[test]
    fn memory_is_bounded_whatever_is_lost() {
        let mut world = World::new(true);
        for number in 0..MOST_OVERDUE + 500 {
            world.pass(&format!("lost {number}"));
        }
        world.wait(WITHIN);
        assert_eq!(world.report().unfinished, MOST_OVERDUE as u64);
        for number in 0..MOST_ENDED + MOST_NEWS {
            world.complete(&format!("unknown {number}"));
        }
        assert!(world.books.known.len() <= MOST_OVERDUE + MOST_ENDED);
        assert_eq!(world.report().unasked, MOST_NEWS as u64);
    }
}
