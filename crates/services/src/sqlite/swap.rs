//! The swap of an SQLite database, and its undoing.
//!
//! A live database is never renamed: its content is copied out, and the captured content is copied
//! in, in one transaction, through SQLite. Open connections go on and see the new data. Only where
//! there is no usable database (it is missing, or damaged beyond opening) a file is put in its
//! place, once what lay there, stale logs above all, has been moved away.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::connection::{copy, create, explained, open_if_whole, open_live, open_still};
use super::files::{
    beside, create_private, directory, failed, move_if_there, publish, remove_if_there,
    sync_directory,
};
use super::restore::Names;
use crate::ServiceError;

/// What SQLite keeps beside a database. A leftover of another one would be taken for its own.
const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

impl Names {
    pub(super) fn swap(&self) -> Result<(), ServiceError> {
        if self.done.exists() {
            return Ok(());
        }
        if !self.new.exists() {
            return Err(ServiceError::new(format!("swap in {}", self.new.display()))
                .because("it was never loaded"));
        }
        if self.none.exists() || !self.save_live()? {
            self.set_aside()?;
            self.put_in_place()?;
        } else {
            copy_into(&self.new, &self.live)?;
        }
        fs::rename(&self.new, &self.done).map_err(failed("rename", &self.new))?;
        sync_directory(&self.live)
    }

    pub(super) fn swap_back(&self) -> Result<(), ServiceError> {
        if self.none.exists() {
            self.take_out()?;
        } else if self.old.exists() {
            copy_into(&self.old, &self.live)?;
            // Gone only now: a swap_back that is repeated later must not bring it back again.
            remove_if_there(&self.old)?;
        }
        move_if_there(&self.done, &self.new)?;
        remove_if_there(&self.part)?;
        sync_directory(&self.live)
    }

    pub(super) fn finish(&self) -> Result<(), ServiceError> {
        if self.new.exists() && !self.done.exists() {
            return Err(ServiceError::new(format!("finish {}", self.live.display()))
                .because("it was not swapped"));
        }
        remove_if_there(&self.old)?;
        if self.none.exists() {
            fs::remove_dir_all(&self.none).map_err(failed("remove", &self.none))?;
        }
        // Last: it is what says that the swap was done.
        remove_if_there(&self.part)?;
        remove_if_there(&self.done)?;
        sync_directory(&self.live)
    }

    pub(super) fn discard(&self) -> Result<(), ServiceError> {
        if self.old.exists() || self.none.exists() || self.done.exists() {
            return Err(ServiceError::new(format!("discard {}", self.new.display()))
                .because("it is swapped in, wholly or half")
                .hint("swap back first"));
        }
        remove_if_there(&self.new)?;
        remove_if_there(&self.part)?;
        sync_directory(&self.live)
    }

    /// Copies the live database aside. False where there is none that could be opened.
    fn save_live(&self) -> Result<bool, ServiceError> {
        if self.old.exists() {
            return Ok(true);
        }
        if !self.live.exists() {
            return Ok(false);
        }
        let doing = || format!("save {}", self.live.display());
        let opened = open_if_whole(&self.live).map_err(|e| explained(doing(), &self.live, e))?;
        let Some(live) = opened else { return Ok(false) };
        create_private(&self.part)?;
        let mut part = create(&self.part).map_err(|e| explained(doing(), &self.part, e))?;
        copy(&live, &mut part).map_err(|e| ServiceError::new(doing()).because(e))?;
        part.close().map_err(|(_, e)| explained(doing(), &self.part, e))?;
        publish(&self.part, &self.old)?;
        Ok(true)
    }

    /// Where what is set aside goes.
    fn kept(&self) -> [(PathBuf, PathBuf); 4] {
        let kept =
            |suffix: &str| (beside(&self.live, suffix), self.none.join(format!("live{suffix}")));
        [kept(""), kept(SIDECARS[0]), kept(SIDECARS[1]), kept(SIDECARS[2])]
    }

    /// Says once, in a file, that from now on what lies in the live one's place is ours.
    fn moved(&self) -> PathBuf {
        self.none.join("moved")
    }

    /// Moves away what lies where the database should be.
    fn set_aside(&self) -> Result<(), ServiceError> {
        if self.moved().exists() {
            return Ok(());
        }
        if !self.none.exists() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&self.none)
                .map_err(failed("create", &self.none))?;
            sync_directory(&self.none)?;
        }
        for (from, to) in self.kept() {
            move_if_there(&from, &to)?;
        }
        sync_directory(&self.live)?;
        create_private(&self.moved())?;
        sync_directory(&self.moved())
    }

    /// Undoes [`Names::set_aside`] and [`Names::put_in_place`].
    fn take_out(&self) -> Result<(), ServiceError> {
        if self.moved().exists() {
            remove_if_there(&self.live)?;
            for suffix in SIDECARS {
                remove_if_there(&beside(&self.live, suffix))?;
            }
            sync_directory(&self.live)?;
            remove_if_there(&self.moved())?;
            sync_directory(&self.moved())?;
        }
        for (from, to) in self.kept() {
            move_if_there(&to, &from)?;
        }
        sync_directory(&self.live)?;
        fs::remove_dir_all(&self.none).map_err(failed("remove", &self.none))
    }

    /// Makes a live database where there is none, as its directory's owner would.
    fn put_in_place(&self) -> Result<(), ServiceError> {
        if self.live.exists() {
            // Of the try before: whole, since it was published.
            return Ok(());
        }
        let mut part = create_private(&self.part)?;
        let mut new = fs::File::open(&self.new).map_err(failed("open", &self.new))?;
        std::io::copy(&mut new, &mut part).map_err(failed("write", &self.part))?;
        let dir = directory(&self.live);
        let found = fs::metadata(dir).map_err(failed("look at", dir))?;
        let mode = fs::Permissions::from_mode(found.mode() & 0o666);
        part.set_permissions(mode).map_err(failed("set the mode of", &self.part))?;
        if part.metadata().map_err(failed("look at", &self.part))?.uid() == 0 {
            chown(&self.part, Some(found.uid()), Some(found.gid()))
                .map_err(failed("change the owner of", &self.part))?;
        }
        drop(part);
        publish(&self.part, &self.live)
    }
}

/// Copies a database that nobody uses into one that others do, in one transaction.
fn copy_into(from: &Path, live: &Path) -> Result<(), ServiceError> {
    let doing = || format!("copy {} into {}", from.display(), live.display());
    let still = open_still(from).map_err(|e| explained(doing(), from, e))?;
    let mut live_connection = open_live(live).map_err(|e| explained(doing(), live, e))?;
    copy(&still, &mut live_connection).map_err(|e| {
        ServiceError::new(doing())
            .because(e)
            .hint("a connection that keeps a read transaction open, or exclusive locking")
    })?;
    live_connection.close().map_err(|(_, e)| explained(doing(), live, e))
}
