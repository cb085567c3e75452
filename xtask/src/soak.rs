//! `cargo xtask soak`: long work that is no part of the test suite. Runs the demo over and over,
//! whole and with its backup killed, and has stock restic read back all that each round stored.
//!
//! A round that fails keeps its directory, so that it can be looked into; the others are removed.

use crate::{Failure, Outcome, cargo, helped, kills, still_point, workspace};
use serde_json::Value;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const HELP: &str = "\
Runs the demo over and over, and checks with restic what it wrote.

Usage: cargo xtask soak [--rounds N] [--seconds S] [--kills N] [--seed S]
       cargo xtask soak still-point [--rounds N]

  --rounds N    how many whole rounds [default: 10]
  --seconds S   how long the load runs in each, about [default: 10]
  --kills N     how many rounds in which the backup is killed [default: 20]
  --seed S      for what differs from round to round [default: 1]

`still-point` proves that backups are of one instant; `cargo xtask soak still-point --help` says how.
";

/// Kills come within this time after the backup began.
const LONGEST_BACKUP_MS: u64 = 1_800;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    rounds: u64,
    seconds: u64,
    kills: u64,
    seed: u64,
}

/// What a round that went well took.
struct Round {
    hold_ms: f64,
    max_latency_ms: f64,
    requests: u64,
}

pub(crate) fn run(arguments: &[String]) -> Outcome {
    if let Some(("still-point", rest)) =
        arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return still_point::run(rest);
    }
    if helped(arguments, HELP) {
        return Ok(());
    }
    let options = Options::parse(arguments).map_err(Failure::Usage)?;
    let binary = build().map_err(Failure::Failed)?;
    let dir = env::temp_dir().join(format!("stillpoint-soak-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(|error| failed(&dir, &error))?;
    let mut dice = Dice(options.seed);
    let mut good = Vec::new();
    for number in 1..=options.rounds {
        let keep = dir.join(format!("round-{number}"));
        // The backup begins at another moment of the load each time.
        let seconds = options.seconds + dice.below(options.seconds / 2 + 1);
        match round(&binary, &keep, seconds) {
            Ok(done) => {
                println!(
                    "round {number}: good, {seconds} s, hold {:.1} ms, slowest request {:.1} ms, {} \
                     requests",
                    done.hold_ms, done.max_latency_ms, done.requests
                );
                good.push(done);
                fs::remove_dir_all(&keep).map_err(|error| failed(&keep, &error))?;
            }
            Err(why) => println!("round {number}: FAILED, {why}; kept in {}", keep.display()),
        }
    }
    let survived = kill(&options, &binary, &dir, &mut dice)?;
    // Only if no round left anything.
    let _ = fs::remove_dir(&dir);
    tally(&options, &mut good, survived)
}

/// The rounds in which the backup is killed; says how many went well.
fn kill(options: &Options, binary: &Path, dir: &Path, dice: &mut Dice) -> Result<u64, Failure> {
    let mut survived = 0;
    for number in 1..=options.kills {
        let keep = dir.join(format!("kill-{number}"));
        let delay = Duration::from_millis(dice.below(LONGEST_BACKUP_MS));
        match kills::round(binary, &keep, delay) {
            Ok(done) => {
                match done.after {
                    Some(after) => println!(
                        "kill {number}: good, after {} ms in `{}`{}",
                        after.as_millis(),
                        done.phase,
                        if done.published { ", published already" } else { "" }
                    ),
                    None => println!("kill {number}: good, but the backup was faster"),
                }
                survived += 1;
                fs::remove_dir_all(&keep).map_err(|error| failed(&keep, &error))?;
            }
            Err(why) => println!("kill {number}: FAILED, {why}; kept in {}", keep.display()),
        }
    }
    Ok(survived)
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

/// Builds the program as users have it, and says where it is.
pub(crate) fn build() -> Result<PathBuf, String> {
    let status = cargo()
        .args(["build", "--release", "--package", "stillpoint"])
        .status()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    if !status.success() {
        return Err("the build failed".to_owned());
    }
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(workspace().join(target).join("release/stillpoint"))
}

/// One demo, its report, and restic's own check of what it stored.
fn round(binary: &Path, keep: &Path, seconds: u64) -> Result<Round, String> {
    let output = Command::new(binary)
        .args(["demo", "--json", "--seconds", &seconds.to_string(), "--keep"])
        .arg(keep)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    if !output.status.success() {
        return Err(format!("the demo ended with {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .map_err(|error| format!("the demo's last line is not its report: {error}"))?;
    let done = judge(&report)?;
    let path = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
    let restic = Command::new("restic")
        .args(["--no-cache", "--repo", &path("repository")])
        .args(["--password-file", &path("password_file"), "check", "--read-data"])
        .output()
        .map_err(|error| format!("restic could not be started: {error}"))?;
    if !restic.status.success() {
        let words = String::from_utf8_lossy(&restic.stderr);
        return Err(format!("restic check --read-data ended with {}: {words}", restic.status));
    }
    Ok(done)
}

/// Everything that a report must say.
fn judge(report: &Value) -> Result<Round, String> {
    let expected = [
        ("requests_failed", Value::from(0)),
        ("consistency", Value::from("consistent")),
        ("completeness", Value::from("complete")),
        ("restored_identical", Value::from(true)),
    ];
    for (key, value) in expected {
        if report[key] != value {
            return Err(format!("`{key}` is {}, not {value}", report[key]));
        }
    }
    for key in ["backup_id", "repository", "password_file"] {
        if report[key].as_str().is_none_or(str::is_empty) {
            return Err(format!("`{key}` is {}, not a text", report[key]));
        }
    }
    if report["services"].as_array().is_none_or(Vec::is_empty) {
        return Err(format!("`services` is {}, not a list", report["services"]));
    }
    let number = |key: &str| {
        report[key].as_f64().ok_or_else(|| format!("`{key}` is {}, not a number", report[key]))
    };
    let hold_ms = number("hold_ms")?;
    // All three are rounded.
    if (hold_ms - number("drain_ms")? - number("mark_ms")?).abs() > 2.0 {
        return Err("`hold_ms` is not the sum of `drain_ms` and `mark_ms`".to_owned());
    }
    let count = |key: &str| {
        report[key]
            .as_u64()
            .filter(|count| *count > 0)
            .ok_or_else(|| format!("`{key}` is {}, not a count of at least one", report[key]))
    };
    count("requests_held")?;
    Ok(Round {
        hold_ms,
        max_latency_ms: number("max_latency_ms")?,
        requests: count("requests_total")?,
    })
}

fn tally(options: &Options, good: &mut [Round], survived: u64) -> Outcome {
    good.sort_by(|a, b| a.hold_ms.total_cmp(&b.hold_ms));
    println!("\n{} of {} rounds good (seed {})", good.len(), options.rounds, options.seed);
    if let (Some(best), Some(worst)) = (good.first(), good.last()) {
        println!(
            "hold: {:.1} ms at best, {:.1} ms in the middle, {:.1} ms at worst",
            best.hold_ms,
            good[good.len() / 2].hold_ms,
            worst.hold_ms
        );
        println!("requests: {}, none failed", good.iter().map(|round| round.requests).sum::<u64>());
    }
    println!("{survived} of {} kill rounds good: nobody noticed", options.kills);
    if good.len() as u64 == options.rounds && survived == options.kills {
        Ok(())
    } else {
        Err(Failure::Failed("not every round was good".to_owned()))
    }
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self { rounds: 10, seconds: 10, kills: 20, seed: 1 };
        let mut rest = arguments.iter();
        while let Some(option) = rest.next() {
            let place = match option.as_str() {
                "--rounds" => &mut options.rounds,
                "--seconds" => &mut options.seconds,
                "--kills" => &mut options.kills,
                "--seed" => &mut options.seed,
                other => return Err(format!("unknown option `{other}`\n\n{HELP}")),
            };
            let given = rest.next().ok_or_else(|| format!("`{option}` needs a number"))?;
            *place = given
                .parse()
                .map_err(|_| format!("`{option}` needs a number, and `{given}` is none"))?;
        }
        if options.seconds == 0 || options.rounds + options.kills == 0 {
            return Err(
                "`--seconds` and one of `--rounds` and `--kills` must be at least 1".to_owned()
            );
        }
        Ok(options)
    }
}

/// Numbers that are the same for the same seed (splitmix64, by Steele, Lea and Flood).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({
            "backup_id": "abcdefghijklmnopqrstuvwxyz", "consistency": "consistent",
            "completeness": "complete", "hold_ms": 60.5, "drain_ms": 40.2, "mark_ms": 20.3,
            "requests_total": 1000, "requests_held": 40, "requests_failed": 0,
            "max_latency_ms": 80.0, "restored_identical": true, "services": ["local", "db"],
            "repository": "/tmp/r", "password_file": "/tmp/p",
        })
    }

    #[test]
    fn a_good_report_is_good() {
        assert!(judge(&good()).is_ok());
    }

    #[test]
    fn a_report_that_lacks_or_fails_anything_is_not_good() {
        for key in good().as_object().unwrap().keys() {
            let mut report = good();
            report.as_object_mut().unwrap().remove(key);
            assert!(judge(&report).is_err(), "without {key}");
        }
        let wrong = [
            ("requests_failed", json!(1)),
            ("consistency", json!("crash-consistent")),
            ("completeness", json!("partial")),
            ("restored_identical", json!(false)),
            ("requests_held", json!(0)),
            ("hold_ms", json!(90.0)),
        ];
        for (key, value) in wrong {
            let mut report = good();
            report[key] = value;
            assert!(judge(&report).is_err(), "with another {key}");
        }
    }

    #[test]
    fn options_are_read_or_refused_with_the_reason() {
        let parse = |text: &str| {
            Options::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(
            parse("--rounds 3 --seed 9"),
            Ok(Options { rounds: 3, seconds: 10, kills: 20, seed: 9 })
        );
        assert_eq!(parse("--rounds"), Err("`--rounds` needs a number".to_owned()));
        assert!(parse("--rounds x").is_err());
        assert!(parse("--rounds 0 --kills 0").is_err());
        assert!(parse("--kill 3").is_err());
    }
}
