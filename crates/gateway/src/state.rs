//! The hold as a state machine: every transition of the gateway is in this file, and nothing here
//! waits, reads a clock or does I/O. The time comes in as a [`Moment`]; what must happen outside
//! (wake a parked request, renew the connection pool) goes out as [`Effects`].
//!
//! ```text
//!            begin_hold              last in flight leaves
//!  Passing ─────────────▶ Draining ───────────────────────▶ Holding
//!     ▲                       │  release, max_hold, silence,   │
//!     │ queue empty           │  connection lost, shutdown     │
//!  Releasing ◀────────────────┴────────────────────────────────┤
//!     ▲                                                        │ the same, except release,
//!     └──────────── reopen, late release ◀──── Refusing ◀──────┘ after `refuse_on_silence`
//! ```
//!
//! Invariants, which the tests check over arbitrary sequences of events:
//! - a request is in exactly one place: parked, in flight, or gone; so nothing leaks and nothing is
//!   counted twice;
//! - while holding, nothing is in flight; while passing, nothing is parked;
//! - parked requests are let through in the order of their arrival, and one that arrives while
//!   earlier ones still wait queues behind them;
//! - a hold that ended by itself can never be reported as released.
//!
//! What this guards against: a request that slips between "the hold is on" and "none is in
//! flight", and so writes into a backup that claims to be consistent. Both are decided under the
//! one lock around this structure.

mod report;
#[cfg(test)]
mod tests;

use crate::wire::{EndReason, Ended, Purpose, Totals};
use hyper::{Method, Uri};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How many parked requests go through at once when a hold ends. The next batch follows when all
/// of these have been answered, or after [`PACE`], so that the application is not stampeded.
pub const BATCH: usize = 64;

/// The longest wait between two batches: a slow request must not keep others waiting.
pub const PACE: Duration = Duration::from_millis(10);

/// What clients are told to wait when a restore's hold was left behind: nobody knows how long the
/// recovery takes.
pub const RETRY_WHEN_REFUSING: Duration = Duration::from_secs(5);

/// One point in time, on the clock that people read and on the one that never jumps.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For people.
    pub wall: Timestamp,
    /// For deadlines.
    pub clock: Instant,
}

/// What names a request to a person. Never the query: it may carry secrets.
#[derive(Debug, Clone)]
pub struct About {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub uri: Uri,
    /// Who sent it.
    pub client: SocketAddr,
}

/// A request's place in the order of arrival.
pub type RequestId = u64;

/// A hold, told apart from an earlier one with the same name.
pub type HoldKey = u64;

/// The random text in a request's in-flight header, as a number.
pub type Token = u128;

/// What a parked request is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go to the application.
    Pass,
    /// Be answered 503.
    Refuse(Refusal),
}

/// Why a request was answered 503, and when it may try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: RefusedFor,
    /// When to try again.
    pub retry_after: Duration,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedFor {
    /// As many requests wait already as may.
    TooManyHeld,
    /// A restore was left unfinished.
    RestoreUnfinished,
}

/// What becomes of an arriving request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is in flight now.
    Pass(RequestId),
    /// It waits; its ticket gets the verdict.
    Park(RequestId),
    /// It is not counted at all.
    Refuse(Refusal),
}

/// What the caller must do after a transition, before it lets go of the lock where noted.
#[derive(Debug)]
#[must_use = "parked requests wait for their verdicts"]
pub struct Effects<T> {
    /// To be delivered in this order.
    pub verdicts: Vec<(T, Verdict)>,
    /// The application closed idle connections in the meantime: the pool must be renewed, under
    /// the lock, before any request passes.
    pub renew_pool: bool,
    /// The state changed in a way that the coordinator or the timer must hear of.
    pub changed: bool,
}

impl<T> Effects<T> {
    fn none() -> Self {
        Self { verdicts: Vec::new(), renew_pool: false, changed: false }
    }
}

/// What a coordinator asked for, already checked and capped.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What the hold is for.
    pub id: String,
    /// A backup or a restore.
    pub purpose: Purpose,
    /// When it ends by itself.
    pub max_hold: Duration,
    /// How long its coordinator may say nothing.
    pub silence: Duration,
}

/// Why no hold was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoHold {
    /// This one is on, or has left requests refused.
    Busy(String),
    /// The gateway is about to end.
    Stopping,
}

/// The coordinator's proof of a hold that it ended itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// From when no request passed.
    pub began: Timestamp,
    /// From when none was in flight.
    pub drained: Option<Timestamp>,
    /// When requests passed again.
    pub ended: Timestamp,
    /// How many were in flight when it began.
    pub in_flight_at_begin: u64,
    /// How many waited.
    pub held: u64,
    /// How many were refused.
    pub refused: u64,
    /// How many passed because they may.
    pub excepted: u64,
    /// How many passed because the application sent them while it served one in flight.
    pub re_entrant: u64,
}

#[derive(Debug, Clone)]
struct Hold {
    key: HoldKey,
    terms: Terms,
    began: Moment,
    drained: Option<Timestamp>,
    deadline: Instant,
    last_beat: Instant,
    refuse_on_silence: bool,
    in_flight_at_begin: u64,
    held: u64,
    refused: u64,
    excepted: u64,
    re_entrant: u64,
}

impl Hold {
    /// The time of a moment of this hold, for people. It goes on from the hold's begin by the clock
    /// that never jumps: however the other one is set meanwhile, a hold lasts as long as it lasts.
    fn wall(&self, now: Moment) -> Timestamp {
        let lasted = now.clock.saturating_duration_since(self.began.clock);
        // A hold that outlasts the calendar has no better time.
        self.began.wall.checked_add(lasted).unwrap_or(now.wall)
    }

    fn silent_from(&self) -> Instant {
        self.last_beat + self.terms.silence
    }
}

#[derive(Debug, Clone)]
enum Phase {
    Passing,
    /// Draining until `drained` is set, then holding.
    Held(Box<Hold>),
    /// The queue is being let through in batches.
    Releasing {
        next_batch: Instant,
    },
    /// A restore was left behind by this hold.
    Refusing {
        key: HoldKey,
        end: Ended,
    },
}

#[derive(Debug, Clone)]
struct InFlight {
    about: About,
    token: Token,
    since: Instant,
    /// It was parked and belongs to a batch.
    paced: bool,
}

#[derive(Debug, Clone)]
struct Parked<T> {
    about: About,
    token: Token,
    ticket: T,
}

/// The gateway's whole state. `T` is what a parked request waits on.
#[derive(Debug, Clone)]
pub struct State<T> {
    phase: Phase,
    max_held: usize,
    in_flight: BTreeMap<RequestId, InFlight>,
    tokens: HashMap<Token, RequestId>,
    parked: BTreeMap<RequestId, Parked<T>>,
    /// Released requests still in flight.
    paced: usize,
    next_request: RequestId,
    next_hold: HoldKey,
    /// How holds ended whose coordinator has not gone yet.
    ended: BTreeMap<HoldKey, Ended>,
    last_end: Option<Ended>,
    totals: Totals,
    stopping: bool,
}

impl<T> State<T> {
    /// Passing, with room for so many waiting requests.
    pub fn new(max_held: usize) -> Self {
        Self {
            phase: Phase::Passing,
            max_held,
            in_flight: BTreeMap::new(),
            tokens: HashMap::new(),
            parked: BTreeMap::new(),
            paced: 0,
            next_request: 0,
            next_hold: 0,
            ended: BTreeMap::new(),
            last_end: None,
            totals: Totals::default(),
            stopping: false,
        }
    }

    /// A request's head has been read. `presented` is the in-flight token that it carries: the
    /// application's own request while it serves one in flight must pass, or the drain never ends.
    pub fn arrive(
        &mut self,
        now: Moment,
        about: About,
        presented: Option<Token>,
        token: Token,
        ticket: impl FnOnce() -> T,
    ) -> Arrival {
        self.totals.requests += 1;
        let re_entrant = presented.is_some_and(|token| self.tokens.contains_key(&token));
        let full = self.parked.len() >= self.max_held;
        let refusal = match &mut self.phase {
            Phase::Passing => None,
            waiting if re_entrant => {
                if let Phase::Held(hold) = waiting {
                    hold.re_entrant += 1;
                }
                self.totals.re_entrant += 1;
                None
            }
            Phase::Refusing { .. } => Some(Refusal {
                why: RefusedFor::RestoreUnfinished,
                retry_after: RETRY_WHEN_REFUSING,
            }),
            Phase::Held(hold) if full => {
                hold.refused += 1;
                Some(Refusal {
                    why: RefusedFor::TooManyHeld,
                    retry_after: hold.deadline.saturating_duration_since(now.clock),
                })
            }
            Phase::Releasing { .. } if full => {
                Some(Refusal { why: RefusedFor::TooManyHeld, retry_after: PACE })
            }
            waiting => {
                if let Phase::Held(hold) = waiting {
                    hold.held += 1;
                }
                self.totals.held += 1;
                let id = self.next_id();
                self.parked.insert(id, Parked { about, token, ticket: ticket() });
                return Arrival::Park(id);
            }
        };
        if let Some(refusal) = refusal {
            self.totals.refused += 1;
            return Arrival::Refuse(refusal);
        }
        let id = self.next_id();
        self.admit(id, InFlight { about, token, since: now.clock, paced: false });
        Arrival::Pass(id)
    }

    /// A request that is never held has come. It is not in flight either.
    pub fn except(&mut self) {
        self.totals.requests += 1;
        self.totals.excepted += 1;
        if let Phase::Held(hold) = &mut self.phase {
            hold.excepted += 1;
        }
    }

    /// A request has been answered to its last byte, or its client is gone, wherever it was.
    pub fn leave(&mut self, now: Moment, id: RequestId) -> Effects<T> {
        let mut effects = Effects::none();
        if self.parked.remove(&id).is_some() {
            self.totals.abandoned += 1;
            if self.parked.is_empty() && matches!(self.phase, Phase::Releasing { .. }) {
                self.phase = Phase::Passing;
                effects.changed = true;
            }
            return effects;
        }
        let Some(request) = self.in_flight.remove(&id) else { return effects };
        self.tokens.remove(&request.token);
        if request.paced {
            self.paced -= 1;
        }
        match &mut self.phase {
            Phase::Held(hold) if self.in_flight.is_empty() && hold.drained.is_none() => {
                hold.drained = Some(hold.wall(now));
                effects.changed = true;
            }
            Phase::Releasing { .. } if self.paced == 0 => self.release_batch(now, &mut effects),
            _ => {}
        }
        effects
    }

    /// From this call on no new request passes.
    pub fn begin_hold(&mut self, now: Moment, terms: Terms) -> Result<HoldKey, NoHold> {
        if self.stopping {
            return Err(NoHold::Stopping);
        }
        match &self.phase {
            Phase::Held(hold) => return Err(NoHold::Busy(hold.terms.id.clone())),
            Phase::Refusing { end, .. } => return Err(NoHold::Busy(end.hold.clone())),
            Phase::Passing | Phase::Releasing { .. } => {}
        }
        self.next_hold += 1;
        self.totals.holds += 1;
        let in_flight = self.in_flight.len() as u64;
        self.phase = Phase::Held(Box::new(Hold {
            key: self.next_hold,
            began: now,
            drained: (in_flight == 0).then_some(now.wall),
            deadline: now.clock + terms.max_hold,
            last_beat: now.clock,
            refuse_on_silence: false,
            in_flight_at_begin: in_flight,
            // Those that still waited from the hold before wait in this one.
            held: self.parked.len() as u64,
            refused: 0,
            excepted: 0,
            re_entrant: 0,
            terms,
        }));
        Ok(self.next_hold)
    }

    /// The coordinator is alive. A beat that comes too late does not revive a hold.
    pub fn beat(&mut self, now: Moment, key: HoldKey) -> Effects<T> {
        let effects = self.expire(now);
        if let Some(hold) = self.hold_mut(key) {
            hold.last_beat = now.clock;
        }
        effects
    }

    /// Whether a hold is still on; otherwise how it ended.
    pub fn check(&mut self, now: Moment, key: HoldKey) -> (Result<(), Ended>, Effects<T>) {
        let effects = self.expire(now);
        (self.still_on(key), effects)
    }

    /// From now on this hold never ends by letting requests through, unless it is released.
    pub fn refuse_on_silence(
        &mut self,
        now: Moment,
        key: HoldKey,
    ) -> (Result<(), Ended>, Effects<T>) {
        let effects = self.expire(now);
        let on = self.still_on(key);
        if let Some(hold) = self.hold_mut(key) {
            hold.refuse_on_silence = true;
        }
        (on, effects)
    }

    /// The coordinator ends its hold. When the hold had ended by itself that is what it is told,
    /// though the refusing state that the hold may have left ends here as well.
    pub fn release(&mut self, now: Moment, key: HoldKey) -> (Result<Account, Ended>, Effects<T>) {
        let mut effects = self.expire(now);
        if let Some(hold) = self.hold_mut(key) {
            let account = Account {
                began: hold.began.wall,
                drained: hold.drained,
                ended: hold.wall(now),
                in_flight_at_begin: hold.in_flight_at_begin,
                held: hold.held,
                refused: hold.refused,
                excepted: hold.excepted,
                re_entrant: hold.re_entrant,
            };
            hold.refuse_on_silence = false;
            self.end_hold(now, EndReason::Released, &mut effects);
            return (Ok(account), effects);
        }
        if matches!(self.phase, Phase::Refusing { key: left, .. } if left == key) {
            self.open(now, &mut effects);
        }
        (Err(self.still_on(key).err().unwrap_or_else(|| unreachable!("it is not on"))), effects)
    }

    /// The coordinator's connection is gone; nothing will ask about this hold any more.
    pub fn lose(&mut self, now: Moment, key: HoldKey) -> Effects<T> {
        let mut effects = Effects::none();
        if self.hold_mut(key).is_some() {
            self.end_hold(now, EndReason::ConnectionLost, &mut effects);
        }
        self.ended.remove(&key);
        effects
    }

    /// Ends the refusing state that the hold named `id` left. Repeating it does no harm. Refused
    /// with the name of the hold that is in the way.
    pub fn reopen(&mut self, now: Moment, id: &str) -> (Result<(), String>, Effects<T>) {
        let mut effects = Effects::none();
        let result = match &self.phase {
            Phase::Passing | Phase::Releasing { .. } => Ok(()),
            Phase::Held(hold) => Err(hold.terms.id.clone()),
            Phase::Refusing { end, .. } if end.hold != id => Err(end.hold.clone()),
            Phase::Refusing { .. } => {
                self.open(now, &mut effects);
                Ok(())
            }
        };
        (result, effects)
    }

    /// The gateway is about to end: no one is left waiting, and no hold begins any more.
    pub fn shut_down(&mut self, now: Moment) -> Effects<T> {
        let mut effects = Effects::none();
        self.stopping = true;
        if matches!(self.phase, Phase::Held(_)) {
            self.end_hold(now, EndReason::GatewayStopped, &mut effects);
        }
        effects
    }

    /// Does what is due by the clock: ends a hold that ran out, lets the next batch through.
    pub fn expire(&mut self, now: Moment) -> Effects<T> {
        let mut effects = Effects::none();
        match &self.phase {
            Phase::Held(hold) if now.clock >= hold.deadline => {
                self.end_hold(now, EndReason::MaxHold, &mut effects);
            }
            Phase::Held(hold) if now.clock >= hold.silent_from() => {
                self.end_hold(now, EndReason::Silence, &mut effects);
            }
            Phase::Releasing { next_batch } if now.clock >= *next_batch => {
                self.release_batch(now, &mut effects);
            }
            _ => {}
        }
        effects
    }

    /// When [`State::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Held(hold) => Some(hold.deadline.min(hold.silent_from())),
            Phase::Releasing { next_batch } => Some(*next_batch),
            Phase::Passing | Phase::Refusing { .. } => None,
        }
    }

    fn end_hold(&mut self, now: Moment, reason: EndReason, effects: &mut Effects<T>) {
        let Phase::Held(hold) = std::mem::replace(&mut self.phase, Phase::Passing) else {
            unreachable!("only a hold that is on ends");
        };
        let end = Ended { hold: hold.terms.id.clone(), reason, at: hold.wall(now) };
        if reason != EndReason::Released {
            self.totals.ran_out += 1;
        }
        self.ended.insert(hold.key, end.clone());
        self.last_end = Some(end.clone());
        effects.changed = true;
        if hold.refuse_on_silence {
            let refusal =
                Refusal { why: RefusedFor::RestoreUnfinished, retry_after: RETRY_WHEN_REFUSING };
            self.phase = Phase::Refusing { key: hold.key, end };
            for (_, parked) in std::mem::take(&mut self.parked) {
                self.totals.refused += 1;
                effects.verdicts.push((parked.ticket, Verdict::Refuse(refusal)));
            }
        } else {
            self.open(now, effects);
        }
    }

    fn open(&mut self, now: Moment, effects: &mut Effects<T>) {
        effects.renew_pool = true;
        self.release_batch(now, effects);
    }

    fn release_batch(&mut self, now: Moment, effects: &mut Effects<T>) {
        for _ in 0..BATCH {
            let Some((id, parked)) = self.parked.pop_first() else { break };
            self.paced += 1;
            self.admit(
                id,
                InFlight {
                    about: parked.about,
                    token: parked.token,
                    since: now.clock,
                    paced: true,
                },
            );
            effects.verdicts.push((parked.ticket, Verdict::Pass));
        }
        self.phase = if self.parked.is_empty() {
            Phase::Passing
        } else {
            Phase::Releasing { next_batch: now.clock + PACE }
        };
        effects.changed = true;
    }

    fn admit(&mut self, id: RequestId, request: InFlight) {
        self.tokens.insert(request.token, id);
        self.in_flight.insert(id, request);
    }

    fn next_id(&mut self) -> RequestId {
        self.next_request += 1;
        self.next_request
    }

    fn hold_mut(&mut self, key: HoldKey) -> Option<&mut Hold> {
        match &mut self.phase {
            Phase::Held(hold) if hold.key == key => Some(hold),
            _ => None,
        }
    }
}
