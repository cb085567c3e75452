//! One round of `cargo xtask bench hold`: a demo, its report, and its customers' own log.
//!
//! What the same load sees without a backup is taken from the same demo: its first third, before
//! the backup begins. So both are of the same servers and the same minute. The first second is left
//! out of it, since connections and caches are new then, which would make the yardstick too kind;
//! it is also shorter than the rest, which makes it too strict, if anything.

use super::processes::bound_to_us;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the demo says when its backup begins.
const BEGINS: &str = "taking a backup";
/// At the load's beginning, in microseconds.
const LEFT_OUT_US: u64 = 1_000_000;

/// What a round saw; times in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Round {
    pub(crate) hold: f64,
    pub(crate) drain: f64,
    pub(crate) mark: f64,
    pub(crate) slowest: f64,
    /// Of the load before the backup began.
    pub(crate) undisturbed: f64,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// What the demo says did not hold.
    pub(crate) problems: Vec<String>,
}

/// Runs a demo with all services in this directory.
pub(crate) fn play(binary: &Path, keep: &Path, seconds: u64) -> Result<Round, String> {
    let mut command = bound_to_us(binary);
    command.args(["demo", "--services", "all", "--json", "--seconds", &seconds.to_string()]);
    command.arg("--keep").arg(keep).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut demo = command.spawn().map_err(|error| format!("start the demo: {error}"))?;
    let mut said = Vec::new();
    let mut began = None;
    for line in demo.stderr.take().into_iter().flat_map(|errors| BufReader::new(errors).lines()) {
        let line = line.map_err(|error| format!("hear the demo: {error}"))?;
        if line.starts_with(BEGINS) {
            began = Some(now_us());
        }
        said.push(line);
    }
    // A line of some hundred bytes: it fits into the pipe until it is read here.
    let mut report = String::new();
    if let Some(mut out) = demo.stdout.take() {
        out.read_to_string(&mut report).map_err(|error| format!("hear the demo: {error}"))?;
    }
    let status = demo.wait().map_err(|error| format!("wait for the demo: {error}"))?;
    let began = began.ok_or_else(|| {
        format!("the demo ended with {status} before its backup: {}", said.join("\n"))
    })?;
    let log = keep.join("customers.log");
    let log = fs::read_to_string(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let undisturbed = slowest_before(&log, began).ok_or("no request came before the backup")?;
    let report = serde_json::from_str(report.lines().last().unwrap_or_default())
        .map_err(|error| format!("the demo's last line is not its report: {error}"))?;
    read(&report, undisturbed)
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

/// The slowest request that was answered before then, in milliseconds. The log has lines
/// `number TAB sent TAB answered TAB outcome`, times in microseconds since 1970.
fn slowest_before(log: &str, then: u64) -> Option<f64> {
    let times = |line: &str| -> Option<(u64, u64)> {
        let mut fields = line.split('\t').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let requests: Vec<(u64, u64)> = log.lines().filter_map(times).collect();
    let begin = requests.iter().map(|(sent, _)| *sent).min()? + LEFT_OUT_US;
    let undisturbed = requests.iter().filter(|(sent, answered)| *sent >= begin && *answered < then);
    let slowest = undisturbed.map(|(sent, answered)| answered.saturating_sub(*sent)).max()?;
    Some(slowest as f64 / 1000.0)
}

fn read(report: &Value, undisturbed: f64) -> Result<Round, String> {
    let number = |key: &str| {
        report[key].as_f64().ok_or_else(|| format!("`{key}` is {}, not a number", report[key]))
    };
    let count = |key: &str| {
        report[key].as_u64().ok_or_else(|| format!("`{key}` is {}, not a count", report[key]))
    };
    let problems = report["problems"].as_array().ok_or("the report has no `problems`")?;
    let round = Round {
        hold: number("hold_ms")?,
        drain: number("drain_ms")?,
        mark: number("mark_ms")?,
        slowest: number("max_latency_ms")?,
        undisturbed,
        requests: count("requests_total")?,
        failed: count("requests_failed")?,
        problems: problems.iter().map(|it| it.as_str().unwrap_or("unknown").to_owned()).collect(),
    };
    // A report of a demo that had no backup has zeros there, which would be the best of all.
    if round.hold <= 0.0 {
        return Err(format!("nothing was held: {}", round.problems.join("; ")));
    }
    Ok(round)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these are exact")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_requests_answered_before_the_backup_and_after_the_first_second_are_undisturbed() {
        let log = "1\t1000000\t1900000\t201\n\
                   2\t2000000\t2020000\t201\n\
                   3\t2500000\t2540000\t201\n\
                   4\t2980000\t3200000\t201\n\
                   end\n";
        assert_eq!(slowest_before(log, 3_000_000), Some(40.0));
        assert_eq!(slowest_before(log, 2_000_000), None);
        assert_eq!(slowest_before("end\n", 3_000_000), None);
    }

    #[test]
    fn a_report_is_read_with_what_did_not_hold() {
        let mut report = json!({
            "hold_ms": 60.5, "drain_ms": 40.2, "mark_ms": 20.3, "requests_total": 1000,
            "requests_failed": 1, "max_latency_ms": 80.0, "problems": ["1 requests failed"],
        });
        let round = read(&report, 30.0).unwrap();
        assert_eq!((round.mark, round.failed, round.undisturbed), (20.3, 1, 30.0));
        assert_eq!(round.problems, ["1 requests failed"]);
        report["hold_ms"] = json!(0.0);
        assert!(read(&report, 30.0).is_err(), "nothing was held");
        report.as_object_mut().unwrap().remove("mark_ms");
        assert!(read(&report, 30.0).is_err(), "a figure is missing");
    }
}
