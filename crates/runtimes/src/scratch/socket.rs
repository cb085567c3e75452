//! Where a scratch server's Unix socket is: in the server's own directory, or, where the path would
//! be too long for a socket, in one of the system's own, which goes with this value.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::account::Account;
use super::process::{io_error, random_password};
use crate::RuntimeError;

/// The longest path of a Unix socket, without its final zero.
const SOCKET_PATH: usize = 107;

/// The directory of a socket.
#[derive(Debug)]
pub(super) struct SocketDir {
    pub(super) path: PathBuf,
    outside: bool,
}

impl SocketDir {
    /// A new directory for files whose names are no longer than `longest`.
    pub(super) fn make(dir: &Path, account: &Account, longest: &str) -> Result<Self, RuntimeError> {
        let inside = dir.join("socket");
        let outside = inside.as_os_str().len() + 1 + longest.len() > SOCKET_PATH;
        let path = if outside {
            PathBuf::from(format!("/tmp/stillpoint-{}", &random_password()[..12]))
        } else {
            inside
        };
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .map_err(|source| io_error("create", &path, source))?;
        account.own(&path)?;
        Ok(Self { path, outside })
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.outside {
            // What cannot be removed is an empty directory that nobody needs.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
