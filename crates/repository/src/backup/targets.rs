//! Where the paths of a backup stand in its tree: each directory of a path is a level, from the root
//! for an absolute path, else from where it starts; `.` stands for its entries. As stock clients do.

use crate::error::RepositoryError;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// A level of the tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Targets {
    /// To be backed up whole.
    Whole(PathBuf),
    /// On the way to something that is.
    Way {
        /// The directory itself.
        path: PathBuf,
        below: BTreeMap<OsString, Targets>,
    },
}

impl Targets {
    pub(super) fn new(paths: &[PathBuf]) -> Result<Self, RepositoryError> {
        if paths.is_empty() {
            return Err(RepositoryError::Refused("nothing to back up was named".into()));
        }
        let mut root = Self::Way { path: PathBuf::from("."), below: BTreeMap::new() };
        for path in paths {
            let mut levels = Vec::new();
            let mut so_far = PathBuf::new();
            for component in path.components() {
                so_far.push(component);
                if let Component::Normal(name) = component {
                    levels.push((name.to_owned(), so_far.clone()));
                }
            }
            if levels.is_empty() {
                if paths.len() > 1 {
                    return Err(RepositoryError::Refused(format!(
                        "{} cannot be backed up together with other paths",
                        path.display()
                    )));
                }
                return Ok(Self::Whole(path.clone()));
            }
            root.insert(&levels, path)?;
        }
        Ok(root)
    }

    fn insert(
        &mut self,
        levels: &[(OsString, PathBuf)],
        path: &Path,
    ) -> Result<(), RepositoryError> {
        let Self::Way { below, .. } = self else { return Ok(()) };
        let ((name, here), rest) = levels.split_first().expect("a path has a level");
        if let Some(other) = below.get(name)
            && other.path() != here
        {
            return Err(RepositoryError::Refused(format!(
                "{} and {} would have the same place in the backup",
                other.path().display(),
                here.display()
            )));
        }
        if rest.is_empty() {
            below.insert(name.clone(), Self::Whole(path.to_owned()));
            return Ok(());
        }
        below
            .entry(name.clone())
            .or_insert_with(|| Self::Way { path: here.clone(), below: BTreeMap::new() })
            .insert(rest, path)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Whole(path) | Self::Way { path, .. } => path,
        }
    }
}

/// The paths as a snapshot lists them: absolute, without `.` and `..`.
pub(super) fn absolute(paths: &[PathBuf]) -> Result<Vec<String>, RepositoryError> {
    let mut absolute = Vec::new();
    for path in paths {
        let full = std::path::absolute(path).map_err(RepositoryError::file("find", path))?;
        let mut clean = PathBuf::new();
        for component in full.components() {
            if component == Component::ParentDir {
                clean.pop();
            } else {
                clean.push(component);
            }
        }
        absolute.push(clean.to_string_lossy().into_owned());
    }
    absolute.sort();
    absolute.dedup();
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(paths: &[&str]) -> Result<Targets, RepositoryError> {
        Targets::new(&paths.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_within_another_path_is_not_backed_up_twice() {
        let expected = targets(&["/a"]).unwrap();
        assert_eq!(targets(&["/a", "/a/b"]).unwrap(), expected);
        assert_eq!(targets(&["/a/b", "/a"]).unwrap(), expected);
    }

    #[test]
    fn paths_that_cannot_share_a_tree_are_refused() {
        assert!(targets(&[]).is_err());
        assert!(targets(&["/", "/a"]).is_err());
        assert!(targets(&["x", "../x"]).is_err());
        assert!(targets(&["/x/a", "/x/b", "y"]).is_ok());
    }
}
