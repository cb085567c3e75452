//! What a mount leaves out: the configured patterns, and our own staging directories.
//!
//! A pattern without `/` matches a name at any depth (`*.tmp`); one with `/` matches the path from
//! the mount's top (`cache/**`). What is excluded is excluded with all that is below it.

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use std::path::Path;

/// Names that begin so, at a mount's top, are ours: a restore's staging directory.
pub(super) const STAGING_PREFIX: &str = ".stillpoint-";

/// Decides what is left out.
#[derive(Debug, Clone)]
pub struct Filter {
    names: GlobSet,
    paths: GlobSet,
}

/// An `exclude` pattern that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("exclude pattern `{pattern}`")]
pub struct InvalidPattern {
    pattern: String,
    source: globset::Error,
}

impl Filter {
    /// From the patterns of the configuration.
    pub fn new(patterns: &[String]) -> Result<Self, InvalidPattern> {
        let mut names = GlobSetBuilder::new();
        let mut paths = GlobSetBuilder::new();
        for pattern in patterns {
            let trimmed = pattern.trim_start_matches('/').trim_end_matches('/');
            let glob = glob(trimmed)
                .map_err(|source| InvalidPattern { pattern: pattern.clone(), source })?;
            if trimmed.contains('/') || pattern.starts_with('/') {
                paths.add(glob);
            } else {
                names.add(glob);
            }
        }
        let build = |builder: GlobSetBuilder| {
            builder.build().map_err(|source| InvalidPattern { pattern: patterns.join(" "), source })
        };
        Ok(Self { names: build(names)?, paths: build(paths)? })
    }

    /// True if no pattern is configured.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.paths.is_empty()
    }

    /// True if `path`, relative to the mount's top, is left out.
    pub fn excludes(&self, path: &Path) -> bool {
        let Some(name) = path.file_name() else { return false };
        let at_top = path.parent().is_none_or(|parent| parent.as_os_str().is_empty());
        (at_top && name.as_encoded_bytes().starts_with(STAGING_PREFIX.as_bytes()))
            || self.names.is_match(name)
            || self.paths.is_match(path)
    }
}

fn glob(pattern: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(patterns: &[&str], path: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        Filter::new(&patterns).unwrap().excludes(Path::new(path))
    }

    #[test]
    fn a_pattern_without_a_slash_matches_a_name_at_any_depth() {
        assert!(excludes(&["*.tmp"], "a.tmp"));
        assert!(excludes(&["*.tmp"], "deep/er/a.tmp"));
        assert!(!excludes(&["*.tmp"], "a.tmp.txt"));
    }

    #[test]
    fn a_pattern_with_a_slash_matches_from_the_top() {
        assert!(excludes(&["cache/*"], "cache/a"));
        assert!(!excludes(&["cache/*"], "x/cache/a"));
        assert!(excludes(&["/cache"], "cache"));
        assert!(!excludes(&["/cache"], "x/cache"));
    }

    #[test]
    fn staging_directories_are_left_out_at_the_top_only() {
        assert!(excludes(&[], ".stillpoint-abc"));
        assert!(!excludes(&[], "x/.stillpoint-abc"));
    }

    #[test]
    fn a_broken_pattern_is_named() {
        let error = Filter::new(&["a[".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "exclude pattern `a[`");
    }
}
