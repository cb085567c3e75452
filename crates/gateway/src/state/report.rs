//! What the state machine tells about itself. Nothing here changes it.

use super::{HoldKey, Moment, Phase, State};
use crate::wire::{Ended, HoldStatus, StateName, Totals, UnfinishedRequest};
use jiff::Timestamp;

/// The part of a status that the state machine knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which state it is in.
    pub state: StateName,
    /// How many requests are in flight.
    pub in_flight: u64,
    /// How many wait.
    pub held: u64,
    /// What has been since it started.
    pub totals: Totals,
    /// The hold that is on.
    pub hold: Option<HoldStatus>,
    /// The hold that left requests refused.
    pub refusing: Option<Ended>,
    /// How the last hold ended.
    pub last_end: Option<Ended>,
}

impl<T> State<T> {
    /// How it is.
    pub fn snapshot(&self) -> Snapshot {
        let hold = match &self.phase {
            Phase::Held(hold) => Some(HoldStatus {
                id: hold.terms.id.clone(),
                purpose: hold.terms.purpose,
                began: hold.began.wall,
                drained: hold.drained,
                in_flight_at_begin: hold.in_flight_at_begin,
                held: hold.held,
                refused: hold.refused,
                max_hold_ms: hold.terms.max_hold.as_millis() as u64,
                silence_ms: hold.terms.silence.as_millis() as u64,
                refuse_on_silence: hold.refuse_on_silence,
            }),
            _ => None,
        };
        Snapshot {
            state: self.name(),
            in_flight: self.in_flight.len() as u64,
            held: self.parked.len() as u64,
            totals: self.totals,
            hold,
            refusing: match &self.phase {
                Phase::Refusing { end, .. } => Some(end.clone()),
                _ => None,
            },
            last_end: self.last_end.clone(),
        }
    }

    /// Whether what clients send may go on to the application.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Passing | Phase::Releasing { .. })
    }

    fn name(&self) -> StateName {
        match &self.phase {
            Phase::Passing => StateName::Passing,
            Phase::Held(hold) if hold.drained.is_none() => StateName::Draining,
            Phase::Held(_) => StateName::Holding,
            Phase::Releasing { .. } => StateName::Releasing,
            Phase::Refusing { .. } => StateName::Refusing,
        }
    }

    /// Requests in flight, in the order in which they passed: the oldest first.
    pub fn unfinished(&self, now: Moment) -> Vec<UnfinishedRequest> {
        let mut requests: Vec<_> = self.in_flight.values().collect();
        requests.sort_by_key(|request| request.since);
        requests
            .into_iter()
            .map(|request| UnfinishedRequest {
                method: request.about.method.to_string(),
                path: request.about.uri.path().to_owned(),
                client: request.about.client,
                age_ms: now.clock.saturating_duration_since(request.since).as_millis() as u64,
            })
            .collect()
    }

    /// When nothing was in flight any more, if the hold has come to that.
    pub fn drained(&self, key: HoldKey) -> Option<Timestamp> {
        match &self.phase {
            Phase::Held(hold) if hold.key == key => hold.drained,
            _ => None,
        }
    }

    /// Ok while the hold is on; otherwise how it ended.
    pub fn still_on(&self, key: HoldKey) -> Result<(), Ended> {
        match &self.phase {
            Phase::Held(hold) if hold.key == key => Ok(()),
            _ => Err(self.ended.get(&key).cloned().unwrap_or_else(|| {
                unreachable!("a hold that its coordinator can ask about is on or has ended")
            })),
        }
    }
}
