//! A hold that is on, from the coordinator's side.
//!
//! One thread reads what the gateway says and sends the beats; whoever calls a method writes the
//! question and waits for that thread to bring the answer. The thread ends with the connection.
//! Beats say only that this process is alive: a coordinator that is alive but stuck is ended by
//! `max_hold`.

use super::connection::{ANSWER, Connection, send};
use super::{ControlError, EndReason};
use crate::wire::{Ask, Tell};
use jiff::Timestamp;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use stillpoint_model::ids::PartName;
use stillpoint_model::manifest::GatewayEvidence;

/// A hold that was begun. Dropping it without [`Held::release`] closes the connection, and the
/// gateway ends the hold at once.
#[derive(Debug)]
pub struct Held {
    /// New requests have been parked since.
    pub began: Timestamp,
    /// Requests that were in flight then.
    pub in_flight_at_begin: u64,
    /// How long it may last: what was asked for, or the gateway's own limit.
    pub max_hold: Duration,
    /// The gateway's name.
    pub gateway: PartName,
    shared: Arc<Shared>,
    /// One question at a time, so that answers find theirs.
    asking: Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    writer: Mutex<UnixStream>,
    /// For closing both directions, whoever is writing.
    handle: UnixStream,
    news: Mutex<News>,
    arrived: Condvar,
}

/// What the gateway has said.
#[derive(Debug, Default)]
struct News {
    drained: Option<Timestamp>,
    ended: Option<(EndReason, Timestamp)>,
    answer: Option<Tell>,
    lost: Option<io::ErrorKind>,
}

impl News {
    /// An error when this hold cannot be relied on any more.
    fn intact(&self) -> Result<(), ControlError> {
        if let Some((reason, at)) = self.ended {
            return Err(ControlError::RanOut { reason, at });
        }
        match self.lost {
            Some(kind) => Err(ControlError::Lost { source: kind.into() }),
            None => Ok(()),
        }
    }
}

impl Held {
    pub(super) fn begin(
        connection: Connection,
        gateway: PartName,
        began: Timestamp,
        in_flight_at_begin: u64,
        max_hold: Duration,
        beat: Duration,
    ) -> Result<Self, ControlError> {
        let lost = |source| ControlError::Lost { source };
        let shared = Arc::new(Shared {
            writer: Mutex::new(connection.writer().map_err(lost)?),
            handle: connection.writer().map_err(lost)?,
            news: Mutex::default(),
            arrived: Condvar::new(),
        });
        let held = Self {
            began,
            in_flight_at_begin,
            max_hold,
            gateway,
            shared: shared.clone(),
            asking: Mutex::new(()),
        };
        let beat = beat.max(Duration::from_millis(1));
        thread::Builder::new()
            .name("gateway-hold".to_owned())
            .spawn(move || shared.listen(connection, beat))
            .map_err(lost)?;
        Ok(held)
    }

    /// Waits until nothing is in flight any more, and says since when. When the time is up the
    /// requests in flight are named, and the hold is still on.
    pub fn wait_drained(&self, timeout: Duration) -> Result<Timestamp, ControlError> {
        if let Some(at) = self.drained_within(timeout)? {
            return Ok(at);
        }
        let unfinished = match self.ask(&Ask::Unfinished {})? {
            Tell::Unfinished { requests, more } => {
                let mut names: Vec<_> = requests.iter().map(ToString::to_string).collect();
                if more > 0 {
                    names.push(format!("and {more} more"));
                }
                names
            }
            other => return Err(ControlError::unexpected(&other)),
        };
        // The last one may have ended just now; then the news of it is on its way.
        if unfinished.is_empty()
            && let Some(at) = self.drained_within(ANSWER)?
        {
            return Ok(at);
        }
        Err(ControlError::DrainTimeout { unfinished })
    }

    /// Waits no longer than this, and says since when nothing is in flight; none if something is.
    pub fn drained_within(&self, timeout: Duration) -> Result<Option<Timestamp>, ControlError> {
        let until = Instant::now() + timeout;
        let mut news = self.shared.news();
        loop {
            news.intact()?;
            if news.drained.is_some() {
                return Ok(news.drained);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            news = self.shared.wait(news, left);
        }
    }

    /// Asks the gateway whether this hold is still on.
    pub fn check(&self) -> Result<(), ControlError> {
        self.done(&Ask::Check {})
    }

    /// For restores, when the data begins to be exchanged: from now on a coordinator that is lost
    /// or silent, or `max_hold`, makes the gateway answer waiting and new requests with 503 and
    /// Retry-After, until [`super::Control::reopen`] or a release of this same hold.
    pub fn refuse_on_silence(&self) -> Result<(), ControlError> {
        self.done(&Ask::RefuseOnSilence {})
    }

    /// Ends the hold. [`ControlError::RanOut`] says that it had ended by itself before: nothing
    /// may be called consistent then. (A restore's gateway that was refusing is open again in that
    /// case as well.)
    pub fn release(self) -> Result<GatewayEvidence, ControlError> {
        match self.ask(&Ask::Release {})? {
            Tell::Released { evidence } => Ok(*evidence),
            Tell::ReleasedUndrained {} => Err(ControlError::Undrained),
            other => Err(ControlError::unexpected(&other)),
        }
    }

    fn done(&self, ask: &Ask) -> Result<(), ControlError> {
        match self.ask(ask)? {
            Tell::Done {} => Ok(()),
            other => Err(ControlError::unexpected(&other)),
        }
    }

    fn ask(&self, ask: &Ask) -> Result<Tell, ControlError> {
        let _one = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.say(ask)?;
        let until = Instant::now() + ANSWER;
        let mut news = self.shared.news();
        loop {
            if let Some(answer) = news.answer.take() {
                return Ok(answer);
            }
            if news.lost.is_some() {
                news.intact()?;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // A late answer must not be taken for that to a later question.
                news.lost = Some(io::ErrorKind::TimedOut);
                return Err(ControlError::NoAnswer { waited: ANSWER });
            }
            news = self.shared.wait(news, left);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Fails only if the connection is gone already, which is what is wanted.
        let _ = self.shared.handle.shutdown(Shutdown::Both);
    }
}

impl Shared {
    /// Brings news and sends beats until the connection ends.
    fn listen(&self, mut connection: Connection, beat: Duration) {
        let mut next_beat = Instant::now();
        let kind = loop {
            let wait = next_beat.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                if self.say(&Ask::Beat {}).is_err() {
                    break io::ErrorKind::BrokenPipe;
                }
                next_beat = Instant::now() + beat;
                continue;
            }
            match connection.next(wait) {
                Ok(Some(tell)) => self.bring(tell),
                Ok(None) => {}
                Err(ControlError::Lost { source }) => break source.kind(),
                Err(_) => break io::ErrorKind::InvalidData,
            }
        };
        self.news().lost.get_or_insert(kind);
        self.arrived.notify_all();
    }

    fn bring(&self, tell: Tell) {
        let mut news = self.news();
        match tell {
            Tell::Drained { at } => news.drained = Some(at),
            Tell::Ended { reason, at } => news.ended = Some((reason, at)),
            answer => {
                // The answer may overtake the news of the same thing.
                if let Tell::RanOut { reason, at } = &answer {
                    news.ended.get_or_insert((*reason, *at));
                }
                news.answer = Some(answer);
            }
        }
        self.arrived.notify_all();
    }

    fn say(&self, ask: &Ask) -> Result<(), ControlError> {
        send(&mut self.writer.lock().unwrap_or_else(PoisonError::into_inner), ask)
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, news: MutexGuard<'a, News>, left: Duration) -> MutexGuard<'a, News> {
        self.arrived.wait_timeout(news, left).unwrap_or_else(PoisonError::into_inner).0
    }
}
