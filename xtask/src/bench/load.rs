//! The load: `h2load` of nghttp2 with HTTP/1.1, and how to read what it says.
//!
//! A turn in which a request failed measured something else than it says, and is an error.
//!
//! With a rate, each client asks by the clock whether the answers before came in time or not. The
//! clients begin one after the other over one period, otherwise all would ask at the same moment,
//! and the delay would be that of a burst. What remains closed: a client whose answer is outstanding
//! asks later, and its delay counts from then; with 64 clients at half load that is rare, and alike
//! for both.

use super::figures::Figures;
use super::processes::bound_to_us;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};

/// How many clients ask at once.
pub(crate) const CLIENTS: u64 = 64;

/// What one turn amounted to.
#[derive(Debug, PartialEq)]
pub(crate) struct Turn {
    pub(crate) requests: u64,
    pub(crate) rate: f64,
}

/// As many requests as go through in this time.
pub(crate) fn flood(target: SocketAddr, path: &str, seconds: u64) -> Result<Turn, String> {
    let mut command = bound_to_us(Path::new("h2load"));
    command.args(["--h1", "-t", "1", "-c", &CLIENTS.to_string(), "-D", &seconds.to_string()]);
    let output = command
        .arg(format!("http://{target}{path}"))
        .output()
        .map_err(|error| unstarted(&error))?;
    read(&output)
}

/// Requests at a rate; the rate reached, and the delays in milliseconds.
pub(crate) fn open_loop(
    target: SocketAddr,
    path: &str,
    rate: f64,
    seconds: u64,
    log: &Path,
) -> Result<(Turn, Figures), String> {
    let each = rate / CLIENTS as f64;
    let begin_per_ms = (rate / 1000.0).ceil().max(1.0);
    let _ = fs::remove_file(log);
    let mut command = bound_to_us(Path::new("h2load"));
    command.args(["--h1", "-t", "1", "-c", &CLIENTS.to_string()]);
    command.args(["-n", &format!("{:.0}", rate * seconds as f64), "--rps", &format!("{each:.2}")]);
    command.args(["-r", &format!("{begin_per_ms:.0}"), "--rate-period", "1ms"]);
    // A proxy that hangs ends the turn.
    command.args(["--connection-inactivity-timeout", "10s"]);
    command.arg(format!("--log-file={}", log.display()));
    let output = command
        .arg(format!("http://{target}{path}"))
        .output()
        .map_err(|error| unstarted(&error))?;
    let turn = read(&output)?;
    let text = fs::read_to_string(log).map_err(|error| format!("{}: {error}", log.display()))?;
    let delays = delays(&text).ok_or_else(|| format!("{} cannot be read", log.display()))?;
    Ok((turn, delays))
}

/// Many clients that ask once each; [`finish`] waits for them.
pub(crate) fn crowd(target: SocketAddr, path: &str, clients: u64) -> Result<Child, String> {
    let clients = clients.to_string();
    let mut command = bound_to_us(Path::new("h2load"));
    command.args(["--h1", "-t", "1", "-c", &clients, "-n", &clients]);
    command.args(["--connection-active-timeout", "60s"]);
    command.arg(format!("http://{target}{path}"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| unstarted(&error))
}

/// Waits for a [`crowd`].
pub(crate) fn finish(crowd: Child) -> Result<Turn, String> {
    read(&crowd.wait_with_output().map_err(|error| format!("wait for h2load: {error}"))?)
}

fn unstarted(error: &std::io::Error) -> String {
    format!("h2load could not be started: {error}")
}

fn read(output: &std::process::Output) -> Result<Turn, String> {
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("h2load ended with {}: {why}", output.status));
    }
    summary(&text)
}

/// Reads h2load's last lines.
fn summary(text: &str) -> Result<Turn, String> {
    let odd = || format!("h2load said something else than expected: {text}");
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let rate = line("finished in ")
        .and_then(|rest| rest.split(", ").find_map(|part| part.strip_suffix(" req/s")))
        .and_then(|rate| rate.parse().ok());
    let counted = |line: &str, what: &str| -> Option<u64> {
        line.split(',').find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    let requests = line("requests: ").ok_or_else(odd)?;
    let count = |what: &str| counted(requests, what).ok_or_else(odd);
    // Answers that had begun when the time was over are counted here, but are not done.
    let codes = line("status codes: ").ok_or_else(odd)?;
    let status = |class: &str| counted(codes, class).ok_or_else(odd);
    let (done, good) = (count("total")?, count("succeeded")?);
    let bad = count("failed")? + status("3xx")? + status("4xx")? + status("5xx")?;
    if done == 0 || good != done || status("2xx")? < done || bad > 0 {
        return Err(format!("not every request was answered well: {requests}; {codes}"));
    }
    Ok(Turn { requests: done, rate: rate.ok_or_else(odd)? })
}

/// The delays of a log with lines `begin TAB status TAB microseconds`.
fn delays(log: &str) -> Option<Figures> {
    let delay = |line: &str| line.split('\t').nth(2)?.parse::<f64>().ok().map(|us| us / 1000.0);
    Figures::of(log.lines().map(delay).collect::<Option<Vec<f64>>>()?)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these are exact")]
mod tests {
    use super::*;

    fn said(requests: &str, codes: &str) -> String {
        format!(
            "starting benchmark...\n\nfinished in 3.04s, 14106.67 req/s, 17.00MB/s\n\
             requests: {requests}\nstatus codes: {codes}\ntraffic: 51.01MB (53492480) total\n"
        )
    }

    #[test]
    fn a_turn_is_read_from_what_h2load_says() {
        let text = said(
            "42320 total, 42384 started, 42320 done, 42320 succeeded, 0 failed, 0 errored, 0 timeout",
            "42320 2xx, 0 3xx, 0 4xx, 0 5xx",
        );
        assert_eq!(summary(&text), Ok(Turn { requests: 42320, rate: 14106.67 }));
    }

    #[test]
    fn a_turn_with_a_request_that_failed_is_none() {
        let (counts, codes) = (
            "9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout",
            "9 2xx, 0 3xx, 0 4xx, 0 5xx",
        );
        assert!(summary(&said(counts, codes)).is_ok());
        // One more had begun when the time was over.
        assert!(summary(&said(counts, "10 2xx, 0 3xx, 0 4xx, 0 5xx")).is_ok());
        let wrong = [
            ("9 total, 9 done, 8 succeeded, 1 failed, 1 errored", codes),
            ("9 total, 9 done, 8 succeeded, 0 failed, 0 errored", codes),
            (counts, "8 2xx, 0 3xx, 0 4xx, 0 5xx"),
            (counts, "9 2xx, 0 3xx, 0 4xx, 1 5xx"),
            (counts, "9 2xx"),
            ("0 total, 0 done, 0 succeeded, 0 failed, 0 errored", "0 2xx, 0 3xx, 0 4xx, 0 5xx"),
            ("9 total", codes),
        ];
        for (requests, codes) in wrong {
            assert!(summary(&said(requests, codes)).is_err(), "{requests} {codes}");
        }
        assert!(summary("").is_err());
    }

    #[test]
    fn delays_are_read_from_the_log_or_not_at_all() {
        let log = delays("1700000000000000\t200\t250\n1700000000000100\t200\t1500\n").unwrap();
        assert_eq!((log.least(), log.most()), (0.25, 1.5));
        assert_eq!(delays("1700000000000000\t200\t250\n17000"), None);
        assert_eq!(delays(""), None);
    }
}
