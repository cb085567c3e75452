//! A fanotify group on the file system of a mount: opened, tested, and read.
//!
//! Events carry file handles, which are the file system's own. Of those in [`inode`] it is known
//! where the inode number is, and [`Group::open`] tests it: it opens the mount's directory, and
//! the event of that must decode to the directory's inode. A handle of any other shape is an
//! [`Event::Unknown`], after which nothing but a walk may be trusted.

use super::super::identity::file_system;
use super::super::walk::open_directory;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::fs::{CWD, fstat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// `FAN_REPORT_FID`, `_DIR_FID`, `_NAME` and, since Linux 5.17, `_TARGET_FID` of `linux/fanotify.h`:
/// the file, its directory and name, and which file a new name was given to.
const REPORT: u32 = 0x200 | 0x400 | 0x800 | 0x1000;
/// Types of information records: the file, its directory and name, its directory.
const FID: u8 = 1;
const DFID_NAME: u8 = 2;
const DFID: u8 = 3;
/// Sizes of the fixed parts: of an event, of a record up to its handle, of a handle's own header.
const EVENT: usize = 24;
const RECORD: usize = 12;
const HANDLE: usize = 8;

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A name in a directory came, went, or became another file's.
    Name { directory: u64, name: OsString, of: Option<u64> },
    /// A file's content or metadata changed.
    Changed { inode: u64 },
    /// A file that was open for writing was closed.
    Closed { inode: u64 },
    /// Events were lost, or cannot be understood.
    Unknown { why: String },
}

/// An open group, with a mark on the whole file system.
#[derive(Debug)]
pub(super) struct Group {
    fanotify: Fanotify,
    magic: u64,
}

impl Group {
    /// Events of the file system of `root` from now on, or why there are none.
    pub(super) fn open(root: &Path) -> Result<Self, String> {
        let directory = open_directory(CWD, root).map_err(|e| e.to_string())?;
        let (name, mapped_stores_show) = file_system(&directory).map_err(|e| e.to_string())?;
        if !mapped_stores_show {
            return Err(format!("on {name} a file may change without any trace"));
        }
        let magic = rustix::fs::fstatfs(&directory).map_err(|e| e.to_string())?.f_type;
        let magic = u64::from_ne_bytes(magic.to_ne_bytes());
        test(root, &directory, magic)?;
        let mask = MaskFlags::FAN_MODIFY
            | MaskFlags::FAN_ATTRIB
            | MaskFlags::FAN_CLOSE_WRITE
            | MaskFlags::FAN_CREATE
            | MaskFlags::FAN_DELETE
            | MaskFlags::FAN_MOVE
            | MaskFlags::FAN_ONDIR;
        let fanotify = init()?;
        mark(&fanotify, MarkFlags::FAN_MARK_FILESYSTEM, mask, &directory)?;
        Ok(Self { fanotify, magic })
    }

    /// Tells `each` of the events that have come, as many as are read at once. False if there was
    /// none.
    pub(super) fn read(&self, each: &mut dyn FnMut(Event)) -> rustix::io::Result<bool> {
        let mut buffer = vec![0_u8; 64 << 10];
        loop {
            match rustix::io::read(&self.fanotify, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(false),
                Ok(count) => {
                    parse(&buffer[..count], self.magic, each);
                    return Ok(true);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fanotify.as_fd()
    }
}

fn init() -> Result<Fanotify, String> {
    let flags = InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLASS_NOTIF;
    Fanotify::init(flags | InitFlags::from_bits_retain(REPORT), EventFFlags::O_RDONLY).map_err(
        |error| match error {
            nix::Error::EPERM => "CAP_SYS_ADMIN is needed to be told of changes".to_owned(),
            nix::Error::EINVAL | nix::Error::ENOSYS => {
                "Linux 5.17 or newer, with fanotify, is needed to be told of changes".to_owned()
            }
            other => format!("fanotify: {}", other.desc()),
        },
    )
}

fn mark(
    fanotify: &Fanotify,
    flags: MarkFlags,
    mask: MaskFlags,
    directory: &OwnedFd,
) -> Result<(), String> {
    let flags = MarkFlags::FAN_MARK_ADD | flags;
    fanotify.mark(flags, mask, directory, None::<&Path>).map_err(|error| match error {
        nix::Error::EPERM => "CAP_SYS_ADMIN is needed to be told of changes".to_owned(),
        nix::Error::EXDEV => "the kernel does not tell of changes below a subvolume".to_owned(),
        nix::Error::ENODEV | nix::Error::EOPNOTSUPP => {
            "the kernel does not tell of changes on this file system".to_owned()
        }
        other => format!("fanotify: {}", other.desc()),
    })
}

/// Opens `root` and sees whether the event of that is understood.
fn test(root: &Path, directory: &OwnedFd, magic: u64) -> Result<(), String> {
    let fanotify = init()?;
    let mask = MaskFlags::FAN_OPEN | MaskFlags::FAN_ONDIR;
    mark(&fanotify, MarkFlags::empty(), mask, directory)?;
    let expected = fstat(directory).map_err(|e| e.to_string())?.st_ino;
    drop(open_directory(CWD, root).map_err(|e| e.to_string())?);
    let mut understood = false;
    Group { fanotify, magic }
        .read(&mut |event| understood |= event == Event::Changed { inode: expected })
        .map_err(|e| e.to_string())?;
    if understood {
        Ok(())
    } else {
        Err("the events of this file system are in a form that is not understood".to_owned())
    }
}

/// Reads the events in `bytes`, as `fanotify(7)` lays them out.
fn parse(mut bytes: &[u8], magic: u64, each: &mut dyn FnMut(Event)) {
    let unknown = |why: &str| Event::Unknown { why: why.to_owned() };
    while !bytes.is_empty() {
        let lengths = (number(bytes, 0, 4), number(bytes, 6, 2), number(bytes, 8, 8));
        let (Some(length), Some(start), Some(mask)) = lengths else {
            return each(unknown("an event of the kernel was cut off"));
        };
        let (length, start) = (length as usize, start as usize);
        if start < EVENT || start > length || length > bytes.len() {
            return each(unknown("an event of the kernel had an impossible length"));
        }
        let mask = MaskFlags::from_bits_retain(mask);
        if mask.contains(MaskFlags::FAN_Q_OVERFLOW) {
            each(unknown("there were more events than the kernel keeps"));
        } else if interpret(mask, &bytes[start..length], magic, each).is_none() {
            each(unknown("an event of the kernel was in a form that is not understood"));
        }
        bytes = &bytes[length..];
    }
}

/// Tells what one event means. `None` if it is not understood.
fn interpret(
    mask: MaskFlags,
    mut records: &[u8],
    magic: u64,
    each: &mut dyn FnMut(Event),
) -> Option<()> {
    let (mut file, mut directory, mut name) = (None, None, None);
    while !records.is_empty() {
        let kind = *records.first()?;
        let length = number(records, 2, 2)? as usize;
        let record = records.get(..length).filter(|_| length >= RECORD)?;
        records = &records[length..];
        if !matches!(kind, FID | DFID | DFID_NAME) {
            continue;
        }
        let size = number(record, RECORD, 4)? as usize;
        let shape = number(record, RECORD + 4, 4)?;
        let handle = record.get(RECORD + HANDLE..)?.get(..size)?;
        let inode = inode(magic, shape, handle)?;
        match kind {
            FID => file = Some(inode),
            DFID => directory = Some(inode),
            _ => {
                directory = Some(inode);
                let rest = &record[RECORD + HANDLE + size..];
                name = Some(rest.split(|byte| *byte == 0).next()?);
            }
        }
    }
    let names = MaskFlags::FAN_CREATE | MaskFlags::FAN_DELETE | MaskFlags::FAN_MOVE;
    let itself = matches!(name, None | Some(b"."));
    let mut tell_name = || {
        let name = OsString::from_vec(name.filter(|name| !name.is_empty())?.to_vec());
        each(Event::Name { directory: directory?, name, of: file });
        Some(())
    };
    if mask.intersects(names) {
        tell_name()?;
    }
    let rest = mask.difference(names | MaskFlags::FAN_ONDIR);
    if rest.is_empty() {
        return Some(());
    }
    match file.or(directory.filter(|_| itself)) {
        Some(inode) if rest == MaskFlags::FAN_CLOSE_WRITE => each(Event::Closed { inode }),
        Some(inode) => each(Event::Changed { inode }),
        // The kernel could not name the file itself: whatever has that name now is looked at.
        None => tell_name()?,
    }
    Some(())
}

/// The inode number in a file handle of the file system `magic`, in the shapes that its
/// `export_operations` give; `None` for any other.
fn inode(magic: u64, shape: u64, handle: &[u8]) -> Option<u64> {
    match (magic, shape) {
        // ext4, XFS, F2FS: inode and generation, of 32 bits each.
        (0xEF53 | 0x5846_5342 | 0xF2F5_2010, 1) => number(handle, 0, 4),
        // XFS with 64 bits; btrfs: object, root, generation.
        (0x5846_5342, 0x81) | (0x9123_683E, 0x4d) => number(handle, 0, 8),
        _ => None,
    }
}

/// The unsigned number of `size` bytes at `at`, in this machine's order.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at + size)?;
    Some(match size {
        2 => u64::from(u16::from_ne_bytes(field.try_into().ok()?)),
        4 => u64::from(u32::from_ne_bytes(field.try_into().ok()?)),
        _ => u64::from_ne_bytes(field.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXT: u64 = 0xEF53;

    /// An event as the kernel writes it, with one record.
    fn event(mask: MaskFlags, kind: u8, shape: u32, inode: u32, name: &str) -> Vec<u8> {
        let mut record = vec![kind, 0, 0, 0];
        record.extend([0; 8]);
        record.extend(8_u32.to_ne_bytes());
        record.extend(shape.to_ne_bytes());
        record.extend(inode.to_ne_bytes());
        record.extend(77_u32.to_ne_bytes());
        record.extend(name.as_bytes());
        record.push(0);
        record.resize(record.len().next_multiple_of(4), 0);
        let length = record.len() as u16;
        record[2..4].copy_from_slice(&length.to_ne_bytes());
        let mut event = (EVENT as u32 + u32::from(length)).to_ne_bytes().to_vec();
        event.extend([3, 0]);
        event.extend((EVENT as u16).to_ne_bytes());
        event.extend(mask.bits().to_ne_bytes());
        event.extend([0; 8]);
        event.extend(record);
        event
    }

    fn parsed(bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        parse(bytes, EXT, &mut |event| events.push(event));
        events
    }

    #[test]
    fn names_and_changes_are_told_apart() {
        let created = event(MaskFlags::FAN_CREATE, DFID_NAME, 1, 5, "new");
        let written = event(MaskFlags::FAN_MODIFY, FID, 1, 6, "");
        let chmod = event(MaskFlags::FAN_ATTRIB | MaskFlags::FAN_ONDIR, DFID_NAME, 1, 7, ".");
        let closed = event(MaskFlags::FAN_CLOSE_WRITE, FID, 1, 8, "");
        assert_eq!(
            parsed(&[created, written, chmod, closed].concat()),
            [
                Event::Name { directory: 5, name: "new".into(), of: None },
                Event::Changed { inode: 6 },
                Event::Changed { inode: 7 },
                Event::Closed { inode: 8 },
            ]
        );
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let overflow = event(MaskFlags::FAN_Q_OVERFLOW, FID, 1, 6, "");
        let other_shape = event(MaskFlags::FAN_MODIFY, FID, 2, 6, "");
        let good = event(MaskFlags::FAN_MODIFY, FID, 1, 6, "");
        for bad in [&overflow[..], &other_shape, &good[..good.len() - 1], &good[..10]] {
            let events = parsed(bad);
            assert!(matches!(events[..], [Event::Unknown { .. }]), "{events:?}");
        }
    }
}
