//! The gate around the state machine: the one lock, the clock, and the seats of requests.
//!
//! Each transition happens under the lock; verdicts are delivered after it, so that nothing that
//! wakes up can find it taken. A [`Seat`] stands for one request from its arrival until its last
//! byte is written or its client is gone. Giving the seat up is its drop, so no path out of the
//! proxy can forget it.

use crate::state::{
    About, Arrival, Effects, HoldKey, Moment, NoHold, Refusal, RequestId, State, Terms, Token,
    Verdict,
};
use crate::upstream::Pool;
use jiff::Timestamp;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stillpoint_model::route::Route;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

pub(crate) type Ticket = oneshot::Sender<Verdict>;

/// What becomes of a request at the gate.
pub(crate) enum Entered {
    /// It may be sent to the application while it keeps the seat.
    Passed(Seat, Token),
    /// It is to be answered 503.
    Refused(Refusal),
    /// Its client went away while it waited.
    ClientGone,
}

/// The state machine with its lock, clock and listeners.
pub(crate) struct Gate {
    state: Mutex<State<Ticket>>,
    /// Ticks when a coordinator or the timer must look again.
    changed: watch::Sender<()>,
    /// What is never held.
    pass: Vec<Route>,
    pub(crate) pool: Arc<Pool>,
    upgraded: AtomicU64,
    bad_gateway: AtomicU64,
}

impl Gate {
    pub(crate) fn new(max_held: usize, pass: Vec<Route>, pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(max_held)),
            changed: watch::Sender::new(()),
            pass,
            pool,
            upgraded: AtomicU64::new(0),
            bad_gateway: AtomicU64::new(0),
        })
    }

    fn now() -> Moment {
        Moment { wall: Timestamp::now(), clock: Instant::now().into_std() }
    }

    fn lock(&self) -> MutexGuard<'_, State<Ticket>> {
        // A panic elsewhere is a bug, but no reason to fail every request from then on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state without changing it.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&State<Ticket>, Moment) -> R) -> R {
        let state = self.lock();
        look(&state, Self::now())
    }

    /// Changes the state, and does outside what follows from that.
    pub(crate) fn transition<R>(
        &self,
        change: impl FnOnce(&mut State<Ticket>, Moment) -> (R, Effects<Ticket>),
    ) -> R {
        let mut state = self.lock();
        // The time is read under the lock, so that no transition is earlier than the one before.
        let (result, effects) = change(&mut state, Self::now());
        if effects.renew_pool {
            self.pool.renew();
        }
        drop(state);
        for (ticket, verdict) in effects.verdicts {
            // When the other side is gone its seat has been or is being given up.
            let _ = ticket.send(verdict);
        }
        if effects.changed {
            self.changed.send_replace(());
        }
        result
    }

    /// Ticks when a hold may have got further or ended.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn begin_hold(&self, terms: Terms) -> Result<(HoldKey, Timestamp, u64), NoHold> {
        let mut state = self.lock();
        let now = Self::now();
        let key = state.begin_hold(now, terms)?;
        let in_flight = state.snapshot().in_flight;
        drop(state);
        self.changed.send_replace(());
        Ok((key, now.wall, in_flight))
    }

    /// Takes a request through the gate, waiting as long as there is a hold. `gone` ends when the
    /// client is known to have gone.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        about: About,
        presented: Option<Token>,
        gone: impl Future<Output = ()>,
    ) -> Entered {
        let token = random_token();
        if self.pass.iter().any(|route| route.lets_pass(about.method.as_str(), about.uri.path())) {
            self.lock().except();
            return Entered::Passed(Seat { gate: self.clone(), id: None }, token);
        }
        let mut waiting = None;
        let arrival = {
            let mut state = self.lock();
            state.arrive(Self::now(), about, presented, token, || {
                let (ticket, verdict) = oneshot::channel();
                waiting = Some(verdict);
                ticket
            })
        };
        let (Arrival::Pass(id) | Arrival::Park(id)) = arrival else {
            let Arrival::Refuse(refusal) = arrival else { unreachable!("all else was matched") };
            return Entered::Refused(refusal);
        };
        let seat = Seat { gate: self.clone(), id: Some(id) };
        let Some(verdict) = waiting else { return Entered::Passed(seat, token) };
        tokio::select! {
            biased;
            verdict = verdict => match verdict {
                Ok(Verdict::Pass) => Entered::Passed(seat, token),
                Ok(Verdict::Refuse(refusal)) => Entered::Refused(refusal),
                Err(_) => unreachable!("a ticket leaves the state with its verdict or its seat"),
            },
            () = gone => Entered::ClientGone,
        }
    }

    /// Ends holds that ran out and paces releases, for as long as the gateway lives.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        let mut changes = self.changes();
        loop {
            let next = self.lock().next_deadline();
            let due = async {
                match next {
                    Some(at) => sleep_until(Instant::from_std(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = changes.changed() => {}
                () = due => self.transition(|state, now| ((), state.expire(now))),
            }
        }
    }

    pub(crate) fn count_bad_gateway(&self) {
        self.bad_gateway.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests answered 502 so far.
    pub(crate) fn bad_gateways(&self) -> u64 {
        self.bad_gateway.load(Ordering::Relaxed)
    }

    /// Upgraded connections that are open.
    pub(crate) fn upgraded(&self) -> u64 {
        self.upgraded.load(Ordering::Relaxed)
    }

    /// Counts an upgraded connection for as long as the guard lives.
    pub(crate) fn count_upgrade(self: &Arc<Self>) -> UpgradeCount {
        self.upgraded.fetch_add(1, Ordering::Relaxed);
        UpgradeCount(self.clone())
    }
}

/// A request's place at the gate. See the module.
pub(crate) struct Seat {
    gate: Arc<Gate>,
    /// None for what is never held: nobody waits for it.
    id: Option<RequestId>,
}

impl Seat {
    /// Whether somebody may have to wait until it is given up.
    pub(crate) fn counts(&self) -> bool {
        self.id.is_some()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.gate.transition(|state, now| ((), state.leave(now, id)));
        }
    }
}

/// An upgraded connection that is open.
pub(crate) struct UpgradeCount(Arc<Gate>);

impl UpgradeCount {
    /// The gate that it counts at.
    pub(crate) fn gate(&self) -> &Gate {
        &self.0
    }
}

impl Drop for UpgradeCount {
    fn drop(&mut self) {
        self.0.upgraded.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Nobody may guess a token, since it lets a request through a hold: all of it comes from the
/// operating system, which is asked once for many.
fn random_token() -> Token {
    const SIZE: usize = size_of::<Token>();
    thread_local! {
        static BYTES: RefCell<([u8; 128 * SIZE], usize)> = const { RefCell::new(([0; 128 * SIZE], 0)) };
    }
    BYTES.with_borrow_mut(|(bytes, left)| {
        if *left == 0 {
            getrandom::fill(bytes).expect("the operating system gives random bytes");
            *left = bytes.len();
        }
        *left -= SIZE;
        let mut token = [0; SIZE];
        token.copy_from_slice(&bytes[*left..*left + SIZE]);
        Token::from_be_bytes(token)
    })
}
