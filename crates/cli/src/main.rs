//! The `stillpoint` command: arguments, output, and the wiring of every other crate.

mod arguments;
mod backups;
mod create;
mod demo;
mod doctor;
mod ending;
mod failure;
mod gateway;
mod output;
mod pages;
mod privileges;
mod processes;
mod remote;
mod repo;
mod restore;
mod terminal;
mod up;
mod watchdog;

use arguments::{Arguments, BackupCommand, Command, Global};
use clap::{CommandFactory, Parser};
use failure::Failure;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(split_colon(std::env::args_os()));
    log_to_stderr(arguments.global.verbose);
    let global = &arguments.global;
    let done = match arguments.command {
        Command::Demo(arguments) => return demo::run(global, &arguments),
        Command::Repo(arguments) => repo::run(global, &arguments),
        Command::DemoShop(arguments) => demo::run_shop(arguments),
        Command::DemoLoad(arguments) => demo::run_load(arguments),
        Command::DemoClean(arguments) => demo::run_clean(&arguments),
        Command::Backup(command) => backup(global, &command),
        Command::Backups(arguments) => backup(global, &BackupCommand::List(arguments)),
        Command::Activity(command) => remote::activities::run(global, &command),
        Command::Environment(command) => remote::environments::run(global, &command),
        Command::User(command) => remote::users::run(global, &command),
        Command::ApiToken(command) => remote::users::tokens(global, &command),
        Command::Location(command) => remote::environments::locations(global, &command),
        Command::Gateway(arguments) => gateway::run(global, &arguments),
        Command::Watchdog(arguments) => watchdog::run(global, &arguments),
        Command::Doctor => doctor::run(global),
        Command::Completions(arguments) => pages::completions(&arguments),
        Command::Man(arguments) => pages::man(&arguments),
        Command::Up(arguments) => up::run(global, &arguments),
        Command::Server(arguments) => processes::server(global, &arguments),
        Command::Agent(arguments) => processes::agent(global, &arguments),
        Command::Task => processes::task(global),
        Command::Recover => restore::run_recover(global),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure::report(&failure),
    }
}

/// By the server, or with `--local` by this process.
fn backup(global: &Global, command: &BackupCommand) -> Result<(), Failure> {
    match (command, global.local) {
        (BackupCommand::Create(arguments), true) => create::run(global, arguments),
        (BackupCommand::Create(arguments), false) => remote::backups::create(global, arguments),
        (BackupCommand::List(arguments), true) => backups::list(global, arguments),
        (BackupCommand::List(arguments), false) => remote::backups::list_all(global, arguments),
        (BackupCommand::Get(arguments), true) => backups::get(global, arguments),
        (BackupCommand::Get(arguments), false) => remote::backups::get(global, arguments),
        (BackupCommand::Delete(arguments), true) => backups::delete(global, arguments),
        (BackupCommand::Delete(arguments), false) => remote::backups::delete(global, arguments),
        (BackupCommand::Restore(arguments), true) => restore::run(global, arguments),
        (BackupCommand::Restore(arguments), false) => remote::backups::restore(global, arguments),
    }
}

/// `backup:create` is `backup create`: scripts of the hosted platform's users write the former.
fn split_colon(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let definition = Arguments::command();
    let groups: Vec<&str> = definition
        .get_subcommands()
        .filter(|command| command.has_subcommands())
        .map(clap::Command::get_name)
        .collect();
    let mut split = Vec::new();
    let mut searching = true;
    for (place, argument) in arguments.enumerate() {
        // Only the first word that is not an option can be a command.
        if let (true, Some(text)) = (searching && place > 0, argument.to_str())
            && !text.starts_with('-')
            && let Some((group, action)) = text.split_once(':')
            && groups.contains(&group)
        {
            searching = false;
            split.extend([group.into(), action.into()]);
            continue;
        }
        split.push(argument);
    }
    split
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        // What crons say is for whoever reads the agent's log.
        0 => "warn,cron=info",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("STILLPOINT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        // It would say on standard error that nobody reads that, and panic when nobody does.
        .log_internal_errors(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(words: &[&str]) -> Vec<String> {
        split_colon(words.iter().map(OsString::from))
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_command_with_a_colon_is_the_same_as_two_words() {
        assert_eq!(split(&["s", "backup:create", "main"]), ["s", "backup", "create", "main"]);
        assert_eq!(split(&["s", "-y", "backup:list"]), ["s", "-y", "backup", "list"]);
    }

    #[test]
    fn a_colon_in_an_argument_is_left_alone() {
        assert_eq!(split(&["s", "backup:get", "a:b"]), ["s", "backup", "get", "a:b"]);
        assert_eq!(split(&["s", "-c", "/x:y"]), ["s", "-c", "/x:y"]);
        assert_eq!(split(&["s", "--config=a:b", "demo"]), ["s", "--config=a:b", "demo"]);
    }

    #[test]
    fn the_definition_of_the_arguments_is_sound() {
        Arguments::command().debug_assert();
    }
}
