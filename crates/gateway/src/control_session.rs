//! The gateway's side of one coordinator's connection. The connection is the dead-man's handle:
//! however this session ends, its hold ends with it.

use crate::endpoint::Ledger;
use crate::gate::Gate;
use crate::options::GatewayOptions;
use crate::state::{Account, HoldKey, NoHold, State, Terms};
use crate::wire::{Ask, Ended, LONGEST_LINE, MOST_NAMED, PROTOCOL, Purpose, Status, Tell};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stillpoint_model::manifest::{EndpointEvidence, GatewayEvidence};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// One coordinator's connection, and the hold that it may have.
pub(crate) struct Session {
    gate: Arc<Gate>,
    options: Arc<GatewayOptions>,
    ledger: Option<Arc<Ledger>>,
    hold: Option<CurrentHold>,
}

/// A hold that was begun on this connection. Dropping it loses the hold.
struct CurrentHold {
    gate: Arc<Gate>,
    key: HoldKey,
    id: String,
    purpose: Purpose,
    /// No later than the first request was parked.
    began: Instant,
    told_drained: bool,
    told_ended: bool,
}

impl Drop for CurrentHold {
    fn drop(&mut self) {
        let on = self.gate.look(|state, _| state.still_on(self.key).is_ok());
        self.gate.transition(|state, now| ((), state.lose(now, self.key)));
        if on {
            tracing::warn!(hold = self.id, "the coordinator is gone; its hold has ended");
        }
    }
}

impl Session {
    pub(crate) fn new(
        gate: Arc<Gate>,
        options: Arc<GatewayOptions>,
        ledger: Option<Arc<Ledger>>,
    ) -> Self {
        Self { gate, options, ledger, hold: None }
    }

    pub(crate) async fn run(mut self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        if let Err(error) = self.talk(BufReader::new(read), &mut write).await {
            tracing::debug!(%error, "a control connection broke");
        }
    }

    async fn talk(
        &mut self,
        mut read: BufReader<OwnedReadHalf>,
        write: &mut OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut changes = self.gate.changes();
        let name = self.options.name.clone();
        send(write, &Tell::Greeting { protocol: PROTOCOL, name }).await?;
        // Kept over cancelled reads, so that no half line is lost.
        let mut line = Vec::new();
        loop {
            tokio::select! {
                ended = read_line(&mut read, &mut line) => if ended? { return Ok(()) },
                _ = changes.changed() => {
                    self.announce(write).await?;
                    continue;
                }
            }
            let asked = serde_json::from_slice::<Ask>(&line);
            line.clear();
            match asked {
                Ok(ask) => {
                    if let Some(answer) = self.answer(ask).await {
                        send(write, &answer).await?;
                    }
                }
                Err(error) => {
                    // Whoever speaks another language must not keep requests waiting.
                    let why = format!("not a message of this protocol: {error}");
                    return send(write, &Tell::Refused { why }).await;
                }
            }
        }
    }

    /// Tells of what happened to the hold by itself.
    async fn announce(&mut self, write: &mut OwnedWriteHalf) -> io::Result<()> {
        let Some(hold) = &mut self.hold else { return Ok(()) };
        let (drained, on) =
            self.gate.look(|state, _| (state.drained(hold.key), state.still_on(hold.key)));
        if let Some(at) = drained
            && !hold.told_drained
        {
            hold.told_drained = true;
            tracing::info!(hold = hold.id, "nothing is in flight any more");
            send(write, &Tell::Drained { at }).await?;
        }
        if let Err(Ended { reason, at, .. }) = on
            && !hold.told_ended
        {
            hold.told_ended = true;
            tracing::warn!(hold = hold.id, %reason, "the hold has ended by itself");
            send(write, &Tell::Ended { reason, at }).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, ask: Ask) -> Option<Tell> {
        let answer = match ask {
            Ask::Status {} => Tell::Status { status: Box::new(self.status().await) },
            Ask::Reopen { hold } => {
                match self.gate.transition(|state, now| state.reopen(now, &hold)) {
                    Ok(()) => {
                        tracing::info!(hold, "open again");
                        Tell::Done {}
                    }
                    Err(hold) => Tell::Busy { hold },
                }
            }
            Ask::Hold { id, purpose, max_hold_ms, silence_ms } => self.begin(
                id,
                purpose,
                Duration::from_millis(max_hold_ms),
                Duration::from_millis(silence_ms),
            ),
            Ask::Beat {} => {
                if let Some(hold) = &self.hold {
                    self.gate.transition(|state, now| ((), state.beat(now, hold.key)));
                }
                return None;
            }
            Ask::Unfinished {} => {
                let mut requests = self.gate.look(State::unfinished);
                let more = requests.len().saturating_sub(MOST_NAMED) as u64;
                requests.truncate(MOST_NAMED);
                Tell::Unfinished { requests, more }
            }
            Ask::Check {} | Ask::RefuseOnSilence {} | Ask::Release {} => match self.hold.take() {
                None => Tell::Refused { why: "there is no hold on this connection".to_owned() },
                Some(hold) => self.about_hold(&ask, hold),
            },
        };
        Some(answer)
    }

    fn begin(
        &mut self,
        id: String,
        purpose: Purpose,
        max_hold: Duration,
        silence: Duration,
    ) -> Tell {
        if max_hold.is_zero() || silence.is_zero() {
            return Tell::Refused { why: "max_hold and silence must be more than 0".to_owned() };
        }
        let max_hold = max_hold.min(self.options.max_hold);
        // Nothing waits longer than `max_hold` in any case; so sums of times cannot overflow.
        let silence = silence.min(max_hold);
        let terms = Terms { id: id.clone(), purpose, max_hold, silence };
        let asked = Instant::now();
        match self.gate.begin_hold(terms) {
            Ok((key, began, in_flight_at_begin)) => {
                tracing::info!(hold = id, in_flight_at_begin, ?max_hold, ?silence, "holding");
                self.hold = Some(CurrentHold {
                    gate: self.gate.clone(),
                    key,
                    id,
                    purpose,
                    began: asked,
                    told_drained: false,
                    told_ended: false,
                });
                Tell::Held { began, in_flight_at_begin, max_hold_ms: max_hold.as_millis() as u64 }
            }
            Err(NoHold::Busy(hold)) => Tell::Busy { hold },
            Err(NoHold::Stopping) => Tell::Refused { why: "the gateway is stopping".to_owned() },
        }
    }

    fn about_hold(&mut self, ask: &Ask, hold: CurrentHold) -> Tell {
        let key = hold.key;
        let result = match ask {
            Ask::RefuseOnSilence {} if hold.purpose != Purpose::Restore => {
                self.hold = Some(hold);
                let why = "only a restore's hold may refuse; a backup's always releases";
                return Tell::Refused { why: why.to_owned() };
            }
            Ask::RefuseOnSilence {} => {
                self.gate.transition(|state, now| state.refuse_on_silence(now, key))
            }
            Ask::Release {} => {
                // Before the release: what the ledger hears later may be of requests after it.
                let endpoint = self.ledger.as_ref().map(|ledger| ledger.report(hold.began));
                let released = self.gate.transition(|state, now| state.release(now, key));
                return self.released(&hold, released, endpoint);
            }
            _ => self.gate.transition(|state, now| state.check(now, key)),
        };
        self.hold = Some(hold);
        match result {
            Ok(()) => Tell::Done {},
            Err(Ended { reason, at, .. }) => Tell::RanOut { reason, at },
        }
    }

    fn released(
        &self,
        hold: &CurrentHold,
        released: Result<Account, Ended>,
        endpoint: Option<EndpointEvidence>,
    ) -> Tell {
        match released {
            Ok(account) => {
                tracing::info!(
                    hold = hold.id,
                    held = account.held,
                    refused = account.refused,
                    "released"
                );
                let Some(drained) = account.drained else { return Tell::ReleasedUndrained {} };
                Tell::Released {
                    evidence: Box::new(GatewayEvidence {
                        gateway: self.options.name.clone(),
                        hold_begin: account.began,
                        drained,
                        hold_end: account.ended,
                        in_flight_at_begin: account.in_flight_at_begin,
                        held: account.held,
                        refused: account.refused,
                        excepted: account.excepted,
                        re_entrant: account.re_entrant,
                        endpoint,
                    }),
                }
            }
            Err(Ended { reason, at, .. }) => {
                tracing::warn!(hold = hold.id, %reason, "released too late");
                Tell::RanOut { reason, at }
            }
        }
    }

    async fn status(&self) -> Status {
        let upstream_reachable = self.gate.pool.reach().await.is_ok();
        let mut now = self.gate.look(|state, _| state.snapshot());
        now.totals.bad_gateway = self.gate.bad_gateways();
        Status {
            name: self.options.name.clone(),
            state: now.state,
            in_flight: now.in_flight,
            held: now.held,
            upgraded: self.gate.upgraded(),
            max_held: self.options.max_held as u64,
            max_hold_ms: self.options.max_hold.as_millis() as u64,
            upstream: self.options.upstream.to_string(),
            upstream_reachable,
            totals: now.totals,
            hold: now.hold,
            refusing: now.refusing,
            last_end: now.last_end,
        }
    }
}

/// Reads up to the end of a line; true when there is none to come.
async fn read_line(read: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<bool> {
    let room = (LONGEST_LINE - line.len()) as u64;
    read.take(room).read_until(b'\n', line).await?;
    if line.ends_with(b"\n") {
        return Ok(false);
    }
    if line.len() >= LONGEST_LINE {
        return Err(io::Error::other("a line is too long"));
    }
    Ok(true)
}

async fn send(write: &mut OwnedWriteHalf, tell: &Tell) -> io::Result<()> {
    let mut line = serde_json::to_vec(tell).map_err(io::Error::other)?;
    line.push(b'\n');
    write.write_all(&line).await
}
