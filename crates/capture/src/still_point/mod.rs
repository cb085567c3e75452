//! The still point as a state machine: what the coordinator asks of the participants next, given
//! what they answered and how late it is. Nothing here waits, reads a clock or does I/O; times
//! come in as the time since the hold was ordered, so that a model checker can drive the very
//! function that takes backups (`model`).
//!
//! ```text
//!  Hold ▶ Drain ▶ Aim ▶ Freeze ▶ Count ⇄ (settle) ▶ Mark ▶ Count ▶ Thaw ▶ Release ▶ over
//!                  ▲                                │       │ a write in between: Mark once more
//!                  └────────── pause ◀─ Thaw ◀──────┘ Count or Mark failed while workers were frozen
//! ```
//!
//! Invariants:
//! - a step is asked only once everyone who can still answer has answered the one before;
//! - whatever fails, is late or is cancelled, what is asked next is `Thaw` and `Release`, at once;
//! - every step has a deadline, and only letting go has one beyond the longest hold; who misses one
//!   is not asked again: once it comes back it is dropped, and that gives up what it holds;
//! - a still point is good only if every participant did every step in time.
//!
//! What this guards against: a participant that hangs, and with it everybody's requests.

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use crate::participant::Rank;
use std::time::Duration;

/// How often marks are taken again when writes are seen between them.
const MARK_ROUNDS: u32 = 2;
/// How long workers have to get on, each time that they are let go since a mark failed while they
/// were frozen: the first, the second, the third. When the mark fails once more, that is the end.
const THAWED: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];
/// How often a mark is tried at most.
pub(crate) const TRIES: usize = THAWED.len() + 1;
/// How long to wait between two readings of the counters.
const SETTLE_STEP: Duration = Duration::from_millis(2);
/// How much longer than a bound of its own one has to say that it was not kept: a gateway knows
/// which requests did not finish, and that its hold ran out.
const GRACE: Duration = Duration::from_secs(1);

/// What is asked of every participant at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Stop what comes in.
    Hold,
    /// Wait until nothing is in flight.
    Drain,
    /// Look up what works by itself, and let the watchdog know.
    Aim,
    /// Stop it.
    Freeze,
    /// Read the counter of writes.
    Count,
    /// Fix the instant.
    Mark,
    /// Let go on what works by itself.
    Thaw,
    /// Let in what waits.
    Release,
}

impl Step {
    /// For messages: "it did not `hold` in time".
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Drain => "drain",
            Self::Aim => "find",
            Self::Freeze => "freeze",
            Self::Count => "read the write counter of",
            Self::Mark => "mark",
            Self::Thaw => "thaw",
            Self::Release => "release",
        }
    }
}

/// The bounds of a still point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bounds {
    /// Of the wait for requests in flight.
    pub(crate) drain: Duration,
    /// Of every other step, for each participant.
    pub(crate) step: Duration,
    /// Of the wait for counters that stand still.
    pub(crate) settle: Duration,
    /// Of the whole.
    pub(crate) max_hold: Duration,
}

/// One step, to be asked of everybody after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ask {
    /// Which asking this is. An answer to an earlier one changes nothing.
    pub(crate) number: u32,
    pub(crate) step: Step,
    pub(crate) pause: Duration,
    /// It is not begun from then on: a coordinator that was stopped and goes on must not stop
    /// others when nobody looks after them any more.
    pub(crate) until: Duration,
}

/// A participant's answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    Done,
    /// To `Freeze`: something stands still now. `Done` where nothing works that could.
    Frozen,
    /// To `Count`; `None` where there is no counter.
    Counted(Option<String>),
    Failed,
}

/// Why a still point came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Failure {
    /// A participant could not do the step.
    Failed {
        who: usize,
        step: Step,
    },
    /// It did not answer within its deadline.
    Late {
        who: usize,
        step: Step,
    },
    Cancelled,
}

/// A counter that moved between two marks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Moved {
    pub(crate) who: usize,
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
}

/// How a still point ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ending {
    /// How long the counters took to stand still.
    pub(crate) settled: Duration,
    pub(crate) mark_rounds: u32,
    /// Writes that nobody held.
    pub(crate) moved: Vec<Moved>,
    /// Whose workers stood still when the marks were taken.
    pub(crate) frozen: Vec<usize>,
    /// The first thing that went wrong; none: the marks are of one instant.
    pub(crate) failure: Option<Failure>,
}

/// What the coordinator does next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    Wait,
    Ask(Ask),
    Over(Box<Ending>),
}

/// What is known of one participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Seat {
    Answered,
    Asked,
    /// It missed a deadline.
    Late,
}

/// A still point under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StillPoint {
    bounds: Bounds,
    seats: Vec<Seat>,
    /// Some of them work by themselves.
    workers: bool,
    ask: Ask,
    /// When who has not answered is late.
    due: Duration,
    counters: Vec<Option<String>>,
    /// When settling began; none: not yet.
    settling: Option<Duration>,
    thaws: usize,
    /// What was frozen has been let go only to be frozen again.
    again: bool,
    ending: Ending,
}

impl StillPoint {
    /// Begins one among participants of these ranks.
    pub(crate) fn begin(bounds: Bounds, crew: &[Rank]) -> (Self, Ask) {
        let ask = Ask { number: 0, step: Step::Hold, pause: Duration::ZERO, until: Duration::MAX };
        let mut begun = Self {
            bounds,
            seats: vec![Seat::Answered; crew.len()],
            workers: crew.contains(&Rank::Worker),
            ask,
            due: Duration::ZERO,
            counters: vec![None; crew.len()],
            settling: None,
            thaws: 0,
            again: false,
            ending: Ending {
                settled: Duration::ZERO,
                mark_rounds: 0,
                moved: Vec::new(),
                frozen: Vec::new(),
                failure: None,
            },
        };
        begun.ask(Duration::ZERO, Step::Hold, Duration::ZERO);
        let ask = begun.ask;
        (begun, ask)
    }

    /// What is being waited for.
    pub(crate) fn step(&self) -> Step {
        self.ask.step
    }

    /// When [`StillPoint::look`] has something to do if nobody answers before.
    pub(crate) fn due(&self) -> Duration {
        self.due
    }

    /// Who has missed a deadline, and is neither asked nor waited for any more.
    pub(crate) fn is_late(&self, who: usize) -> bool {
        self.seats[who] == Seat::Late
    }

    /// One has answered the asking with this number.
    pub(crate) fn answer(&mut self, now: Duration, who: usize, number: u32, reply: Reply) -> Next {
        if number != self.ask.number || self.seats[who] != Seat::Asked {
            return Next::Wait;
        }
        self.seats[who] = Seat::Answered;
        match reply {
            Reply::Done => {}
            Reply::Frozen => self.ending.frozen.push(who),
            Reply::Counted(counter) => return self.counted(now, who, counter),
            Reply::Failed => return self.failed(now, who),
        }
        self.go_on(now)
    }

    /// Nothing was heard until now: whoever is due has missed it.
    pub(crate) fn look(&mut self, now: Duration, cancelled: bool) -> Next {
        if now >= self.due {
            let late = self.seats.iter().position(|seat| *seat == Seat::Asked);
            let who = late.expect("a step is waited for only while someone has to answer it");
            for seat in self.seats.iter_mut().filter(|seat| **seat == Seat::Asked) {
                *seat = Seat::Late;
            }
            return self.fail(now, Failure::Late { who, step: self.ask.step });
        }
        if cancelled && !self.is_letting_go() && self.ending.failure.is_none() {
            return self.fail(now, Failure::Cancelled);
        }
        Next::Wait
    }

    fn is_letting_go(&self) -> bool {
        matches!(self.ask.step, Step::Thaw | Step::Release)
    }

    fn counted(&mut self, now: Duration, who: usize, counter: Option<String>) -> Next {
        if self.counters[who] != counter {
            let from = std::mem::replace(&mut self.counters[who], counter.clone());
            self.ending.moved.push(Moved { who, from, to: counter });
        }
        self.go_on(now)
    }

    fn failed(&mut self, now: Duration, who: usize) -> Next {
        let step = self.ask.step;
        let needs_locks = matches!(step, Step::Count | Step::Mark);
        if needs_locks && !self.ending.frozen.is_empty() && self.thaws < THAWED.len() {
            // A frozen worker may hold the lock that this needs. The others end theirs first: a participant does one thing after the other.
            self.thaws += 1;
            self.again = true;
            // What was marked and counted until now lies before the thaw.
            (self.settling, self.ending.mark_rounds) = (None, 0);
            return self.ask(now, Step::Thaw, Duration::ZERO);
        }
        self.fail(now, Failure::Failed { who, step })
    }

    /// From here on everything is let go, whatever else happens.
    fn fail(&mut self, now: Duration, failure: Failure) -> Next {
        self.ending.failure.get_or_insert(failure);
        self.again = false;
        match self.ask.step {
            // The others still thaw; requests must not wait for them.
            Step::Thaw => self.ask(now, Step::Release, Duration::ZERO),
            Step::Release => self.go_on(now),
            _ => self.let_go(now),
        }
    }

    fn let_go(&mut self, now: Duration) -> Next {
        let step = if self.workers { Step::Thaw } else { Step::Release };
        self.ask(now, step, Duration::ZERO)
    }

    /// The next step, if nobody has yet to answer this one.
    fn go_on(&mut self, now: Duration) -> Next {
        if self.seats.contains(&Seat::Asked) {
            return Next::Wait;
        }
        match self.ask.step {
            Step::Release => Next::Over(Box::new(self.ending.clone())),
            Step::Thaw if std::mem::take(&mut self.again) => {
                self.ending.frozen.clear();
                self.ask(now, Step::Aim, THAWED[self.thaws - 1])
            }
            Step::Thaw => self.ask(now, Step::Release, Duration::ZERO),
            Step::Hold => self.ask(now, Step::Drain, Duration::ZERO),
            Step::Drain if self.workers => self.ask(now, Step::Aim, Duration::ZERO),
            Step::Aim => self.ask(now, Step::Freeze, Duration::ZERO),
            Step::Drain | Step::Freeze => self.ask(now, Step::Count, Duration::ZERO),
            Step::Count => self.all_counted(now),
            Step::Mark => {
                self.ending.mark_rounds += 1;
                self.ask(now, Step::Count, Duration::ZERO)
            }
        }
    }

    fn all_counted(&mut self, now: Duration) -> Next {
        let moved = !self.ending.moved.is_empty();
        if self.ending.mark_rounds > 0 {
            // Between two marks: one more, or what moved is told.
            if moved && self.ending.mark_rounds < MARK_ROUNDS {
                self.ending.moved.clear();
                return self.ask(now, Step::Mark, Duration::ZERO);
            }
            return self.let_go(now);
        }
        self.ending.moved.clear();
        let first = self.settling.is_none();
        let began = *self.settling.get_or_insert(now);
        self.ending.settled = now.saturating_sub(began);
        if first || (moved && self.ending.settled < self.bounds.settle) {
            return self.ask(now, Step::Count, SETTLE_STEP);
        }
        self.ask(now, Step::Mark, Duration::ZERO)
    }

    fn ask(&mut self, now: Duration, step: Step, pause: Duration) -> Next {
        for seat in &mut self.seats {
            if *seat != Seat::Late {
                *seat = Seat::Asked;
            }
        }
        let within = match step {
            Step::Drain => self.bounds.drain + GRACE,
            _ => self.bounds.step,
        };
        let due = now + pause + within;
        let (due, until) = match step {
            // Letting go has its time even when the longest hold is over, and is never too late.
            Step::Thaw | Step::Release => (due, Duration::MAX),
            _ => (due.min(self.bounds.max_hold + GRACE), due.min(self.bounds.max_hold)),
        };
        self.due = due;
        self.ask = Ask { number: self.ask.number + 1, step, pause, until };
        if self.seats.contains(&Seat::Asked) {
            Next::Ask(self.ask)
        } else {
            // Nobody is left to be asked.
            self.go_on(now)
        }
    }
}
