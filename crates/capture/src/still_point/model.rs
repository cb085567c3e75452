//! The whole protocol under a model checker: the coordinator's machine, a gateway's, and the
//! watchdog's are the ones that run in production; around them are clients, a worker, two services,
//! time, and whatever can go wrong. Every order of events is tried, up to a horizon.
//!
//! A worker may hold a lock that a mark needs, until it is thawed and lets it go, or for ever.
//!
//! What is not modelled: that the gateway or the watchdog die (the first fails requests, and both
//! are started anew by whoever supervises them), and more than two mishaps at once.
//!
//! A checker that cannot fail proves nothing: each guard that the protocol relies on is taken away
//! in turn, and must be missed.

use super::{Ask, Bounds, Next, Reply, Step, StillPoint};
use crate::participant::Rank;
use crate::watchdog::Vigil;
use hyper::{Method, Uri};
use jiff::{SignedDuration, Timestamp};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use stillpoint_gateway::control::{Purpose, StateName};
use stillpoint_gateway::state::{About, Arrival, Effects, HoldKey, Moment, State, Terms, Verdict};

const GATEWAY: usize = 0;
const WORKER: usize = 1;
const CREW: [Rank; 4] = [Rank::Gateway, Rank::Worker, Rank::Data, Rank::Data];

const BOUNDS: Bounds = Bounds {
    drain: Duration::from_secs(1),
    step: Duration::from_secs(1),
    settle: Duration::ZERO,
    max_hold: Duration::from_secs(3),
};
const SILENCE: Duration = Duration::from_secs(2);
/// A still point that nothing disturbs from outside is over by then, whatever its parts do.
const OVER_BY: u64 = 3 + 1 + 2;
const HORIZON: u64 = OVER_BY + 1;
/// "Never", where a guard is taken away.
const NEVER: Duration = Duration::from_secs(1_000_000);

/// Which guards there are.
#[derive(Clone, Copy)]
struct Guards {
    /// The gateway lets go by itself: the longest hold, and silence.
    dead_man: bool,
    /// Somebody thaws what was frozen.
    watchdog: bool,
    /// He is told of a worker before it is frozen.
    told: bool,
    /// The coordinator's steps have deadlines.
    deadline: bool,
}

const ALL: Guards = Guards { dead_man: true, watchdog: true, told: true, deadline: true };

/// The production gateway, hashed by what it shows of itself.
#[derive(Clone, Debug)]
struct Gateway(State<u8>);

impl Gateway {
    fn shown(&self) -> String {
        format!("{:?}", self.0)
    }
}

impl Hash for Gateway {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.shown().hash(hasher);
    }
}

impl PartialEq for Gateway {
    fn eq(&self, other: &Self) -> bool {
        self.shown() == other.shown()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Process {
    Runs,
    Stopped,
    Dead,
}

/// What is under way between the coordinator and the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Call {
    Hold,
    Held,
    Release,
    Released { well: bool },
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct World {
    now: u64,
    /// Counts what was written anywhere: two marks of one version are of one instant.
    version: u8,

    coordinator: Process,
    /// It never stood still and was never cut off.
    undisturbed: bool,
    machine: StillPoint,
    ended: Option<bool>,
    orders: [VecDeque<Ask>; 4],
    /// Who does not do what it is asked any more.
    hangs: Option<usize>,

    gateway: Gateway,
    link: bool,
    call: Option<Call>,
    hold: Option<HoldKey>,
    held_since: Option<u64>,
    in_flight: Vec<u64>,
    parked: Vec<u64>,
    /// How many requests may still come. One is enough: it is either in flight when the hold begins,
    /// or it waits.
    to_come: u8,

    vigil: Vigil,
    /// The watchdog is told of the worker before it is frozen.
    is_told: bool,
    /// It knows of it.
    registered: bool,

    worker_frozen: bool,
    /// It holds a lock that a mark needs.
    locks: bool,
    /// A mark has failed for that.
    tried: bool,
    /// Its participant froze it, and counts on that.
    froze: bool,
    marks: [Option<u8>; 4],
    mishaps: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Event {
    /// A second goes by; `heard`: the coordinator's beats arrive.
    Tick {
        heard: bool,
    },
    RequestArrives,
    RequestWrites,
    RequestEnds(usize),
    WorkerWrites,
    WorkerLocks,
    WorkerUnlocks,
    /// A participant does the next thing it was asked to do.
    Acts(usize),
    /// It cannot.
    Fails(usize),
    Hangs(usize),
    GatewayServes,
    CoordinatorHears,
    CoordinatorStops,
    CoordinatorGoesOn,
    CoordinatorDies,
    LinkBreaks,
    WatchdogSeesDeath,
}

struct Protocol {
    guards: Guards,
    mishaps: u8,
}

/// Whether a participant has something to do in a step.
fn acts(who: usize, step: Step) -> bool {
    match step {
        Step::Hold | Step::Drain | Step::Release => who == GATEWAY,
        Step::Freeze | Step::Thaw => who == WORKER,
        Step::Mark => who > WORKER,
        // Aimed at once: until it freezes, that the watchdog knows changes nothing for anybody.
        Step::Aim | Step::Count => false,
    }
}

impl World {
    fn moment(&self) -> Moment {
        static START: OnceLock<Instant> = OnceLock::new();
        let since = Duration::from_secs(self.now);
        let wall = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(self.now.cast_signed());
        Moment { wall, clock: *START.get_or_init(Instant::now) + since }
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.now)
    }

    fn holds(&self) -> bool {
        matches!(self.gateway.0.snapshot().state, StateName::Draining | StateName::Holding)
    }

    /// Released requests are in flight again.
    fn deliver(&mut self, effects: Effects<u8>) {
        for (_, verdict) in effects.verdicts {
            assert_eq!(verdict, Verdict::Pass, "a backup's hold lets everyone through");
            self.in_flight.push(self.parked.remove(0));
        }
        if !self.holds() {
            self.held_since = None;
        }
    }

    /// The coordinator does what its machine says.
    fn follow(&mut self, next: Next) {
        match next {
            Next::Wait => {}
            Next::Ask(ask) => {
                let asked: Vec<usize> =
                    (0..CREW.len()).filter(|who| !self.machine.is_late(*who)).collect();
                for who in &asked {
                    self.orders[*who].push_back(ask);
                }
                self.pass_over(&asked);
            }
            Next::Over(ending) => {
                self.ended = Some(ending.failure.is_none());
                if self.machine.is_late(WORKER) && self.orders[WORKER].is_empty() {
                    self.drop_worker();
                }
                if !(0..CREW.len()).any(|who| self.machine.is_late(who)) {
                    // A thaw that failed is the watchdog's from now on, at once.
                    self.registered &= self.froze;
                    self.vigil.register(self.time(), self.registered.then_some(Duration::ZERO));
                }
            }
        }
    }

    /// Its participant gives up what it holds.
    fn drop_worker(&mut self) {
        if std::mem::take(&mut self.froze) {
            self.worker_frozen = false;
        }
    }

    /// Whoever has nothing to do in a step answers at once: that changes nothing for others, so no
    /// other order needs to be tried.
    fn pass_over(&mut self, asked: &[usize]) {
        for who in asked {
            while let Some(ask) = self.orders[*who].front() {
                if acts(*who, ask.step) {
                    break;
                }
                let counts = ask.step == Step::Count;
                if (*who, ask.step) == (WORKER, Step::Aim) && self.is_told {
                    self.registered = true;
                    let left = BOUNDS.max_hold.saturating_sub(self.time());
                    self.vigil.register(self.time(), Some(left));
                }
                self.answer(*who, if counts { Reply::Counted(None) } else { Reply::Done });
            }
        }
    }

    fn answer(&mut self, who: usize, reply: Reply) {
        let asked = self.orders[who].pop_front().expect("it was asked");
        if self.ended.is_some() {
            if who == WORKER && self.orders[who].is_empty() {
                self.drop_worker();
            }
        } else {
            let next = self.machine.answer(self.time(), who, asked.number, reply);
            self.follow(next);
        }
    }

    fn act(&mut self, who: usize) {
        let Ask { step, until, .. } = self.orders[who][0];
        let reply = match (who, step) {
            _ if self.time() >= until => Reply::Failed,
            (GATEWAY, Step::Hold | Step::Release) if !self.link => Reply::Failed,
            (GATEWAY, Step::Release) if self.hold.is_none() => Reply::Done,
            (GATEWAY, Step::Hold | Step::Release) => {
                self.call = Some(if step == Step::Hold { Call::Hold } else { Call::Release });
                return;
            }
            (GATEWAY, Step::Drain) => {
                let drained = self.hold.is_some_and(|key| self.gateway.0.drained(key).is_some());
                if self.link && drained { Reply::Done } else { Reply::Failed }
            }
            (WORKER, Step::Freeze) => {
                (self.worker_frozen, self.froze) = (true, true);
                Reply::Frozen
            }
            // It must have stood still until now.
            (WORKER, Step::Thaw) => {
                let frozen = std::mem::take(&mut self.worker_frozen);
                let froze = std::mem::take(&mut self.froze);
                if frozen || !froze { Reply::Done } else { Reply::Failed }
            }
            (2, Step::Mark) if self.locks && self.worker_frozen => {
                self.tried = true;
                Reply::Failed
            }
            (_, Step::Mark) => {
                self.marks[who] = Some(self.version);
                Reply::Done
            }
            _ => unreachable!("it has nothing to do in {step:?}"),
        };
        self.answer(who, reply);
        self.pass_over(&[who]);
    }

    /// Whether a participant can do what it was asked, or see that it cannot.
    fn can_act(&self, who: usize) -> bool {
        let Some(ask) = self.orders[who].front() else { return false };
        if self.coordinator != Process::Runs || self.hangs == Some(who) {
            return false;
        }
        if who != GATEWAY {
            return true;
        }
        match ask.step {
            // Without the link it sees that it cannot.
            Step::Hold | Step::Release => self.call.is_none(),
            Step::Drain => {
                let Some(key) = self.hold.filter(|_| self.link) else { return true };
                self.gateway.0.drained(key).is_some() || self.gateway.0.still_on(key).is_err()
            }
            _ => true,
        }
    }

    /// The gateway does what it was sent.
    fn serve(&mut self, guards: Guards) {
        let now = self.moment();
        match self.call {
            Some(Call::Hold) => {
                let (max_hold, silence) =
                    if guards.dead_man { (BOUNDS.max_hold, SILENCE) } else { (NEVER, NEVER) };
                let id = "backup".to_owned();
                let terms = Terms { id, purpose: Purpose::Backup, max_hold, silence };
                let key = self.gateway.0.begin_hold(now, terms);
                self.hold = Some(key.expect("nobody else holds the gateway"));
                self.held_since = Some(self.now);
                self.call = Some(Call::Held);
            }
            Some(Call::Release) => {
                let key = self.hold.expect("only a hold is released");
                let (account, effects) = self.gateway.0.release(now, key);
                self.call = Some(Call::Released { well: account.is_ok() });
                self.deliver(effects);
            }
            _ => unreachable!("nothing was sent"),
        }
    }

    fn lose_link(&mut self) {
        self.link = false;
        if let Some(key) = self.hold {
            let now = self.moment();
            let effects = self.gateway.0.lose(now, key);
            self.deliver(effects);
        }
        // Whoever waits for an answer sees that none comes.
        if self.call.take().is_some() {
            self.answer(GATEWAY, Reply::Failed);
            self.pass_over(&[GATEWAY]);
        }
    }

    fn tick(&mut self, guards: Guards, heard: bool) {
        self.now += 1;
        let now = self.moment();
        if heard && self.coordinator == Process::Runs {
            self.vigil.beat(self.time());
            if let Some(key) = self.hold.filter(|_| self.link) {
                let effects = self.gateway.0.beat(now, key);
                self.deliver(effects);
            }
        }
        let effects = self.gateway.0.expire(now);
        self.deliver(effects);
        if guards.watchdog && self.registered && self.vigil.look(self.time()) {
            self.worker_frozen = false;
        }
        if guards.deadline && self.coordinator == Process::Runs && self.ended.is_none() {
            self.look();
        }
    }

    fn look(&mut self) {
        let next = self.machine.look(self.time(), false);
        self.follow(next);
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        let (machine, ask) = StillPoint::begin(BOUNDS, &CREW);
        let mut vigil = Vigil::new(SILENCE);
        vigil.register(Duration::ZERO, Some(BOUNDS.max_hold));
        let mut world = World {
            now: 0,
            version: 0,
            coordinator: Process::Runs,
            undisturbed: true,
            machine,
            ended: None,
            orders: std::array::from_fn(|_| VecDeque::from([ask])),
            hangs: None,
            gateway: Gateway(State::new(10)),
            link: true,
            call: None,
            hold: None,
            held_since: None,
            in_flight: Vec::new(),
            parked: Vec::new(),
            to_come: 1,
            vigil,
            is_told: self.guards.told,
            registered: false,
            worker_frozen: false,
            locks: false,
            tried: false,
            froze: false,
            marks: [None; 4],
            mishaps: self.mishaps,
        };
        world.pass_over(&[0, 1, 2, 3]);
        vec![world]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        let runs = world.coordinator == Process::Runs;
        if world.now < HORIZON {
            events.push(Event::Tick { heard: true });
        }
        if world.to_come > 0 && world.version < 1 {
            events.push(Event::RequestArrives);
        }
        if !world.in_flight.is_empty() {
            events.push(Event::RequestEnds(0));
            if world.version < 1 {
                events.push(Event::RequestWrites);
            }
        }
        if !world.worker_frozen && world.version < 1 {
            events.push(Event::WorkerWrites);
        }
        if world.locks && !world.worker_frozen {
            events.push(Event::WorkerUnlocks);
        }
        events.extend((0..CREW.len()).filter(|who| world.can_act(*who)).map(Event::Acts));
        if matches!(world.call, Some(Call::Hold | Call::Release)) {
            events.push(Event::GatewayServes);
        }
        if runs && matches!(world.call, Some(Call::Held | Call::Released { .. })) {
            events.push(Event::CoordinatorHears);
        }
        if world.coordinator == Process::Stopped {
            events.push(Event::CoordinatorGoesOn);
        }
        if world.coordinator == Process::Dead && world.registered && self.guards.watchdog {
            events.push(Event::WatchdogSeesDeath);
        }
        if world.mishaps == 0 || world.coordinator == Process::Dead {
            return;
        }
        if world.now < HORIZON {
            events.push(Event::Tick { heard: false });
        }
        // That it takes the lock before it is to be frozen is all that matters.
        if world.orders[WORKER].front().is_some_and(|ask| ask.step == Step::Freeze) && !world.tried
        {
            events.push(Event::WorkerLocks);
        }
        if runs {
            events.push(Event::CoordinatorStops);
            let asked = (WORKER..CREW.len()).filter(|who| world.can_act(*who));
            events.extend(asked.flat_map(|who| [Event::Fails(who), Event::Hangs(who)]));
        }
        events.push(Event::CoordinatorDies);
        if world.link {
            events.push(Event::LinkBreaks);
        }
    }

    fn next_state(&self, last: &World, event: Event) -> Option<World> {
        let mut world = last.clone();
        match event {
            Event::Tick { heard } => {
                world.mishaps -= u8::from(!heard);
                world.tick(self.guards, heard);
            }
            Event::RequestArrives => {
                world.to_come -= 1;
                let now = world.moment();
                let token = u128::from(world.to_come);
                let about = About {
                    method: Method::POST,
                    uri: Uri::from_static("/"),
                    client: SocketAddr::from(([127, 0, 0, 1], 1)),
                };
                match world.gateway.0.arrive(now, about, None, token, || 1) {
                    Arrival::Pass(id) => world.in_flight.push(id),
                    Arrival::Park(id) => world.parked.push(id),
                    Arrival::Refuse(_) => return None,
                }
            }
            Event::RequestWrites | Event::WorkerWrites => world.version += 1,
            Event::RequestEnds(which) => {
                let (now, id) = (world.moment(), world.in_flight.remove(which));
                let effects = world.gateway.0.leave(now, id);
                world.deliver(effects);
            }
            Event::WorkerLocks => {
                world.mishaps -= 1;
                world.locks = true;
            }
            Event::WorkerUnlocks => world.locks = false,
            Event::Acts(who) => world.act(who),
            Event::Fails(who) => {
                world.mishaps -= 1;
                world.answer(who, Reply::Failed);
                world.pass_over(&[who]);
            }
            Event::Hangs(who) => {
                world.mishaps -= 1;
                world.hangs = Some(who);
            }
            Event::GatewayServes => world.serve(self.guards),
            Event::CoordinatorHears => {
                let heard = world.call.take().expect("an answer is there");
                let well = !matches!(heard, Call::Released { well: false });
                world.answer(GATEWAY, if well { Reply::Done } else { Reply::Failed });
                world.pass_over(&[GATEWAY]);
            }
            Event::CoordinatorStops => {
                world.mishaps -= 1;
                world.undisturbed = false;
                world.coordinator = Process::Stopped;
            }
            Event::CoordinatorGoesOn => {
                world.coordinator = Process::Runs;
                if self.guards.deadline && world.ended.is_none() {
                    world.look();
                }
            }
            Event::CoordinatorDies => {
                world.mishaps -= 1;
                world.undisturbed = false;
                world.coordinator = Process::Dead;
                world.lose_link();
            }
            Event::LinkBreaks => {
                world.mishaps -= 1;
                world.undisturbed = false;
                world.lose_link();
            }
            Event::WatchdogSeesDeath => {
                world.registered = false;
                world.worker_frozen = false;
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = |name, condition: Condition| Property {
            expectation: Expectation::Always,
            name,
            condition,
        };
        let sometimes = |name, condition: Condition| Property {
            expectation: Expectation::Sometimes,
            name,
            condition,
        };
        vec![
            always(ONE_INSTANT, |_, world: &World| {
                world.ended != Some(true)
                    || world.marks[2].is_some() && world.marks[2] == world.marks[3]
            }),
            always(FLOWS, |_, world: &World| {
                world
                    .held_since
                    .is_none_or(|since| world.time() < Duration::from_secs(since) + BOUNDS.max_hold)
            }),
            always(GOES_ON, |_, world: &World| {
                // What the watchdog has been told of, it does within its own silence.
                !world.worker_frozen
                    || world.coordinator == Process::Dead && world.registered && world.now < HORIZON
                    || world.time() <= BOUNDS.max_hold + SILENCE
            }),
            always(ENDS, |_, world: &World| {
                world.ended.is_some() || !world.undisturbed || world.now <= OVER_BY
            }),
            sometimes("a backup is good", |_, world: &World| world.ended == Some(true)),
            sometimes("a backup fails", |_, world: &World| world.ended == Some(false)),
            sometimes("a request waits", |_, world: &World| !world.parked.is_empty()),
            sometimes("a worker stands still", |_, world: &World| world.worker_frozen),
            sometimes("a mark that failed is good in the end", |_, world: &World| {
                world.tried && world.ended == Some(true)
            }),
            sometimes("a lock that is never let go fails the backup", |_, world: &World| {
                world.tried && world.locks && world.undisturbed && world.ended == Some(false)
            }),
        ]
    }
}

type Condition = fn(&Protocol, &World) -> bool;

const ONE_INSTANT: &str = "a good backup is of one instant";
const FLOWS: &str = "requests flow again in time";
const GOES_ON: &str = "what was frozen goes on in time";
const ENDS: &str = "a backup ends in time";

fn check(guards: Guards, mishaps: u8) -> impl Checker<Protocol> {
    let model = Protocol { guards, mishaps };
    model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join()
}

#[test]
fn with_all_guards_every_promise_is_kept_whatever_goes_wrong() {
    let checker = check(ALL, 1);
    println!(
        "{} states, {} of them different",
        checker.state_count(),
        checker.unique_state_count()
    );
    checker.assert_properties();
}

#[test]
fn without_the_dead_man_requests_can_wait_for_ever() {
    let checker = check(Guards { dead_man: false, ..ALL }, 1);
    checker.assert_any_discovery(FLOWS);
}

#[test]
fn without_the_watchdog_a_worker_can_stay_frozen() {
    let checker = check(Guards { watchdog: false, ..ALL }, 1);
    checker.assert_any_discovery(GOES_ON);
}

#[test]
fn a_watchdog_that_is_not_told_before_cannot_thaw() {
    let checker = check(Guards { told: false, ..ALL }, 1);
    checker.assert_any_discovery(GOES_ON);
}

#[test]
fn without_deadlines_a_backup_can_wait_for_ever() {
    let checker = check(Guards { deadline: false, ..ALL }, 1);
    checker.assert_any_discovery(ENDS);
}
