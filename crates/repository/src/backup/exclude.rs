//! Patterns of what to leave out: `*.tmp` by name anywhere, `/srv/cache` or `a/*/b` by path.

use crate::error::RepositoryError;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::path::Path;

pub(super) struct Excludes {
    names: GlobSet,
    paths: GlobSet,
}

impl Excludes {
    pub(super) fn new(patterns: &[String]) -> Result<Self, RepositoryError> {
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        let refuse = |error: globset::Error| {
            RepositoryError::Refused(format!("the pattern to exclude is not valid: {error}"))
        };
        for pattern in patterns {
            let trimmed = pattern.trim_end_matches('/');
            if trimmed.is_empty() {
                return Err(RepositoryError::Refused(format!(
                    "the pattern to exclude `{pattern}` would leave out everything"
                )));
            }
            let by_path = trimmed.contains('/');
            // A path that does not begin at the root may begin at any directory.
            let text = match (by_path, trimmed.starts_with('/')) {
                (true, false) => format!("**/{trimmed}"),
                _ => trimmed.to_owned(),
            };
            let glob = GlobBuilder::new(&text)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(refuse)?;
            if by_path { &mut paths } else { &mut names }.add(glob);
        }
        Ok(Self { names: names.build().map_err(refuse)?, paths: paths.build().map_err(refuse)? })
    }

    pub(super) fn excludes(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|name| self.names.is_match(name)) || self.paths.is_match(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_or_paths() {
        let excludes = |pattern: &str, path: &str| {
            Excludes::new(&[pattern.to_owned()]).unwrap().excludes(Path::new(path))
        };
        assert!(excludes("*.tmp", "/a/b/x.tmp"));
        assert!(!excludes("*.tmp", "/a/b.tmp/x"), "its directory is left out, so never reached");
        assert!(excludes("cache/", "/a/cache"));
        assert!(excludes("/a/*", "/a/b") && !excludes("/a/*", "/a/b/c"));
        assert!(excludes("a/b", "/x/a/b") && !excludes("/a/b", "/x/a/b"));
        assert!(Excludes::new(&["[".to_owned()]).is_err());
        assert!(Excludes::new(&["/".to_owned()]).is_err());
    }
}
