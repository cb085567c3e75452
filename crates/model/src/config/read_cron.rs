//! Reads `crons`.

use super::cron::{CronPart, CronSpec};
use super::read::{optional, optional_or};
use super::reader::{Errors, Table};
use super::values::Refusal;

pub(super) fn cron(mut table: Table<'_>, errors: &mut Errors) -> Option<CronPart> {
    let spec = table
        .require("spec", "write `spec: \"0 5 * * *\"`")
        .and_then(|field| field.text_as(errors, spec));
    let commands = table.require("commands", "write `commands: { start: COMMAND }`");
    let commands = commands.and_then(|field| {
        let mut table = field.table(errors)?;
        let start = table.require("start", "write the command that is run");
        let start = start.and_then(|field| field.text(errors)).map(str::to_owned);
        let stop = optional(table.take("stop"), errors, |field, errors| {
            field.text(errors).map(|text| Some(text.to_owned()))
        });
        table.finish(errors);
        Some((start?, stop?))
    });
    let shutdown_timeout =
        optional_or(table.take("shutdown_timeout"), CronPart::SHUTDOWN_TIMEOUT, errors, |f, e| {
            f.duration(e)
        });
    table.unsupported("timeout", errors);
    table.unsupported("host", errors);
    table.finish(errors);
    let (start, stop) = commands?;
    Some(CronPart { spec: spec?, start, stop, shutdown_timeout: shutdown_timeout? })
}

fn spec(given: &str) -> Result<CronSpec, Refusal> {
    CronSpec::parse(given).map_err(|error| {
        Refusal::new(format!("`{given}` is not a time to run at: {error}")).hint(
            "write minute, hour, day of the month, month and day of the week: \"0 5 * * *\" is \
             5 o'clock each day, in UTC",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use std::time::Duration;

    fn file(cron: &str) -> String {
        format!(
            "project: shop\nenvironments:\n  main:\n    type: production\n    mounts:\n      files: {{ \
             path: files }}\n    crons:\n      nightly: {cron}\n"
        )
    }

    fn read(cron: &str) -> CronPart {
        let config = parse("f", &file(cron)).unwrap();
        let environment = config.environments.into_values().next().unwrap();
        environment.crons.into_values().next().unwrap()
    }

    #[track_caller]
    fn refused(cron: &str, expected: &str) {
        let told = parse("f", &file(cron)).unwrap_err().to_string();
        assert!(told.starts_with(&format!("f:8:{expected}")), "{told}");
    }

    #[test]
    fn a_cron_is_read_with_its_times_and_commands() {
        let cron = read("{ spec: \"30 5 * * 1-5\", commands: { start: run it, stop: s } }");
        assert_eq!((cron.start.as_str(), cron.stop.as_deref()), ("run it", Some("s")));
        assert_eq!(cron.shutdown_timeout, Duration::from_secs(10));
        // A Friday.
        let friday: jiff::Zoned = "2026-11-27T05:30:00[UTC]".parse().unwrap();
        let next = cron.spec.next(&friday).unwrap();
        assert_eq!(next.to_string(), "2026-11-30T05:30:00+00:00[UTC]");
        let daily = read("{ spec: \"@daily\", commands: { start: x }, shutdown_timeout: 1m }");
        assert_eq!(daily.spec.next(&friday).unwrap().to_string(), "2026-11-28T00:00:00+00:00[UTC]");
        assert_eq!(daily.shutdown_timeout, Duration::from_secs(60));
    }

    #[test]
    fn what_is_no_cron_is_refused_at_its_place() {
        refused(
            "{ spec: \"61 * * * *\", commands: { start: x } }",
            "24: key `environments.main.crons.nightly.spec`: `61 * * * *` is not a time to run at: ",
        );
        refused(
            "{ spec: \"* * * * * *\", commands: { start: x } }",
            "24: key `environments.main.crons.nightly.spec`: `* * * * * *` is not a time",
        );
        refused(
            "{ spec: \"* * * * *\", commands: {} }",
            "37: key `environments.main.crons.nightly.commands.start`: this key is missing",
        );
        refused(
            "{ spec: \"* * * * *\", command: x }",
            "37: key `environments.main.crons.nightly.command`: unknown key; did you mean `commands`?",
        );
        refused(
            "{ spec: \"* * * * *\", commands: { start: x }, timeout: 5m }",
            "61: key `environments.main.crons.nightly.timeout`: `timeout` is not supported",
        );
    }

    #[test]
    fn a_cron_and_a_worker_do_not_share_a_name() {
        let cron = "{ spec: \"* * * * *\", commands: { start: x } }";
        let text = file(cron) + "    workers:\n      nightly: { pidfile: p }\n";
        let told = parse("f", &text).unwrap_err().to_string();
        assert_eq!(
            told,
            "f:8:7: key `environments.main.crons.nightly`: a worker is named `nightly` too; names \
             are unique among workers and crons: rename one"
        );
    }
}
