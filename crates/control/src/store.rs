//! The datastore: opened by one server at a time, brought to the newest schema, refused if it is of
//! a newer program.

use crate::error::ControlError;
use crate::queue::Links;
use crate::schema::Migrator;
use crate::tokens::AccessTokens;
use sea_orm::sqlx::Connection;
use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DatabaseTransaction, TransactionTrait,
};
use sea_orm_migration::MigratorTrait;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, watch};

/// The control plane. Cloning it is cheap.
#[derive(Clone)]
pub struct Control {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) db: DatabaseConnection,
    /// Held by whoever changes something: SQLite has one writer, and this one waits fairly.
    pub(crate) writing: Mutex<()>,
    pub(crate) access_tokens: AccessTokens,
    pub(crate) links: Links,
    /// Counts changes of activities; who follows one waits for the next.
    pub(crate) changes: watch::Sender<u64>,
    /// Locked for as long as the server runs.
    _lock: File,
}

impl Control {
    /// Opens the datastore in `directory`, or makes it.
    pub async fn open(directory: &Path) -> Result<Self, ControlError> {
        let path = directory.join("state.db");
        let unusable =
            |why: String| ControlError::Unusable { path: path.display().to_string(), why };
        let io = |e: std::io::Error| unusable(e.to_string());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
        let private = |path: &Path| {
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
        };
        let lock = private(&directory.join("state.lock")).map_err(io)?;
        lock.try_lock().map_err(|e| match e {
            fs::TryLockError::WouldBlock => unusable("another server uses it".to_owned()),
            fs::TryLockError::Error(e) => unusable(e.to_string()),
        })?;
        // Before SQLite makes it, with whatever rights the umask leaves.
        drop(private(&path).map_err(io)?);
        let url = format!("sqlite://{}?mode=rwc", path.display());
        let mut options = ConnectOptions::new(url);
        options.max_connections(8).sqlx_logging(false).map_sqlx_sqlite_opts(|sqlite| {
            sqlite
                .pragma("journal_mode", "WAL")
                .pragma("synchronous", "FULL")
                .busy_timeout(Duration::from_secs(10))
        });
        options.map_sqlx_sqlite_pool_opts(|pool| {
            pool.after_release(|connection, _| {
                // On a full disk SQLite rolls back by itself, which its driver does not learn of:
                // it takes the next transaction for one within the last, and never ends it, and
                // nobody else could write any more. Such a connection is not used again.
                Box::pin(async move {
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
        });
        let db = Database::connect(options).await.map_err(|e| unusable(e.to_string()))?;
        Migrator::up(&db, None).await.map_err(|e| {
            let text = e.to_string();
            unusable(if text.contains("is missing, this migration has been applied") {
                "it was written by a newer version of this program; nothing was changed".to_owned()
            } else {
                text
            })
        })?;
        let inner = Inner {
            db,
            writing: Mutex::default(),
            access_tokens: AccessTokens::default(),
            links: Links::default(),
            changes: watch::Sender::new(0),
            _lock: lock,
        };
        let control = Self { inner: Arc::new(inner) };
        control.fail_interrupted("the server was restarted", None).await?;
        Ok(control)
    }

    pub(crate) fn db(&self) -> &DatabaseConnection {
        &self.inner.db
    }

    /// Begins a change. Every one is made through this, also one of a single statement: SQLite
    /// gives an `INSERT ... RETURNING` its row before it commits, and what then fails, as on a full
    /// disk, is told to nobody but who commits by a statement of its own.
    pub(crate) async fn change(&self) -> Result<Change<'_>, ControlError> {
        let turn = self.inner.writing.lock().await;
        Ok(Change { transaction: self.db().begin().await?, _turn: turn })
    }

    /// Wakes whoever follows an activity.
    pub(crate) fn changed(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }
}

/// A change of the datastore, by the only one who changes it at the moment. Nothing of it is kept
/// if it is dropped.
pub(crate) struct Change<'a> {
    // In this order: nobody else begins before this one has ended.
    transaction: DatabaseTransaction,
    _turn: MutexGuard<'a, ()>,
}

impl Change<'_> {
    pub(crate) fn db(&self) -> &DatabaseTransaction {
        &self.transaction
    }

    /// Makes it durable.
    pub(crate) async fn keep(self) -> Result<(), ControlError> {
        Ok(self.transaction.commit().await?)
    }
}

/// Now, in microseconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// A stored time in RFC 3339, with exactly six digits after the second.
pub fn micros(at: i64) -> String {
    jiff::Timestamp::from_microsecond(at)
        .map(|at| {
            let text = format!("{at:.6}");
            text.strip_suffix('Z').map(|text| format!("{text}+00:00")).unwrap_or(text)
        })
        .unwrap_or_default()
}
