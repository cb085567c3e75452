//! The rounds of `cargo xtask bench hold`: one demo that takes many backups under one load, its
//! report, and its customers' own log.
//!
//! What the same load sees without a backup is taken from the same demo: the pause before each
//! backup. So both are of the same servers and the same minute. The load's first second is left
//! out, since connections and caches are new then, which would make the yardstick too kind; a pause
//! is also shorter than most backups, which makes it too strict, if anything.

use super::figures::Figures;
use super::processes::bound_to_us;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

/// At the load's beginning, in microseconds.
const LEFT_OUT_US: u64 = 1_000_000;

/// How large the demo is, and how long it goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) backups: u64,
    /// Before each backup, a third of this.
    pub(crate) seconds: u64,
    pub(crate) orders: u64,
    pub(crate) pictures: u64,
}

/// What a demo saw.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Demo {
    pub(crate) rounds: Vec<Round>,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// What the demo says did not hold.
    pub(crate) problems: Vec<String>,
}

/// What a backup saw; times in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Round {
    pub(crate) hold: f64,
    pub(crate) drain: f64,
    pub(crate) mark: f64,
    pub(crate) settle: f64,
    /// How long after the drain each part had fixed its instant.
    pub(crate) marks: BTreeMap<String, f64>,
    /// Of requests that were answered in the pause before the backup.
    pub(crate) pause: Latencies,
    /// Of requests that were sent from the backup's beginning to its hold.
    pub(crate) prepare: Latencies,
    /// Of requests that were sent during the hold.
    pub(crate) held: Latencies,
    /// Of requests that were sent from the hold's end to the backup's.
    pub(crate) capture: Latencies,
}

impl Round {
    /// The slowest request of all that the backup can have touched.
    pub(crate) fn slowest(&self) -> f64 {
        self.prepare.slowest.max(self.held.slowest).max(self.capture.slowest)
    }
}

/// How long requests took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Latencies {
    pub(crate) median: f64,
    /// Of a hundred requests 99 were at most this slow.
    pub(crate) p99: f64,
    pub(crate) slowest: f64,
    /// How many were sent in a second.
    pub(crate) rate: f64,
}

/// Runs a demo with all services in this directory.
pub(crate) fn play(binary: &Path, keep: &Path, scale: Scale) -> Result<Demo, String> {
    let Scale { backups, seconds, orders, pictures } = scale;
    let mut command = bound_to_us(binary);
    command.args(["demo", "--services", "all", "--json"]);
    for (option, number) in [
        ("--seconds", seconds),
        ("--backups", backups),
        ("--orders", orders),
        ("--pictures", pictures),
    ] {
        command.arg(option).arg(number.to_string());
    }
    command.arg("--keep").arg(keep).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut demo = command.spawn().map_err(|error| format!("start the demo: {error}"))?;
    let mut said = Vec::new();
    for line in demo.stderr.take().into_iter().flat_map(|errors| BufReader::new(errors).lines()) {
        let line = line.map_err(|error| format!("hear the demo: {error}"))?;
        eprintln!("{line}");
        said.push(line);
    }
    // Some kilobytes at most: it fits into the pipe until it is read here.
    let mut report = String::new();
    if let Some(mut out) = demo.stdout.take() {
        out.read_to_string(&mut report).map_err(|error| format!("hear the demo: {error}"))?;
    }
    let status = demo.wait().map_err(|error| format!("wait for the demo: {error}"))?;
    let log = keep.join("customers.log");
    let log = fs::read_to_string(&log).map_err(|error| {
        format!("the demo ended with {status}: {}: {error}\n{}", log.display(), said.join("\n"))
    })?;
    let report = serde_json::from_str(report.lines().last().unwrap_or_default())
        .map_err(|error| format!("the demo's last line is not its report: {error}"))?;
    read(&report, &requests(&log))
}

/// A request of the customers' log: when it was sent and answered, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Request {
    sent: u64,
    answered: u64,
}

/// The log has lines `number TAB sent TAB answered TAB outcome`. What was sent in the first second
/// is left out.
fn requests(log: &str) -> Vec<Request> {
    let request = |line: &str| -> Option<Request> {
        let mut fields = line.split('\t').skip(1);
        Some(Request { sent: fields.next()?.parse().ok()?, answered: fields.next()?.parse().ok()? })
    };
    let mut requests: Vec<Request> = log.lines().filter_map(request).collect();
    let begin = requests.iter().map(|it| it.sent).min().unwrap_or_default() + LEFT_OUT_US;
    requests.retain(|it| it.sent >= begin);
    requests.sort_unstable_by_key(|it| it.sent);
    requests
}

/// Of requests that were sent from then and before then; with `inside`, answered before then, too.
fn latencies(
    requests: &[Request],
    from: u64,
    until: u64,
    inside: bool,
) -> Result<Latencies, String> {
    let sent = requests.iter().filter(|it| (from..until).contains(&it.sent));
    let took: Vec<f64> = sent
        .filter(|it| !inside || it.answered < until)
        .map(|it| it.answered.saturating_sub(it.sent) as f64 / 1000.0)
        .collect();
    let first = requests.first().map_or(from, |it| it.sent.max(from));
    let rate = took.len() as f64 * 1e6 / until.saturating_sub(first).max(1) as f64;
    let took =
        Figures::of(took).ok_or_else(|| format!("no request was sent from {from} to {until}"))?;
    let (median, p99, slowest) = (took.median(), took.at_most(99), took.most());
    Ok(Latencies { median, p99, slowest, rate })
}

fn read(report: &Value, requests: &[Request]) -> Result<Demo, String> {
    let number = |of: &Value, key: &str| {
        of[key].as_f64().ok_or_else(|| format!("`{key}` is {}, not a number", of[key]))
    };
    let count = |key: &str| {
        report[key].as_u64().ok_or_else(|| format!("`{key}` is {}, not a count", report[key]))
    };
    let list =
        |key: &str| report[key].as_array().ok_or_else(|| format!("the report has no `{key}`"));
    let mut rounds = Vec::new();
    let mut pause_from = 0;
    for backup in list("backups")? {
        let time = |key: &str| {
            backup[key].as_u64().ok_or_else(|| format!("`{key}` is {}, not a time", backup[key]))
        };
        let (begun, ended) = (time("begun_us")?, time("ended_us")?);
        let (hold_begin, hold_end) = (time("hold_begin_us")?, time("hold_end_us")?);
        let marks = backup["marks_ms"].as_object().ok_or("the report has no `marks_ms`")?;
        rounds.push(Round {
            hold: number(backup, "hold_ms")?,
            drain: number(backup, "drain_ms")?,
            mark: number(backup, "mark_ms")?,
            settle: number(backup, "settle_ms")?,
            marks: marks
                .iter()
                .map(|(name, ms)| (name.clone(), ms.as_f64().unwrap_or_default()))
                .collect(),
            pause: latencies(requests, pause_from, begun, true)?,
            prepare: latencies(requests, begun, hold_begin, false)?,
            held: latencies(requests, hold_begin, hold_end, false)?,
            capture: latencies(requests, hold_end, ended, false)?,
        });
        pause_from = ended;
    }
    let problems = list("problems")?;
    Ok(Demo {
        rounds,
        requests: count("requests_total")?,
        failed: count("requests_failed")?,
        problems: problems.iter().map(|it| it.as_str().unwrap_or("unknown").to_owned()).collect(),
    })
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these are exact")]
mod tests {
    use super::*;
    use serde_json::json;

    const LOG: &str = "1\t1000000\t1900000\t201\n\
                       2\t2000000\t2020000\t201\n\
                       3\t2500000\t2540000\t201\n\
                       4\t2980000\t3200000\t201\n\
                       5\t3100000\t3150000\t201\n\
                       6\t3400000\t3580000\t201\n\
                       7\t3600000\t3610000\t201\n\
                       8\t4500000\t4560000\t201\n\
                       end\n";

    fn report() -> Value {
        json!({
            "requests_total": 1000, "requests_failed": 1, "problems": ["1 requests failed"],
            "backups": [{
                "begun_us": 3_000_000, "hold_begin_us": 3_300_000, "hold_end_us": 3_500_000,
                "ended_us": 4_000_000, "hold_ms": 200.0, "drain_ms": 150.0, "mark_ms": 50.0,
                "settle_ms": 4.0, "marks_ms": { "db": 31.5 },
            }],
        })
    }

    #[test]
    fn each_request_counts_in_the_phase_that_it_was_sent_in() {
        let demo = read(&report(), &requests(LOG)).unwrap();
        let round = &demo.rounds[0];
        // The first second is left out, and so is what the backup may have delayed.
        assert_eq!((round.pause.slowest, round.pause.median), (40.0, 30.0));
        assert_eq!(round.pause.rate, 2.0);
        assert_eq!(round.prepare.slowest, 50.0);
        assert_eq!(round.held.slowest, 180.0);
        assert_eq!((round.capture.slowest, round.capture.rate), (10.0, 2.0));
        assert_eq!(round.slowest(), 180.0);
        assert_eq!((round.mark, round.settle, round.marks["db"]), (50.0, 4.0, 31.5));
        assert_eq!((demo.failed, demo.problems.len()), (1, 1));
    }

    #[test]
    fn a_round_that_shows_nothing_is_no_round() {
        assert!(read(&report(), &[]).is_err(), "nobody ordered");
        for missing in ["hold_begin_us", "mark_ms", "marks_ms"] {
            let mut report = report();
            report["backups"][0].as_object_mut().unwrap().remove(missing);
            let why = read(&report, &requests(LOG)).unwrap_err();
            assert!(why.contains(missing), "{why}");
        }
    }
}
