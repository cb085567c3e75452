//! A capture kept in memory, and a restore run step by step: shared by the drivers' tests.
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use stillpoint_services::{Aside, Driver, Prepared, Restore, ServiceError, Sink, Source};

/// Both ends of a capture.
#[derive(Default)]
pub(crate) struct Memory {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Memory {
    pub(crate) fn text(&self, path: &str) -> String {
        let files = self.files.lock().unwrap();
        let file = files.get(path).unwrap_or_else(|| panic!("no {path} in {:?}", files.keys()));
        String::from_utf8_lossy(file).into_owned()
    }

    /// All of it, for comparison.
    pub(crate) fn texts(&self) -> BTreeMap<String, String> {
        let files = self.files.lock().unwrap();
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        files.iter().map(|(path, bytes)| (path.clone(), text(bytes))).collect()
    }

    pub(crate) fn replace(&self, path: &str, content: Vec<u8>) {
        let before = self.files.lock().unwrap().insert(path.to_owned(), content);
        assert!(before.is_some(), "{path} was never captured");
    }
}

impl Sink for Memory {
    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<u64> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        let size = bytes.len() as u64;
        assert!(
            self.files.lock().unwrap().insert(path.to_owned(), bytes).is_none(),
            "{path} twice"
        );
        Ok(size)
    }
}

impl Source for Memory {
    fn paths(&self) -> Vec<String> {
        self.files.lock().unwrap().keys().cloned().collect()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let files = self.files.lock().unwrap();
        let file = files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(file.clone())))
    }
}

/// Prepares, marks, lets `change` happen, and captures.
pub(crate) fn capture(driver: &dyn Driver, change: impl FnOnce()) -> Memory {
    let mut prepared = driver.prepare().unwrap_or_else(|e| panic!("{}", told(&e)));
    capture_prepared(prepared.as_mut(), change)
}

pub(crate) fn capture_prepared(prepared: &mut dyn Prepared, change: impl FnOnce()) -> Memory {
    prepared.mark().unwrap_or_else(|e| panic!("{}", told(&e)));
    change();
    let memory = Memory::default();
    let captured = prepared.capture(&memory).unwrap_or_else(|e| panic!("{}", told(&e)));
    assert_eq!(captured.gaps, [], "nothing is missing");
    memory
}

/// Runs a whole restore.
pub(crate) fn restore(driver: &dyn Driver, source: &dyn Source) -> Aside {
    let mut restore = driver.restore();
    let aside = loaded(restore.as_mut(), source);
    step("swap", restore.swap(&aside));
    step("finish", restore.finish(&aside));
    aside
}

/// Plans, loads and verifies.
pub(crate) fn loaded(restore: &mut dyn Restore, source: &dyn Source) -> Aside {
    let aside = restore.plan("t0ken", source).unwrap_or_else(|e| panic!("plan: {}", told(&e)));
    step("load", restore.load(&aside, source));
    step("verify", restore.verify(&aside, source));
    aside
}

pub(crate) fn step(name: &str, outcome: Result<(), ServiceError>) {
    outcome.unwrap_or_else(|e| panic!("{name}: {}", told(&e)));
}

/// Where a killed process is told what to do.
const SWAPPER: &str = "STILLPOINT_TEST_SWAP";

/// Starts this test program again as `part`, which swaps; kills it `after` it has begun.
pub(crate) fn killed_in_swap(part: &str, aside: &Aside, service: &[&str], after: Duration) {
    let order = serde_json::to_string(&(aside, service)).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", part, "--nocapture"])
        .env(SWAPPER, order)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while lines.next().expect("the swap begins").unwrap() != "swapping" {}
    // The moment of the kill is what differs from try to try.
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The other process's side: swaps if it was told to.
pub(crate) fn swap_if_told(driver: impl FnOnce(&[String]) -> Box<dyn Driver>) {
    let Ok(order) = std::env::var(SWAPPER) else { return };
    let (aside, service): (Aside, Vec<String>) = serde_json::from_str(&order).unwrap();
    let mut restore = driver(&service).restore();
    println!("swapping");
    let _ = restore.swap(&aside);
}

/// An error with its causes and its hint, as a person would see it.
pub(crate) fn told(error: &ServiceError) -> String {
    let mut parts = vec![error.to_string()];
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        parts.push(error.to_string());
        source = error.source();
    }
    let hint = error.advice().map(|hint| format!(" (hint: {hint})"));
    parts.join(": ") + &hint.unwrap_or_default()
}
