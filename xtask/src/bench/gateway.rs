//! `cargo xtask bench gateway`: the gateway beside nginx, both as a proxy before the same
//! application, in turns. Which of them goes first changes from turn to turn, so that whatever the
//! machine's other work does over time favours neither.
//!
//! All of load, proxy and application share the machine's cores, so requests a second depend on
//! what each request costs all three; the processor time of the proxy alone is given beside them.

use super::figures::{Figures, ratios};
use super::held::{self, Held};
use super::load::{self, CLIENTS};
use super::nginx::{self, ANSWERS, Nginx};
use super::processes::{Scratch, Server, bound_to_us, write};
use super::{machine, numbers, verdict};
use crate::{Failure, Outcome, soak};
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

/// Of nginx's requests a second.
const RATE_FLOOR: f64 = 0.8;
/// Shares of nginx's requests a second at which delay is measured, and how far above nginx's it may
/// be, in milliseconds. The smaller share tells a proxy that is slow from one that is overloaded.
const OPEN_LOOPS: [(f64, Option<f64>); 2] = [(0.5, Some(0.5)), (0.2, None)];
/// While requests wait.
const MEMORY_FLOOR_MIB: f64 = 300.0;

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (mut alternations, mut seconds, mut held) = (5, 3, 10_000);
    numbers(
        arguments,
        &mut [
            ("--alternations", &mut alternations),
            ("--seconds", &mut seconds),
            ("--held", &mut held),
        ],
    )?;
    let binary = soak::build().map_err(Failure::Failed)?;
    let nginx = nginx::program();
    let nginx = nginx.to_string_lossy();
    let machine = machine::describe(&[(nginx.as_ref(), "-v"), ("h2load", "--version")]);
    if machine.contains("not installed") {
        return Err(Failure::Usage(
            "this needs nginx and h2load: apt-get install nginx-light nghttp2-client".to_owned(),
        ));
    }
    let section = measure(&binary, alternations, seconds, held).map_err(Failure::Failed)?;
    println!("{machine}\n\n{section}");
    Ok(())
}

fn measure(binary: &Path, alternations: u64, seconds: u64, held: u64) -> Result<String, String> {
    let scratch = Scratch::new("bench")?;
    let application = Nginx::application(&scratch)?;
    let peer = Nginx::proxy(&scratch, application.address)?;
    let gateway = Gateway::start(binary, &scratch, application.address)?;
    // Memory first: it is that of a gateway that has done nothing else.
    let socket = scratch.path("data/run/bench.main.web.sock");
    let waiting = held::measure(&gateway.server, gateway.address, &socket, held)?;
    let pair = Pair {
        ours: (&gateway.server, gateway.address),
        theirs: (&peer.server, peer.address),
        alternations,
        seconds,
    };
    let mut section = format!(
        "{CLIENTS} clients, {alternations} turns of {seconds} s each, {} workers each. Medians \
         (least to most); ratios turn by turn.\n\n\
         | answer | | gateway | nginx | ratio | floor |\n| --- | --- | --- | --- | --- | --- |\n",
        machine::cores()
    );
    let mut peers_rates = Vec::new();
    for (path, size) in ANSWERS {
        let (rows, peers_rate) = pair.closed(path, size)?;
        section += &rows;
        peers_rates.push(peers_rate);
    }
    section.push_str(
        "\nOpen loop, 1 KiB, at shares of nginx's median above.\n\n\
         | requests/s wanted | | gateway | nginx | difference | floor |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for (share, floor) in OPEN_LOOPS {
        section += &pair.open(ANSWERS[0].0, peers_rates[0] * share, floor, &scratch)?;
    }
    section += &memory(&waiting);
    Ok(section)
}

/// The gateway and where it listens.
struct Gateway {
    server: Server,
    address: SocketAddr,
}

impl Gateway {
    fn start(binary: &Path, scratch: &Scratch, upstream: SocketAddr) -> Result<Self, String> {
        let config = scratch.path("stillpoint.yaml");
        let longest = held::LONGEST.as_secs();
        let store = scratch.path("store");
        write(
            &config,
            format!(
                "project: bench\nenvironments:\n  main:\n    type: production\n    gateways:\n      \
                 web: {{ listen: \"127.0.0.1:0\", upstream: \"http://{upstream}\", max_hold: \
                 {longest}s }}\n    mounts:\n      files: {{ path: ./application }}\nregions:\n  \
                 home:\n    locations:\n      a: {{ url: \"file://{}\" }}\n",
                store.display()
            ),
        )?;
        let mut command = bound_to_us(binary);
        command.args(["gateway", "web", "--local", "--config"]).arg(&config);
        command.arg("--data-dir").arg(scratch.path("data")).stdout(Stdio::piped());
        let mut server = Server::start("the gateway", &mut command)?;
        let mut ready = String::new();
        BufReader::new(server.stdout()?)
            .read_line(&mut ready)
            .map_err(|error| format!("hear the gateway: {error}"))?;
        let address = ready.trim().strip_prefix("ready http://").and_then(|at| at.parse().ok());
        let address = address.ok_or_else(|| format!("the gateway said `{ready}`"))?;
        Ok(Self { server, address })
    }
}

type Side<'a> = (&'a Server, SocketAddr);

/// The two that take turns.
struct Pair<'a> {
    ours: Side<'a>,
    theirs: Side<'a>,
    alternations: u64,
    seconds: u64,
}

impl Pair<'_> {
    /// As many requests as go through: the table's rows, and nginx's median rate.
    fn closed(&self, path: &str, size: usize) -> Result<(String, f64), String> {
        let (mut ours, mut theirs) = (Measured::default(), Measured::default());
        for turn in 0..self.alternations {
            if turn % 2 == 0 {
                theirs.add(self.theirs, path, self.seconds)?;
            }
            ours.add(self.ours, path, self.seconds)?;
            if turn % 2 == 1 {
                theirs.add(self.theirs, path, self.seconds)?;
            }
        }
        let rate = ratios(&ours.rates, &theirs.rates).ok_or("no turn")?;
        let cost = ratios(&ours.costs, &theirs.costs).ok_or("no turn")?;
        let size = size >> 10;
        let (our_rates, their_rates) = (all(&ours.rates)?, all(&theirs.rates)?);
        let mut rows = String::new();
        let _ = writeln!(
            rows,
            "| {size} KiB | requests/s | {our_rates:.0} | {their_rates:.0} | {rate:.2} | {RATE_FLOOR}: \
             {} |",
            verdict(rate.median() >= RATE_FLOOR)
        );
        let _ = writeln!(
            rows,
            "| {size} KiB | its CPU, µs/request | {:.0} | {:.0} | {cost:.2} | - |",
            all(&ours.costs)?,
            all(&theirs.costs)?
        );
        Ok((rows, their_rates.median()))
    }

    /// Requests at a fixed rate: the table's rows.
    fn open(
        &self,
        path: &str,
        rate: f64,
        floor: Option<f64>,
        scratch: &Scratch,
    ) -> Result<String, String> {
        let log = scratch.path("requests.log");
        let turn = |side: Side| load::open_loop(side.1, path, rate, self.seconds, &log);
        let (mut ours, mut theirs) = (Delays::default(), Delays::default());
        for number in 0..self.alternations {
            if number % 2 == 0 {
                theirs.add(turn(self.theirs)?);
            }
            ours.add(turn(self.ours)?);
            if number % 2 == 1 {
                theirs.add(turn(self.theirs)?);
            }
        }
        let more = ours.p99.iter().zip(&theirs.p99).map(|(ours, theirs)| ours - theirs);
        let more = Figures::of(more).ok_or("no turn")?;
        let floor = floor.map_or_else(
            || "-".to_owned(),
            |floor| format!("at most +{floor}: {}", verdict(more.median() <= floor)),
        );
        let (ours_p99, theirs_p99) = (all(&ours.p99)?, all(&theirs.p99)?);
        let (ours_p50, theirs_p50) = (all(&ours.p50)?, all(&theirs.p50)?);
        let (ours_rate, theirs_rate) = (all(&ours.rates)?, all(&theirs.rates)?);
        Ok(format!(
            "| {rate:.0} | p99, ms | {ours_p99:.2} | {theirs_p99:.2} | {more:.2} | {floor} |\n\
             | {rate:.0} | median, ms | {ours_p50:.2} | {theirs_p50:.2} | | - |\n\
             | {rate:.0} | requests/s reached | {ours_rate:.0} | {theirs_rate:.0} | | - |\n"
        ))
    }
}

/// One side's turns of [`Pair::closed`].
#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    costs: Vec<f64>,
}

impl Measured {
    fn add(&mut self, side: Side, path: &str, seconds: u64) -> Result<(), String> {
        // Connections and caches are those of a proxy at work.
        load::flood(side.1, path, 1)?;
        let before = side.0.cpu()?;
        let turn = load::flood(side.1, path, seconds)?;
        let used = side.0.cpu()?.saturating_sub(before);
        eprintln!("{} {path}: {:.0} requests/s", side.1, turn.rate);
        self.rates.push(turn.rate);
        self.costs.push(used.as_secs_f64() * 1e6 / turn.requests as f64);
        Ok(())
    }
}

/// One side's turns of [`Pair::open`].
#[derive(Default)]
struct Delays {
    p99: Vec<f64>,
    p50: Vec<f64>,
    rates: Vec<f64>,
}

impl Delays {
    fn add(&mut self, (turn, delays): (load::Turn, Figures)) {
        self.p99.push(delays.at_most(99));
        self.p50.push(delays.median());
        self.rates.push(turn.rate);
    }
}

fn all(measured: &[f64]) -> Result<Figures, String> {
    Figures::of(measured.iter().copied()).ok_or_else(|| "no turn".to_owned())
}

fn memory(held: &Held) -> String {
    format!(
        "\n{} requests wait at once; all were answered with 200 within {:.1} s of the release.\n\n\
         | gateway's resident memory, MiB | | floor |\n| --- | --- | --- |\n\
         | before | {:.0} | - |\n| while all wait | {:.0} | {MEMORY_FLOOR_MIB:.0}: {} |\n\
         | most, the release included | {:.0} | - |\n",
        held.requests,
        held.released_in.as_secs_f64(),
        held.before_mib,
        held.waiting_mib,
        verdict(held.waiting_mib <= MEMORY_FLOOR_MIB),
        held.most_mib
    )
}
