//! The participants, each on a thread of its own for as long as the backup lasts.
//!
//! A step is sent to all threads at once. Most steps are waited for, however long they take; those
//! of a still point are answered into a channel, so that whoever hangs can be left behind. A
//! participant that is left behind keeps its thread until it comes back, and is dropped there: it is
//! neither asked nor waited for any more.
//!
//! What this guards against: one participant that does not return, and keeps from being released
//! what waits for all of them.

use crate::CaptureError;
use crate::participant::{Participant, Rank};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use stillpoint_model::ids::PartName;

/// How long participants have to give up what they hold once the backup is over.
const PARTING: Duration = Duration::from_secs(10);

type Order = Box<dyn FnOnce(&mut dyn Participant) + Send>;

/// All participants.
pub(crate) struct Crew {
    seats: Vec<Seat>,
    gone: Receiver<usize>,
}

struct Seat {
    name: PartName,
    rank: Rank,
    /// None once it is left behind.
    orders: Option<Sender<Order>>,
}

/// What one participant made of an asking.
pub(crate) struct Answer<T> {
    pub(crate) who: usize,
    pub(crate) number: u32,
    pub(crate) result: Result<T, CaptureError>,
}

impl Crew {
    /// Gives each participant its thread.
    pub(crate) fn new(participants: Vec<Box<dyn Participant>>) -> Result<Self, CaptureError> {
        let (tell, gone) = mpsc::channel();
        let mut seats = Vec::new();
        for (who, mut participant) in participants.into_iter().enumerate() {
            let (name, rank) = (participant.name().clone(), participant.rank());
            let (orders, received) = mpsc::channel::<Order>();
            let tell = tell.clone();
            std::thread::Builder::new()
                .name(name.to_string())
                .spawn(move || {
                    for order in received {
                        order(participant.as_mut());
                    }
                    drop(participant);
                    // Nobody listens once those who can be waited for have gone.
                    tell.send(who).unwrap_or(());
                })
                .map_err(|e| CaptureError::new("start a participant's thread").because(e))?;
            seats.push(Seat { name, rank, orders: Some(orders) });
        }
        Ok(Self { seats, gone })
    }

    pub(crate) fn name(&self, who: usize) -> &PartName {
        &self.seats[who].name
    }

    pub(crate) fn ranks(&self) -> Vec<Rank> {
        self.seats.iter().map(|seat| seat.rank).collect()
    }

    /// One step of all participants at once, waited for. All of them take it, even where one
    /// fails; the first error in the participants' order is returned.
    pub(crate) fn all<T: Send + 'static>(
        &self,
        step: impl Fn(&mut dyn Participant) -> Result<T, CaptureError> + Send + Sync + 'static,
    ) -> Result<Vec<T>, CaptureError> {
        let (tell, answers) = mpsc::channel();
        self.ask(0, &tell, step);
        drop(tell);
        let mut all: Vec<Answer<T>> = answers.into_iter().collect();
        all.sort_by_key(|answer| answer.who);
        let done: Vec<T> = all.into_iter().map(|answer| answer.result).collect::<Result<_, _>>()?;
        if done.len() < self.seats.len() {
            return Err(CaptureError::new("a participant's thread has ended; this is a bug"));
        }
        Ok(done)
    }

    /// Sends a step to everyone who was not left behind; the answers come by `tell`, with `number`.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        number: u32,
        tell: &Sender<Answer<T>>,
        step: impl Fn(&mut dyn Participant) -> Result<T, CaptureError> + Send + Sync + 'static,
    ) {
        let step = Arc::new(step);
        for (who, seat) in self.seats.iter().enumerate() {
            let Some(orders) = &seat.orders else { continue };
            let (step, tell) = (Arc::clone(&step), tell.clone());
            let order: Order = Box::new(move |participant| {
                let result = catch_unwind(AssertUnwindSafe(|| step(participant)));
                // What the step borrowed from the backup is given back before it is answered.
                drop(step);
                let result = result.unwrap_or_else(|_| {
                    Err(CaptureError::new("a participant panicked; this is a bug"))
                });
                // Whoever asked may have gone on without this answer.
                tell.send(Answer { who, number, result }).unwrap_or(());
            });
            // A thread that has ended does not answer, and that is noticed by who asked.
            orders.send(order).unwrap_or(());
        }
    }

    /// Leaves those behind who are `late`: each gives up what it holds once it comes back.
    pub(crate) fn leave_behind(&mut self, late: impl Fn(usize) -> bool) {
        for (who, seat) in self.seats.iter_mut().enumerate() {
            if late(who) {
                seat.orders = None;
            }
        }
    }

    /// Nobody was left behind.
    pub(crate) fn is_whole(&self) -> bool {
        self.seats.iter().all(|seat| seat.orders.is_some())
    }

    /// Lets everyone give up what they hold, and waits for those who were not left behind.
    pub(crate) fn dismiss(self) {
        let Self { seats, gone } = self;
        let asked = seats.into_iter().enumerate().filter(|(_, seat)| seat.orders.is_some());
        let mut parting: BTreeMap<usize, PartName> =
            asked.map(|(who, seat)| (who, seat.name)).collect();
        let until = Instant::now() + PARTING;
        while !parting.is_empty() {
            match gone.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(who) => drop(parting.remove(&who)),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    for name in parting.values() {
                        tracing::warn!("`{name}` does not give up what it holds");
                    }
                    return;
                }
            }
        }
    }
}
