//! An environment's repository and its password: made together the first time, opened ever after.
//!
//! Guards against two losses. A repository must never be there without its password: the password
//! is on disk, as `.password.new`, before anything is encrypted with it, and gets its own name once
//! the repository stands. And a repository that has a password but cannot be seen is not made anew:
//! its disk is not mounted, and backups would go to where nobody looks for them.

use crate::failure::Failure;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stillpoint_model::ids::BackupId;
use stillpoint_repository::{LocalStore, Repository};

/// Characters of a password: 160 random bits.
const LENGTH: usize = 32;

/// Where both are.
pub(crate) struct Files {
    /// The repository's directory.
    pub repository: PathBuf,
    /// The file with its password.
    pub password: PathBuf,
}

impl Files {
    /// Opens the repository. Where there has never been one it is made, or, without `create`,
    /// `none` is the failure.
    pub(crate) fn open(&self, create: bool, none: Failure) -> Result<Repository, Failure> {
        if exists(&self.password)? {
            return self.open_known();
        }
        if !create && !self.has_config()? {
            return Err(none);
        }
        let new = self.password.with_extension("password.new");
        if !create && !exists(&new)? {
            return self.open_known();
        }
        self.make(&new)
    }

    /// Whether there has ever been a repository.
    pub(crate) fn are_known(&self) -> Result<bool, Failure> {
        Ok(exists(&self.password)? || self.has_config()?)
    }

    fn has_config(&self) -> Result<bool, Failure> {
        exists(&self.repository.join("config"))
    }

    fn open_known(&self) -> Result<Repository, Failure> {
        let password = fs::read_to_string(&self.password).map_err(|e| {
            Failure::new(format!("read {}", self.password.display()))
                .because(&e)
                .hint("the repository cannot be opened without its password")
        })?;
        if !self.has_config()? {
            return Err(Failure::new(format!(
                "there is no repository at {}, though its password is known",
                self.repository.display()
            ))
            .hint(format!(
                "is the location mounted? Mount it; if the repository is lost for good, remove {}",
                self.password.display()
            )));
        }
        self.open_with(password.trim_end_matches('\n'))
    }

    fn open_with(&self, password: &str) -> Result<Repository, Failure> {
        Repository::open(self.store()?, password).map_err(|e| self.fail("open").because(&e))
    }

    /// Makes the repository, or goes on where making it was cut off.
    fn make(&self, new: &Path) -> Result<Repository, Failure> {
        let fail = |e: io::Error| Failure::new(format!("write {}", new.display())).because(&e);
        // Locked for as long as it is open: two first backups at once must make one repository.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(new)
            .map_err(fail)?;
        file.lock().map_err(fail)?;
        if exists(&self.password)? {
            // Another one has made it meanwhile; ours is what it renamed, or was made after that.
            return match fs::remove_file(new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail(e)),
                _ => self.open_known(),
            };
        }
        let mut written = String::new();
        file.read_to_string(&mut written).map_err(fail)?;
        let written = written.strip_suffix('\n').filter(|text| text.len() == LENGTH);
        let repository = if self.has_config()? {
            let Some(password) = written else {
                fs::remove_file(new).map_err(fail)?;
                return self.open_known();
            };
            self.open_with(password)?
        } else {
            // A key that was left without a config wraps another master key: it must not open.
            let password = match written {
                Some(password) if !self.has_keys()? => password.to_owned(),
                _ => write_password(&mut file, new).map_err(fail)?,
            };
            fs::create_dir_all(&self.repository).map_err(|e| self.fail("create").because(&e))?;
            Repository::init(self.store()?, &password)
                .map_err(|e| self.fail("create").because(&e))?
        };
        fs::rename(new, &self.password).and_then(|()| sync_directory(new)).map_err(fail)?;
        Ok(repository)
    }

    fn has_keys(&self) -> Result<bool, Failure> {
        match fs::read_dir(self.repository.join("keys")) {
            Ok(mut keys) => Ok(keys.next().is_some()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.fail("look at").because(&e)),
        }
    }

    fn store(&self) -> Result<Arc<LocalStore>, Failure> {
        let store = LocalStore::new(self.repository.clone());
        Ok(Arc::new(store.map_err(|e| self.fail("use").because(&e))?))
    }

    fn fail(&self, doing: &str) -> Failure {
        Failure::new(format!("{doing} the repository {}", self.repository.display()))
    }
}

/// What may not be looked at is not missing.
fn exists(path: &Path) -> Result<bool, Failure> {
    path.try_exists().map_err(|e| Failure::new(format!("look for {}", path.display())).because(&e))
}

/// A new password in `file`, durably.
fn write_password(file: &mut File, path: &Path) -> io::Result<String> {
    let password: String =
        (0..2).map(|_| BackupId::random().as_str()[..LENGTH / 2].to_owned()).collect();
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(password.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    sync_directory(path)?;
    Ok(password)
}

fn sync_directory(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
