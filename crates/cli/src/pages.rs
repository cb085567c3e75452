//! Completions and man pages, from the one definition of the commands.

use crate::arguments::{Arguments, CompletionsArgs, ManArgs};
use crate::failure::Failure;
use crate::output::tell;
use clap::CommandFactory;
use std::io::{self, Write};

/// `completions SHELL`.
pub(crate) fn completions(arguments: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "stillpoint", &mut script);
    io::stdout().write_all(&script).map_err(|e| Failure::new("print").because(&e))
}

/// `man DIR`.
pub(crate) fn man(arguments: &ManArgs) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let fail = |e: io::Error| Failure::new(format!("write to {}", directory.display())).because(&e);
    std::fs::create_dir_all(directory).map_err(fail)?;
    clap_mangen::generate_to(Arguments::command(), directory).map_err(fail)?;
    tell(&format!("man pages are in {0}; `man {0}/stillpoint.1` shows one", directory.display()));
    Ok(())
}
