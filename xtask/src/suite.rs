//! `cargo xtask test`: the whole test suite, on a machine that has nothing but Rust.
//!
//! Nothing is skipped silently: tests that need PostgreSQL or restic do not pass without them, so
//! what is missing is installed first, or named with the exact line that installs it.

use crate::{Failure, Outcome, cargo, helped, packages};
use std::process::Command;

const HELP: &str = "\
Runs the whole test suite.

Usage: cargo xtask test [--no-install] [--nextest] [-- ARGUMENTS]

Tests need real servers and tools. On Debian, as root, what is missing is installed by apt-get;
otherwise it is named, and the exit code is 2.

  --no-install   only name what is missing
  --nextest      run by cargo-nextest, which must be installed
  ARGUMENTS      are passed to the test programs (to cargo-nextest with --nextest)
";

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (own, passed) = match arguments.iter().position(|argument| argument == "--") {
        Some(at) => (&arguments[..at], &arguments[at + 1..]),
        None => (arguments, &[][..]),
    };
    if helped(own, HELP) {
        return Ok(());
    }
    let mut install = true;
    let mut nextest = false;
    for argument in own {
        match argument.as_str() {
            "--no-install" => install = false,
            "--nextest" => nextest = true,
            other => return Err(Failure::Usage(format!("unknown option `{other}`\n\n{HELP}"))),
        }
    }
    packages::provide(install)?;
    if nextest {
        let mut tests = cargo();
        tests.args(["nextest", "run", "--workspace", "--no-fail-fast"]).args(passed);
        let mut documentation = cargo();
        documentation.args(["test", "--workspace", "--doc"]);
        // Both are run, whatever comes of the first.
        let outcome = step(&mut tests);
        step(&mut documentation).and(outcome)
    } else {
        let mut tests = cargo();
        tests.args(["test", "--workspace", "--no-fail-fast", "--"]).args(passed);
        step(&mut tests)
    }
}

/// Runs cargo, which has the last word: its result lines are what is read.
fn step(command: &mut Command) -> Outcome {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    eprintln!("xtask: cargo {}", words.join(" "));
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failure::Failed("tests failed, see above".to_owned())),
        Err(error) => Err(Failure::Usage(format!("cargo could not be started: {error}"))),
    }
}
