//! Which services take part in a demo: those that were asked for, or whatever is installed.
//!
//! A service that was asked for and is not there is never left out in silence: the demo goes on
//! with the others, names it with the way to install it, and does not end as if all had been shown.

use crate::failure::Failure;
use stillpoint_runtimes::{
    Installation, MariadbInstallation, RedisInstallation, ScratchMariadb, ScratchPostgres,
    ScratchRedis,
};

/// Every service there is.
const ALL: [&str; 4] = ["sqlite", "postgresql", "mariadb", "redis"];

/// The servers on this machine.
#[derive(Default)]
pub(super) struct Installed {
    postgresql: Option<Installation>,
    mariadb: Option<MariadbInstallation>,
    redis: Option<RedisInstallation>,
}

impl Installed {
    /// Looks for them.
    pub(super) fn find() -> Self {
        Self {
            postgresql: ScratchPostgres::find(),
            mariadb: ScratchMariadb::find(),
            redis: ScratchRedis::find(),
        }
    }
}

/// The services that take part, and those that were asked for in vain.
pub(super) struct Cast {
    pub(super) sqlite: bool,
    pub(super) postgresql: Option<Installation>,
    pub(super) mariadb: Option<MariadbInstallation>,
    pub(super) redis: Option<RedisInstallation>,
    /// Service and why it does not take part.
    pub(super) missing: Vec<(String, String)>,
    /// The same, but nobody asked for it.
    pub(super) absent: Vec<(String, String)>,
}

impl Cast {
    /// Chooses of those that are installed. Nothing asked for means as many as there are.
    pub(super) fn choose(asked: &[String], installed: Installed) -> Result<Self, Failure> {
        let asked_all = asked.iter().any(|name| name == "all");
        if let Some(unknown) = asked.iter().find(|n| *n != "all" && !ALL.contains(&n.as_str())) {
            return Err(Failure::usage(format!("no service `{unknown}`"))
                .hint(format!("--services all, or of: {}", ALL.join(", "))));
        }
        let wants =
            |name: &str| asked.is_empty() || asked_all || asked.iter().any(|asked| asked == name);
        let mut without = Vec::new();
        let mut look = |name: &str, package: &str, found: bool| {
            if wants(name) && !found {
                let why = format!("no server is installed: apt-get install {package}");
                without.push((name.to_owned(), why));
            }
        };
        look("postgresql", "postgresql", installed.postgresql.is_some());
        look("mariadb", "mariadb-server", installed.mariadb.is_some());
        look("redis", "redis-server", installed.redis.is_some());
        let (missing, absent) =
            if asked.is_empty() { (Vec::new(), without) } else { (without, Vec::new()) };
        let mut cast = Self {
            sqlite: wants("sqlite"),
            postgresql: installed.postgresql.filter(|_| wants("postgresql")),
            mariadb: installed.mariadb.filter(|_| wants("mariadb")),
            redis: installed.redis.filter(|_| wants("redis")),
            missing,
            absent,
        };
        if cast.services().is_empty() {
            // Something has to take part for there to be anything to show.
            cast.sqlite = true;
        }
        Ok(cast)
    }

    /// The names of those that take part.
    pub(super) fn services(&self) -> Vec<&'static str> {
        let there =
            [self.sqlite, self.postgresql.is_some(), self.mariadb.is_some(), self.redis.is_some()];
        ALL.into_iter().zip(there).filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(asked: &[&str], installed: Installed) -> Cast {
        let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
        Cast::choose(&asked, installed).unwrap()
    }

    fn names(list: &[(String, String)]) -> Vec<&str> {
        list.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn whatever_is_installed_takes_part_when_nobody_asks_for_more() {
        assert_eq!(choose(&[], Installed::find()).services(), ALL);
        let cast = choose(&[], Installed { mariadb: None, ..Installed::find() });
        assert_eq!(cast.services(), ["sqlite", "postgresql", "redis"]);
        assert_eq!(names(&cast.absent), ["mariadb"]);
        assert_eq!(names(&cast.missing), Vec::<&str>::new());
    }

    #[test]
    fn each_service_that_is_asked_for_and_missing_is_named_with_its_package() {
        let cast = choose(&["all"], Installed::default());
        assert_eq!(cast.services(), ["sqlite"]);
        assert_eq!(names(&cast.missing), ["postgresql", "mariadb", "redis"]);
        let whys: Vec<&str> =
            cast.missing.iter().map(|(_, why)| why.rsplit(' ').next().unwrap()).collect();
        assert_eq!(whys, ["postgresql", "mariadb-server", "redis-server"]);
        assert_eq!(names(&cast.absent), Vec::<&str>::new());
    }

    #[test]
    fn one_service_alone_takes_part_alone() {
        for name in ALL {
            assert_eq!(choose(&[name], Installed::find()).services(), [name]);
        }
        assert_eq!(choose(&["redis"], Installed::default()).services(), ["sqlite"]);
    }
}
