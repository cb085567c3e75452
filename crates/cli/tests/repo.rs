//! The repository engine alone, by the whole binary, with stock restic as the judge.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{STILLPOINT, stderr};

/// A directory with something in it, and a repository beside it.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir_all(scene.path("source/deep")).unwrap();
        fs::write(scene.path("source/a.txt"), "first").unwrap();
        fs::write(scene.path("source/left.tmp"), "out").unwrap();
        fs::write(scene.path("source/deep/b.bin"), vec![7_u8; 3_000_000]).unwrap();
        fs::write(scene.path("key"), "a password\n").unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `stillpoint repo`, in the scene's directory.
    fn repo(&self, arguments: &[&str]) -> Output {
        self.command(STILLPOINT, &["repo"], arguments)
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.repo(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn restic(&self, arguments: &[&str]) -> Output {
        self.command("restic", &["--no-cache"], arguments)
    }

    fn command(&self, program: &str, before: &[&str], arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(before).args(arguments);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("RESTIC_REPOSITORY", self.path("store"));
        command.env("RESTIC_PASSWORD_FILE", self.path("key"));
        command.current_dir(self.directory.path());
        command.output().expect("restic is installed: apt-get install restic")
    }
}

#[test]
fn what_is_backed_up_comes_back_and_stock_restic_is_content() {
    let scene = Scene::new();
    let repository = scene.succeed(&["init"]);
    assert_eq!(repository.len(), 64);
    let first = scene.succeed(&[
        "backup",
        "source",
        "--exclude",
        "*.tmp",
        "--tag",
        "nightly",
        "--host",
        "h",
    ]);
    assert_eq!(first.len(), 64);
    fs::write(scene.path("source/a.txt"), "second").unwrap();
    let second = scene.succeed(&["backup", "source"]);

    let listed = scene.succeed(&["snapshots", "--format", "plain"]);
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), 2);
    assert!(first.starts_with(rows[0][0]) && second.starts_with(rows[1][0]), "{listed}");
    assert_eq!(rows[0][2..4], ["h", "nightly"]);

    let within = format!("{first}:source");
    let names = scene.succeed(&["ls", &within]);
    assert_eq!(names.lines().collect::<Vec<_>>(), ["/a.txt", "/deep", "/deep/b.bin"]);

    scene.succeed(&["restore", &within, "--target", "restored", "--verify"]);
    assert_eq!(fs::read(scene.path("restored/a.txt")).unwrap(), b"first");
    assert_eq!(fs::read(scene.path("restored/deep/b.bin")).unwrap(), vec![7_u8; 3_000_000]);
    assert!(!scene.path("restored/left.tmp").exists());
    let output = scene.repo(&["restore", "latest", "--target", "restored"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));

    scene.succeed(&["check", "--read-data"]);
    let checked = scene.restic(&["check", "--read-data"]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    let restored = scene.restic(&["restore", &second, "--target", "stock"]);
    assert!(restored.status.success(), "{}", stderr(&restored));
    assert_eq!(fs::read(scene.path("stock/source/a.txt")).unwrap(), b"second");
}

#[test]
fn a_wrong_password_opens_nothing() {
    let scene = Scene::new();
    scene.succeed(&["init"]);
    fs::write(scene.path("key"), "another\n").unwrap();
    for arguments in [&["snapshots"][..], &["backup", "source"], &["check"]] {
        let output = scene.repo(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("password"), "{}", stderr(&output));
    }
    assert!(!scene.path("store/snapshots").read_dir().unwrap().any(|_| true));
}

#[test]
fn a_repository_is_not_made_where_there_is_one() {
    let scene = Scene::new();
    scene.succeed(&["init"]);
    assert_eq!(scene.repo(&["init"]).status.code(), Some(1));
    scene.succeed(&["backup", "source"]);
    scene.succeed(&["check", "--read-data"]);
}

#[test]
fn damage_is_found_and_named_on_stdout() {
    let scene = Scene::new();
    scene.succeed(&["init"]);
    scene.succeed(&["backup", "source"]);
    for directory in fs::read_dir(scene.path("store/data")).unwrap() {
        for pack in fs::read_dir(directory.unwrap().path()).unwrap() {
            let pack = pack.unwrap().path();
            let mut bytes = fs::read(&pack).unwrap();
            bytes[10] ^= 1;
            fs::remove_file(&pack).unwrap();
            fs::write(&pack, bytes).unwrap();
        }
    }
    let output = scene.repo(&["check", "--read-data"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stdout.is_empty());
}

#[test]
fn a_source_that_is_not_there_is_named_and_nothing_is_saved() {
    let scene = Scene::new();
    scene.succeed(&["init"]);
    let output = scene.repo(&["backup", "source", "nowhere"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("nowhere"), "{}", stderr(&output));
    assert_eq!(scene.succeed(&["snapshots", "--format", "plain"]), "");
}

#[test]
fn an_unreadable_file_makes_a_backup_partial_and_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let (mut command, directory) = stillpoint_testkit::run_as_unprivileged(Path::new(STILLPOINT));
    let top = directory.path();
    fs::set_permissions(top, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(top.join("key"), "a password\n").unwrap();
    fs::create_dir(top.join("source")).unwrap();
    fs::write(top.join("source/open"), "open").unwrap();
    fs::write(top.join("source/secret"), "secret").unwrap();
    fs::set_permissions(top.join("source/secret"), fs::Permissions::from_mode(0o000)).unwrap();
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
        .env("RESTIC_REPOSITORY", top.join("store"))
        .env("RESTIC_PASSWORD_FILE", top.join("key"));
    // The same account makes the repository and fills it.
    let program = command.get_program().to_owned();
    let output = command.args(["repo", "init"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let output = unprivileged(&mut Command::new(program))
        .args(["repo", "backup", "source", "-r", "store", "--password-file", "key"])
        .current_dir(top)
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("secret") && said.contains("ermission denied"), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim().len(), 64);
}

fn unprivileged(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    if stillpoint_testkit::is_root() {
        command.uid(65534).gid(65534);
    }
    command
}
