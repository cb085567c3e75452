//! The project's own tasks: `cargo xtask TASK`. One file per task; this one finds it.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong arguments or something that must be installed first.

mod bench;
mod kills;
mod layers;
mod manifest;
mod packages;
mod reasons;
mod soak;
mod still_point;
mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Why a task ended badly.
enum Failure {
    /// What was asked for is not so: a test failed, an arrow points up.
    Failed(String),
    /// It could not be tried.
    Usage(String),
}

type Outcome = Result<(), Failure>;

const HELP: &str = "\
The project's own tasks.

Usage: cargo xtask TASK [OPTIONS]

  test     run the whole test suite
  layers   check that dependencies between crates point down only, and that others have a reason
  soak     run the demo over and over, and check what it wrote with restic
  bench    measure, and print a section for docs/benchmarks.md

`cargo xtask TASK --help` says more.
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let outcome = match task.as_deref() {
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some("test") => suite::run(&rest),
        Some("layers") => layers::run(&rest),
        Some("soak") => soak::run(&rest),
        Some("bench") => bench::run(&rest),
        Some(other) => Err(Failure::Usage(format!("there is no task `{other}`\n\n{HELP}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(why)) => {
            eprintln!("xtask: {why}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(why)) => {
            eprintln!("xtask: {why}");
            ExitCode::from(2)
        }
    }
}

/// The workspace's directory.
fn workspace() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask is a directory of the workspace").to_owned()
}

/// The cargo that runs this program.
fn cargo() -> std::process::Command {
    let mut command =
        std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Whether help was asked for; prints it.
fn helped(arguments: &[String], text: &str) -> bool {
    let wanted = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    if wanted {
        print!("{text}");
    }
    wanted
}
