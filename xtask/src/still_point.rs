//! `cargo xtask soak still-point`: the proof of the still point, many times over. Backups of a bank
//! under full load are restored into fresh services, and its books must balance.
//!
//! The rounds themselves are an ignored test of `stillpoint-capture`, built as users have it; this
//! only says how many.

use crate::{Failure, Outcome, cargo, helped, packages};

const HELP: &str = "\
Takes held backups of a bank that keeps its books in PostgreSQL, MariaDB, Redis, SQLite and files,
while 32 clients and a worker are at it; restores each into fresh services, and checks the books.

Usage: cargo xtask soak still-point [--rounds N]

  --rounds N    how many [default: 100]
";

/// The test, and what tells it how many rounds to take.
const TEST: &str = "soak::every_round_is_of_one_instant";
const ROUNDS: &str = "STILLPOINT_SOAK_ROUNDS";

pub(crate) fn run(arguments: &[String]) -> Outcome {
    if helped(arguments, HELP) {
        return Ok(());
    }
    let rounds = rounds(arguments).map_err(Failure::Usage)?;
    packages::provide(false)?;
    let status = cargo()
        .args(["test", "--release", "--package", "stillpoint-capture", "--test", "proof"])
        .args(["--", "--exact", TEST, "--ignored", "--nocapture"])
        .env(ROUNDS, rounds.to_string())
        .status()
        .map_err(|error| Failure::Usage(format!("cargo could not be started: {error}")))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::Failed("not every round was good, see above".to_owned()))
    }
}

fn rounds(arguments: &[String]) -> Result<u32, String> {
    match arguments {
        [] => Ok(100),
        [option, given] if option == "--rounds" => match given.parse() {
            Ok(rounds) if rounds > 0 => Ok(rounds),
            _ => Err(format!("`--rounds` needs a number of at least 1, and `{given}` is none")),
        },
        [option] if option == "--rounds" => Err("`--rounds` needs a number".to_owned()),
        [other, ..] => Err(format!("unknown option `{other}`\n\n{HELP}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused_with_the_reason() {
        let parse =
            |text: &str| rounds(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(parse(""), Ok(100));
        assert_eq!(parse("--rounds 7"), Ok(7));
        assert_eq!(parse("--rounds"), Err("`--rounds` needs a number".to_owned()));
        for wrong in ["--rounds 0", "--rounds x", "--round 3", "--rounds 1 2"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
