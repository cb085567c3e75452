//! The part of `cargo xtask soak` that kills: a demo whose backup is ended by SIGKILL at a random
//! moment. No customer may notice, nothing half done may be seen, and stock restic must be content
//! with the repository, without anybody having unlocked it.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What became of a kill.
pub(crate) struct Killed {
    /// How long the backup had been running; none: it was faster than the kill.
    pub(crate) after: Option<Duration>,
    /// What it had said last: the phase that it was in.
    pub(crate) phase: String,
    /// Whether the backup had been published before.
    pub(crate) published: bool,
}

/// One demo with a kill `delay` after its backup began.
pub(crate) fn round(binary: &Path, keep: &Path, delay: Duration) -> Result<Killed, String> {
    let log = keep.with_extension("log");
    let errors = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let mut demo = Command::new(binary)
        .args(["demo", "--json", "--seconds", "4", "--keep"])
        .arg(keep)
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("{}: {error}", binary.display()))?;
    let killed = kill_backup(&mut demo, delay);
    let output = demo.wait_with_output().map_err(|error| error.to_string())?;
    let after = killed?;
    let said = fs::read_to_string(&log).map_err(|error| error.to_string())?;
    let phase = said
        .lines()
        .skip_while(|line| !line.starts_with("taking a backup"))
        .filter(|line| line.starts_with("  "))
        .last()
        .unwrap_or("  starting")
        .trim()
        .to_owned();
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .map_err(|error| format!("the demo's last line is not its report: {error}"))?;
    if report["requests_failed"] != 0 {
        return Err(format!("killed in `{phase}`: {} requests failed", report["requests_failed"]));
    }
    if report["requests_total"].as_u64().unwrap_or(0) == 0 {
        return Err("no requests were made".to_owned());
    }
    let published = check(keep).map_err(|why| format!("killed in `{phase}`: {why}"))?;
    fs::remove_file(&log).map_err(|error| error.to_string())?;
    Ok(Killed { after, phase, published })
}

/// Waits for the demo's backup to begin, and kills it, if it still runs after the delay.
fn kill_backup(demo: &mut Child, delay: Duration) -> Result<Option<Duration>, String> {
    let backup = loop {
        if let Some(pid) = child_with(demo.id(), "backup:create") {
            break pid;
        }
        if demo.try_wait().map_err(|error| error.to_string())?.is_some() {
            return Err("the demo ended without a backup".to_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let begun = Instant::now();
    std::thread::sleep(delay);
    let kill = Command::new("kill")
        .args(["-KILL", &backup.to_string()])
        .stderr(Stdio::null())
        .status()
        .map_err(|error| error.to_string())?;
    Ok(kill.success().then(|| begun.elapsed()))
}

/// The child of `parent` that has `word` among its arguments.
fn child_with(parent: u32, word: &str) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|part| part == word.as_bytes()))
    })
}

/// Stock restic on what is left; says whether there is a snapshot.
fn check(keep: &Path) -> Result<bool, String> {
    let repository = keep.join("backups/shop/production");
    if !repository.join("config").exists() {
        return Ok(false); // Killed before the repository was there.
    }
    let restic = |arguments: &[&str]| {
        Command::new("restic")
            .arg("--no-cache")
            .arg("--repo")
            .arg(&repository)
            .arg("--password-file")
            .arg(keep.join("data/keys/shop-production.password"))
            .args(arguments)
            .output()
            .map_err(|error| format!("restic could not be started: {error}"))
    };
    let checked = restic(&["check", "--read-data"])?;
    if !checked.status.success() {
        let words = String::from_utf8_lossy(&checked.stderr);
        return Err(format!("restic check --read-data ended with {}: {words}", checked.status));
    }
    let listed = restic(&["snapshots", "--json"])?;
    let snapshots: Value = serde_json::from_slice(&listed.stdout)
        .map_err(|error| format!("restic snapshots: {error}"))?;
    Ok(snapshots.as_array().is_some_and(|all| !all.is_empty()))
}
