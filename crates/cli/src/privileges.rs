//! Gives up root for good: for the process that faces the network.

use crate::failure::Failure;
use nix::unistd::{User, setgid, setgroups, setuid};
use std::error::Error;
use std::io;

/// Becomes `user`, with no way back. Everything that needs root must have been opened before.
pub(crate) fn drop_to(user: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let found = lookup(user)?;
    if found.uid.is_root() {
        return Err(format!("`{user}` is root itself").into());
    }
    setgroups(&[])?;
    setgid(found.gid)?;
    // glibc changes all threads of the process at once.
    setuid(found.uid)?;
    if setuid(nix::unistd::Uid::from_raw(0)).is_ok() {
        return Err("root could be had back".into());
    }
    Ok(())
}

/// The user for the gateways where none is named.
pub(crate) fn default_user() -> Result<String, Failure> {
    ["stillpoint-gateway", "nobody"]
        .into_iter()
        .find(|name| lookup(name).is_ok())
        .map(str::to_owned)
        .ok_or_else(|| {
            Failure::usage("there is no unprivileged user for the gateways")
                .hint("name one with --gateway-user")
        })
}

fn lookup(user: &str) -> Result<User, io::Error> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no user `{user}`"));
    User::from_name(user)?.ok_or_else(missing)
}
