//! A hold of the gateway by its control protocol (`docs/gateway.md`): the few lines of it that a
//! bench needs, so that the project's tasks build without the project.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the gateway. Closing it ends the hold that was begun on it.
pub(crate) struct Control {
    lines: BufReader<UnixStream>,
}

impl Control {
    pub(crate) fn connect(socket: &Path) -> Result<Self, String> {
        let fail = |error: std::io::Error| format!("{}: {error}", socket.display());
        let stream = UnixStream::connect(socket).map_err(fail)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
        let mut control = Self { lines: BufReader::new(stream) };
        let greeting = control.hear()?;
        if greeting["protocol"] != 1 {
            return Err(format!("another protocol is spoken here: {greeting}"));
        }
        Ok(control)
    }

    /// Makes new requests wait. Each question counts as a beat; ten seconds without one end it.
    pub(crate) fn hold(&mut self, longest: Duration) -> Result<(), String> {
        let ask = json!({"type": "hold", "id": "bench", "purpose": "backup",
            "max_hold_ms": longest.as_millis() as u64, "silence_ms": 10_000});
        self.ask(&ask, "held").map(drop)
    }

    /// How many requests wait.
    pub(crate) fn held(&mut self) -> Result<u64, String> {
        self.say(&json!({"type": "beat"}))?;
        let told = self.ask(&json!({"type": "status"}), "status")?;
        told["status"]["held"].as_u64().ok_or_else(|| format!("no count in {told}"))
    }

    /// Lets them go.
    pub(crate) fn release(&mut self) -> Result<(), String> {
        self.ask(&json!({"type": "release"}), "released").map(drop)
    }

    /// Asks, and hears the answer; events in between are passed over.
    fn ask(&mut self, ask: &Value, expected: &str) -> Result<Value, String> {
        self.say(ask)?;
        loop {
            let told = self.hear()?;
            match told["type"].as_str() {
                Some(kind) if kind == expected => return Ok(told),
                Some("drained") => {}
                _ => return Err(format!("the gateway answered {ask} with {told}")),
            }
        }
    }

    fn say(&mut self, ask: &Value) -> Result<(), String> {
        let told = self.lines.get_mut().write_all(format!("{ask}\n").as_bytes());
        told.map_err(|error| format!("ask the gateway: {error}"))
    }

    fn hear(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(|error| format!("hear the gateway: {error}"))?;
        serde_json::from_str(&line).map_err(|error| format!("the gateway said `{line}`: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gateway that says these lines, whatever it is asked.
    fn saying(lines: &str) -> Control {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(lines.as_bytes()).unwrap();
        Control { lines: BufReader::new(ours) }
    }

    #[test]
    fn an_event_before_an_answer_is_passed_over() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(b"{\"type\":\"drained\"}\n{\"type\":\"status\",\"status\":{\"held\":7}}\n")
            .unwrap();
        let mut control = Control { lines: BufReader::new(ours) };
        assert_eq!(control.held(), Ok(7));
    }

    #[test]
    fn a_hold_that_ran_out_is_not_a_release() {
        for line in ["{\"type\":\"ran_out\"}\n", "{\"type\":\"released_undrained\"}\n", "", "x\n"] {
            assert!(saying(line).release().is_err(), "{line}");
        }
    }
}
