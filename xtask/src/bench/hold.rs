//! `cargo xtask bench hold`: how long requests are held by backups of the demo's shop with all its
//! services and many files, and what its customers feel before, in and after a hold.
//!
//! There is no peer that holds requests, so the slowest request is compared with the slowest of the
//! same load in the pause before the backup. The same again with ten times the data.

use super::figures::Figures;
use super::processes::Scratch;
use super::rounds::{self, Demo, Latencies, Round, Scale};
use super::{machine, numbers, verdict};
use crate::{Failure, Outcome, soak};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Of `mark_ms`: its median, and its worst.
const MARK_FLOORS: (f64, f64) = (100.0, 300.0);
/// Of the median of `mark_ms` with ten times the data, over the one without.
const GROWTH_FLOOR: f64 = 1.3;
/// The slowest request may take so long above the hold and what it takes without one.
const SLACK_MS: f64 = 50.0;

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let mut scale = Scale { backups: 20, seconds: 6, orders: 20_000, pictures: 100_000 };
    let Scale { backups, seconds, orders, pictures } = &mut scale;
    numbers(
        arguments,
        &mut [
            ("--rounds", backups),
            ("--seconds", seconds),
            ("--orders", orders),
            ("--pictures", pictures),
        ],
    )?;
    let binary = soak::build().map_err(Failure::Failed)?;
    let machine = machine::describe(&[
        ("psql", "--version"),
        ("mariadb", "--version"),
        ("redis-server", "--version"),
    ]);
    let scratch = Scratch::new("bench").map_err(Failure::Failed)?;
    let play = |name: &str, scale: Scale| -> Result<Demo, Failure> {
        rounds::play(&binary, &scratch.path(name), scale).map_err(Failure::Failed)
    };
    let once = play("once", scale)?;
    let more = play("ten-times", Scale { orders: scale.orders * 10, ..scale })?;
    let nothing = || Failure::Failed("there was no backup".to_owned());
    println!("{machine}\n");
    for (demo, orders) in [(&once, scale.orders), (&more, scale.orders * 10)] {
        println!(
            "{} backups of {orders} orders and {} pictures. {}\n",
            demo.rounds.len(),
            scale.pictures,
            problems(demo)
        );
        println!("{}", holds(demo).ok_or_else(nothing)?);
        println!("{}", marks(demo).ok_or_else(nothing)?);
        println!("{}", felt(demo).ok_or_else(nothing)?);
    }
    println!("{}", growth(&once, &more).ok_or_else(nothing)?);
    Ok(())
}

fn problems(demo: &Demo) -> String {
    if demo.problems.is_empty() {
        "All were good, and the last was restored and compared.".to_owned()
    } else {
        format!("Not good: {}.", demo.problems.join("; "))
    }
}

fn figures(demo: &Demo, get: impl Fn(&Round) -> f64) -> Option<Figures> {
    Figures::of(demo.rounds.iter().map(get))
}

/// How long requests were held, and the floors.
fn holds(demo: &Demo) -> Option<String> {
    let mark = figures(demo, |round| round.mark)?;
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
    row("`drain_ms`", &figures(demo, |round| round.drain)?, "-");
    row("`hold_ms`", &figures(demo, |round| round.hold)?, "-");
    let over = |round: &Round| round.slowest() - round.hold - round.pause.slowest;
    let most = figures(demo, over)?;
    row("slowest request", &figures(demo, Round::slowest)?, "-");
    row("slowest request in the pause before", &figures(demo, |round| round.pause.slowest)?, "-");
    let floor = format!("each at most {SLACK_MS:.0}: {}", verdict(most.most() <= SLACK_MS));
    row("slowest, less `hold_ms`, less that before", &most, &floor);
    let beyond = demo.rounds.iter().filter(|round| over(round) > SLACK_MS).count();
    let _ = writeln!(
        table,
        "\n{beyond} of {} rounds were beyond the floor of the slowest request. \
         {} requests in all, {} failed (floor 0: {}).",
        demo.rounds.len(),
        demo.requests,
        demo.failed,
        verdict(demo.failed == 0)
    );
    Some(table)
}

/// Where `mark_ms` goes.
fn marks(demo: &Demo) -> Option<String> {
    let mut table = "| marked, ms after the drain | median | least | worst |\n\
                     | --- | --- | --- | --- |\n"
        .to_owned();
    let mut row = |name: &str, figures: &Figures| {
        let (median, least, most) = (figures.median(), figures.least(), figures.most());
        let _ = writeln!(table, "| {name} | {median:.1} | {least:.1} | {most:.1} |");
    };
    row("(settling)", &figures(demo, |round| round.settle)?);
    let names: BTreeSet<&String> =
        demo.rounds.iter().flat_map(|round| round.marks.keys()).collect();
    for name in names {
        let took =
            Figures::of(demo.rounds.iter().filter_map(|round| round.marks.get(name).copied()));
        row(&format!("`{name}`"), &took?);
    }
    row("(released)", &figures(demo, |round| round.mark)?);
    Some(table)
}

type Phase = fn(&Round) -> Latencies;

/// What customers felt in each phase.
fn felt(demo: &Demo) -> Option<String> {
    let mut table = "| requests sent in | median, ms | 99 %, ms | slowest, ms | a second |\n\
                     | --- | --- | --- | --- | --- |\n"
        .to_owned();
    let phases: [(&str, Phase); 4] = [
        ("the pause before", |round| round.pause),
        ("prepare", |round| round.prepare),
        ("the hold", |round| round.held),
        ("capture", |round| round.capture),
    ];
    for (name, phase) in phases {
        let of = |get: fn(Latencies) -> f64| figures(demo, |round| get(phase(round)));
        let (median, p99) = (of(|it| it.median)?, of(|it| it.p99)?);
        let (slowest, rate) = (of(|it| it.slowest)?, of(|it| it.rate)?);
        let _ = writeln!(table, "| {name} | {median:.1} | {p99:.1} | {slowest:.0} | {rate:.0} |");
    }
    Some(table)
}

/// What ten times the data do to the marks.
fn growth(once: &Demo, more: &Demo) -> Option<String> {
    let median = |demo: &Demo| figures(demo, |round| round.mark).map(|figures| figures.median());
    let ratio = median(more)? / median(once)?;
    Some(format!(
        "With ten times the orders the median of `mark_ms` is {ratio:.2} times as long (floor \
         {GROWTH_FLOOR}: {}).",
        verdict(ratio <= GROWTH_FLOOR)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn round(mark: f64, slowest: f64) -> Round {
        let felt = |slowest| Latencies { median: 5.0, p99: 9.0, slowest, rate: 700.0 };
        Round {
            hold: mark + 10.0,
            drain: 10.0,
            mark,
            settle: 4.0,
            marks: BTreeMap::from([("db".to_owned(), mark / 2.0)]),
            pause: felt(20.0),
            prepare: felt(25.0),
            held: felt(slowest),
            capture: felt(22.0),
        }
    }

    fn demo(rounds: &[Round], failed: u64) -> Demo {
        Demo { rounds: rounds.to_vec(), requests: 200, failed, problems: Vec::new() }
    }

    #[test]
    fn floors_that_are_kept_and_missed_are_both_shown() {
        let good = holds(&demo(&[round(30.0, 90.0), round(50.0, 90.0)], 0)).unwrap();
        assert!(good.contains("| `mark_ms` | 40.0 | 30.0 | 50.0 | median 100, worst 300: kept |"));
        assert!(good.contains("0 of 2 rounds"), "{good}");
        assert!(good.contains("200 requests in all, 0 failed (floor 0: kept)"), "{good}");
        assert!(!good.contains("missed"), "{good}");

        for (bad, failed) in
            [(round(301.0, 301.0), 0), (round(30.0, 111.0), 0), (round(30.0, 90.0), 1)]
        {
            let rounds = [round(30.0, 60.0), round(30.0, 60.0), bad];
            let table = holds(&demo(&rounds, failed)).unwrap();
            assert_eq!(table.matches("**missed**").count(), 1, "{table}");
        }
    }

    #[test]
    fn the_tables_say_where_the_time_goes_and_what_was_felt() {
        let demo = demo(&[round(30.0, 90.0), round(50.0, 90.0)], 0);
        let marks = marks(&demo).unwrap();
        assert!(marks.contains("| `db` | 20.0 | 15.0 | 25.0 |"), "{marks}");
        assert!(marks.contains("| (released) | 40.0 | 30.0 | 50.0 |"), "{marks}");
        let felt = felt(&demo).unwrap();
        let line = "| the hold | 5.0 (5.0 to 5.0) | 9.0 (9.0 to 9.0) | 90 (90 to 90) | 700";
        assert!(felt.contains(line), "{felt}");
    }

    #[test]
    fn more_data_may_cost_a_little() {
        let [once, little, much] = [30.0, 39.0, 40.0].map(|mark| demo(&[round(mark, 60.0)], 0));
        assert!(growth(&once, &little).unwrap().contains("1.30 times as long (floor 1.3: kept)"));
        assert!(growth(&once, &much).unwrap().contains("**missed**"));
    }

    #[test]
    fn no_round_is_no_result() {
        assert_eq!(holds(&demo(&[], 0)), None);
    }

    #[test]
    fn what_did_not_hold_is_not_left_out() {
        let mut bad = demo(&[round(30.0, 60.0)], 0);
        bad.problems = vec!["an order is missing".to_owned()];
        assert_eq!(problems(&bad), "Not good: an order is missing.");
    }
}
