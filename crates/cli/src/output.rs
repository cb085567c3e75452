//! The two ways out: data on stdout, words for people on stderr. Neither panics when the other end
//! has gone: a backup must not fail because its terminal was closed.

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
