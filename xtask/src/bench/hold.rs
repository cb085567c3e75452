//! `cargo xtask bench hold`: how long requests are held by a backup of the demo's shop with all its
//! services, over many demos.
//!
//! There is no peer that holds requests, so the slowest request is compared with the slowest of the
//! same load before the backup began.

use super::figures::Figures;
use super::processes::Scratch;
use super::rounds::{self, Round};
use super::{machine, numbers, verdict};
use crate::{Failure, Outcome, soak};
use std::fmt::Write;
use std::fs;

/// Of `mark_ms`: its median, and its worst.
const MARK_FLOORS: (f64, f64) = (100.0, 300.0);
/// The slowest request may take so long above the hold and what it takes without one.
const SLACK_MS: f64 = 50.0;

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (mut count, mut seconds) = (20, 10);
    numbers(arguments, &mut [("--rounds", &mut count), ("--seconds", &mut seconds)])?;
    let binary = soak::build().map_err(Failure::Failed)?;
    let machine = machine::describe(&[
        ("psql", "--version"),
        ("mariadb", "--version"),
        ("redis-server", "--version"),
    ]);
    let scratch = Scratch::new("bench").map_err(Failure::Failed)?;
    let mut good = Vec::new();
    let mut lost = Vec::new();
    for number in 1..=count {
        let keep = scratch.path(&format!("round-{number}"));
        match rounds::play(&binary, &keep, seconds) {
            Ok(round) => {
                eprintln!("round {number}: {round:?}");
                good.push(round);
            }
            Err(why) => {
                eprintln!("round {number}: {why}");
                lost.push(format!("round {number}: {why}"));
            }
        }
        let _ = fs::remove_dir_all(&keep);
    }
    let table = table(&good).ok_or_else(|| Failure::Failed(lost.join("\n")))?;
    println!(
        "{machine}\n\n{count} rounds of about {seconds} s. {}\n\n{table}",
        losses(&good, &lost)
    );
    Ok(())
}

/// Rounds that say nothing about the hold, and rounds in which something else did not hold.
fn losses(good: &[Round], lost: &[String]) -> String {
    let mut words = lost.to_vec();
    words.extend(good.iter().flat_map(|round| round.problems.clone()));
    if words.is_empty() {
        "All were good.".to_owned()
    } else {
        format!("Not good: {}.", words.join("; "))
    }
}

fn table(rounds: &[Round]) -> Option<String> {
    let figures = |get: fn(&Round) -> f64| Figures::of(rounds.iter().map(get));
    let mark = figures(|round| round.mark)?;
    let (median, worst) = MARK_FLOORS;
    let mut table =
        "| ms | median | least | worst | floor |\n| --- | --- | --- | --- | --- |\n".to_owned();
    let mut row = |name: &str, figures: &Figures, floor: &str| {
        let (median, least, most) = (figures.median(), figures.least(), figures.most());
        let _ = writeln!(table, "| {name} | {median:.1} | {least:.1} | {most:.1} | {floor} |");
    };
    let kept = mark.median() <= median && mark.most() <= worst;
    let floor = format!("median {median:.0}, worst {worst:.0}: {}", verdict(kept));
    row("`mark_ms`", &mark, &floor);
    row("`drain_ms`", &figures(|round| round.drain)?, "-");
    row("`hold_ms`", &figures(|round| round.hold)?, "-");
    let over = figures(|round| round.slowest - round.hold - round.undisturbed)?;
    row("slowest request", &figures(|round| round.slowest)?, "-");
    row("slowest request before the backup", &figures(|round| round.undisturbed)?, "-");
    let floor = format!("each at most {SLACK_MS:.0}: {}", verdict(over.most() <= SLACK_MS));
    row("slowest, less `hold_ms`, less that before", &over, &floor);
    let beyond =
        rounds.iter().filter(|it| it.slowest - it.hold - it.undisturbed > SLACK_MS).count();
    let requests: u64 = rounds.iter().map(|round| round.requests).sum();
    let failed: u64 = rounds.iter().map(|round| round.failed).sum();
    let _ = writeln!(
        table,
        "\n{beyond} of {} rounds were beyond the floor of the slowest request. \
         {requests} requests in all, {failed} failed (floor 0: {}).",
        rounds.len(),
        verdict(failed == 0)
    );
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(mark: f64, slowest: f64, failed: u64) -> Round {
        Round {
            hold: mark + 10.0,
            drain: 10.0,
            mark,
            slowest,
            undisturbed: 20.0,
            requests: 100,
            failed,
            problems: Vec::new(),
        }
    }

    #[test]
    fn floors_that_are_kept_and_missed_are_both_shown() {
        let good = table(&[round(30.0, 90.0, 0), round(50.0, 90.0, 0)]).unwrap();
        assert!(good.contains("| `mark_ms` | 40.0 | 30.0 | 50.0 | median 100, worst 300: kept |"));
        assert!(good.contains("0 of 2 rounds"), "{good}");
        assert!(good.contains("200 requests in all, 0 failed (floor 0: kept)"), "{good}");
        assert!(!good.contains("missed"), "{good}");

        for bad in [round(301.0, 301.0, 0), round(30.0, 111.0, 0), round(30.0, 90.0, 1)] {
            let rounds = [round(30.0, 60.0, 0), round(30.0, 60.0, 0), bad];
            let table = table(&rounds).unwrap();
            assert_eq!(table.matches("**missed**").count(), 1, "{table}");
        }
    }

    #[test]
    fn no_round_is_no_result() {
        assert_eq!(table(&[]), None);
    }

    #[test]
    fn what_did_not_hold_is_not_left_out() {
        let mut bad = round(30.0, 60.0, 0);
        bad.problems = vec!["an order is missing".to_owned()];
        assert_eq!(
            losses(&[bad], &["round 2: it hung".to_owned()]),
            "Not good: round 2: it hung; an order is missing."
        );
        assert_eq!(losses(&[round(30.0, 60.0, 0)], &[]), "All were good.");
    }
}
