//! The state machine against a model of what it promises, over arbitrary sequences of events, and
//! its rules one by one.

use super::*;
use crate::wire::StateName;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn about() -> About {
    About {
        method: Method::POST,
        uri: Uri::from_static("/orders?card=secret"),
        client: SocketAddr::from(([127, 0, 0, 1], 4000)),
    }
}

/// A state machine, a clock that only goes when told, and what every ticket was told.
struct World {
    state: State<u64>,
    start: Instant,
    elapsed: Duration,
    /// By how much the clock that people read was set.
    set_by: jiff::SignedDuration,
    next: u64,
    verdicts: BTreeMap<u64, Verdict>,
    /// Parked requests in the order of their verdicts to pass.
    passed: Vec<u64>,
    renewed: u32,
}

impl World {
    fn new(max_held: usize) -> Self {
        Self {
            state: State::new(max_held),
            start: Instant::now(),
            elapsed: Duration::ZERO,
            set_by: jiff::SignedDuration::ZERO,
            next: 0,
            verdicts: BTreeMap::new(),
            passed: Vec::new(),
            renewed: 0,
        }
    }

    fn now(&self) -> Moment {
        let wall = Timestamp::UNIX_EPOCH + jiff::SignedDuration::try_from(self.elapsed).unwrap();
        Moment { wall: wall + self.set_by, clock: self.start + self.elapsed }
    }

    fn pass_time(&mut self, time: Duration) {
        self.elapsed += time;
        let effects = self.state.expire(self.now());
        self.apply(effects);
    }

    fn apply(&mut self, effects: Effects<u64>) {
        self.renewed += u32::from(effects.renew_pool);
        for (ticket, verdict) in effects.verdicts {
            assert_eq!(self.verdicts.insert(ticket, verdict), None, "one verdict each");
            if verdict == Verdict::Pass {
                self.passed.push(ticket);
            }
        }
    }

    /// Tickets and tokens are numbered alike.
    fn arrive(&mut self, presented: Option<Token>) -> (u64, Arrival) {
        self.next += 1;
        let number = self.next;
        let arrival =
            self.state.arrive(self.now(), about(), presented, Token::from(number), || number);
        (number, arrival)
    }

    fn pass(&mut self) -> RequestId {
        match self.arrive(None).1 {
            Arrival::Pass(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn park(&mut self) -> (u64, RequestId) {
        match self.arrive(None) {
            (ticket, Arrival::Park(id)) => (ticket, id),
            other => panic!("{other:?}"),
        }
    }

    fn leave(&mut self, id: RequestId) {
        let effects = self.state.leave(self.now(), id);
        self.apply(effects);
    }

    fn hold(&mut self) -> HoldKey {
        let now = self.now();
        self.state.begin_hold(now, terms("h")).unwrap()
    }

    fn release(&mut self, key: HoldKey) -> Result<Account, Ended> {
        let (result, effects) = self.state.release(self.now(), key);
        self.apply(effects);
        result
    }

    fn refuse_on_silence(&mut self, key: HoldKey) {
        let (result, effects) = self.state.refuse_on_silence(self.now(), key);
        result.unwrap();
        self.apply(effects);
    }

    fn name(&self) -> StateName {
        self.state.snapshot().state
    }
}

const MAX_HOLD: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(2);

fn terms(id: &str) -> Terms {
    Terms { id: id.to_owned(), purpose: Purpose::Restore, max_hold: MAX_HOLD, silence: SILENCE }
}

#[test]
fn a_clock_that_is_set_neither_ends_a_hold_nor_keeps_it_nor_changes_how_long_it_was() {
    let (hour, ms) = (jiff::SignedDuration::from_hours(1), Duration::from_millis(5));
    for set_by in [hour, -hour] {
        let mut world = World::new(10);
        let first = world.pass();
        let began = world.now().wall;
        let key = world.hold();
        let (_, waiting) = world.park();
        world.set_by = set_by;
        world.pass_time(ms);
        assert_eq!(world.name(), StateName::Draining);
        world.leave(first);
        world.set_by = -set_by;
        world.pass_time(ms);
        assert_eq!(world.name(), StateName::Holding);
        let account = world.release(key).unwrap();
        assert_eq!(account.began, began);
        assert_eq!(account.drained, Some(began + ms));
        assert_eq!(account.ended, began + 2 * ms);
        world.leave(waiting);

        // Nobody releases this one.
        let key = world.hold();
        let began = world.now().wall;
        world.set_by = set_by;
        let effects = world.state.beat(world.now(), key);
        world.apply(effects);
        world.pass_time(SILENCE.checked_sub(ms).unwrap());
        assert_eq!(world.name(), StateName::Holding);
        world.pass_time(ms);
        assert_eq!(world.name(), StateName::Passing);
        assert_eq!(world.state.still_on(key).unwrap_err().at, began + SILENCE);
    }
}

#[test]
fn a_hold_drains_then_holds_then_releases() {
    let mut world = World::new(10);
    let first = world.pass();
    let key = world.hold();
    assert_eq!(world.name(), StateName::Draining);
    let (ticket, _) = world.park();
    world.elapsed += Duration::from_millis(5);
    let drained = world.now().wall;
    world.leave(first);
    assert_eq!(world.name(), StateName::Holding);
    world.elapsed += Duration::from_millis(5);
    let account = world.release(key).unwrap();
    assert_eq!(account.drained, Some(drained));
    assert_eq!(account.ended, world.now().wall);
    assert_eq!((account.in_flight_at_begin, account.held, account.refused), (1, 1, 0));
    assert_eq!(world.verdicts[&ticket], Verdict::Pass);
    assert_eq!(world.renewed, 1, "idle connections are dropped at release");
}

#[test]
fn a_hold_with_nothing_in_flight_is_drained_at_once() {
    let mut world = World::new(10);
    let key = world.hold();
    assert_eq!(world.name(), StateName::Holding);
    assert_eq!(world.state.drained(key), Some(world.now().wall));
}

#[test]
fn a_hold_released_while_something_is_in_flight_was_not_drained() {
    let mut world = World::new(10);
    let first = world.pass();
    let key = world.hold();
    assert_eq!(world.release(key).unwrap().drained, None);
    world.leave(first);
    assert_eq!(world.name(), StateName::Passing);
}

#[test]
fn a_second_hold_is_refused_with_the_name_of_the_first() {
    let mut world = World::new(10);
    world.hold();
    let now = world.now();
    assert_eq!(world.state.begin_hold(now, terms("b")), Err(NoHold::Busy("h".to_owned())));
}

#[test]
fn max_hold_silence_and_a_lost_connection_each_release_and_are_told_to_a_late_release() {
    for reason in [EndReason::MaxHold, EndReason::Silence, EndReason::GatewayStopped] {
        let mut world = World::new(10);
        let key = world.hold();
        let (ticket, _) = world.park();
        match reason {
            EndReason::MaxHold => {
                while world.name() == StateName::Holding {
                    world.pass_time(SILENCE / 4);
                    let effects = world.state.beat(world.now(), key);
                    world.apply(effects);
                }
                assert_eq!(world.elapsed, MAX_HOLD);
            }
            EndReason::Silence => world.pass_time(SILENCE),
            _ => {
                let effects = world.state.shut_down(world.now());
                world.apply(effects);
            }
        }
        assert_eq!(world.verdicts[&ticket], Verdict::Pass, "{reason}");
        let ended = world.release(key).unwrap_err();
        assert_eq!((ended.hold.as_str(), ended.reason), ("h", reason));
        assert_eq!(world.state.snapshot().totals.ran_out, 1);
    }
    let mut world = World::new(10);
    let key = world.hold();
    let (ticket, _) = world.park();
    let effects = world.state.lose(world.now(), key);
    world.apply(effects);
    assert_eq!(world.verdicts[&ticket], Verdict::Pass);
    assert_eq!(world.state.snapshot().last_end.unwrap().reason, EndReason::ConnectionLost);
}

#[test]
fn a_hold_that_is_overdue_has_ended_even_if_no_timer_said_so() {
    for overdue in [SILENCE, MAX_HOLD] {
        let mut world = World::new(10);
        let key = world.hold();
        world.elapsed += overdue;
        let effects = world.state.beat(world.now(), key);
        world.apply(effects);
        assert!(world.state.still_on(key).is_err(), "a late beat revives nothing");

        let mut world = World::new(10);
        let key = world.hold();
        world.elapsed += overdue;
        assert!(world.state.check(world.now(), key).0.is_err());

        let mut world = World::new(10);
        let key = world.hold();
        world.elapsed += overdue;
        assert!(world.release(key).is_err());
    }
}

#[test]
fn the_release_of_an_earlier_hold_leaves_a_later_one_alone() {
    let mut world = World::new(10);
    let first = world.hold();
    world.pass_time(SILENCE);
    let second = world.hold();
    assert!(world.release(first).is_err());
    assert_eq!(world.name(), StateName::Holding);
    assert!(world.release(second).is_ok());
}

#[test]
fn after_refuse_on_silence_a_lost_coordinator_leaves_503_until_reopen() {
    let mut world = World::new(10);
    let key = world.hold();
    let (ticket, _) = world.park();
    world.refuse_on_silence(key);
    let effects = world.state.lose(world.now(), key);
    world.apply(effects);
    let refusal = Refusal { why: RefusedFor::RestoreUnfinished, retry_after: RETRY_WHEN_REFUSING };
    assert_eq!(world.verdicts[&ticket], Verdict::Refuse(refusal));
    assert_eq!(world.arrive(None).1, Arrival::Refuse(refusal));
    assert_eq!(world.name(), StateName::Refusing);
    world.pass_time(MAX_HOLD * 100);
    assert_eq!(world.name(), StateName::Refusing, "no timeout ends it");

    let now = world.now();
    assert_eq!(world.state.begin_hold(now, terms("b")), Err(NoHold::Busy("h".to_owned())));
    let (other, effects) = world.state.reopen(now, "another");
    world.apply(effects);
    assert_eq!(other, Err("h".to_owned()));
    for _ in 0..2 {
        let (reopened, effects) = world.state.reopen(now, "h");
        world.apply(effects);
        assert_eq!(reopened, Ok(()));
    }
    world.pass();
}

#[test]
fn a_late_release_opens_what_its_own_hold_left_refusing_and_says_that_it_ran_out() {
    let mut world = World::new(10);
    let key = world.hold();
    world.refuse_on_silence(key);
    world.pass_time(MAX_HOLD);
    assert_eq!(world.name(), StateName::Refusing);
    assert_eq!(world.release(key).unwrap_err().reason, EndReason::MaxHold);
    world.pass();
}

#[test]
fn reopening_does_not_end_a_hold_whose_coordinator_is_there() {
    let mut world = World::new(10);
    world.hold();
    let (result, effects) = world.state.reopen(world.now(), "h");
    world.apply(effects);
    assert_eq!(result, Err("h".to_owned()));
    assert_eq!(world.name(), StateName::Holding);
}

#[test]
fn a_request_that_carries_a_token_of_one_in_flight_passes_while_draining() {
    let mut world = World::new(10);
    let (token, arrival) = world.arrive(None);
    let Arrival::Pass(outer) = arrival else { panic!() };
    world.hold();
    let Arrival::Pass(inner) = world.arrive(Some(Token::from(token))).1 else { panic!() };
    assert!(matches!(world.arrive(Some(999)).1, Arrival::Park(_)), "an unknown token waits");
    world.leave(inner);
    assert_eq!(world.name(), StateName::Draining);
    world.leave(outer);
    assert_eq!(world.name(), StateName::Holding);
    let again = world.arrive(Some(Token::from(token))).1;
    assert!(matches!(again, Arrival::Park(_)), "its request has ended, and so has the token");
}

#[test]
fn the_token_of_a_parked_request_lets_nothing_through() {
    let mut world = World::new(10);
    world.hold();
    let (ticket, _) = world.park();
    assert!(matches!(world.arrive(Some(Token::from(ticket))).1, Arrival::Park(_)));
}

#[test]
fn more_than_max_held_are_refused_and_told_when_the_hold_must_end() {
    let mut world = World::new(2);
    let key = world.hold();
    world.park();
    let (_, gone) = world.park();
    world.elapsed += Duration::from_secs(1);
    let refusal = Refusal { why: RefusedFor::TooManyHeld, retry_after: Duration::from_secs(29) };
    assert_eq!(world.arrive(None).1, Arrival::Refuse(refusal));
    world.leave(gone);
    world.park();
    let account = world.release(key).unwrap();
    assert_eq!((account.held, account.refused), (3, 1));
}

#[test]
fn release_goes_in_batches_in_the_order_of_arrival_and_newcomers_queue_behind() {
    let mut world = World::new(1000);
    let key = world.hold();
    let parked: Vec<_> = (0..BATCH * 2 + 5).map(|_| world.park()).collect();
    world.release(key).unwrap();
    assert_eq!(world.passed.len(), BATCH);
    assert_eq!(world.name(), StateName::Releasing);
    let newcomer = world.park();
    // The whole first batch has been answered: the second goes at once.
    for (_, id) in &parked[..BATCH] {
        world.leave(*id);
    }
    assert_eq!(world.passed.len(), BATCH * 2);
    // The second is slow: the third goes by the clock.
    world.pass_time(PACE);
    assert_eq!(world.name(), StateName::Passing);
    let order: Vec<_> = parked.iter().chain([&newcomer]).map(|(ticket, _)| *ticket).collect();
    assert_eq!(world.passed, order);
}

#[test]
fn a_hold_that_begins_during_a_release_keeps_the_rest_waiting() {
    let mut world = World::new(1000);
    let first = world.hold();
    for _ in 0..BATCH + 3 {
        world.park();
    }
    world.release(first).unwrap();
    let second = world.hold();
    world.pass_time(PACE);
    assert_eq!(world.passed.len(), BATCH);
    let account = world.release(second).unwrap();
    assert_eq!((account.held, account.drained), (3, None));
    assert_eq!(world.passed.len(), BATCH + 3);
}

#[test]
fn a_client_that_leaves_the_queue_is_neither_released_nor_counted_any_more() {
    let mut world = World::new(10);
    let key = world.hold();
    let (ticket, id) = world.park();
    world.leave(id);
    world.release(key).unwrap();
    assert_eq!(world.verdicts.get(&ticket), None);
    assert_eq!(world.state.snapshot().totals.abandoned, 1);
    assert_eq!(world.state.snapshot().in_flight, 0);
}

#[test]
fn unfinished_requests_are_named_without_their_query_the_oldest_first() {
    let mut world = World::new(10);
    world.pass();
    world.elapsed += Duration::from_millis(1500);
    world.pass();
    let names: Vec<_> =
        world.state.unfinished(world.now()).iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        ["POST /orders from 127.0.0.1:4000, 1.5 s", "POST /orders from 127.0.0.1:4000, 0.0 s"]
    );
}

#[test]
fn no_hold_begins_once_the_gateway_is_stopping() {
    let mut world = World::new(10);
    let effects = world.state.shut_down(world.now());
    world.apply(effects);
    let now = world.now();
    assert_eq!(world.state.begin_hold(now, terms("h")), Err(NoHold::Stopping));
}

#[derive(Debug, Clone)]
enum Event {
    Arrive,
    ArriveReEntrant(prop::sample::Index),
    Leave(prop::sample::Index),
    Hold,
    Beat,
    RefuseOnSilence,
    Release,
    Lose,
    Reopen,
    Time(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Arrive),
        2 => any::<prop::sample::Index>().prop_map(Event::ArriveReEntrant),
        8 => any::<prop::sample::Index>().prop_map(Event::Leave),
        2 => Just(Event::Hold),
        2 => Just(Event::Beat),
        1 => Just(Event::RefuseOnSilence),
        2 => Just(Event::Release),
        1 => Just(Event::Lose),
        1 => Just(Event::Reopen),
        2 => (1_u64..3000).prop_map(Event::Time),
    ]
}

/// What must be true after every event, whatever it was.
fn invariants(world: &World, present: &BTreeMap<RequestId, u64>) {
    let now = world.state.snapshot();
    let state = &world.state;
    match now.state {
        StateName::Passing | StateName::Refusing => assert_eq!(now.held, 0),
        StateName::Holding => assert_eq!(now.in_flight, 0),
        StateName::Draining => assert_ne!(now.in_flight, 0),
        StateName::Releasing => assert_ne!(now.held, 0),
    }
    let parked: BTreeSet<_> = state.parked.keys().copied().collect();
    let in_flight: BTreeSet<_> = state.in_flight.keys().copied().collect();
    assert!(parked.is_disjoint(&in_flight));
    assert!(parked.union(&in_flight).all(|id| present.contains_key(id)), "nothing leaks");
    assert_eq!(state.tokens.len(), in_flight.len());
    assert_eq!(state.paced, state.in_flight.values().filter(|request| request.paced).count());
    for (id, ticket) in present {
        let verdict = world.verdicts.get(ticket);
        match (parked.contains(id), in_flight.contains(id)) {
            (true, false) => assert_eq!(verdict, None),
            (false, true) => assert!(!matches!(verdict, Some(Verdict::Refuse(_)))),
            (false, false) => assert!(matches!(verdict, Some(Verdict::Refuse(_)))),
            (true, true) => unreachable!("disjoint"),
        }
    }
    assert!(world.passed.is_sorted(), "in the order of arrival");
}

proptest! {
    #[test]
    fn nothing_leaks_and_nothing_passes_a_hold_whatever_happens(
        events in prop::collection::vec(event(), 1..400),
        max_held in 1_usize..150,
    ) {
        let mut world = World::new(max_held);
        // Requests whose client is there, with their tickets.
        let mut present = BTreeMap::new();
        let mut key = None;
        for event in events {
            match event {
                Event::Arrive | Event::ArriveReEntrant(_) => {
                    let tokens: Vec<_> = world.state.in_flight.values().map(|r| r.token).collect();
                    let presented = match event {
                        Event::ArriveReEntrant(index) if !tokens.is_empty() => {
                            Some(*index.get(&tokens))
                        }
                        _ => None,
                    };
                    let before = world.name();
                    let (ticket, arrival) = world.arrive(presented);
                    match arrival {
                        Arrival::Pass(id) => {
                            prop_assert!(before == StateName::Passing || presented.is_some());
                            present.insert(id, ticket);
                        }
                        Arrival::Park(id) => { present.insert(id, ticket); }
                        Arrival::Refuse(_) => {}
                    }
                }
                Event::Leave(index) => {
                    let ids: Vec<_> = present.keys().copied().collect();
                    if !ids.is_empty() {
                        let id = *index.get(&ids);
                        present.remove(&id);
                        world.leave(id);
                    }
                }
                Event::Hold => {
                    let now = world.now();
                    if let Ok(begun) = world.state.begin_hold(now, terms("h")) {
                        if let Some(old) = key.replace(begun) {
                            let effects = world.state.lose(now, old);
                            world.apply(effects);
                        }
                        prop_assert!(world.state.still_on(begun).is_ok());
                    }
                }
                Event::Beat => if let Some(key) = key {
                    let effects = world.state.beat(world.now(), key);
                    world.apply(effects);
                },
                Event::RefuseOnSilence => if let Some(key) = key {
                    let (_, effects) = world.state.refuse_on_silence(world.now(), key);
                    world.apply(effects);
                },
                Event::Release => if let Some(key) = key.take() {
                    let on = world.state.still_on(key).is_ok();
                    let released = world.release(key);
                    prop_assert!(on || released.is_err(), "one that ran out is never released");
                    let effects = world.state.lose(world.now(), key);
                    world.apply(effects);
                },
                Event::Lose => if let Some(key) = key.take() {
                    let effects = world.state.lose(world.now(), key);
                    world.apply(effects);
                },
                Event::Reopen => {
                    let (_, effects) = world.state.reopen(world.now(), "h");
                    world.apply(effects);
                }
                Event::Time(ms) => world.pass_time(Duration::from_millis(ms)),
            }
            invariants(&world, &present);
        }

        // Whatever it came to: the coordinator goes, someone reopens, and all get through.
        if let Some(key) = key {
            let effects = world.state.lose(world.now(), key);
            world.apply(effects);
        }
        let (_, effects) = world.state.reopen(world.now(), "h");
        world.apply(effects);
        while let Some(next) = world.state.next_deadline() {
            world.pass_time(next - world.now().clock);
            invariants(&world, &present);
        }
        prop_assert_eq!(world.name(), StateName::Passing);
        for id in std::mem::take(&mut present).into_keys() {
            world.leave(id);
        }
        invariants(&world, &present);
        prop_assert_eq!(world.state.snapshot().in_flight, 0);
        prop_assert!(world.state.ended.is_empty(), "holds are forgotten with their coordinators");
    }
}

#[test]
fn a_wall_clock_that_is_set_back_or_forward_neither_ends_a_hold_nor_lengthens_it() {
    let max_hold = Duration::from_secs(10);
    let terms = Terms {
        id: "h".to_owned(),
        purpose: Purpose::Backup,
        max_hold,
        silence: Duration::from_secs(60),
    };
    let start = Instant::now();
    let noon = "2026-11-27T12:00:00Z".parse::<Timestamp>().unwrap();
    let at =
        |wall: Timestamp, seconds| Moment { wall, clock: start + Duration::from_secs(seconds) };
    let (last_year, next_year) = (
        noon - jiff::SignedDuration::from_hours(8760),
        noon + jiff::SignedDuration::from_hours(8760),
    );
    for (first, then) in [(noon, next_year), (noon, last_year), (last_year, next_year)] {
        let mut state = State::<u64>::new(1);
        let key = state.begin_hold(at(first, 0), terms.clone()).unwrap();
        assert_eq!(state.next_deadline(), Some(start + max_hold));
        let _ = state.expire(at(then, 9));
        assert!(state.still_on(key).is_ok(), "{then}");
        let _ = state.expire(at(first, 10));
        assert_eq!(state.still_on(key).unwrap_err().reason, EndReason::MaxHold, "{then}");
    }
}
