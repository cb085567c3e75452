//! What can go wrong with a repository, each with its context; advice is data, for the edge.

use crate::id::FileId;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A refusal or failure of the repository. `Display` never repeats the source: walk the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The store could not be read or written.
    #[error("{doing}")]
    Store {
        /// What was being done, with the file's name.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The content that was to be saved could not be read. The repository itself is fine.
    #[error("read the content to be saved")]
    Source(#[source] io::Error),
    /// `init` found a repository.
    #[error("{0} already holds a repository")]
    AlreadyInitialized(String),
    /// `open` found none.
    #[error("{0} holds no repository")]
    NotARepository(String),
    /// No key opens with the password.
    #[error("wrong password: it opens none of the repository's {keys} keys")]
    WrongPassword {
        /// How many keys were tried.
        keys: usize,
    },
    /// Something stored is not what it must be.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// Which file or blob.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The repository is of a version or has parameters that this program cannot work with.
    #[error("the repository cannot be used here: {0}")]
    Unsupported(String),
    /// Someone else has it exclusively.
    #[error("the repository is locked by {0}")]
    Locked(String),
    /// Our own lock is gone or too old: someone may have removed data that we rely on.
    #[error("our lock on the repository {0}, so nothing is published")]
    LockLost(String),
    /// A blob, snapshot or path that is not there.
    #[error("{0} is not in the repository")]
    Missing(String),
    /// An earlier write failed, so that this writer is of no more use; nothing is published.
    #[error("an earlier write to the repository failed")]
    Failed(#[source] Arc<RepositoryError>),
    /// A worker thread ended before its time.
    #[error("a worker of the repository ended unexpectedly while it was to {0}")]
    Worker(&'static str),
    /// A file of the file system (not of the repository) could not be read or written.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done: `"create"`, `"list"`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The monitor asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl RepositoryError {
    /// What a person can do about it, where something can be said.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::AlreadyInitialized(_) => {
                Some("choose another directory, or use the repository that is there".into())
            }
            Self::NotARepository(place) => {
                Some(format!("create one with `stillpoint repo init -r {place}`"))
            }
            Self::Locked(_) => Some(
                "wait for it to end; if it was killed, `restic unlock` removes the lock it left"
                    .into(),
            ),
            Self::LockLost(_) => Some("run the backup again".into()),
            Self::Damaged { .. } => Some(
                "`stillpoint repo check --read-data` lists all damage; restore the file from \
                 another copy of the repository"
                    .into(),
            ),
            Self::Failed(first) => first.hint(),
            Self::Store { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room where the repository is".into())
            }
            _ => None,
        }
    }

    /// It and all that caused it, in one line.
    pub(crate) fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }

    #[allow(clippy::needless_pass_by_value, reason = "callers have errors and texts alike")]
    pub(crate) fn damaged(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let why = why.to_string();
        Self::Damaged { what: what.into(), why }
    }

    pub(crate) fn store(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        |source| Self::Store { doing, source }
    }

    pub(crate) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}

/// Names a stored file in messages: `index 1b9a0b5e`.
pub(crate) fn file_name(kind: crate::store::FileKind, id: &FileId) -> String {
    match kind {
        crate::store::FileKind::Config => "config".to_owned(),
        _ => format!("{} {}", kind.word(), id.short()),
    }
}
