//! The load against the real shop, and against servers that misbehave.

use super::*;
use crate::demo::compare::{Restored, compare};
use crate::demo::ledger::Ledger;
use crate::demo::shop;
use crate::demo::shop::tests::{RunningShop, options_in};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream as Stream};
use std::path::Path;
use std::process::{Command, Stdio};
use tokio::sync::oneshot;

fn options(target: SocketAddr, directory: &Path) -> LoadOptions {
    LoadOptions {
        target,
        connections: 32,
        duration: Duration::from_hours(1),
        log: directory.join("ledger"),
        stop_on_stdin_eof: false,
    }
}

/// Collects output and gives the word to end as soon as `enough` of it has come.
struct Watch<F> {
    lines: Vec<u8>,
    enough: F,
    end: Option<oneshot::Sender<()>>,
}

impl<F: FnMut(&Progress) -> bool> Write for Watch<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.lines.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let text = std::str::from_utf8(&self.lines).unwrap();
        let last = text.lines().last().unwrap();
        if let Ok(progress) = serde_json::from_str(last)
            && (self.enough)(&progress)
        {
            drop(self.end.take());
        }
        Ok(())
    }
}

/// Runs the load until its progress is enough.
fn run_until(
    options: &LoadOptions,
    enough: impl FnMut(&Progress) -> bool + Send,
) -> (Summary, Vec<String>) {
    let (end, ended) = oneshot::channel();
    let mut watch = Watch { lines: Vec::new(), enough, end: Some(end) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let summary =
        runtime.block_on(drive(options, async { drop(ended.await) }, &mut watch)).unwrap();
    let lines = String::from_utf8(watch.lines).unwrap().lines().map(str::to_owned).collect();
    (summary, lines)
}

const PAST: shop::Past = shop::Past { orders: 10, pictures: 20 };

#[test]
fn every_order_of_a_load_is_in_its_ledger_and_in_the_shop() {
    let directory = tempfile::tempdir().unwrap();
    let shop_options = options_in(directory.path());
    shop::seed(&shop_options, PAST).unwrap();
    let shop = RunningShop::start(&shop_options);
    let (summary, lines) =
        run_until(&options(shop.address, directory.path()), |p| p.acknowledged >= 100);

    assert_eq!(summary.requests_failed, 0, "{:?}", summary.failures);
    assert!(summary.requests_total >= 100);
    assert!(summary.p50 > 0.0 && summary.p50 <= summary.p99);
    assert!(summary.p99 <= summary.max_latency_ms);
    assert_eq!(serde_json::from_str::<Summary>(lines.last().unwrap()).unwrap(), summary);

    let ledger = Ledger::read(&directory.path().join("ledger")).unwrap();
    assert!(ledger.complete);
    assert_eq!(ledger.orders.len() as u64, summary.requests_total);
    let mut numbers: Vec<u64> = ledger.orders.iter().map(|line| line.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (11..11 + summary.requests_total).collect::<Vec<_>>());
    for number in numbers {
        let path = shop_options.uploads.join(Order::numbered(number).path());
        assert!(path.is_file(), "{number}");
    }
}

/// Answers each connection with what `answer` gives for the request's path; `None` closes it
/// without an answer. Counts how often each path was asked for.
fn server(
    answer: impl Fn(&str) -> Option<&'static str> + Clone + Send + 'static,
) -> (SocketAddr, Arc<Mutex<BTreeMap<String, u32>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(BTreeMap::new()));
    let counts = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (answer, counts) = (answer.clone(), counts.clone());
            std::thread::spawn(move || serve(&stream.unwrap(), &answer, &counts));
        }
    });
    (address, asked)
}

fn serve(
    stream: &Stream,
    answer: &impl Fn(&str) -> Option<&'static str>,
    counts: &Mutex<BTreeMap<String, u32>>,
) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut path, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if path.is_none() {
                path = line.split(' ').nth(1).map(str::to_owned);
            } else if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            } else if line == "\r\n" {
                break;
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).unwrap();
        let path = path.unwrap();
        *counts.lock().unwrap().entry(path.clone()).or_default() += 1;
        let Some(response) = answer(&path) else { return };
        let mut writer = stream;
        if writer.write_all(response.as_bytes()).is_err() || response.contains("onnection: close") {
            return;
        }
    }
}

const HEALTHY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"highest\":0}";
const CREATED: &str = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";

#[test]
fn what_fails_is_recorded_with_its_reason_and_sent_only_once() {
    let directory = tempfile::tempdir().unwrap();
    let (address, asked) = server(|path| match path {
        "/health" => Some(HEALTHY),
        path if path.ends_with('1') => None,
        path if path.ends_with('2') => {
            Some("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        }
        // Closed in the middle of the body: not a whole response.
        path if path.ends_with('3') => {
            Some("HTTP/1.1 201 Created\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{}")
        }
        _ => Some(CREATED),
    });
    let (summary, _) = run_until(&options(address, directory.path()), |p| p.sent >= 60);
    let ledger = Ledger::read(&directory.path().join("ledger")).unwrap();
    assert!(ledger.complete);
    for line in &ledger.orders {
        let path = format!("/orders/{}", line.number);
        assert_eq!(asked.lock().unwrap()[&path], 1, "{path}");
        match line.number % 10 {
            1 | 3 => assert!(matches!(line.outcome, Outcome::Failed(_)), "{line:?}"),
            2 => assert_eq!(line.outcome, Outcome::Status(503)),
            _ => assert!(line.outcome.acknowledged(), "{line:?}"),
        }
    }
    let failed = ledger.orders.iter().filter(|line| !line.outcome.acknowledged()).count();
    assert_eq!(summary.requests_failed, failed as u64);
    assert!(!summary.failures.is_empty());
}

#[test]
fn a_connection_that_the_server_closes_after_an_answer_fails_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (address, _) = server(|path| match path {
        "/health" => Some(HEALTHY),
        _ => Some("HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"),
    });
    let (summary, _) = run_until(&options(address, directory.path()), |p| p.acknowledged >= 100);
    assert_eq!(summary.requests_failed, 0, "{:?}", summary.failures);
}

#[test]
fn a_shop_that_is_not_there_or_not_well_is_said_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let (address, asked) =
        server(|_| Some("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = options(address, directory.path());
    let error = runtime
        .block_on(drive(&options, std::future::pending(), &mut std::io::sink()))
        .unwrap_err();
    assert!(error.to_string().contains("not well"), "{error}");
    assert_eq!(asked.lock().unwrap().keys().collect::<Vec<_>>(), ["/health"]);
}

/// Plays both parts: started without the variable it starts itself as the load's process.
#[test]
fn a_load_that_is_killed_leaves_a_readable_prefix_and_one_whose_parent_is_gone_ends_in_order() {
    const TARGET: &str = "STILLPOINT_TEST_LOAD_TARGET";
    const LOG: &str = "STILLPOINT_TEST_LOAD_LOG";
    if let (Ok(target), Some(log)) = (std::env::var(TARGET), std::env::var_os(LOG)) {
        let directory = Path::new(&log).parent().unwrap();
        let options = options(target.parse().unwrap(), directory);
        run(&LoadOptions { log: log.into(), stop_on_stdin_eof: true, ..options }).unwrap();
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let start = |shop: &RunningShop, log: &Path| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg(concat!(
                "demo::load::tests::a_load_that_is_killed_leaves_a_readable_prefix",
                "_and_one_whose_parent_is_gone_ends_in_order"
            ))
            .env(TARGET, shop.address.to_string())
            .env(LOG, log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines.map_while(Result::ok))
    };
    let progress =
        |line: &String| serde_json::from_str::<Progress>(line).ok().filter(|p| p.acknowledged > 0);

    let log = directory.path().join("killed");
    let shop = RunningShop::start(&options_in(&directory.path().join("a")));
    let (mut child, mut lines) = start(&shop, &log);
    let first = lines.find_map(|line| progress(&line)).unwrap();
    // Whatever a line of progress told is in the log when the next one comes.
    lines.find_map(|line| progress(&line)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let ledger = Ledger::read(&log).unwrap();
    assert!(!ledger.complete);
    assert!(ledger.orders.len() as u64 >= first.acknowledged);

    // Another shop: the first one may still be writing what the killed load ordered last.
    let log = directory.path().join("ended");
    let shop = RunningShop::start(&options_in(&directory.path().join("b")));
    let (mut child, mut lines) = start(&shop, &log);
    lines.find_map(|line| progress(&line)).unwrap();
    drop(child.stdin.take());
    let summary: Summary = lines.find_map(|line| serde_json::from_str(&line).ok()).unwrap();
    assert!(child.wait().unwrap().success());
    let ledger = Ledger::read(&log).unwrap();
    assert!(ledger.complete);
    assert_eq!(ledger.orders.len() as u64, summary.requests_total);
    assert_eq!(summary.requests_failed, 0, "{:?}", summary.failures);
}

#[test]
fn what_a_load_was_told_is_what_the_comparison_finds() {
    let directory = tempfile::tempdir().unwrap();
    let shop_options = options_in(directory.path());
    shop::seed(&shop_options, PAST).unwrap();
    let shop = RunningShop::start(&shop_options);
    let (summary, _) =
        run_until(&options(shop.address, directory.path()), |p| p.acknowledged >= 100);
    let ledger = Ledger::read(&directory.path().join("ledger")).unwrap();
    let restored = Restored {
        sqlite: shop_options.sqlite,
        postgres: None,
        mariadb: None,
        redis: None,
        uploads: shop_options.uploads,
        past: PAST,
    };
    let now = jiff::Timestamp::now();
    let comparison = compare(&ledger, now, now, &restored).unwrap();
    assert_eq!(comparison.problems, Vec::<String>::new());
    assert_eq!(comparison.orders_found, 10 + summary.requests_total);

    // Had the hold begun halfway, the later half would be too much.
    let mut sent: Vec<i64> = ledger.orders.iter().map(|line| line.sent_us).collect();
    sent.sort_unstable();
    let half = jiff::Timestamp::from_microsecond(sent[sent.len() / 2]).unwrap();
    let comparison = compare(&ledger, half, half, &restored).unwrap();
    assert!(comparison.sent_after > 0);
    assert!(!comparison.identical());
}
