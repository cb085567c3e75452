#![allow(clippy::disallowed_methods, reason = "tests make files that need not last")]

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use stillpoint_model::progress::Silent;
use tempfile::TempDir;

struct Places {
    directory: TempDir,
}

impl Places {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The vault with these names of locations and their directories.
    fn vault(&self, sites: &[(&str, &str)]) -> Vault {
        let site = |(name, directory): &(&str, &str)| Site {
            name: name.parse().unwrap(),
            directory: self.path(directory).join("test/production"),
        };
        Vault {
            sites: sites.iter().map(site).collect(),
            password: self.path("password"),
            memory: self.path("memory"),
        }
    }
}

fn open(vault: &Vault) -> Opened {
    vault.open(true, Failure::new("there is none")).unwrap()
}

#[test]
fn one_directory_under_two_names_is_one_location() {
    let places = Places::new();
    fs::create_dir(places.path("x")).unwrap();
    symlink(places.path("x"), places.path("y")).unwrap();
    let vault = places.vault(&[("a", "x"), ("b", "y")]);
    // Both when the repository is made and when it is opened.
    for _ in 0..2 {
        let opened = open(&vault);
        let notes = opened.locations.notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("b is left out: it is the same directory as"), "{notes:?}");
        let states = vault.survey(true).unwrap();
        assert!(states[0].down.is_none() && states[1].down.is_some(), "{states:?}");
    }
}

#[test]
fn an_unmounted_location_is_not_made_anew_under_another_name() {
    let places = Places::new();
    open(&places.vault(&[("a", "x"), ("b", "y")]));
    fs::remove_dir_all(places.path("y")).unwrap();
    for names in [[("a", "x"), ("c", "y")], [("b", "x"), ("a", "y")]] {
        let vault = places.vault(&names);
        let healing = vault.heal(&Silent).unwrap().unwrap();
        let left = healing.healed.locations[1].left.as_ref().unwrap();
        assert!(left.contains("is it mounted?"), "{left}");
        assert!(!places.path("y").exists());
    }
    let vault = places.vault(&[("a", "x"), ("c", "y")]);
    vault.forget_site(&"c".parse().unwrap()).unwrap();
    assert!(vault.heal(&Silent).unwrap().unwrap().healed.is_whole());
    assert!(places.path("y/test/production/config").exists());
}

#[test]
fn a_location_whose_config_cannot_be_read_is_left_alone() {
    let places = Places::new();
    open(&places.vault(&[("a", "x")]));
    // Whatever it is, it cannot be told that it is ours. (A directory, since root may read all.)
    let config = places.path("y/test/production/config");
    fs::create_dir_all(&config).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o000)).unwrap();
    let opened = open(&places.vault(&[("a", "x"), ("b", "y")]));
    let notes = opened.locations.notes();
    assert!(notes[0].contains("location b is left out: read its config"), "{notes:?}");
}
