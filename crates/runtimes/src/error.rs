//! What goes wrong when a part is started or stopped.

use std::io;
use std::path::PathBuf;

/// A part could not be started, asked or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The operating system refused something.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done: "create".
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory cannot be used by the account that the server runs as.
    #[error("the account `{account}` may not enter {}", path.display())]
    Unreachable {
        /// The server's account.
        account: String,
        /// The directory that is closed to it.
        path: PathBuf,
    },
    /// The directory already holds a server.
    #[error("{} already holds a server's data", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// An option is not usable as it is.
    #[error("{what} `{given}` is not valid: {rule}")]
    Option {
        /// Which option.
        what: &'static str,
        /// What was given.
        given: String,
        /// What would be right.
        rule: &'static str,
    },
    /// A server's tool ended with an error.
    #[error("{program} failed: {output}")]
    Tool {
        /// Its name.
        program: &'static str,
        /// What it said.
        output: String,
    },
    /// The server ended, or did not get ready.
    #[error("{name} did not start: {log}")]
    DidNotStart {
        /// The server.
        name: &'static str,
        /// The end of its log.
        log: String,
    },
    /// The server refused a statement.
    #[error("{doing}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// The server's answer.
        source: postgres::Error,
    },
}

impl RuntimeError {
    /// What a person can do about it, where something can be done.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => Some(
                "choose a directory below /tmp or /var/tmp, or open the way to it with chmod o+x",
            ),
            Self::InUse { .. } => Some("choose an empty directory"),
            _ => None,
        }
    }
}
