//! The README's second half, executed as it stands: every `sh` block in its order, by a shell.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The blocks below the heading of the five minutes.
fn script(readme: &str) -> String {
    let part = readme.split("\n## ").find(|part| part.starts_with("Back up your own")).unwrap();
    let mut script = String::from("set -eu\n");
    let mut inside = false;
    for line in part.lines().map(str::trim_start) {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => script.extend([line, "\n"]),
            _ => {}
        }
    }
    script
}

#[test]
fn the_five_minutes_of_the_readme_do_what_they_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let example = root.join("examples/guestbook");
    let config = fs::read_to_string(example.join("stillpoint.yaml")).unwrap();
    // What the README shows is what the example has.
    let shown: String = readme
        .split("```yaml\n")
        .nth(1)
        .unwrap()
        .lines()
        .take_while(|line| line.trim() != "```")
        .flat_map(|line| [line.strip_prefix("   ").unwrap_or(line), "\n"])
        .collect();
    assert_eq!(shown, config);

    let directory = tempfile::tempdir().unwrap();
    let top = directory.path();
    let copy = top.join("examples/guestbook");
    fs::create_dir_all(&copy).unwrap();
    fs::copy(example.join("app.py"), copy.join("app.py")).unwrap();
    // Free ports and a directory of the test's own in the place of those that are written there.
    let ports: Vec<(String, String)> = ["8080", "8000", "8470"]
        .map(|port| (port.to_owned(), stillpoint_testkit::free_port().to_string()))
        .into();
    let localized = |text: &str| {
        let store = top.join("backup-a");
        let text = text.replace("/srv/backup-a", store.to_str().unwrap());
        ports.iter().fold(text, |text, (port, free)| text.replace(port, free))
    };
    fs::write(copy.join("stillpoint.yaml"), localized(&config)).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_stillpoint"));
    let path = std::env::var("PATH").unwrap();
    // What was put into the background is ended with the shell, and waited for.
    let script = localized(&script(&readme));
    let script = format!("trap 'kill $(jobs -p); wait' EXIT\n{script}");
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(top)
        .env_clear()
        .env("PATH", format!("{}:{path}", binary.parent().unwrap().display()))
        .env("HOME", top)
        .env("STILLPOINT_DATA_DIR", top.join("data"))
        .stdin(Stdio::null())
        .process_group(0)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{printed}\n{said}");
    let lines: Vec<&str> = printed.lines().collect();
    let before = lines.iter().position(|line| line.starts_with("thank you, guest 2")).unwrap();
    let book: Vec<&&str> =
        lines[before + 1..].iter().take_while(|line| line.contains(": ")).collect();
    assert_eq!(book, [&"1: Ann was here"], "{printed}\n{said}");
    assert!(lines.last().unwrap().starts_with("sp_"), "{printed}");
}
