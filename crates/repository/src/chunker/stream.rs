//! A reader as a sequence of chunks. Short reads never move a cut: the buffer is filled to the
//! largest chunk, or to the end, before anything is cut.

use super::{Chunking, MAX};
use std::io::{self, Read};

const STEP: usize = 256 << 10;
const ROOM: usize = MAX + (4 << 20);

/// Cuts what `source` gives. The buffer is lent, so that small files need no allocation.
pub(crate) struct Chunks<'a> {
    source: &'a mut dyn Read,
    chunking: &'a Chunking,
    buffer: &'a mut Vec<u8>,
    start: usize,
    end: usize,
    exhausted: bool,
}

impl<'a> Chunks<'a> {
    pub(crate) fn new(
        source: &'a mut dyn Read,
        chunking: &'a Chunking,
        buffer: &'a mut Vec<u8>,
    ) -> Self {
        Self { source, chunking, buffer, start: 0, end: 0, exhausted: false }
    }

    /// The next chunk, and whether it is the last one; `None` when there is no more.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.fill()?;
        if self.start == self.end {
            return Ok(None);
        }
        let length = self.chunking.cut(&self.buffer[self.start..self.end]);
        let chunk = self.start..self.start + length;
        self.start += length;
        Ok(Some(&self.buffer[chunk]))
    }

    /// True once all was read: the chunk given last was the last.
    pub(crate) fn is_done(&self) -> bool {
        self.exhausted && self.start == self.end
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.exhausted || self.end - self.start >= MAX {
            return Ok(());
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        // More than the largest chunk, so that not every cut moves the rest of the buffer.
        while self.end < ROOM {
            if self.buffer.len() - self.end < STEP {
                let larger = (self.buffer.len() * 2).clamp(2 * STEP, ROOM);
                self.buffer.resize(larger, 0);
                if self.buffer.len() == self.end {
                    break;
                }
            }
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.exhausted = true;
                    break;
                }
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunker::{MIN, gear::Gear};
    use crate::polynomial::Polynomial;

    /// Gives at most `step` bytes at a time.
    struct Dribble<'a>(&'a [u8], usize);
    impl Read for Dribble<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(into.len()).min(self.0.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn lengths(data: &[u8], step: usize, chunking: &Chunking) -> Vec<usize> {
        let mut source = Dribble(data, step);
        let mut buffer = Vec::new();
        let mut chunks = Chunks::new(&mut source, chunking, &mut buffer);
        let mut lengths = Vec::new();
        let mut joined = Vec::new();
        while let Some(chunk) = chunks.next().unwrap() {
            lengths.push(chunk.len());
            joined.extend_from_slice(chunk);
        }
        assert!(chunks.is_done());
        assert!(joined == data);
        lengths
    }

    #[test]
    fn cuts_do_not_depend_on_how_much_a_read_gives() {
        let mut state = 1_u64;
        let data: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(40 << 20)
        .collect();
        let chunking = Chunking::Gear(Box::new(Gear::new(Polynomial(0x25_b468_838d_cb75))));
        let whole = lengths(&data, usize::MAX, &chunking);
        assert!(whole.len() > 10);
        assert!(whole[..whole.len() - 1].iter().all(|length| (MIN..=MAX).contains(length)));
        assert_eq!(whole, lengths(&data, 4096, &chunking));
        assert_eq!(whole, lengths(&data, 65_537, &chunking));

        let other = Chunking::Gear(Box::new(Gear::new(Polynomial(0x27_0035_6931_062b))));
        assert_ne!(whole, lengths(&data, usize::MAX, &other), "cuts depend on the secret");
    }

    #[test]
    fn nothing_gives_no_chunk_and_zeros_give_the_largest() {
        let chunking = Chunking::Gear(Box::new(Gear::new(Polynomial(0x25_b468_838d_cb75))));
        assert!(lengths(&[], 1, &chunking).is_empty());
        assert_eq!(lengths(&[1], 1, &chunking), [1]);
        assert!(lengths(&vec![0; 20 << 20], 1 << 20, &chunking).iter().all(|l| *l <= MAX));
    }
}
