//! The shop's uploads directory: one confirmation for each order, and the catalogue's pictures.
//!
//! A file is written under a temporary name and renamed, so that nobody ever sees half of one. It
//! is not synced: few applications do that for uploads, and a backup must cope with it.

use super::order::Random;
use super::{BoxError, Order};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes the confirmation of one order.
pub(crate) fn write(uploads: &Path, order: &Order) -> io::Result<()> {
    place(&uploads.join(order.path()), order.confirmation().as_bytes())
}

/// True if the confirmation of that order is there.
pub(crate) fn exists(uploads: &Path, order: &Order) -> bool {
    uploads.join(order.path()).is_file()
}

/// Writes the confirmations of the orders from `first` to `last`, and a catalogue of so many
/// pictures.
pub(crate) fn seed(uploads: &Path, pictures: usize, first: u64, last: u64) -> Result<(), BoxError> {
    for index in 0..pictures {
        place(&uploads.join(picture_path(index)), &picture(index))?;
    }
    for number in first..=last {
        write(uploads, &Order::numbered(number))?;
    }
    Ok(())
}

/// Where picture `index` is, below the uploads directory.
pub(crate) fn picture_path(index: usize) -> PathBuf {
    PathBuf::from(format!("catalogue/{}/picture-{index:03}.bin", index % 7))
}

/// What picture `index` holds: from nothing to about 60 kB that does not compress; of a large
/// catalogue most are no larger than 4 kB.
pub(crate) fn picture(index: usize) -> Vec<u8> {
    let mut random = Random::new(0x0070_6963_0000 + index as u64);
    let words = match index {
        0 => 0,
        1..200 => random.below(7_500),
        _ => random.below(512),
    };
    (0..words).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Puts a file in its place, whole. Not durable: see above.
fn place(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().expect("a file's path has a directory");
    let name = path.file_name().expect("a file's path has a name").to_string_lossy();
    let temporary = directory.join(format!(".{name}.tmp"));
    let mut file = match File::create(&temporary) {
        // Its directory is made when first needed, and again when someone deleted everything.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(directory)?;
            File::create(&temporary)?
        }
        created => created?,
    };
    file.write_all(content)?;
    drop(file);
    std::fs::rename(&temporary, path)
}
