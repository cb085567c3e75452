//! The Debian packages that tests need, and how they are installed.
//!
//! The servers' packages start a server of their own when they are installed. Tests start theirs in
//! directories of their own, so those are prevented: by files that are there only while apt-get
//! runs. An installation that exists already is left as it is.

use crate::{Failure, Outcome};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Something that tests start.
struct Need {
    package: &'static str,
    what: &'static str,
    found: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need { package: "postgresql", what: "PostgreSQL's server and pg_dump", found: has_postgresql },
    Need { package: "mariadb-server", what: "MariaDB's server", found: has_mariadb },
    Need { package: "redis-server", what: "Redis's server", found: has_redis },
    Need { package: "nginx-light", what: "nginx", found: has_nginx },
    Need { package: "caddy", what: "Caddy", found: || in_path("caddy") },
    Need { package: "restic", what: "restic", found: || in_path("restic") },
    Need { package: "git", what: "git", found: || in_path("git") },
    Need { package: "python3", what: "Python 3", found: || in_path("python3") },
    Need { package: "curl", what: "curl", found: || in_path("curl") },
    Need { package: "openssl", what: "openssl", found: || in_path("openssl") },
    Need { package: "nodejs", what: "Node.js", found: || in_path("node") },
    Need { package: "npm", what: "npm", found: || in_path("npm") },
    Need { package: "libfaketime", what: "libfaketime", found: has_faketime },
];

/// Debian's file is read by `pg_createcluster` at installation.
const NO_CLUSTER_DIR: &str = "/etc/postgresql-common/createcluster.d";
const NO_CLUSTER_FILE: &str = "stillpoint-tests-need-no-cluster.conf";
/// What packages ask whether they may start their servers; 101 is no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing, if it may.
pub(crate) fn provide(install: bool) -> Outcome {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|need| need.what).collect();
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let sudo = if is_root() { "" } else { "sudo " };
    let advice = format!(
        "tests need {}. Install:\n\n    {sudo}apt-get update && {sudo}apt-get install -y \
         --no-install-recommends {}\n",
        names.join(", "),
        packages.join(" "),
    );
    if !install {
        return Err(Failure::Usage(advice));
    }
    if !is_root() {
        return Err(Failure::Usage(format!("only root may install packages; {advice}")));
    }
    if !in_path("apt-get") {
        return Err(Failure::Usage(format!(
            "there is no apt-get here: install with this system's own means. {advice}"
        )));
    }
    eprintln!("xtask: installing {}", packages.join(" "));
    let guard = Quiet::begin();
    let installed = apt_get(&["update"]) && {
        let mut arguments = vec!["install", "-y", "--no-install-recommends"];
        arguments.extend(&packages);
        apt_get(&arguments)
    };
    drop(guard);
    let left: Vec<&str> = self::missing().iter().map(|need| need.what).collect();
    if left.is_empty() {
        Ok(())
    } else if installed {
        Err(Failure::Usage(format!("installed, but still not found: {}", left.join(", "))))
    } else {
        Err(Failure::Usage(format!("apt-get failed; {advice}")))
    }
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !(need.found)()).collect()
}

fn apt_get(arguments: &[&str]) -> bool {
    let status =
        Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
    status.is_ok_and(|status| status.success())
}

/// While this lives, installing makes no cluster of PostgreSQL and starts no server.
struct Quiet {
    files: Vec<PathBuf>,
    made_dirs: Vec<PathBuf>,
}

impl Quiet {
    fn begin() -> Self {
        let dir = Path::new(NO_CLUSTER_DIR);
        let made_dirs: Vec<PathBuf> =
            dir.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
        let mut quiet = Self { files: Vec::new(), made_dirs };
        let made = fs::create_dir_all(dir);
        made.unwrap_or_else(|error| eprintln!("xtask: {}: {error}", dir.display()));
        quiet.write(&dir.join(NO_CLUSTER_FILE), "create_main_cluster = false\n", 0o644);
        // A machine that has a policy of its own keeps it.
        let policy = Path::new(POLICY);
        if !policy.exists() {
            quiet.write(policy, "#!/bin/sh\nexit 101\n", 0o755);
        }
        quiet
    }

    fn write(&mut self, file: &Path, text: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        #[allow(clippy::disallowed_methods, reason = "removed again in a minute")]
        let written = fs::write(file, text)
            .and_then(|()| fs::set_permissions(file, fs::Permissions::from_mode(mode)));
        if let Err(error) = written {
            eprintln!("xtask: {}: {error}; a server may be started", file.display());
        }
        self.files.push(file.to_owned());
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // What cannot be removed does no harm. Directories in use by the package stay.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for dir in &self.made_dirs {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// A complete server installation: where Debian puts it, or in `PATH`.
fn has_postgresql() -> bool {
    let complete = |dir: &Path| {
        ["postgres", "initdb", "pg_dump", "psql"].iter().all(|tool| dir.join(tool).is_file())
    };
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    debian.map(|entry| entry.path().join("bin")).chain(path_dirs()).any(|dir| complete(&dir))
}

fn has_mariadb() -> bool {
    // Debian's is where an ordinary user's PATH does not lead.
    ["mariadbd", "mariadb-dump", "mariadb-install-db"]
        .iter()
        .all(|tool| in_path(tool) || Path::new("/usr/sbin").join(tool).is_file())
}

fn has_redis() -> bool {
    ["redis-server", "redis-cli"].iter().all(|tool| in_path(tool))
}

fn has_faketime() -> bool {
    let kinds = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    kinds.map(|kind| kind.path()).any(|kind| kind.join("faketime/libfaketimeMT.so.1").is_file())
}

fn has_nginx() -> bool {
    // Like MariaDB's.
    in_path("nginx") || Path::new("/usr/sbin/nginx").is_file()
}

fn in_path(program: &str) -> bool {
    path_dirs().any(|dir| dir.join(program).is_file())
}

fn path_dirs() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).collect::<Vec<_>>().into_iter()
}

/// By the owner of this process's own entry in `/proc`: the standard library has no `geteuid`.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_nowhere_is_missing() {
        assert!(in_path("sh"));
        assert!(!in_path("no-program-has-this-name"));
    }
}
