//! What the demo tells at its end: for a person, and as one JSON object for a script.

use super::compare::Comparison;
use super::stage::{Stage, Taken};
use super::{Cast, load};
use crate::failure::Failure;
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Requests that must be in flight when the hold begins for the demo to prove anything.
const IN_FLIGHT: u64 = 3;
/// Requests that must arrive during the hold.
const HELD: u64 = 10;

/// Everything that was seen.
#[derive(Default)]
pub(super) struct Report {
    services: Vec<&'static str>,
    missing: Vec<(String, String)>,
    absent: Vec<(String, String)>,
    repository: PathBuf,
    password_file: PathBuf,
    load: Option<load::Summary>,
    backups: Vec<Taken>,
    stored: u64,
    restore: Option<Duration>,
    comparison: Option<Comparison>,
    error: Option<String>,
}

impl Report {
    /// Of a demo with this cast.
    pub(super) fn new(cast: &Cast) -> Self {
        let (missing, absent) = (cast.missing.clone(), cast.absent.clone());
        Self { services: cast.services(), missing, absent, ..Self::default() }
    }

    /// Where the repository is.
    pub(super) fn stage(&mut self, stage: &Stage) {
        self.repository = stage.repository();
        self.password_file = stage.password_file();
    }

    /// What the customers saw.
    pub(super) fn load(&mut self, summary: &load::Summary) {
        self.load = Some(summary.clone());
    }

    /// One more backup that was taken.
    pub(super) fn backup(&mut self, taken: Taken) -> Result<(), Failure> {
        self.backups.push(taken);
        self.stored = size(&self.repository)
            .map_err(|e| Failure::new("measure the repository").because(&e))?;
        Ok(())
    }

    /// How long the restore took.
    pub(super) fn restored(&mut self, took: Duration) {
        self.restore = Some(took);
    }

    /// What the comparison found.
    pub(super) fn compared(&mut self, comparison: &Comparison) {
        self.comparison = Some(comparison.clone());
    }

    /// Why the demo ended early.
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.error = Some(failure.to_string());
    }

    /// The last backup, as an object; null if there is none.
    fn last(&self) -> &Value {
        self.backups.last().map_or(&Value::Null, |taken| &taken.object)
    }

    /// The last backup's id.
    pub(super) fn backup_id(&self) -> &str {
        self.last()["id"].as_str().unwrap_or_default()
    }

    /// When the last hold began, and when its drain had ended.
    pub(super) fn instant(&self) -> Result<(Timestamp, Timestamp), Failure> {
        let time = |name: &str| {
            self.last()["evidence"][name]
                .as_str()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| Failure::new(format!("the backup's evidence has no `{name}`")))
        };
        Ok((time("hold_begin")?, time("drained")?))
    }

    fn number(&self, attribute: &str) -> f64 {
        number(self.last(), attribute)
    }

    fn count(&self, attribute: &str) -> u64 {
        self.text_of(attribute).parse().unwrap_or_default()
    }

    fn text_of(&self, attribute: &str) -> &str {
        text(self.last(), attribute)
    }

    /// What had to hold and did not.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(self.error.clone());
        if let Some(load) = &self.load
            && load.requests_failed > 0
        {
            problems.push(format!(
                "{} requests failed: {}",
                load.requests_failed,
                load.failures.join("; ")
            ));
        }
        for Taken { object, .. } in &self.backups {
            if text(object, "consistency") != "consistent" {
                problems.push(format!("the backup is not consistent: {}", object["doubts"]));
            }
            if text(object, "completeness") != "complete" {
                problems.push(format!("the backup is not complete: {}", object["gaps"]));
            }
            let count = |attribute| text(object, attribute).parse().unwrap_or(0);
            let (in_flight, held) = (count("requests_in_flight"), count("requests_held"));
            if in_flight < IN_FLIGHT || held < HELD {
                problems.push(format!(
                    "too little was going on to prove anything: {in_flight} requests in flight \
                     when the hold began (at least {IN_FLIGHT} wanted), {held} arrived during it \
                     (at least {HELD} wanted)"
                ));
            }
        }
        match &self.comparison {
            Some(comparison) => problems.extend(comparison.problems.iter().cloned()),
            None if self.error.is_none() => problems.push("nothing was compared".to_owned()),
            None => {}
        }
        problems
    }

    /// True if all held that the demo promises.
    pub(super) fn held(&self) -> bool {
        self.problems().is_empty()
    }

    /// One object for scripts.
    pub(super) fn json(&self) -> Value {
        let load = self.load.as_ref();
        let missing: Vec<&str> = self.missing.iter().map(|(name, _)| name.as_str()).collect();
        json!({
            "backup_id": self.last()["id"],
            "consistency": self.last()["attributes"]["consistency"],
            "completeness": self.last()["attributes"]["completeness"],
            "hold_ms": self.number("hold_ms"),
            "drain_ms": self.number("drain_ms"),
            "mark_ms": self.number("mark_ms"),
            "requests_total": load.map_or(0, |l| l.requests_total),
            "requests_in_flight": self.count("requests_in_flight"),
            "requests_held": self.count("requests_held"),
            "backups": self.backups.iter().map(summary).collect::<Vec<_>>(),
            "requests_failed": load.map_or(0, |l| l.requests_failed),
            "max_latency_ms": load.map_or(0.0, |l| l.max_latency_ms),
            "restored_identical": self.comparison.as_ref().is_some_and(Comparison::identical),
            "restore_ms": self.restore.map(|took| took.as_millis() as u64),
            "bytes_stored": self.stored,
            "services": self.services,
            "missing": missing,
            "repository": self.repository,
            "password_file": self.password_file,
            "problems": self.problems(),
        })
    }

    /// The report for a person.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        self.write(&mut text).unwrap_or(());
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let row = |out: &mut String, name: &str, value: &str| writeln!(out, "  {name:<22} {value}");
        let problems = self.problems();
        writeln!(out)?;
        if problems.is_empty() {
            writeln!(
                out,
                "All held: one consistent backup under load, destroyed, restored, identical."
            )?;
        } else {
            writeln!(out, "This did not hold:")?;
            for problem in &problems {
                writeln!(out, "  - {problem}")?;
            }
        }
        writeln!(out)?;
        row(out, "backup", self.backup_id())?;
        row(
            out,
            "of",
            &format!(
                "{} and uploads, {}, {}",
                self.services.join(", "),
                self.text_of("consistency"),
                self.text_of("completeness")
            ),
        )?;
        row(
            out,
            "requests were held",
            &format!(
                "{:.0} ms (drain {:.0} + mark {:.0})",
                self.number("hold_ms"),
                self.number("drain_ms"),
                self.number("mark_ms")
            ),
        )?;
        row(
            out,
            "when it began",
            &format!(
                "{} in flight finished, {} arrived and waited",
                self.text_of("requests_in_flight"),
                self.text_of("requests_held")
            ),
        )?;
        if let Some(load) = &self.load {
            row(
                out,
                "requests in all",
                &format!("{}, {} failed", load.requests_total, load.requests_failed),
            )?;
            row(
                out,
                "slowest request",
                &format!(
                    "{:.0} ms (median {:.0}, 99% {:.0})",
                    load.max_latency_ms, load.p50, load.p99
                ),
            )?;
        }
        row(out, "stored", &HumanBytes(self.stored).to_string())?;
        if let Some(took) = self.restore {
            row(
                out,
                "restore",
                &format!("{:.1} s, verified before it was swapped in", took.as_secs_f64()),
            )?;
        }
        if let Some(comparison) = &self.comparison {
            row(
                out,
                "compared",
                &format!(
                    "{} orders must be there, {} must not, {} were at the edge: {} found",
                    comparison.orders_expected,
                    comparison.sent_after,
                    comparison.undecided,
                    comparison.orders_found
                ),
            )?;
        }
        for (name, why) in self.missing.iter().chain(&self.absent) {
            row(out, &format!("without {name}"), why)?;
        }
        writeln!(out, "\nThe repository is in restic's format. Open it without Stillpoint:\n")?;
        writeln!(out, "  {}\n", self.restic("snapshots"))?;
        writeln!(out, "  {}\n", self.restic("check --read-data"))
    }

    fn restic(&self, command: &str) -> String {
        format!(
            "restic -r {} --password-file {} {command}",
            quoted(&self.repository),
            quoted(&self.password_file)
        )
    }
}

fn text<'v>(backup: &'v Value, attribute: &str) -> &'v str {
    backup["attributes"][attribute].as_str().unwrap_or_default()
}

fn number(backup: &Value, attribute: &str) -> f64 {
    text(backup, attribute).parse().unwrap_or_default()
}

/// Where a backup's time went: when it and its hold began and ended, in microseconds since 1970 as
/// in the customers' log, and how long after the drain each part had fixed its instant.
fn summary(taken: &Taken) -> Value {
    let Taken { begun, ended, object } = taken;
    let evidence = &object["evidence"];
    let at = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let us = |key: &str| at(&evidence[key]).map(Timestamp::as_microsecond);
    let drained = at(&evidence["drained"]);
    let marks: serde_json::Map<String, Value> = object["parts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|part| {
            let took = at(&part["marker"]["at"])?.duration_since(drained?);
            Some((part["name"].as_str()?.to_owned(), json!(took.as_micros() as f64 / 1000.0)))
        })
        .collect();
    json!({
        "backup_id": object["id"],
        "begun_us": begun.as_microsecond(),
        "hold_begin_us": us("hold_begin"),
        "hold_end_us": us("hold_end"),
        "ended_us": ended.as_microsecond(),
        "hold_ms": number(object, "hold_ms"),
        "drain_ms": number(object, "drain_ms"),
        "mark_ms": number(object, "mark_ms"),
        "settle_ms": evidence["settle_us"].as_f64().unwrap_or_default() / 1000.0,
        "marks_ms": marks,
    })
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn size(directory: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() {
            size(&entry.path())?
        } else {
            entry.metadata()?.len()
        };
    }
    Ok(sum)
}
