//! What a result was measured on: without this a figure cannot be compared with another.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The date, the machine, its load before the bench began, and the versions of all that took part.
/// Taken first, so that the load is that of others.
pub(crate) fn describe(programs: &[(&str, &str)]) -> String {
    let cpu = field("/proc/cpuinfo", "model name");
    let memory: u64 = field("/proc/meminfo", "MemTotal")
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    let mut lines = vec![
        format!("- Date: {}", said("date", &["-u", "+%F"])),
        format!(
            "- Machine: {cpu}, {} cores, {:.0} GiB, Linux {}; load before it began: {load}",
            cores(),
            memory as f64 / f64::from(1 << 20),
            kernel.trim()
        ),
        format!(
            "- Stillpoint: {}, release build",
            said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"])
        ),
    ];
    lines.extend(
        programs
            .iter()
            .map(|(program, flag)| format!("- {}: {}", name(program), said(program, &[flag]))),
    );
    lines.join("\n")
}

/// How many cores this process may use; tokio starts as many workers.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn name(program: &str) -> &str {
    Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or(program)
}

/// The first line of what a program says of itself, on either output.
fn said(program: &str, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        return "not installed".to_owned();
    };
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").to_owned()
}

/// The value of a `name: value` line in a file of `/proc`.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().filter_map(|line| line.split_once(':'));
    value
        .filter(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .next()
        .unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_names_the_machine_and_what_is_not_installed() {
        let text = describe(&[("/nowhere/at-all", "-v")]);
        assert!(text.contains(&format!(", {} cores, ", cores())), "{text}");
        assert!(text.ends_with("- at-all: not installed"), "{text}");
        assert!(!text.contains("Linux unknown"), "{text}");
    }
}
