//! `cargo xtask bench WHAT`: measurements, each side by side with a peer or with the same load
//! undisturbed, in one run on one machine.
//!
//! What a bench says is a Markdown section for `docs/benchmarks.md`, on standard output, with the
//! machine and the versions it was measured on. Machines are shared and noisy, so figures that are
//! compared alternate in time, are given as a median with its spread, and as a ratio. A floor that
//! was missed is printed as missed and fails nothing: a bench whose result decides whether it may
//! be shown would soon show only good ones. It fails when it could not measure what it says, for
//! example because a request failed.
//!
//! Everything is bounded in count and time, stays on the loopback interface, and ends with the
//! bench, also when that is killed.

mod control;
mod figures;
mod gateway;
mod held;
mod hold;
mod load;
mod machine;
mod nginx;
mod processes;
mod rounds;

use crate::{Failure, Outcome, helped};

const HELP: &str = "\
Measures, and prints a section for docs/benchmarks.md.

Usage: cargo xtask bench WHAT [OPTIONS]

  gateway  the gateway beside nginx: requests a second, delay, memory while requests wait
    --alternations N  how often the two take turns [default: 5]
    --seconds S       how long each turn lasts [default: 3]
    --held N          how many requests wait at once [default: 10000]
  hold     the demo with all its services: how long requests are held, then with ten times the data
    --rounds N        how many backups [default: 20]
    --seconds S       before each backup a pause of a third of this [default: 6]
    --orders N        how many orders there are at first, each in every service [default: 20000]
    --pictures N      how many files there are beside them [default: 100000]

Needed: nginx and h2load (`apt-get install nginx-light nghttp2-client`) for `gateway`, and the
servers of the test suite for `hold`.
";

pub(crate) fn run(arguments: &[String]) -> Outcome {
    if helped(arguments, HELP) {
        return Ok(());
    }
    match arguments.split_first() {
        Some((what, rest)) if what == "gateway" => gateway::run(rest),
        Some((what, rest)) if what == "hold" => hold::run(rest),
        Some((other, _)) => Err(Failure::Usage(format!("there is no bench `{other}`\n\n{HELP}"))),
        None => Err(Failure::Usage(HELP.to_owned())),
    }
}

/// Reads options that are whole numbers, each at least 1, over their defaults.
fn numbers(arguments: &[String], options: &mut [(&str, &mut u64)]) -> Result<(), Failure> {
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let place = options.iter_mut().find(|(name, _)| name == option);
        let (name, place) =
            place.ok_or_else(|| Failure::Usage(format!("unknown option `{option}`\n\n{HELP}")))?;
        let given = rest.next().map_or("", String::as_str);
        **place = given.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
            Failure::Usage(format!("`{name}` needs a number of at least 1, not `{given}`"))
        })?;
    }
    Ok(())
}

/// A floor and whether it was kept, as a cell of a table.
fn verdict(kept: bool) -> &'static str {
    if kept { "kept" } else { "**missed**" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(u64, u64), Failure> {
        let (mut rounds, mut seconds) = (20, 10);
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        numbers(&arguments, &mut [("--rounds", &mut rounds), ("--seconds", &mut seconds)])?;
        Ok((rounds, seconds))
    }

    #[test]
    fn options_replace_their_defaults() {
        assert!(matches!(read(""), Ok((20, 10))));
        assert!(matches!(read("--seconds 4 --rounds 3"), Ok((3, 4))));
    }

    #[test]
    fn options_that_say_nothing_are_refused() {
        for text in ["--rounds", "--rounds x", "--rounds 0", "--round 3", "3"] {
            assert!(matches!(read(text), Err(Failure::Usage(_))), "{text}");
        }
    }

    #[test]
    fn a_bench_that_does_not_exist_is_refused() {
        assert!(matches!(run(&["memory".to_owned()]), Err(Failure::Usage(_))));
        assert!(matches!(run(&[]), Err(Failure::Usage(_))));
    }
}
