//! The bank's clients: each sends one request after the other and waits for its answer, as fast as
//! it gets one. Nothing is retried. Ended, they finish what they have begun.
//!
//! Requests go through the gateway only. Of each kind there are so many:

use super::{ACCOUNTS, BoxError, SERVICES};
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tungstenite::Message;

/// Clients of each kind.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Traffic {
    /// That transfer by HTTP.
    pub transfers: u32,
    /// That order.
    pub orders: u32,
    /// Whose transfers make the bank call itself.
    pub through: u32,
    /// That transfer by WebSocket messages.
    pub sockets: u32,
}

impl Traffic {
    /// 32 clients of all kinds.
    pub const FULL: Self = Self { transfers: 10, orders: 12, through: 5, sockets: 5 };

    /// A few of each kind, who leave something of the machine to others.
    pub const LIGHT: Self = Self { transfers: 2, orders: 3, through: 1, sockets: 1 };

    /// Nobody.
    pub const NONE: Self = Self { transfers: 0, orders: 0, through: 0, sockets: 0 };
}

/// No client sends more requests, whatever it is told.
const MOST: u64 = 1_000_000;
/// Nor for longer.
const LONGEST: Duration = Duration::from_secs(2 * 60 * 60);
/// An answer that takes longer is a failure; no hold is as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of all requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Requests and messages sent.
    pub requests: u64,
    /// Of these, messages of a WebSocket.
    pub messages: u64,
    /// Of all, not answered as they should be.
    pub failed: u64,
    /// Why, for the first of each client.
    pub failures: Vec<String>,
    /// The slowest answer, in milliseconds.
    pub slowest_ms: f64,
}

impl Summary {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.messages += other.messages;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}

/// Runs them until `ended`.
pub(super) fn run(gateway: SocketAddr, traffic: Traffic, ended: &AtomicBool) -> Summary {
    let until = Instant::now() + LONGEST;
    let go_on = || !ended.load(Ordering::Relaxed) && Instant::now() < until;
    let Traffic { transfers, orders, through, sockets } = traffic;
    let kinds = [(transfers, Kind::Transfer), (orders, Kind::Order), (through, Kind::Through)];
    let kinds = kinds.into_iter().chain([(sockets, Kind::Socket)]);
    let clients = kinds.flat_map(|(count, kind)| (0..count).map(move |_| kind));
    let go_on = &go_on;
    std::thread::scope(|scope| {
        let clients: Vec<_> = clients
            .zip(1..)
            .map(|(kind, seed)| scope.spawn(move || client(gateway, kind, Dice(seed), go_on)))
            .collect();
        let mut all = Summary::default();
        for client in clients {
            all.add(client.join().unwrap_or_else(|_| Summary {
                failed: 1,
                failures: vec!["a client panicked".to_owned()],
                ..Summary::default()
            }));
        }
        all
    })
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Transfer,
    Order,
    Through,
    Socket,
}

fn client(gateway: SocketAddr, kind: Kind, mut dice: Dice, go_on: &dyn Fn() -> bool) -> Summary {
    let mut summary = Summary::default();
    let mut line = match Line::open(gateway, kind) {
        Ok(line) => line,
        Err(error) => {
            summary.failed = 1;
            summary.failures.push(format!("{kind:?}: connect: {error}"));
            return summary;
        }
    };
    while go_on() && summary.requests < MOST {
        let sent = Instant::now();
        let answer = line.ask(kind, &dice.transfer());
        summary.slowest_ms = summary.slowest_ms.max(sent.elapsed().as_secs_f64() * 1000.0);
        summary.requests += 1;
        summary.messages += u64::from(matches!(kind, Kind::Socket));
        if let Err(error) = answer {
            summary.failed += 1;
            summary.failures.push(format!("{kind:?}: {error}"));
            // The books may be out of balance for good now.
            return summary;
        }
    }
    line.close();
    summary
}

/// A client's connection.
enum Line {
    Http { agent: ureq::Agent, base: String },
    Socket(Box<tungstenite::WebSocket<TcpStream>>),
}

impl Line {
    fn open(gateway: SocketAddr, kind: Kind) -> Result<Self, BoxError> {
        if let Kind::Socket = kind {
            let stream = TcpStream::connect(gateway)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let (socket, _) = tungstenite::client(format!("ws://{gateway}/socket"), stream)
                .map_err(|error| error.to_string())?;
            return Ok(Self::Socket(Box::new(socket)));
        }
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build();
        Ok(Self::Http { agent: config.into(), base: format!("http://{gateway}") })
    }

    fn ask(&mut self, kind: Kind, transfer: &str) -> Result<(), BoxError> {
        match self {
            Self::Socket(socket) => {
                socket.send(Message::text(transfer))?;
                let answer = socket.read()?.into_text()?;
                if answer.as_str() == "done" { Ok(()) } else { Err(answer.as_str().into()) }
            }
            Self::Http { agent, base } => {
                let url = match kind {
                    Kind::Order => format!("{base}/order"),
                    Kind::Through => format!("{base}/through/{transfer}"),
                    Kind::Transfer | Kind::Socket => format!("{base}/transfer/{transfer}"),
                };
                agent.post(url).send_empty()?.body_mut().read_to_string()?;
                Ok(())
            }
        }
    }
}

impl Line {
    /// Takes leave; whether the other side heard it changes nothing.
    fn close(self) {
        if let Self::Socket(mut socket) = self
            && socket.close(None).is_ok()
        {
            while socket.read().is_ok() {}
        }
    }
}

/// Numbers without pattern, the same for the same seed (splitmix64, by Steele, Lea and Flood).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// `FROM/TO/ACCOUNT/AMOUNT`, between two services.
    pub(super) fn transfer(&mut self) -> String {
        let services = SERVICES as u64;
        let from = self.below(services);
        let to = (from + 1 + self.below(services - 1)) % services;
        let (account, amount) = (1 + self.below(ACCOUNTS.into()), 1 + self.below(999));
        format!("{from}/{to}/{account}/{amount}")
    }
}
