//! Prepare, mark and capture.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Seek};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use stillpoint_model::manifest::Marker;

use super::connection::{copy_until, create, explained, open_live, open_still, pragma};
use super::files::{Hashed, failed, refuse_full};
use super::locks::Locks;
use super::spool::Spool;
use super::{DATABASE, FACTS};
use crate::{Captured, Prepared, ServiceError, Sink};

/// Pages that are copied before it is asked again whether to go on.
const PAGES_AT_ONCE: i32 = 4096;

/// The version of what [`Facts`] says.
const VERSION: u32 = 1;

/// A prepared database.
///
/// The order of the fields is the order in which they are dropped: connections before the handle
/// of our own, whose closing drops this process's locks.
pub(super) struct PreparedSqlite {
    /// Without symbolic links: one that is changed later must not lead to another file.
    path: PathBuf,
    /// Sees what others write.
    control: Connection,
    /// Keeps the mark.
    reader: Connection,
    journal: Journal,
    spool: Spool,
    /// In rollback mode: the copy that the mark made.
    copied: bool,
    marked: bool,
    /// Those that the last mark must keep until its copy is whole.
    locks: Locks,
    own_handle: Option<File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Journal {
    Wal,
    Rollback,
}

/// `facts.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) version: u32,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) page_size: u32,
    pub(super) journal_mode: String,
}

impl Facts {
    pub(super) fn is_known(&self) -> bool {
        self.version == VERSION
    }
}

fn journal_of(connection: &Connection) -> Result<Journal, rusqlite::Error> {
    let mode: String = pragma(connection, "journal_mode")?;
    Ok(if mode.eq_ignore_ascii_case("wal") { Journal::Wal } else { Journal::Rollback })
}

impl PreparedSqlite {
    pub(super) fn open(path: &Path) -> Result<Self, ServiceError> {
        let doing = || format!("open the SQLite database {}", path.display());
        let real =
            std::fs::canonicalize(path).map_err(|e| ServiceError::new(doing()).because(e))?;
        let path = real.as_path();
        let found = std::fs::metadata(path).map_err(|e| ServiceError::new(doing()).because(e))?;
        if !found.is_file() {
            return Err(ServiceError::new(doing()).because("it is not a file"));
        }
        let fail = |e| explained(doing(), path, e);
        let control = open_live(path).map_err(fail)?;
        let reader = open_live(path).map_err(fail)?;
        for connection in [&control, &reader] {
            connection.execute_batch("PRAGMA query_only = on").map_err(fail)?;
        }
        let journal = journal_of(&control).map_err(fail)?;
        let pages: u32 = pragma(&control, "page_count").map_err(fail)?;
        let page_size: u32 = pragma(&control, "page_size").map_err(fail)?;
        let bytes = u64::from(pages) * u64::from(page_size);
        if journal == Journal::Rollback && bytes > found.len() {
            return Err(ServiceError::new(doing())
                .because(format!("it is cut off at {} bytes", found.len()))
                .hint("restore it from a backup; one of its present state would be damaged too"));
        }
        let spool = Spool::new()?;
        // It may grow until the mark.
        refuse_full(spool.path(), bytes / 8 * 9, "a copy of the database")
            .map_err(|e| e.hint("set TMPDIR to a directory with more room"))?;
        Ok(Self {
            path: real,
            control,
            reader,
            journal,
            spool,
            copied: false,
            marked: false,
            locks: Locks::default(),
            own_handle: None,
        })
    }

    fn spooled(&self) -> PathBuf {
        self.spool.path().join(DATABASE)
    }

    fn fail(&self, doing: &str) -> impl Fn(rusqlite::Error) -> ServiceError {
        let path = self.path.clone();
        let doing = format!("{doing} {}", path.display());
        move |e| explained(doing.clone(), &path, e)
    }

    /// Under a shared lock, so that no writer can be in the middle: the file as it is.
    fn copy_file(&mut self) -> Result<(), ServiceError> {
        let path = &self.path;
        if self.own_handle.is_none() {
            self.own_handle = Some(File::open(path).map_err(failed("open", path))?);
        }
        let Some(source) = self.own_handle.as_mut() else { return Ok(()) };
        source.rewind().map_err(failed("read", path))?;
        let spooled = self.spool.path().join(DATABASE);
        let mut target = super::files::create_private(&spooled)?;
        if rustix::fs::ioctl_ficlone(&target, &*source).is_err() {
            io::copy(source, &mut target).map_err(failed("copy", path))?;
        }
        self.prove_locks()?;
        self.copied = true;
        Ok(())
    }

    /// In WAL mode: out of the read transaction that the mark opened, while writers go on.
    fn copy_snapshot(&mut self, sink: &dyn Sink) -> Result<(), ServiceError> {
        let spooled = self.spooled();
        let failed = || ServiceError::new(format!("copy {}", self.path.display()));
        let mut target = create(&spooled).map_err(|e| failed().because(e))?;
        copy_until(&self.reader, &mut target, PAGES_AT_ONCE, &|| sink.stopped())
            .map_err(|e| failed().because(e))?;
        target.close().map_err(|(_, e)| failed().because(e))?;
        self.prove_locks()?;
        self.copied = true;
        Ok(())
    }

    /// A copy counts only if nobody could write into what it was made of.
    fn prove_locks(&self) -> Result<(), ServiceError> {
        if self.locks.stand(&self.path) {
            return Ok(());
        }
        Err(ServiceError::new(format!("copy {}", self.path.display()))
            .because("the locks of its mark were dropped, so the copy may be torn")
            .hint(
                "something in this process has opened and closed the database's files meanwhile: \
                 is it in two services, or among the files of a volume in the same backup?",
            ))
    }

    fn end_read(&self) -> Result<(), ServiceError> {
        if self.reader.is_autocommit() {
            return Ok(());
        }
        self.reader.execute_batch("ROLLBACK").map_err(self.fail("end the read of"))
    }

    fn stream(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        let mut captured = Captured::default();
        let spooled = self.spooled();
        // Damage is captured as it is, and said.
        let check = || -> Result<(String, u32), rusqlite::Error> {
            let still = open_still(&spooled)?;
            Ok((pragma(&still, "quick_check(1)")?, pragma(&still, "page_size")?))
        };
        let (said, page_size) = check().unwrap_or_else(|e| (e.to_string(), 0));
        if said != "ok" {
            captured.gaps.push((self.path.display().to_string(), format!("it is damaged: {said}")));
        }
        let file = File::open(&spooled).map_err(failed("open", &spooled))?;
        let mut file = Hashed::new(file);
        let store = |e| ServiceError::new(format!("store {DATABASE}")).because(e);
        captured.bytes = sink.write(DATABASE, &mut file).map_err(store)?;
        captured.items = 1;
        let facts = Facts {
            version: VERSION,
            bytes: captured.bytes,
            sha256: file.finish(),
            page_size,
            journal_mode: self.journal.name().to_owned(),
        };
        let text = serde_json::to_string_pretty(&facts)
            .map_err(|e| ServiceError::new(format!("write {FACTS}")).because(e))?;
        captured.bytes += sink.write(FACTS, &mut Cursor::new(text.as_bytes())).map_err(store)?;
        Ok(captured)
    }
}

impl Journal {
    fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Rollback => "rollback",
        }
    }
}

impl Prepared for PreparedSqlite {
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("sqlite".to_owned(), rusqlite::version().to_owned()),
            ("journal_mode".to_owned(), self.journal.name().to_owned()),
        ])
    }

    fn mark_blocks_writers(&self) -> bool {
        self.journal == Journal::Rollback
    }

    fn counter(&mut self) -> Result<String, ServiceError> {
        let read = || -> Result<String, rusqlite::Error> {
            let data: i64 = pragma(&self.control, "data_version")?;
            let schema: i64 = pragma(&self.control, "schema_version")?;
            Ok(format!("{data}.{schema}"))
        };
        read().map_err(self.fail("read the change counter of"))
    }

    fn mark(&mut self) -> Result<Marker, ServiceError> {
        self.end_read()?;
        self.copied = false;
        let before = Locks::of(&self.path);
        let begin = || -> Result<(Journal, i64, i64), rusqlite::Error> {
            let journal = journal_of(&self.reader)?;
            // BEGIN alone fixes nothing; the first read does.
            self.reader.execute_batch("BEGIN")?;
            self.reader.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            let schema = pragma(&self.reader, "schema_version")?;
            Ok((journal, schema, pragma(&self.reader, "page_count")?))
        };
        let (journal, schema, pages) = begin().map_err(self.fail("mark"))?;
        if journal != self.journal {
            return Err(ServiceError::new(format!("mark {}", self.path.display()))
                .because("its journal mode has changed since it was prepared"));
        }
        self.locks = Locks::of(&self.path).since(&before);
        if journal == Journal::Rollback {
            let copied = self.copy_file();
            self.end_read()?;
            copied?;
        }
        self.marked = true;
        Ok(Marker {
            at: Timestamp::now(),
            values: BTreeMap::from([
                ("schema_version".to_owned(), schema.to_string()),
                ("pages".to_owned(), pages.to_string()),
                ("journal_mode".to_owned(), journal.name().to_owned()),
            ]),
        })
    }

    fn capture(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        if !self.marked {
            return Err(ServiceError::new(format!("capture {}", self.path.display()))
                .because("it was not marked"));
        }
        if !self.copied {
            self.copy_snapshot(sink)?;
            // From here the log of the live database may be folded in again.
            self.end_read()?;
        }
        self.stream(sink)
    }
}
