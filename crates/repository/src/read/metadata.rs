//! Owners, modes, times and attributes of restored entries.
//!
//! Order: owner, attributes, mode, times; a change of owner clears set-user-id bits and file
//! capabilities. Only root can give files away; for others an owner that cannot be set is passed
//! over as `cp -a` does, and set-user-id and set-group-id bits with it: they would mean another user.

use super::target::Directory;
use crate::format::node::{Node, NodeKind};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;

/// What could not be set, in words, without stopping the rest.
pub(super) type Complaints = Vec<String>;

/// For files and directories, through their descriptor.
pub(super) fn apply(fd: impl AsFd, node: &Node) -> Complaints {
    let fd = fd.as_fd();
    let mut complaints = Complaints::new();
    let mode = owner(node, &mut complaints, |uid, gid| rustix::fs::fchown(fd, uid, gid));
    for attribute in &node.extended_attributes {
        let set = rustix::fs::fsetxattr(fd, &attribute.name, &attribute.value, XattrFlags::empty());
        note(&mut complaints, &format!("attribute {}", attribute.name.display()), set);
    }
    note(&mut complaints, "mode", rustix::fs::fchmod(fd, mode));
    note(&mut complaints, "times", rustix::fs::futimens(fd, &times(node)));
    complaints
}

/// For entries that cannot be opened: links, pipes, devices.
pub(super) fn apply_at(directory: &Directory, node: &Node) -> Complaints {
    let mut complaints = Complaints::new();
    let name = node.name.as_os_str();
    let mode = owner(node, &mut complaints, |uid, gid| {
        rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    });
    if node.kind != NodeKind::Symlink {
        for attribute in &node.extended_attributes {
            let set = xattr::set(directory.path_of(name), &attribute.name, &attribute.value);
            note(&mut complaints, &format!("attribute {}", attribute.name.display()), set);
        }
        let set = rustix::fs::chmodat(directory, name, mode, AtFlags::empty());
        note(&mut complaints, "mode", set);
    }
    let set = rustix::fs::utimensat(directory, name, &times(node), AtFlags::SYMLINK_NOFOLLOW);
    note(&mut complaints, "times", set);
    complaints
}

/// Sets the owner; gives the mode that may be set with the owner that the entry has now.
fn owner(
    node: &Node,
    complaints: &mut Complaints,
    set: impl Fn(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
) -> Mode {
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    match set(Some(uid), Some(gid)) {
        Ok(()) => Mode::from_raw_mode(node.mode),
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => {
            // The group alone may be one of ours.
            let _ = set(None, Some(gid));
            Mode::from_raw_mode(node.mode & 0o1777)
        }
        Err(error) => {
            note(complaints, "owner", Err::<(), _>(error));
            Mode::from_raw_mode(node.mode & 0o1777)
        }
    }
}

fn note<E: Into<io::Error>>(complaints: &mut Complaints, what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        complaints.push(format!("{what} not set: {}", error.into()));
    }
}

fn times(node: &Node) -> Timestamps {
    let timespec = |time: jiff::Timestamp| {
        // Before 1970 seconds round down, so that the nanoseconds are never negative.
        let nanoseconds = time.as_nanosecond();
        Timespec {
            tv_sec: nanoseconds.div_euclid(1_000_000_000) as i64,
            tv_nsec: nanoseconds.rem_euclid(1_000_000_000) as i64,
        }
    };
    Timestamps { last_access: timespec(node.accessed), last_modification: timespec(node.modified) }
}
