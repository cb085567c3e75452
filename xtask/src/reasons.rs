//! Every dependency has its reason in `ARCHITECTURE.md`, and every reason its dependency.
//!
//! Checked with the layers: a dependency that came in without a word is how a small tree grows big.

/// What is wrong: dependencies without a reason, and reasons of what is no dependency any more.
pub(crate) fn check(cargo_toml: &str, architecture: &str) -> Vec<String> {
    let declared = declared(cargo_toml);
    let explained = explained(architecture);
    let lacking = declared.iter().filter(|name| !explained.contains(name)).map(|name| {
        format!("ARCHITECTURE.md: the dependency `{name}` lacks its reason in the table")
    });
    let stale = explained
        .iter()
        .filter(|name| !declared.contains(name))
        .map(|name| format!("ARCHITECTURE.md: `{name}` is no dependency (any more)"));
    lacking.chain(stale).collect()
}

/// The foreign crates of `[workspace.dependencies]`.
fn declared(cargo_toml: &str) -> Vec<&str> {
    let lines = cargo_toml.lines().skip_while(|line| line.trim() != "[workspace.dependencies]");
    lines
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim())
        .filter(|name| !name.starts_with('#') && !name.starts_with("stillpoint-"))
        .collect()
}

/// The crates in the first column of the table of dependencies.
fn explained(architecture: &str) -> Vec<&str> {
    let lines = architecture.lines().skip_while(|line| !line.starts_with("## Dependencies"));
    lines
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| `")?.split_once(" |"))
        .flat_map(|(crates, _)| crates.split(','))
        .map(|name| name.trim().trim_matches('`'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARGO_TOML: &str = "[workspace]\nmembers = []\n[workspace.dependencies]\n\
        stillpoint-model = { path = \"crates/model\" }\n\n# For tests only.\nclap = { version = \
        \"4\" }\nzstd = \"0.14\"\n[profile.release]\ndebug = true\n";

    #[test]
    fn a_table_that_has_every_dependency_is_fine() {
        let text = "# Map\n| `other` | no dependency |\n## Dependencies, each\n| crate | reason |\n\
                    | --- | --- |\n| `clap`, `zstd` | both |\n## More\n| `none` | no |\n";
        assert_eq!(check(CARGO_TOML, text), Vec::<String>::new());
    }

    #[test]
    fn a_dependency_without_a_reason_and_a_reason_without_a_dependency_are_named() {
        let text = "## Dependencies\n| `clap` | parser |\n| `regex` | gone |\n";
        assert_eq!(
            check(CARGO_TOML, text),
            [
                "ARCHITECTURE.md: the dependency `zstd` lacks its reason in the table",
                "ARCHITECTURE.md: `regex` is no dependency (any more)",
            ]
        );
    }
}
