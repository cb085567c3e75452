//! Where the backups of one project and environment type are kept: one repository at the region's
//! locations, and its password on this host. Made together the first time, opened ever after.
//!
//! Guards against these losses. A repository must never be there without its password: the password
//! is on disk, as `.password.new`, before anything is encrypted with it, and gets its own name once
//! the repository stands. A location that had the repository and has it no more is not made anew:
//! its disk is not mounted, and backups would go to where nobody looks for them; a file
//! `locations/PROJECT-TYPE/NAME` in the data directory remembers that it had it. A location that
//! holds another repository, or of which that cannot be told, is left alone. And one directory under
//! two names, as by a symbolic link, is one location: its copies are not counted twice.

use crate::failure::Failure;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stillpoint_model::ids::{BackupId, LocationName};
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{
    Healed, LocalStore, LocationState, Locations, Member, Repository, RepositoryError,
};

/// Characters of a password: 160 random bits.
const LENGTH: usize = 32;

/// The place, before it is opened.
#[derive(Debug, Clone)]
pub struct Vault {
    /// Each location with the repository's directory there.
    pub(crate) sites: Vec<Site>,
    /// The file with the password.
    pub(crate) password: PathBuf,
    /// Where it is remembered which locations have had the repository.
    pub(crate) memory: PathBuf,
}

/// The repository's directory at one location.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) name: LocationName,
    pub(crate) directory: PathBuf,
}

/// An opened vault.
#[derive(Clone)]
pub struct Opened {
    /// The repository, at all locations that can be used.
    pub repository: Repository,
    /// Them.
    pub locations: Arc<Locations>,
}

/// A vault that was healed.
pub(crate) struct Healing {
    pub(crate) opened: Opened,
    pub(crate) healed: Healed,
}

/// What is at a site.
enum Found {
    Repository,
    /// Nothing, and there has never been anything.
    Nothing,
    /// It cannot be used, and why.
    Unusable(String),
}

impl Vault {
    /// Opens the repository. Where there has never been one it is made, or, without `create`,
    /// `none` is the failure.
    pub(crate) fn open(&self, create: bool, none: Failure) -> Result<Opened, Failure> {
        if exists(&self.password)? {
            return self.open_known();
        }
        if !create && !self.has_config() {
            return Err(none);
        }
        let new = self.password.with_extension("password.new");
        if !create && !exists(&new)? {
            return self.open_known();
        }
        self.make(&new)
    }

    /// Whether there has ever been a repository.
    pub fn is_known(&self) -> Result<bool, Failure> {
        Ok(exists(&self.password)? || self.has_config())
    }

    fn has_config(&self) -> bool {
        self.sites.iter().any(|site| matches!(self.look(site), Found::Repository))
    }

    fn look(&self, site: &Site) -> Found {
        if let Some(twin) = self.twin(site) {
            return Found::Unusable(is_twin_of(twin));
        }
        let config = site.directory.join("config");
        match config.try_exists() {
            Ok(true) => Found::Repository,
            Err(error) => Found::Unusable(format!("look for {}: {error}", config.display())),
            Ok(false) if self.remembers(site) => Found::Unusable(format!(
                "there is no repository at {} any more: is it mounted? If its disk was replaced: \
                 stillpoint location:heal --replaced {}",
                site.directory.display(),
                site.name
            )),
            Ok(false) => Found::Nothing,
        }
    }

    fn open_known(&self) -> Result<Opened, Failure> {
        let password = self.read_password()?;
        if !self.has_config() {
            return Err(Failure::new(format!(
                "there is no repository at {}, though its password is known",
                self.shown()
            ))
            .hint(format!(
                "is the location mounted? Mount it; if the repository is lost for good, remove {}",
                self.password.display()
            )));
        }
        self.open_with(&password)
    }

    fn read_password(&self) -> Result<String, Failure> {
        let text = fs::read_to_string(&self.password).map_err(|e| {
            Failure::new(format!("read {}", self.password.display()))
                .because(&e)
                .hint("the repository cannot be opened without its password")
        })?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    fn open_with(&self, password: &str) -> Result<Opened, Failure> {
        let foreign = self.foreign(Some(password))?;
        let opened = Self::join(self.members(&foreign)?, |store| {
            Repository::open(store, password).map_err(|e| self.fail("open").because(&e))
        })?;
        self.remember_all(&foreign)?;
        Ok(opened)
    }

    /// Gives every location what it lacks, if the repository has ever been made.
    pub(crate) fn heal(&self, monitor: &dyn Monitor) -> Result<Option<Healing>, Failure> {
        if !exists(&self.password)? || !self.has_config() {
            return Ok(None);
        }
        let password = self.read_password()?;
        let foreign = self.foreign(Some(&password))?;
        let opened = self.open_with(&password)?;
        let healed = opened.locations.heal(&opened.repository, monitor);
        self.remember_all(&foreign)?;
        let healed = healed.map_err(|e| match e {
            RepositoryError::Cancelled => Failure::cancelled("cancelled"),
            other => self.fail("heal").because(&other),
        })?;
        Ok(Some(Healing { opened, healed }))
    }

    fn join(
        members: Vec<Member>,
        open: impl FnOnce(Arc<Locations>) -> Result<Repository, Failure>,
    ) -> Result<Opened, Failure> {
        let locations = Arc::new(Locations::new(members));
        let repository = open(Arc::clone(&locations))?;
        Ok(Opened { repository, locations })
    }

    /// The locations as members of a group.
    fn members(&self, foreign: &[LocationName]) -> Result<Vec<Member>, Failure> {
        let members = self.sites.iter().map(|site| {
            let name = site.name.to_string();
            Ok(match self.look(site) {
                Found::Repository if foreign.contains(&site.name) => Member::down(
                    name,
                    format!(
                        "{} holds a repository that the password does not open",
                        site.directory.display()
                    ),
                ),
                Found::Repository => match fs::read(site.directory.join("config")) {
                    Ok(_) => Member::new(name, self.store(site)?),
                    // It may be anybody's.
                    Err(error) => Member::down(name, format!("read its config: {error}")),
                },
                Found::Nothing => Member::empty(name, self.store(site)?),
                Found::Unusable(why) => Member::down(name, why),
            })
        });
        members.collect()
    }

    /// The locations whose repository is another one than ours: that of the locations which are
    /// known to have it, or, where that does not tell, that of the first which `password` opens.
    fn foreign(&self, password: Option<&str>) -> Result<Vec<LocationName>, Failure> {
        let mut groups: Vec<(Vec<u8>, Vec<&Site>)> = Vec::new();
        for site in &self.sites {
            let Ok(config) = fs::read(site.directory.join("config")) else { continue };
            match groups.iter_mut().find(|(same, _)| *same == config) {
                Some((_, sites)) => sites.push(site),
                None => groups.push((config, vec![site])),
            }
        }
        if groups.len() < 2 {
            return Ok(Vec::new());
        }
        let known = |group: &&(_, Vec<&Site>)| group.1.iter().any(|site| self.remembers(site));
        let ours = match (groups.iter().filter(known).count(), password) {
            (1, _) => groups.iter().position(|group| known(&group)),
            (_, None) => None,
            (_, Some(password)) => {
                let mut ours = None;
                for (number, (_, sites)) in groups.iter().enumerate() {
                    if ours.is_none() && Repository::open(self.store(sites[0])?, password).is_ok() {
                        ours = Some(number);
                    }
                }
                ours
            }
        };
        // Where none is ours, opening them says why.
        let Some(ours) = ours else { return Ok(Vec::new()) };
        let others = groups.iter().enumerate().filter(|(number, _)| *number != ours);
        Ok(others.flat_map(|(_, (_, sites))| sites.iter().map(|s| s.name.clone())).collect())
    }

    /// Makes the repository, or goes on where making it was cut off.
    fn make(&self, new: &Path) -> Result<Opened, Failure> {
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
        let opened = if self.has_config() {
            let Some(password) = written else {
                fs::remove_file(new).map_err(fail)?;
                return self.open_known();
            };
            self.open_with(password)?
        } else {
            // A key that was left without a config wraps another master key: it must not open.
            let password = match written {
                Some(password) if !self.has_keys() => password.to_owned(),
                _ => write_password(&mut file, new).map_err(fail)?,
            };
            self.init(&password)?
        };
        fs::rename(new, &self.password).and_then(|()| sync_directory(new)).map_err(fail)?;
        Ok(opened)
    }

    /// Makes the repository at every location that can be reached.
    fn init(&self, password: &str) -> Result<Opened, Failure> {
        let mut members = Vec::new();
        let mut failure = None;
        for site in &self.sites {
            let name = site.name.to_string();
            if let Some(twin) = self.twin(site) {
                members.push(Member::down(name, is_twin_of(twin)));
                continue;
            }
            members.push(match fs::create_dir_all(&site.directory) {
                Ok(()) => Member::new(name, self.store(site)?),
                Err(error) => {
                    let down = Member::down(name, error.to_string());
                    failure.get_or_insert(error);
                    down
                }
            });
        }
        if let Some(error) = failure
            && self.sites.iter().all(|site| !site.directory.is_dir())
        {
            return Err(self.fail("create").because(&error));
        }
        let opened = Self::join(members, |store| {
            Repository::init(store, password).map_err(|e| self.fail("create").because(&e))
        })?;
        self.remember_all(&[])?;
        Ok(opened)
    }

    /// Whether a key lies anywhere; where that cannot be seen, one may.
    fn has_keys(&self) -> bool {
        self.sites.iter().any(|site| match fs::read_dir(site.directory.join("keys")) {
            Ok(mut keys) => keys.next().is_some(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        })
    }

    /// How the locations are, by names alone.
    pub(crate) fn survey(&self, thorough: bool) -> Result<Vec<LocationState>, Failure> {
        Ok(Locations::new(self.members(&self.foreign(None)?)?).survey(thorough))
    }

    fn remember_all(&self, foreign: &[LocationName]) -> Result<(), Failure> {
        let ours = |site: &&Site| {
            !foreign.contains(&site.name) && matches!(self.look(site), Found::Repository)
        };
        self.sites.iter().filter(ours).try_for_each(|site| self.remember(site))
    }

    /// Under whatever name: names can be changed while a disk is not mounted.
    fn remembers(&self, site: &Site) -> bool {
        !self.memories_of(site).is_empty()
    }

    /// The files that say that the repository has been in the site's directory.
    fn memories_of(&self, site: &Site) -> Vec<PathBuf> {
        let directory = site.directory.display().to_string();
        let says = |file: &PathBuf| {
            fs::read_to_string(file).is_ok_and(|text| text.trim_end() == directory)
        };
        let files = fs::read_dir(&self.memory).into_iter().flatten().flatten();
        files.map(|entry| entry.path()).filter(says).collect()
    }

    /// An earlier location that is the same directory.
    fn twin(&self, site: &Site) -> Option<&Site> {
        let own = identity(&site.directory)?;
        let earlier = self.sites.iter().take_while(|other| other.name != site.name);
        earlier.into_iter().find(|other| identity(&other.directory).as_ref() == Some(&own))
    }

    fn memory_of(&self, site: &Site) -> PathBuf {
        self.memory.join(site.name.as_str())
    }

    /// That the location has the repository. A memory that was torn by a crash counts as none.
    #[allow(clippy::disallowed_methods, reason = "written again whenever the repository is opened")]
    fn remember(&self, site: &Site) -> Result<(), Failure> {
        if self.remembers(site) {
            return Ok(());
        }
        let file = self.memory_of(site);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.memory)
            .and_then(|()| fs::write(&file, format!("{}\n", site.directory.display())))
            .map_err(|e| Failure::new(format!("write {}", file.display())).because(&e))
    }

    /// A person says that the location's disk is another one: it may be filled anew.
    pub(crate) fn forget_site(&self, name: &LocationName) -> Result<(), Failure> {
        let Some(site) = self.sites.iter().find(|site| site.name == *name) else {
            return Err(Failure::usage(format!("there is no location `{name}`")));
        };
        for file in self.memories_of(site) {
            match fs::remove_file(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::new(format!("remove {}", file.display())).because(&e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The file system that a location is on, as far as it is there.
    pub(crate) fn device(site: &Site) -> Option<u64> {
        let found = site.directory.ancestors().find_map(|path| fs::metadata(path).ok())?;
        Some(found.dev())
    }

    fn store(&self, site: &Site) -> Result<Arc<LocalStore>, Failure> {
        let store = LocalStore::new(site.directory.clone());
        Ok(Arc::new(store.map_err(|e| self.fail("use").because(&e))?))
    }

    pub(crate) fn shown(&self) -> String {
        let all: Vec<_> = self.sites.iter().map(|s| s.directory.display().to_string()).collect();
        all.join(" or ")
    }

    fn fail(&self, doing: &str) -> Failure {
        Failure::new(format!("{doing} the repository {}", self.shown()))
    }
}

fn is_twin_of(twin: &Site) -> String {
    format!("it is the same directory as location {}: one copy is not two", twin.name)
}

/// What a directory is, whatever path leads to it: the deepest of its ancestors that exists, by
/// device and inode, and the way from there.
fn identity(directory: &Path) -> Option<(u64, u64, PathBuf)> {
    directory.ancestors().find_map(|ancestor| {
        let found = fs::metadata(ancestor).ok()?;
        let rest = directory.strip_prefix(ancestor).ok()?;
        Some((found.dev(), found.ino(), rest.to_owned()))
    })
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

#[cfg(test)]
mod tests;
