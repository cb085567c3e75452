//! Running a program without rights, also where the tests themselves run as root: what root may
//! not read or write is almost nothing, so a test of refusals needs another account.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// `nobody`, on every system that matters here.
const NOBODY: u32 = 65534;

/// True when this process has root's rights.
pub fn is_root() -> bool {
    // A process's own entry belongs to its effective user.
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

/// A command that runs `program` as an account without rights (for root: `nobody`, from a copy
/// that it may read). The copy lives as long as the directory that comes with it.
pub fn run_as_unprivileged(program: &Path) -> (Command, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = dir.path().join(program.file_name().expect("a program has a name"));
    // By another process: one that this process forks at the same moment would inherit the copy
    // open for writing, and such a file cannot be run ("text file busy").
    let copied = Command::new("cp").arg(program).arg(&copy).status().expect("cp runs");
    assert!(copied.success(), "the program can be copied");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("chmod");
    let mut command = Command::new(copy);
    command.current_dir(dir.path());
    if is_root() {
        command.gid(NOBODY).uid(NOBODY);
    }
    (command, dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unprivileged_program_is_not_root() {
        let (mut command, _dir) = run_as_unprivileged(Path::new("/usr/bin/id"));
        let output = command.arg("-u").output().unwrap();
        assert!(output.status.success());
        assert_ne!(String::from_utf8_lossy(&output.stdout).trim(), "0");
    }
}
