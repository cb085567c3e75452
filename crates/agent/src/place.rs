//! Where things are: the configuration, the data directory with its sockets, keys and journals,
//! and the repository of an environment.

use crate::failure::Failure;
use crate::vault::{Opened, Site, Vault};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stillpoint_model::config::{self, Config, Environment, EnvironmentKind, Location};
use stillpoint_model::ids::{EnvironmentName, PartName};

/// Where to look, as a person gave it.
#[derive(Debug, Clone)]
pub struct Where {
    /// The configuration's file.
    pub config: PathBuf,
    /// The data directory, if another one than the usual.
    pub data_dir: Option<PathBuf>,
    /// The project; it must be the configuration's own.
    pub project: Option<String>,
    /// The environment; needed where the configuration has several.
    pub environment: Option<String>,
}

/// What is done with an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Its data is read.
    Backup,
    /// Its data is replaced.
    Restore,
}

/// One environment of one configuration, and where its things are on this host.
pub struct Place {
    /// The whole configuration.
    pub config: Config,
    /// The configuration's file, absolute.
    pub config_file: PathBuf,
    /// The environment's name.
    pub name: EnvironmentName,
    /// The data directory, absolute.
    pub data: PathBuf,
    /// How long to wait for others to be done with the environment.
    pub patience: Duration,
}

impl Place {
    /// Reads the configuration and picks the environment.
    pub fn find(place: &Where, named: Option<&str>) -> Result<Self, Failure> {
        let (config, config_file) = read_config(place)?;
        let shown = place.config.display().to_string();
        let name = choose(&config, named.or(place.environment.as_deref()), &shown)?;
        let data = data_dir(place)?;
        Ok(Self { config, config_file, name, data, patience: Duration::ZERO })
    }

    /// Another environment of the same configuration.
    pub fn beside(&self, name: &EnvironmentName) -> Result<Self, Failure> {
        let name =
            choose(&self.config, Some(name.as_str()), &self.config_file.display().to_string())?;
        let (config, config_file) = (self.config.clone(), self.config_file.clone());
        let (data, patience) = (self.data.clone(), self.patience);
        Ok(Self { config, config_file, name, data, patience })
    }

    /// The environment's part of the configuration.
    pub fn environment(&self) -> &Environment {
        &self.config.environments[&self.name]
    }

    /// The environment's name among files: no other environment or gateway has one that is equal.
    /// Neither a project's id nor a gateway's name has a dot, and no name has a `%`.
    pub(crate) fn slug(&self) -> String {
        format!("{}.{}", self.config.project, self.name.as_str().replace('/', "%"))
    }

    /// A gateway's control socket.
    pub fn gateway_socket(&self, gateway: &PartName) -> Result<PathBuf, Failure> {
        socket(&self.data, &format!("{}.{gateway}.sock", self.slug()))
    }

    /// The watchdog's socket.
    pub fn watchdog_socket(&self) -> Result<PathBuf, Failure> {
        socket(&self.data, "watchdog.sock")
    }

    /// The journal of a restore of this environment.
    pub fn journal(&self) -> Result<PathBuf, Failure> {
        Ok(private(&self.data, "journal")?.join(format!("{}.json", self.slug())))
    }

    /// Keeps out of the environment what must not happen beside this: a restore wants it to
    /// itself, backups get along with each other. Held until the returned file is dropped, or this
    /// process has ended, however it did.
    pub fn lock(&self, activity: Activity) -> Result<fs::File, Failure> {
        let path = private(&self.data, "run")?.join(format!("{}.lock", self.slug()));
        let fail = || Failure::new(format!("lock {}", path.display()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| fail().because(&e))?;
        let until = Instant::now() + self.patience;
        let locked = loop {
            let locked = match activity {
                Activity::Backup => file.try_lock_shared(),
                Activity::Restore => file.try_lock(),
            };
            match locked {
                // Whoever has it cannot tell us that it lets go.
                Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                locked => break locked,
            }
        };
        match locked {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(Failure::new(format!(
                "environment `{}` is busy with a {}",
                self.name,
                if activity == Activity::Backup { "restore" } else { "backup or a restore" }
            ))
            .hint("wait for it to end")),
            Err(fs::TryLockError::Error(e)) => Err(fail().because(&e)),
        }
    }

    /// Where the environment's backups are kept. One repository a project and environment type, so
    /// that a development host never holds production's key.
    pub fn vault(&self) -> Result<Vault, Failure> {
        vault(&self.config, self.environment().kind, &self.data)
    }

    /// How many complete copies make a backup done.
    pub fn write_quorum(&self) -> usize {
        self.config.regions.values().map(|region| region.write_quorum).max().unwrap_or(1)
    }

    /// Opens the environment's repository; `create` makes it, and its password, the first time.
    pub fn repository(&self, create: bool) -> Result<Opened, Failure> {
        let vault = self.vault()?;
        let none = Failure::new(format!(
            "environment `{}` has no backups yet: there is no repository at {}",
            self.name,
            vault.shown()
        ));
        vault.open(create, none)
    }
}

/// Where the backups of environments of this type are kept.
pub(crate) fn vault(config: &Config, kind: EnvironmentKind, data: &Path) -> Result<Vault, Failure> {
    let mut regions = config.regions.values();
    let (Some(region), None) = (regions.next(), regions.next()) else {
        return Err(Failure::usage("the configuration must name exactly one region")
            .hint("write `regions:` with its `locations:`, where backups are to be stored"));
    };
    let sites = region.locations.iter().map(|(name, location)| {
        let Location::Directory { path } = location;
        let directory = path.join(config.project.as_str()).join(kind.as_str());
        Site { name: name.clone(), directory }
    });
    Ok(Vault {
        sites: sites.collect(),
        password: private(data, "keys")?.join(format!("{}-{kind}.password", config.project)),
        memory: data.join("locations").join(format!("{}-{kind}", config.project)),
    })
}

/// Reads the configuration: what it says, its paths absolute, and its absolute file.
pub fn read_config(place: &Where) -> Result<(Config, PathBuf), Failure> {
    let config_file = std::path::absolute(&place.config)
        .map_err(|e| Failure::usage(format!("{}: {e}", place.config.display())))?;
    let text = fs::read_to_string(&config_file).map_err(|e| {
        Failure::usage(format!("read {}", config_file.display()))
            .because(&e)
            .hint("name the configuration with --config FILE")
    })?;
    let shown = place.config.display().to_string();
    let mut config = config::parse(&shown, &text)?;
    config.resolve_against(config_file.parent().unwrap_or(Path::new("/")));
    if let Some(project) = &place.project
        && project != config.project.as_str()
    {
        return Err(Failure::usage(format!(
            "{shown} is of project `{}`, not of `{project}`",
            config.project
        )));
    }
    Ok((config, config_file))
}

/// The watchdog's socket: one watchdog a data directory, whatever the environment.
pub fn watchdog_socket(place: &Where) -> Result<PathBuf, Failure> {
    socket(&data_dir(place)?, "watchdog.sock")
}

/// The journals of every restore that has not ended, of whatever environment.
pub fn journals(place: &Where) -> Result<Vec<PathBuf>, Failure> {
    let directory = private(&data_dir(place)?, "journal")?;
    let fail =
        |e: io::Error| Failure::new(format!("look into {}", directory.display())).because(&e);
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The private directory `DATA/WHAT`, created if it is missing.
pub fn private(data: &Path, what: &str) -> Result<PathBuf, Failure> {
    let directory = data.join(what);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(|e| {
        Failure::new(format!("create {}", directory.display()))
            .because(&e)
            .hint("choose another data directory with --data-dir DIR")
    })?;
    Ok(directory)
}

/// The unix socket `DATA/run/NAME`, if its path is short enough for one.
pub fn socket(data: &Path, name: &str) -> Result<PathBuf, Failure> {
    let socket = private(data, "run")?.join(name);
    // The kernel's limit for a unix socket's path.
    if socket.as_os_str().len() > 107 {
        return Err(Failure::usage(format!(
            "the socket's path {} is longer than the 107 bytes that the system allows",
            socket.display()
        ))
        .hint("choose a shorter --data-dir"));
    }
    Ok(socket)
}

/// The data directory, absolute.
pub fn data_dir(place: &Where) -> Result<PathBuf, Failure> {
    match &place.data_dir {
        Some(data) => std::path::absolute(data)
            .map_err(|e| Failure::usage(format!("{}: {e}", data.display()))),
        None => default_data_dir(),
    }
}

fn choose(config: &Config, named: Option<&str>, shown: &str) -> Result<EnvironmentName, Failure> {
    let known = || {
        let names: Vec<&str> = config.environments.keys().map(EnvironmentName::as_str).collect();
        format!("{shown} has: {}", names.join(", "))
    };
    if let Some(named) = named {
        return config
            .environments
            .keys()
            .find(|name| name.as_str() == named)
            .cloned()
            .ok_or_else(|| Failure::usage(format!("no environment `{named}`")).hint(known()));
    }
    let mut names = config.environments.keys();
    match (names.next(), names.next()) {
        (Some(only), None) => Ok(only.clone()),
        _ => Err(Failure::usage("which environment?").hint(format!("-e NAME; {}", known()))),
    }
}

fn default_data_dir() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/stillpoint"));
    }
    let home = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    home("XDG_DATA_HOME")
        .or_else(|| home("HOME").map(|home| home.join(".local/share")))
        .map(|share| share.join("stillpoint"))
        .ok_or_else(|| Failure::usage("no data directory: HOME is not set").hint("--data-dir DIR"))
}
