//! The disk of the Redis server is full when it saves.
//!
//! A small file system in memory is mounted for that, which only root may do.

mod common;
mod redis_server;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Memory, capture, restore, told};
use redis_server::{Server, state};
use stillpoint_services::Driver;

/// A small file system, until it is dropped.
struct Small(PathBuf);

impl Small {
    fn mounted(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let options = "size=4m,mode=777";
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "stillpoint-test"])
            .arg(at)
            .output()
            .unwrap();
        assert!(mounted.status.success(), "root may mount: {mounted:?}");
        Self(at.to_owned())
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let full = loop {
            if let Err(error) = file.write_all(&[7; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: the server works in it and is ended later.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_fails_the_capture_with_its_reason_and_is_over_when_there_is_room() {
    if !stillpoint_testkit::is_root() {
        return;
    }
    let server = Server::with(&["--save", "", "--enable-protected-configs", "yes"]);
    let small = Small::mounted(&server.dir.path().join("small"));
    server.set("dir", &small.0.display().to_string());
    server.lines(0, &format!("SET large {}", "x".repeat(100_000)));
    // It does not compress.
    server.set("rdbcompression", "no");

    // Full between prepare and mark.
    let mut prepared = server.driver("byfile").prepare().unwrap_or_else(|e| panic!("{}", told(&e)));
    let filler = small.fill();
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
    let said = told(&prepared.capture(&Memory::default()).expect_err("there is no file"));
    assert!(said.contains("the server could not write its RDB file"), "{said}");
    drop(prepared);

    // Full before prepare: refused before anybody waits.
    let said = told(&server.driver("byfile").prepare().err().expect("it is refused"));
    assert!(said.contains("its last save failed") || said.contains("room"), "{said}");

    // Room again, and a save that shows it: nothing of it stays.
    std::fs::remove_file(filler).unwrap();
    server.ask::<redis::Value>(&["SAVE"]);
    let expected = state(&server);
    let memory = capture(&server.driver("byfile"), || server.lines(0, "SET later x"));
    restore(&server.driver("restorer"), &memory);
    assert_eq!(state(&server), expected);
}
