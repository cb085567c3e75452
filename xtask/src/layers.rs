//! `cargo xtask layers`: the arrows between crates point down only.
//!
//! An upward arrow would compile, as long as it makes no circle, and then pull the HTTP server into
//! the engine. So the order is written down here, and a crate without a place in it is an error. So
//! is a foreign crate without a reason in `ARCHITECTURE.md`.

use crate::manifest::{Dependency, own_dependencies};
use crate::{Failure, Outcome, helped, reasons, workspace};
use std::fs;

const HELP: &str = "\
Checks that the crates' dependencies on one another point down only, and that every dependency on a
foreign crate has its reason in ARCHITECTURE.md.

Usage: cargo xtask layers
";

/// The crates, from top to bottom; those of one row do not know each other.
const LAYERS: [&[&str]; 7] = [
    &["cli"],
    &["server"],
    &["control"],
    &["agent"],
    &["capture", "runtimes"],
    &["services", "repository", "gateway"],
    &["model"],
];

/// Arrows inside one row.
const SIDEWAYS: [(&str, &str); 1] = [("capture", "runtimes")];

/// Everyone's tests may use it, nothing else may; and it may itself use these.
const TESTKIT: &str = "testkit";
const TESTKIT_USES: [&str; 3] = ["runtimes", "services", "model"];

pub(crate) fn run(arguments: &[String]) -> Outcome {
    if helped(arguments, HELP) {
        return Ok(());
    }
    if let Some(argument) = arguments.first() {
        return Err(Failure::Usage(format!("unknown option `{argument}`\n\n{HELP}")));
    }
    let (crates, wrong) = check_workspace().map_err(Failure::Usage)?;
    if wrong.is_empty() {
        println!("{crates} crates: all arrows point down, every dependency has its reason");
        return Ok(());
    }
    for line in &wrong {
        eprintln!("{line}");
    }
    Err(Failure::Failed(format!("{} dependencies are not as they must be", wrong.len())))
}

/// How many crates there are, and what is wrong with them.
fn check_workspace() -> Result<(usize, Vec<String>), String> {
    let dir = workspace().join("crates");
    let unreadable = |error: std::io::Error| format!("{}: {error}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut wrong = Vec::new();
    for name in &names {
        let path = dir.join(name).join("Cargo.toml");
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        wrong.extend(check(name, &own_dependencies(&text)));
    }
    let read = |name: &str| {
        let path = workspace().join(name);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    wrong.extend(reasons::check(&read("Cargo.toml")?, &read("ARCHITECTURE.md")?));
    Ok((names.len(), wrong))
}

/// What is wrong with one crate's dependencies.
fn check(name: &str, dependencies: &[Dependency]) -> Vec<String> {
    if layer(name).is_none() && name != TESTKIT {
        return vec![format!("crates/{name}: has no place in xtask/src/layers.rs: give it one")];
    }
    let complaint = |dependency: &Dependency| {
        let target = short(&dependency.package);
        let why = refusal(name, target, dependency.for_tests)?;
        Some(format!("crates/{name}/Cargo.toml:{}: {name} -> {target}: {why}", dependency.line))
    };
    dependencies.iter().filter_map(complaint).collect()
}

/// Why this arrow must not be.
fn refusal(from: &str, to: &str, for_tests: bool) -> Option<&'static str> {
    if to == TESTKIT {
        return (!for_tests).then_some("the testkit is for dev-dependencies only");
    }
    if from == TESTKIT {
        return (!TESTKIT_USES.contains(&to)).then_some("the testkit must not know this crate");
    }
    let (Some(above), Some(below)) = (layer(from), layer(to)) else {
        return Some("there is no such crate in xtask/src/layers.rs");
    };
    if above < below || SIDEWAYS.contains(&(from, to)) {
        return None;
    }
    Some(if above == below {
        "they are in the same row and must not know each other"
    } else {
        "this arrow points up"
    })
}

/// The row, from the top.
fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&name))
}

/// A package's name without the project's; the binary's package has the project's own.
fn short(package: &str) -> &str {
    package.strip_prefix("stillpoint-").unwrap_or("cli")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(name: &str, text: &str) -> Vec<String> {
        check(name, &own_dependencies(text))
    }

    #[test]
    fn the_workspace_keeps_its_own_order() {
        let (crates, wrong) = check_workspace().unwrap();
        assert!(crates >= 8);
        assert_eq!(wrong, Vec::<String>::new());
    }

    #[test]
    fn arrows_that_point_down_are_fine() {
        let text = "[dependencies]\nstillpoint-runtimes.workspace = true\n\
                    stillpoint-gateway.workspace = true\nstillpoint-model.workspace = true\n";
        assert_eq!(complaints("capture", text), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_that_points_up_is_refused_at_its_line() {
        let text = "[dependencies]\nserde = \"1\"\nstillpoint-capture.workspace = true\n";
        assert_eq!(
            complaints("gateway", text),
            ["crates/gateway/Cargo.toml:3: gateway -> capture: this arrow points up"]
        );
        let text = "[build-dependencies]\nstillpoint.workspace = true\n";
        assert_eq!(
            complaints("model", text),
            ["crates/model/Cargo.toml:2: model -> cli: this arrow points up"]
        );
    }

    #[test]
    fn an_arrow_of_tests_must_not_point_up_either() {
        let text = "[dev-dependencies]\nstillpoint-capture.workspace = true\n";
        assert_eq!(complaints("services", text).len(), 1);
    }

    #[test]
    fn crates_of_one_row_do_not_know_each_other_except_capture_runtimes() {
        assert_eq!(refusal("capture", "runtimes", false), None);
        for (from, to) in
            [("runtimes", "capture"), ("services", "repository"), ("gateway", "services")]
        {
            let why = "they are in the same row and must not know each other";
            assert_eq!(refusal(from, to, false), Some(why), "{from} {to}");
        }
    }

    #[test]
    fn the_testkit_is_for_tests_only_and_knows_little() {
        assert_eq!(refusal("repository", "testkit", true), None);
        assert!(refusal("repository", "testkit", false).is_some());
        assert_eq!(refusal("testkit", "services", false), None);
        assert!(refusal("testkit", "capture", false).is_some());
    }

    #[test]
    fn a_crate_without_a_place_is_refused() {
        assert_eq!(
            complaints("novelty", ""),
            ["crates/novelty: has no place in xtask/src/layers.rs: give it one"]
        );
        assert!(refusal("cli", "novelty", false).is_some());
    }
}
