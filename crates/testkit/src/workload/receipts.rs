//! The mount's part of the books: a file for each order, in one of 16 directories. Its contents
//! follow from nothing but the number, and are as long as chance has it, so that a file that was
//! read half written or under another's name is found out by its hash.

use super::BoxError;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Makes the directories.
pub(super) fn open(root: &Path) -> io::Result<()> {
    (0..16).try_for_each(|directory| fs::create_dir_all(root.join(format!("{directory:x}"))))
}

/// Writes an order's file; says its hash.
#[allow(clippy::disallowed_methods, reason = "a test's files need not survive a crash")]
pub(super) fn write(root: &Path, number: u64) -> io::Result<()> {
    fs::write(path(root, number), contents(number))
}

/// Removes an order's file.
pub(super) fn remove(root: &Path, number: u64) -> io::Result<()> {
    fs::remove_file(path(root, number))
}

/// Number and hash of each file.
pub(super) fn read(root: &Path) -> Result<BTreeMap<u64, String>, BoxError> {
    let mut found = BTreeMap::new();
    for directory in fs::read_dir(root)? {
        let directory = directory?.path();
        // A restore leaves nothing of its own behind; the directories are all there is.
        for entry in fs::read_dir(directory)? {
            let file = entry?.path();
            let number = file
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok())
                .ok_or_else(|| format!("{} is no receipt", file.display()))?;
            found.insert(number, hash(&fs::read(&file)?));
        }
    }
    Ok(found)
}

/// The hash that an order's file must have.
pub(super) fn hash_of(number: u64) -> String {
    hash(&contents(number))
}

fn path(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{:x}", number % 16)).join(format!("{number}.txt"))
}

fn contents(number: u64) -> Vec<u8> {
    let seed = Sha256::digest(number.to_le_bytes());
    let lines = 1 + usize::from(seed[0]);
    format!("receipt of order {number}: thank you\n").repeat(lines).into_bytes()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes more text");
        text
    })
}
