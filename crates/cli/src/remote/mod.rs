//! Commands that ask the server.

pub(crate) mod activities;
pub(crate) mod backups;
mod client;
pub(crate) mod environments;
pub(crate) mod users;

pub(crate) use client::{Client, Trouble};

use crate::arguments::{Format, Global};
use crate::failure::Failure;
use crate::output::{put, rows};
use crate::terminal::Terminal;
use serde_json::Value;
use std::io::{self, IsTerminal, Write};
use stillpoint_agent::place::read_config;
use stillpoint_model::config::Config;

/// The server, and what the command is about.
pub(crate) struct Session<'a> {
    pub global: &'a Global,
    pub client: Client,
    pub terminal: Terminal,
    /// The project's id.
    pub project: String,
    config: Option<Config>,
}

impl<'a> Session<'a> {
    /// The project is the one of the flag, the variable, `stillpoint.yaml`, or the only one.
    pub(crate) fn new(global: &'a Global) -> Result<Self, Failure> {
        let client = Client::new(global)?;
        let mut anywhere = global.place();
        anywhere.project = None;
        // Where there is none, the server knows the names.
        let config = read_config(&anywhere).ok().map(|(config, _)| config);
        let configured = config.as_ref().map(|config| config.project.to_string());
        let project = match global.project.clone().or(configured) {
            Some(project) => project,
            None => only_project(&client)?,
        };
        let terminal = Terminal::new(global.quiet, global.verbose > 0);
        Ok(Self { global, client, terminal, project, config })
    }

    /// The path of something in the project.
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/projects/{}{rest}", segment(&self.project))
    }

    /// The environment's name: given, or the configuration's only one, or that of the Git branch,
    /// or the project's only one.
    pub(crate) fn environment(&self, named: Option<&str>) -> Result<String, Failure> {
        if let Some(name) = named.or(self.global.environment.as_deref()) {
            return Ok(name.to_owned());
        }
        if let Some(config) = &self.config
            && let (Some(only), 1) = (config.environments.keys().next(), config.environments.len())
        {
            return Ok(only.to_string());
        }
        let listed = self.client.get(&self.path("/environments"))?;
        let names: Vec<&str> = list(&listed).iter().filter_map(|e| e["id"].as_str()).collect();
        if let [only] = names[..] {
            return Ok(only.to_owned());
        }
        if let Some(branch) = git_branch()
            && names.contains(&branch.as_str())
        {
            return Ok(branch);
        }
        Err(Failure::usage("which environment?")
            .hint(format!("-e NAME; the project has: {}", names.join(", "))))
    }

    /// The path of something in an environment.
    pub(crate) fn environment_path(&self, name: &str, rest: &str) -> String {
        self.path(&format!("/environments/{}{rest}", segment(name)))
    }

    /// Prints a list: as JSON whole, else these columns of it.
    pub(crate) fn print(
        &self,
        items: &Value,
        heading: &[&str],
        row: impl Fn(&Value) -> Vec<String>,
    ) -> Result<(), Failure> {
        if self.global.format == Format::Json {
            return put(&format!("{items:#}"));
        }
        let lines: Vec<Vec<String>> = list(items).iter().map(row).collect();
        rows(self.global.format, heading, &lines)
    }

    /// Asks, unless `--yes` has answered.
    pub(crate) fn confirm(&self, question: &str) -> Result<(), Failure> {
        if self.global.yes || confirm(question)? {
            Ok(())
        } else {
            Err(Failure::new("nothing was done: it was not confirmed"))
        }
    }
}

/// Asks on the terminal.
pub(crate) fn confirm(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("this needs a yes").hint("--yes answers it"));
    }
    let fail = |e: io::Error| Failure::new("ask").because(&e);
    io::stderr().write_all(format!("{question} [y/N] ").as_bytes()).map_err(fail)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(fail)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn only_project(client: &Client) -> Result<String, Failure> {
    let me = client.get("/me")?;
    let ids: Vec<&str> = list(&me["projects"]).iter().filter_map(|p| p["id"].as_str()).collect();
    match ids[..] {
        [only] => Ok(only.to_owned()),
        [] => Err(Failure::new("you are in no project")
            .hint("the server learns of a project when its agent connects")),
        _ => {
            Err(Failure::usage("which project?")
                .hint(format!("-p ID; you are in: {}", ids.join(", "))))
        }
    }
}

fn git_branch() -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["symbolic-ref", "--short", "-q", "HEAD"])
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    let branch = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| branch.trim().to_owned())
}

/// The items of a bare array.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A field as text for a table.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One segment of a path.
pub(crate) fn segment(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const ENCODED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, ENCODED).to_string()
}
