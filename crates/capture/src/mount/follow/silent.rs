//! Files that are changed without events: by stores to mapped pages, by asynchronous I/O, by who
//! opened them long ago. All of them are open for writing or mapped by a process for as long as
//! that can go on, and closing them is an event. So those are looked at, whatever events say.
//!
//! `/proc` shows them only of processes that this one may see: all of the machine are needed.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// The initial PID namespace, in which every process of the machine is seen.
const EVERYONE: &str = "pid:[4026531836]";

/// The machine's first process. Some machines let nobody see what it has open; it is the only one
/// that is believed not to write to an application's files.
const INIT: &str = "1";

/// The inodes, of any file system, that some process has open for writing, or mapped to share.
/// Otherwise why that cannot be known.
pub(in super::super) fn open_for_writing() -> Result<HashSet<u64>, String> {
    let namespace = std::fs::read_link("/proc/self/ns/pid").map_err(|e| format!("/proc: {e}"))?;
    if namespace != Path::new(EVERYONE) {
        return Err("in a container it cannot be seen who else has files open for writing".into());
    }
    let processes = openat(rustix::fs::CWD, "/proc", DIRECTORY, Mode::empty())
        .map_err(|e| format!("/proc: {e}"))?;
    let mut inodes = HashSet::new();
    let mut first = false;
    for name in numbers(processes.as_fd()).map_err(|e| format!("/proc: {e}"))? {
        let process = match openat(&processes, &name, DIRECTORY, Mode::empty()) {
            Ok(process) => process,
            // It ended, and what it had open was closed by that.
            Err(Errno::NOENT | Errno::SRCH) => continue,
            Err(error) => return Err(hidden(&name, error)),
        };
        first |= name == INIT;
        let looked = descriptors(process.as_fd(), &mut inodes)
            .and_then(|()| mappings(process.as_fd(), &mut inodes));
        match looked {
            // It may have ended meanwhile, too.
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            Err(Errno::ACCESS | Errno::PERM) if name == INIT => {}
            Err(error) => return Err(hidden(&name, error)),
        }
    }
    // Where processes of others are hidden, the first one is as well.
    if first { Ok(inodes) } else { Err(hidden(INIT, Errno::ACCESS)) }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn hidden(process: &str, error: Errno) -> String {
    format!(
        "process {process} does not show which files it has open ({error}): CAP_SYS_PTRACE is needed"
    )
}

/// The entries of a directory whose names are numbers.
fn numbers(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && name.bytes().all(|byte| byte.is_ascii_digit())
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Adds what a process has open for writing: `/proc/PID/fd` shows it by the links' own modes.
fn descriptors(process: BorrowedFd<'_>, inodes: &mut HashSet<u64>) -> rustix::io::Result<()> {
    let directory = openat(process, "fd", DIRECTORY, Mode::empty())?;
    for name in numbers(directory.as_fd())? {
        let link = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW);
        match link {
            Ok(link) if link.st_mode & 0o200 != 0 => {}
            Ok(_) | Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        }
        match statat(&directory, &name, AtFlags::empty()) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                inodes.insert(stat.st_ino);
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Adds what a process has mapped to share. Such a mapping can become a writable one.
fn mappings(process: BorrowedFd<'_>, inodes: &mut HashSet<u64>) -> rustix::io::Result<()> {
    let maps = openat(process, "maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    File::from(maps)
        .read_to_end(&mut text)
        .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    for line in text.split(|byte| *byte == b'\n') {
        // "address perms offset device inode path"
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let shared = words.nth(1).is_some_and(|permissions| permissions.ends_with(b"s"));
        let inode = words.nth(2).and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
        if let (true, Some(inode @ 1..)) = (shared, inode) {
            inodes.insert(inode);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_that_is_open_for_writing_is_found_and_one_for_reading_is_not() {
        let top = tempfile::tempdir().unwrap();
        let written = File::create(top.path().join("written")).unwrap();
        drop(File::create(top.path().join("read")).unwrap());
        let read = File::open(top.path().join("read")).unwrap();
        // Elsewhere than as root on the machine itself there is nothing to be found.
        let Ok(inodes) = open_for_writing() else { return };
        assert!(inodes.contains(&written.metadata().unwrap().ino()));
        assert!(!inodes.contains(&read.metadata().unwrap().ino()));
    }
}
