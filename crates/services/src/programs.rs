//! Finding the programs of a server on this host.

use crate::ServiceError;
use std::path::{Path, PathBuf};

/// The first of `names` in any of `dirs`, or in the usual places. `package`: what to install.
pub(crate) fn find(
    names: [&str; 2],
    dirs: &[PathBuf],
    package: &str,
) -> Result<PathBuf, ServiceError> {
    let usual = [PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")];
    let dirs = || dirs.iter().chain(&usual);
    names
        .iter()
        .flat_map(|name| dirs().map(move |dir| dir.join(name)))
        .find(|path: &PathBuf| Path::is_file(path))
        .ok_or_else(|| {
            ServiceError::new(format!("find the program {}", names[0]))
                .because("it is in none of the directories for programs")
                .hint(format!("install the Debian package {package}"))
        })
}
