//! The two ways out: data on stdout, words for people on stderr. Neither panics when the other end
//! has gone: a backup must not fail because its terminal was closed.

use crate::arguments::Format;
use crate::failure::Failure;
use std::io::{self, Write};

/// Says something to whoever is there to read it.
pub(crate) fn tell(text: &str) {
    let line = format!("{text}\n");
    // If nobody can be told, nobody can be told of that either.
    io::stderr().write_all(line.as_bytes()).unwrap_or(());
}

/// Prints a line of data.
pub(crate) fn put(text: &str) -> Result<(), Failure> {
    let line = format!("{text}\n");
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::new("print").because(&e))
}

/// Prints lines of cells: aligned, tab-separated, or as CSV (RFC 4180).
pub(crate) fn rows(format: Format, heading: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    match format {
        Format::Plain => {
            // What would break a line or a column is a space.
            let plain = |cell: &String| cell.replace(['\t', '\n', '\r'], " ");
            let lines = rows.iter().map(|row| row.iter().map(plain).collect::<Vec<_>>().join("\t"));
            lines.into_iter().try_for_each(|line| put(&line))
        }
        Format::Csv => {
            let quoted = |cell: &String| {
                if cell.contains([',', '"', '\n', '\r']) {
                    format!("\"{}\"", cell.replace('"', "\"\""))
                } else {
                    cell.clone()
                }
            };
            let mut lines = std::iter::once(&heading).chain(rows);
            lines.try_for_each(|row| put(&row.iter().map(quoted).collect::<Vec<_>>().join(",")))
        }
        Format::Table | Format::Json => {
            let width = |column: usize| {
                let cells = rows.iter().chain([&heading]).filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            };
            let mut lines = std::iter::once(&heading).chain(rows);
            lines.try_for_each(|row| {
                let padded = row
                    .iter()
                    .enumerate()
                    .map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
                put(padded.collect::<Vec<_>>().join("  ").trim_end())
            })
        }
    }
}
