//! The load's own log of what it sent and what it was told: the only witness that the demo's
//! comparison trusts, since it was written by neither the shop nor the backup.
//!
//! One line for each request, `number TAB sent TAB answered TAB outcome`, times in microseconds
//! since 1970, and a last line `end`. A load that was killed leaves a prefix: whatever follows the
//! last line feed was cut off and is ignored, and [`Ledger::complete`] is false, since requests
//! may have been sent that are not in it. Anything else that is odd is an error: a witness that
//! has to be interpreted proves nothing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The line that ends a complete ledger.
const END: &str = "end";

/// What the load was told about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The whole response was read; its status.
    Status(u16),
    /// There was no whole response; why.
    Failed(String),
}

impl Outcome {
    /// True if the order was acknowledged: 201 Created.
    pub(crate) fn acknowledged(&self) -> bool {
        *self == Self::Status(201)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrderLine {
    /// The order's number.
    pub(crate) number: u64,
    /// Just before its first byte was sent, in microseconds since 1970.
    pub(crate) sent_us: i64,
    /// Just after the whole response was read, or its failure was noticed.
    pub(crate) answered_us: i64,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

/// A ledger that was read back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Every request, in the order in which they were answered.
    pub(crate) orders: Vec<OrderLine>,
    /// False if the load was cut off, so that requests may have been sent that are not listed.
    pub(crate) complete: bool,
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// The file cannot be read.
    #[error("read the load's log {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line other than the last is not one.
    #[error("the load's log is damaged at line {line}: {what}")]
    Damaged {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

impl Ledger {
    /// Reads a ledger.
    pub(crate) fn read(path: &Path) -> Result<Self, LedgerError> {
        let bytes = std::fs::read(path)
            .map_err(|source| LedgerError::Read { path: path.to_owned(), source })?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, LedgerError> {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let mut ledger = Self::default();
        let mut numbers = BTreeSet::new();
        for (index, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let damaged =
                |what: &str| LedgerError::Damaged { line: index + 1, what: what.to_owned() };
            let line = std::str::from_utf8(&line[..line.len() - 1])
                .map_err(|_| damaged("it is not UTF-8"))?;
            if ledger.complete {
                return Err(damaged("something follows its end"));
            }
            if line == END {
                ledger.complete = true;
                continue;
            }
            let order = parse_line(line)
                .ok_or_else(|| damaged("it is not `number, sent, answered, outcome`"))?;
            if order.answered_us < order.sent_us {
                return Err(damaged("answered before it was sent: the clock was set back"));
            }
            if !numbers.insert(order.number) {
                return Err(damaged("this order was sent before"));
            }
            ledger.orders.push(order);
        }
        Ok(ledger)
    }
}

fn parse_line(line: &str) -> Option<OrderLine> {
    let mut fields = line.splitn(4, '\t');
    let number = fields.next()?.parse().ok()?;
    let sent_us = fields.next()?.parse().ok()?;
    let answered_us = fields.next()?.parse().ok()?;
    let outcome = fields.next()?;
    let outcome = match outcome.parse() {
        Ok(status) => Outcome::Status(status),
        Err(_) => Outcome::Failed(outcome.to_owned()),
    };
    Some(OrderLine { number, sent_us, answered_us, outcome })
}

/// Writes a ledger.
pub(crate) struct LedgerWriter {
    file: BufWriter<File>,
}

impl LedgerWriter {
    /// Begins a new ledger; one that is there already is replaced.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: BufWriter::with_capacity(256 << 10, File::create(path)?) })
    }

    /// Adds one request; it may stay in memory until the next flush.
    pub(crate) fn add(&mut self, order: &OrderLine) -> io::Result<()> {
        let OrderLine { number, sent_us, answered_us, outcome } = order;
        write!(self.file, "{number}\t{sent_us}\t{answered_us}\t")?;
        match outcome {
            Outcome::Status(status) => writeln!(self.file, "{status}"),
            // On one line, and never mistaken for a status.
            Outcome::Failed(why) => {
                writeln!(self.file, "failed: {}", why.replace(char::is_control, " "))
            }
        }
    }

    /// Hands everything so far to the operating system: it survives this process being killed.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Marks the ledger as complete and makes it durable.
    pub(crate) fn end(mut self) -> io::Result<()> {
        writeln!(self.file, "{END}")?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64, outcome: Outcome) -> OrderLine {
        OrderLine { number, sent_us: 1_000, answered_us: 2_000, outcome }
    }

    fn written(lines: &[OrderLine]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut writer = LedgerWriter::create(&path).unwrap();
        for line in lines {
            writer.add(line).unwrap();
        }
        writer.end().unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn what_was_written_is_read_back() {
        let lines = [
            line(1, Outcome::Status(201)),
            line(2, Outcome::Status(500)),
            line(3, Outcome::Failed("failed: connection reset".to_owned())),
        ];
        let mut given = lines.clone();
        given[2].outcome = Outcome::Failed("connection reset".to_owned());
        let ledger = Ledger::parse(&written(&given)).unwrap();
        assert_eq!(ledger.orders, lines);
        assert!(ledger.complete);
    }

    #[test]
    fn a_ledger_cut_anywhere_is_a_prefix_and_never_called_complete() {
        let lines: Vec<_> = (1..20).map(|n| line(n, Outcome::Failed(format!("é {n}")))).collect();
        let whole = written(&lines);
        for cut in 0..whole.len() {
            let ledger = Ledger::parse(&whole[..cut]).unwrap();
            assert!(!ledger.complete, "{cut}");
            let lines = whole[..cut].split(|byte| *byte == b'\n').count() - 1;
            assert_eq!(ledger.orders.len(), lines, "{cut}");
        }
    }

    #[test]
    fn a_reason_with_line_feeds_and_tabs_stays_one_line() {
        let whole = written(&[line(1, Outcome::Failed("201\n2\t1\t2\t201".to_owned()))]);
        let ledger = Ledger::parse(&whole).unwrap();
        assert_eq!(ledger.orders.len(), 1);
        assert!(!ledger.orders[0].outcome.acknowledged());
    }

    #[test]
    fn damage_before_the_last_line_is_refused_with_its_line() {
        for (text, at) in [
            ("1\t2\t3\t201\nx\n", "line 2"),
            ("1\t2\t3\t201\n1\t2\t3\t201\n", "line 2"),
            ("1\t5\t3\t201\n", "line 1"),
            ("end\n1\t2\t3\t201\n", "line 2"),
            ("1\t2\t3\n", "line 1"),
        ] {
            let error = Ledger::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(at), "{text:?}: {error}");
        }
    }
}
