//! Owners, modes, times and attributes of restored entries.
//!
//! Order: owner, attributes, mode, times; a change of owner clears set-user-id bits and file
//! capabilities. Only root can give files away; for others an owner that cannot be set is passed
//! over as `cp -a` does, and set-user-id and set-group-id bits with it: they would mean another user.

use super::target::Directory;
use crate::format::node::{Node, NodeKind};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

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

/// For entries that cannot be opened for reading: links, pipes, devices.
pub(super) fn apply_at(directory: &Directory, node: &Node) -> Complaints {
    let mut complaints = Complaints::new();
    let name = node.name.as_os_str();
    if node.kind == NodeKind::Symlink {
        owner(node, &mut complaints, |uid, gid| {
            rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        });
        let set = rustix::fs::utimensat(directory, name, &times(node), AtFlags::SYMLINK_NOFOLLOW);
        note(&mut complaints, "times", set);
        return complaints;
    }
    let special = match open_special(directory, node) {
        Ok(special) => special,
        Err(error) => {
            note(&mut complaints, "owner, mode and times", Err::<(), _>(error));
            return complaints;
        }
    };
    // Means what was opened, whatever has its name now.
    let path = Path::new("/proc/self/fd").join(special.as_raw_fd().to_string());
    let mode = owner(node, &mut complaints, |uid, gid| {
        rustix::fs::chownat(&special, "", uid, gid, AtFlags::EMPTY_PATH)
    });
    for attribute in &node.extended_attributes {
        let flags = XattrFlags::empty();
        let set = rustix::fs::setxattr(&path, &attribute.name, &attribute.value, flags);
        note(&mut complaints, &format!("attribute {}", attribute.name.display()), set);
    }
    note(&mut complaints, "mode", rustix::fs::chmod(&path, mode));
    let set = rustix::fs::utimensat(CWD, &path, &times(node), AtFlags::empty());
    note(&mut complaints, "times", set);
    complaints
}

/// The pipe or device that was made for `node`, opened without effect on it. Anything else that has
/// its name, a link above all, was put there by somebody else.
fn open_special(directory: &Directory, node: &Node) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, node.name.as_os_str(), flags, Mode::empty())?;
    let found = rustix::fs::fstat(&fd)?;
    let is_made = match (FileType::from_raw_mode(found.st_mode), &node.kind) {
        (FileType::Fifo, NodeKind::Fifo) => true,
        (FileType::BlockDevice, NodeKind::BlockDevice)
        | (FileType::CharacterDevice, NodeKind::CharacterDevice) => found.st_rdev == node.device,
        _ => false,
    };
    if is_made { Ok(fd) } else { Err(io::Error::other("something else took its place")) }
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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests make files that need not last")]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_link_that_took_a_pipes_place_is_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let (outside, inside) = (place.path().join("outside"), place.path().join("inside"));
        fs::write(&outside, "precious").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(&inside).unwrap();
        let directory = Directory::open(&inside).unwrap();
        directory.make_node("pipe".as_ref(), rustix::fs::FileType::Fifo, 0).unwrap();
        let mut node = Node::inspect(&inside.join("pipe")).unwrap();
        node.mode = 0o666;
        assert_eq!(apply_at(&directory, &node), Complaints::new());
        let mode = |path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(inside.join("pipe")), 0o666);

        fs::remove_file(inside.join("pipe")).unwrap();
        symlink(&outside, inside.join("pipe")).unwrap();
        assert!(!apply_at(&directory, &node).is_empty());
        assert_eq!(mode(outside), 0o600);
    }
}
