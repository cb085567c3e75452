//! What goes by in a dump, noted while it streams: which tables it makes, how long its longest
//! statement is, and how it ends. Without it a table that was there only while the dump ran would
//! be found out at the restore, and so would a row that no server accepts.
//!
//! Line breaks inside values are escaped in a dump, so that a line is one of SQL.

use std::collections::BTreeSet;
use std::io::{self, Read};

/// What the dump program writes last.
const COMPLETED: &[u8] = b"-- Dump completed";
/// How much of a line is looked at.
const HEAD: usize = 400;

/// Passes a dump on, and looks at it.
pub(super) struct Scan<R> {
    inner: R,
    seen: Seen,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Tables and sequences that the dump makes.
    pub(super) tables: BTreeSet<String>,
    /// Bytes of the longest statement.
    pub(super) longest: u64,
    /// The beginning of this line, or of the last one if this one is empty.
    line: Vec<u8>,
    ended: bool,
    last: u8,
    statement: u64,
}

impl<R: Read> Scan<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, seen: Seen::default() }
    }

    pub(super) fn seen(self) -> Seen {
        self.seen
    }
}

impl Seen {
    /// Whether the dump came to its proper end.
    pub(super) fn completed(&self) -> bool {
        self.ended && self.line.starts_with(COMPLETED)
    }

    fn look(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if std::mem::take(&mut self.ended) {
                self.line.clear();
            }
            let room = HEAD.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            self.statement += part.len() as u64;
            self.longest = self.longest.max(self.statement);
            if let Some(line) = part.strip_suffix(b"\n") {
                self.ended = true;
                self.tables.extend(made(&self.line));
                let last = line.last().copied().unwrap_or(self.last);
                if last == b';' || self.line.starts_with(b"--") {
                    self.statement = 0;
                }
            }
            self.last = part.last().copied().unwrap_or(self.last);
        }
    }
}

impl<R: Read> Read for Scan<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.seen.look(&buffer[..read]);
        Ok(read)
    }
}

/// The table or sequence that a line makes.
fn made(line: &[u8]) -> Option<String> {
    let rest = line
        .strip_prefix(b"CREATE TABLE `")
        .or_else(|| line.strip_prefix(b"CREATE TABLE IF NOT EXISTS `"))
        .or_else(|| line.strip_prefix(b"CREATE SEQUENCE `"))?;
    let mut name = Vec::new();
    let mut letters = rest.iter().peekable();
    while let Some(letter) = letters.next() {
        if *letter == b'`' && letters.next_if(|next| **next == b'`').is_none() {
            return Some(String::from_utf8_lossy(&name).into_owned());
        }
        name.push(*letter);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes are cut.
    fn looked(text: &str) -> Vec<Seen> {
        let cut = |size: usize| {
            let mut seen = Seen::default();
            text.as_bytes().chunks(size).for_each(|part| seen.look(part));
            seen
        };
        [1, 2, 7, 1000].map(cut).into()
    }

    #[test]
    fn tables_and_the_longest_statement_are_noted() {
        let text = "-- a comment that is longer than every statement of this dump, by far\n\
            CREATE TABLE `a``b` (\n  `id` int\n);\nCREATE SEQUENCE `s` start with 1;\n\
            INSERT INTO `a``b` VALUES\n(1),\n('CREATE TABLE `no`'),\n(3);\n\
            INSERT INTO `x` VALUES (1);\n-- Dump completed on 2026-01-01\n";
        for seen in looked(text) {
            assert_eq!(seen.tables.iter().collect::<Vec<_>>(), ["a`b", "s"]);
            let comment = text.find('\n').unwrap() as u64 + 1;
            let insert = "INSERT INTO `a``b` VALUES\n(1),\n('CREATE TABLE `no`'),\n(3);\n".len();
            assert_eq!(seen.longest, comment.max(insert as u64));
            assert!(seen.completed());
        }
    }

    #[test]
    fn only_a_last_line_completes_a_dump() {
        let cases = [
            ("-- Dump completed\n", true),
            ("x;\n-- Dump completed on 2026-01-01\n", true),
            ("-- Dump completed", false),
            ("-- Dump completed\nINSERT", false),
            ("('-- Dump completed\n", false),
            ("-- Dump completed\n\n", false),
            ("", false),
        ];
        for (text, completed) in cases {
            for seen in looked(text) {
                assert_eq!(seen.completed(), completed, "{text:?}");
            }
        }
    }
}
