//! Who and where this process is, as lock files, snapshots and nodes name it.

use nix::unistd::{Gid, Group, Uid, User};
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// This machine's name.
pub(crate) fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The name of the user that this process runs as; empty if it has none.
pub(crate) fn user() -> String {
    user_name(rustix::process::getuid().as_raw())
}

/// A user's name, empty if there is none. Remembered: directories are full of the same owner.
pub(crate) fn user_name(uid: u32) -> String {
    static NAMES: LazyLock<Mutex<HashMap<u32, String>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names
        .entry(uid)
        .or_insert_with(|| {
            User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|u| u.name).unwrap_or_default()
        })
        .clone()
}

/// A group's name, empty if there is none.
pub(crate) fn group_name(gid: u32) -> String {
    static NAMES: LazyLock<Mutex<HashMap<u32, String>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names
        .entry(gid)
        .or_insert_with(|| {
            Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|g| g.name).unwrap_or_default()
        })
        .clone()
}
