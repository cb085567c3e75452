//! Which of the project's own crates a `Cargo.toml` depends on. Reads just enough of TOML for that.

/// A dependency on another crate of the project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// The package's name, `stillpoint-model`.
    pub(crate) package: String,
    /// It is in `dev-dependencies`.
    pub(crate) for_tests: bool,
    /// The line, from 1.
    pub(crate) line: usize,
}

/// All dependencies on `stillpoint` and `stillpoint-*`, renamed ones and those for one target only
/// included.
pub(crate) fn own_dependencies(text: &str) -> Vec<Dependency> {
    let mut found = Vec::new();
    let mut table: Option<bool> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            // `[dependencies]`, `[target.'cfg(unix)'.dev-dependencies]`, `[dependencies.NAME]`
            let mut words = header.rsplit('.');
            let last = unquoted(words.next().unwrap_or_default());
            table = kind(last);
            if table.is_none()
                && let Some(for_tests) = words.next().and_then(|word| kind(unquoted(word)))
            {
                add(&mut found, last, for_tests, index);
                // A `package` below it would name the real one.
                table = Some(for_tests);
            }
            continue;
        }
        let (Some(for_tests), Some((key, value))) = (table, line.split_once('=')) else { continue };
        let name = unquoted(key.split('.').next().unwrap_or_default());
        add(&mut found, name, for_tests, index);
        let renamed = if name == "package" {
            Some(value)
        } else {
            value.split_once("package").and_then(|(_, rest)| rest.trim().strip_prefix('='))
        };
        if let Some(package) = renamed {
            let package = unquoted(package.split([',', '}']).next().unwrap_or_default());
            add(&mut found, package, for_tests, index);
        }
    }
    found
}

fn kind(table: &str) -> Option<bool> {
    match table {
        "dependencies" | "build-dependencies" => Some(false),
        "dev-dependencies" => Some(true),
        _ => None,
    }
}

fn unquoted(word: &str) -> &str {
    word.trim().trim_matches(['"', '\''])
}

fn add(found: &mut Vec<Dependency>, name: &str, for_tests: bool, index: usize) {
    if name == "stillpoint" || name.starts_with("stillpoint-") {
        found.push(Dependency { package: name.to_owned(), for_tests, line: index + 1 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<(String, bool)> {
        own_dependencies(text).into_iter().map(|found| (found.package, found.for_tests)).collect()
    }

    #[test]
    fn dependencies_are_found_in_every_form_that_cargo_allows() {
        let text = "\
[package]
name = \"stillpoint-capture\"
[dependencies]
stillpoint-model.workspace = true
\"stillpoint-gateway\" = { path = \"../gateway\" } # a comment
serde = \"1\"
engine = { package = \"stillpoint-repository\", path = \"../repository\" }
[dependencies.stillpoint-services]
workspace = true
[dependencies.run]
package = \"stillpoint-runtimes\"
[target.'cfg(unix)'.dev-dependencies]
stillpoint-testkit = { workspace = true }
[lints]
stillpoint-none = true
";
        let expected = [
            ("stillpoint-model", false),
            ("stillpoint-gateway", false),
            ("stillpoint-repository", false),
            ("stillpoint-services", false),
            ("stillpoint-runtimes", false),
            ("stillpoint-testkit", true),
        ];
        assert_eq!(names(text), expected.map(|(name, tests)| (name.to_owned(), tests)));
    }

    #[test]
    fn a_dependency_knows_its_line() {
        let text = "[dependencies]\n\nstillpoint-model.workspace = true\n";
        assert_eq!(own_dependencies(text)[0].line, 3);
    }
}
