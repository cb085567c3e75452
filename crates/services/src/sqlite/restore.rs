//! Restore: the captured file beside the live one, proven, then copied into it.
//!
//! The state is read from which files exist, each time; see [`Names`]. So any process can go on
//! after any crash.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::connection::{open_if_whole, open_still, pragma};
use super::files::{beside, create_private, directory, failed, publish, refuse_full, sha256};
use super::prepared::Facts;
use super::{DATABASE, FACTS};
use crate::{Aside, Restore, ServiceError, Source};

/// The restore of one database.
pub(super) struct SqliteRestore {
    path: PathBuf,
}

/// What is written into the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Plan {
    token: String,
    /// The live file itself, where the configured path is a symbolic link: its logs lie beside it,
    /// and it must be found again while it is away.
    live: PathBuf,
}

/// The files of a restore, all beside the live one.
pub(super) struct Names {
    pub(super) live: PathBuf,
    /// The captured database, whole and not yet swapped in.
    pub(super) new: PathBuf,
    /// The same, once it has been swapped in.
    pub(super) done: PathBuf,
    /// The live database as it was before the swap, whole.
    pub(super) old: PathBuf,
    /// There was no usable live database before the swap: a directory that keeps what there was.
    pub(super) none: PathBuf,
    /// What is being written.
    pub(super) part: PathBuf,
}

impl SqliteRestore {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn names(aside: &Aside) -> Result<Names, ServiceError> {
        let plan: Plan = serde_json::from_value(aside.0.clone()).map_err(|e| {
            ServiceError::new("read what the journal says of the restore").because(e)
        })?;
        Ok(Names::new(&plan.live, &plan.token))
    }
}

impl Names {
    pub(super) fn new(live: &Path, token: &str) -> Self {
        let name = |word: &str| beside(live, &format!(".stillpoint-{token}-{word}"));
        Self {
            live: live.to_owned(),
            new: name("new"),
            done: name("done"),
            old: name("old"),
            none: name("none"),
            part: name("part"),
        }
    }
}

fn read_facts(source: &dyn Source) -> Result<Facts, ServiceError> {
    let doing = || ServiceError::new(format!("read {FACTS} of the captured service"));
    let mut text = String::new();
    source
        .open(FACTS)
        .and_then(|mut file| io::Read::read_to_string(&mut file, &mut text))
        .map_err(|e| doing().because(e))?;
    let facts: Facts = serde_json::from_str(&text).map_err(|e| doing().because(e))?;
    if !facts.is_known() {
        return Err(doing().hint("restore it with a newer Stillpoint"));
    }
    Ok(facts)
}

impl Restore for SqliteRestore {
    fn plan(&mut self, token: &str, source: &dyn Source) -> Result<Aside, ServiceError> {
        let facts = read_facts(source)?;
        let live = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let dir = directory(&live);
        let found = fs::metadata(dir).map_err(failed("find the directory", dir))?;
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::access(dir, access).map_err(|e| {
            failed("write into the directory", dir)(e.into())
                .hint("SQLite, too, must write there: give this account the right, or remount it")
        })?;
        if !found.is_dir() {
            return Err(ServiceError::new(format!("{} is not a directory", dir.display())));
        }
        let mut live_bytes = 0;
        match fs::metadata(&live) {
            Ok(found) => {
                live_bytes = found.len();
                rustix::fs::access(&live, rustix::fs::Access::WRITE_OK)
                    .map_err(|e| failed("write to", &live)(e.into()))?;
                refuse_other_page_size(&live, &facts)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("look at", &live)(e)),
        }
        // The captured one beside, the old one beside, and the log while it is copied in.
        refuse_full(dir, facts.bytes.saturating_mul(2) + live_bytes, "the restore")?;
        serde_json::to_value(Plan { token: token.to_owned(), live })
            .map(Aside)
            .map_err(|e| ServiceError::new("write the restore's plan").because(e))
    }

    fn load(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let names = Self::names(aside)?;
        if names.done.exists() {
            return Err(ServiceError::new(format!("{} is already restored", names.live.display())));
        }
        let mut content = source
            .open(DATABASE)
            .map_err(|e| ServiceError::new(format!("read {DATABASE}")).because(e))?;
        let mut part = create_private(&names.part)?;
        io::copy(&mut content, &mut part).map_err(failed("write", &names.part))?;
        drop(part);
        publish(&names.part, &names.new)
    }

    fn verify(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let names = Self::names(aside)?;
        let facts = read_facts(source)?;
        let doing = || ServiceError::new(format!("verify {}", names.new.display()));
        let found = fs::File::open(&names.new)
            .and_then(|mut file| sha256(&mut file))
            .map_err(failed("read", &names.new))?;
        if found != facts.sha256 {
            return Err(doing().because("it is not what was captured"));
        }
        let still = open_still(&names.new).map_err(|e| doing().because(e))?;
        let said: String = pragma(&still, "integrity_check(1)").map_err(|e| doing().because(e))?;
        if said == "ok" { Ok(()) } else { Err(doing().because(said)) }
    }

    fn swap(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        Self::names(aside)?.swap()
    }

    fn swap_back(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        Self::names(aside)?.swap_back()
    }

    fn finish(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        Self::names(aside)?.finish()
    }

    fn discard(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        Self::names(aside)?.discard()
    }
}

/// SQLite cannot change a WAL database's page size while it is in use.
fn refuse_other_page_size(path: &Path, facts: &Facts) -> Result<(), ServiceError> {
    let fail = |e| super::connection::explained(format!("open {}", path.display()), path, e);
    // What is damaged is set aside by the swap.
    let Some(live) = open_if_whole(path).map_err(fail)? else { return Ok(()) };
    let mode: String = pragma(&live, "journal_mode").map_err(fail)?;
    let size: u32 = pragma(&live, "page_size").map_err(fail)?;
    if mode != "wal" || size == facts.page_size || facts.page_size == 0 {
        return Ok(());
    }
    Err(ServiceError::new(format!(
        "{} has pages of {size} bytes, the captured one of {}",
        path.display(),
        facts.page_size
    ))
    .hint("stop the application and run PRAGMA journal_mode = DELETE on the live one"))
}
