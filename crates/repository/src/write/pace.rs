//! How fast content is read: at most so many bytes a second, all readers of a writer together.

use std::io::{self, Read};
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many reads a second there are at least, so that a reader that is told to stop notices it.
const READS: usize = 10;

/// A rate, and what has been read at it.
pub(super) struct Pace {
    bytes_per_second: NonZeroU64,
    /// When what has been read until now is paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, paid: Mutex::new(Instant::now()) }
    }

    /// `content` at this pace.
    pub(super) fn reader<'r>(&'r self, content: &'r mut dyn Read) -> impl Read + 'r {
        Paced { content, pace: self }
    }

    /// The most that may be read at once.
    fn most(&self) -> usize {
        let rate = usize::try_from(self.bytes_per_second.get()).unwrap_or(usize::MAX);
        (rate / READS).max(1)
    }

    /// When these bytes, read now, are paid for. What was not read earlier is not saved up.
    fn pay(&self, bytes: usize, now: Instant) -> Instant {
        #[allow(clippy::cast_precision_loss, reason = "of a tenth of a second's bytes")]
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now) + cost;
        *paid
    }
}

struct Paced<'r> {
    content: &'r mut dyn Read,
    pace: &'r Pace,
}

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.pace.most().min(buffer.len());
        let count = self.content.read(&mut buffer[..most])?;
        let now = Instant::now();
        let wait = self.pace.pay(count, now).saturating_duration_since(now);
        std::thread::sleep(wait);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(bytes_per_second: u64) -> Pace {
        Pace::new(NonZeroU64::new(bytes_per_second).unwrap())
    }

    #[test]
    fn all_readers_pay_into_one_account() {
        let pace = pace(1000);
        let now = Instant::now().max(*pace.paid.lock().unwrap());
        assert_eq!(pace.pay(500, now), now + Duration::from_millis(500));
        assert_eq!(pace.pay(250, now), now + Duration::from_millis(750));
        // A pause gives nobody the right to catch up.
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.pay(100, later), later + Duration::from_millis(100));
    }

    #[test]
    fn what_is_read_is_whole_and_comes_in_small_steps() {
        let pace = pace(1 << 20);
        let content: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut source = content.as_slice();
        let mut reader = pace.reader(&mut source);
        let mut first = vec![0; 200_000];
        let count = reader.read(&mut first).unwrap();
        assert_eq!(count, (1 << 20) / READS);
        first.truncate(count);
        reader.read_to_end(&mut first).unwrap();
        assert_eq!(first, content);
    }

    #[test]
    fn the_slowest_pace_still_reads() {
        assert_eq!(pace(1).most(), 1);
    }
}
