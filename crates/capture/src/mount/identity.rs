//! What makes two looks at a file the same file, unchanged; and how to know what time it is.

use jiff::Timestamp;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat, syncfs};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use stillpoint_repository::Node;

/// A file's state as far as the kernel tells without reading it. Equal identities of a settled
/// file mean equal contents, whatever path it is found at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) ctime: Nanoseconds,
}

/// Nanoseconds since the epoch, by the file system's clock.
pub(super) type Nanoseconds = i128;

impl Identity {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            ctime: i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec),
        }
    }
}

/// The type that a stat tells.
pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A pass's start, as the file system below `root` counts time.
pub(super) fn pass_start(root: impl AsFd) -> io::Result<Nanoseconds> {
    let now = file_system_now(root.as_fd());
    syncfs(root)?;
    Ok(now)
}

/// A file this small is written by one short call.
const SMALL: u64 = 16 << 10;
/// How long after its ctime a small file may still change: the clock that stamps files lags by a
/// tick, and a writer may lose the processor between the stamp and its last byte.
const SMALL_MARGIN: Nanoseconds = 250_000_000;
/// The same for a larger file: its ctime is stamped when a write begins, and a write of many pages
/// is made to wait by the kernel for as long as the disk is behind.
pub(super) const MARGIN: Nanoseconds = 2_000_000_000;

impl Identity {
    /// True if this is the file, and the state of it, that `node` describes.
    pub(super) fn is_of(&self, node: &Node) -> bool {
        (self.device, self.inode, self.ctime)
            == (node.device_id, node.inode, node.changed.as_nanosecond())
    }

    /// True if nothing that was begun when the ctime was stamped can still be under way at `time`.
    pub(super) fn settled_at(&self, time: Nanoseconds) -> bool {
        let margin = if self.size <= SMALL { SMALL_MARGIN } else { MARGIN };
        self.ctime + margin < time
    }
}

/// The time by the file system's own clock, or this machine's less a margin where that cannot be
/// asked (a read-only one).
pub(super) fn file_system_now(root: impl AsFd) -> Nanoseconds {
    // An unnamed file leaves no trace: a named one would change the directory that it is in.
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let touched: rustix::io::Result<OwnedFd> = openat(root, ".", flags, Mode::RUSR | Mode::WUSR);
    match touched.and_then(fstat) {
        Ok(stat) => Identity::of(&stat).ctime,
        Err(_) => Timestamp::now().as_nanosecond() - MARGIN,
    }
}

/// What kind of file system `root` is on, and whether ctime can be trusted there for files that
/// someone has mapped.
pub(super) fn file_system(root: impl AsFd) -> io::Result<(String, bool)> {
    let magic = rustix::fs::fstatfs(root)?.f_type;
    let (name, mapped_stores_show) = match u64::from_ne_bytes(magic.to_ne_bytes()) {
        0xEF53 => ("ext", true),
        0x5846_5342 => ("xfs", true),
        0x9123_683E => ("btrfs", true),
        0x794c_7630 => ("overlay", true),
        0xF2F5_2010 => ("f2fs", true),
        0x2FC1_2FC1 => ("zfs", true),
        0x0102_1994 => ("tmpfs", false),
        0x6969 => ("nfs", false),
        0x6573_5546 => ("fuse", false),
        0xFF53_4D42 | 0xFE53_4D42 => ("smb", false),
        _ => return Ok((format!("0x{magic:x}"), false)),
    };
    Ok((name.to_owned(), mapped_stores_show))
}
