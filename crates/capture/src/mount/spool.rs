//! Where the mark puts what it reads inside the hold: memory first, then a temporary file, so that
//! a large delta neither waits for the repository nor fills the memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// This much stays in memory.
const IN_MEMORY: u64 = 64 << 20;

/// Bytes in the order in which they were read.
#[derive(Debug, Default)]
pub(super) struct Spool {
    memory: Vec<u8>,
    file: Option<File>,
    length: u64,
}

/// One file's bytes in a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    start: u64,
    pub(super) length: u64,
}

impl Spool {
    /// Takes all that `content` gives.
    pub(super) fn take(&mut self, content: &mut impl Read) -> io::Result<Range> {
        let start = self.length;
        let mut buffer = vec![0_u8; 256 << 10];
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => return Ok(Range { start, length: self.length - start }),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.push(&buffer[..count])?;
        }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() && self.length + bytes.len() as u64 > IN_MEMORY {
            self.file = Some(tempfile::tempfile()?);
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes)?,
            None => self.memory.extend_from_slice(bytes),
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Reads a range back.
    pub(super) fn read(&mut self, range: Range) -> io::Result<impl Read + '_> {
        let in_memory = self.memory.len() as u64;
        let end = range.start + range.length;
        let of_memory = |at: u64| at.min(in_memory) as usize;
        let first = &self.memory[of_memory(range.start)..of_memory(end)];
        let rest = range.length - first.len() as u64;
        let second: Box<dyn Read + '_> = match &mut self.file {
            Some(file) if rest > 0 => {
                file.seek(SeekFrom::Start(range.start.max(in_memory) - in_memory))?;
                Box::new(file.take(rest))
            }
            _ => Box::new(io::empty()),
        };
        Ok(first.chain(second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back_from_memory_from_the_file_and_across() {
        let mut spool = Spool::default();
        let chunk = |seed: u8, size: usize| -> Vec<u8> {
            (0..size).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
        };
        let contents =
            [chunk(1, 10), chunk(2, 40 << 20), chunk(3, 0), chunk(4, 40 << 20), chunk(5, 7)];
        let ranges: Vec<Range> =
            contents.iter().map(|c| spool.take(&mut c.as_slice()).unwrap()).collect();
        for (content, range) in contents.iter().zip(ranges) {
            let mut back = Vec::new();
            spool.read(range).unwrap().read_to_end(&mut back).unwrap();
            assert!(*content == back, "{} bytes", content.len());
        }
    }
}
