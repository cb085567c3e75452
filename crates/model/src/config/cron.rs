//! What runs at set times: the types of `crons`.

use std::time::Duration;

/// A command that the agent runs at set times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CronPart {
    /// When, in UTC.
    pub spec: CronSpec,
    /// `commands.start`: the shell command.
    pub start: String,
    /// `commands.stop`: asks a run to end; none: SIGTERM does.
    pub stop: Option<String>,
    /// How long a run that was asked to end may take before it is killed.
    pub shutdown_timeout: Duration,
}

impl CronPart {
    /// `shutdown_timeout` where the file says nothing.
    pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
}

/// When something runs: minute, hour, day of the month, month, day of the week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CronSpec(croner::Cron);

impl CronSpec {
    /// Reads five fields, or a nickname (`@daily`).
    pub(super) fn parse(given: &str) -> Result<Self, croner::errors::CronError> {
        use croner::parser::{CronParser, Seconds, Year};
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            // `5/10` is common where these tables come from.
            .sloppy_ranges(true)
            .build();
        Ok(Self(parser.parse(given)?))
    }

    /// The first time after `after`; none: there is none any more.
    pub fn next(&self, after: &jiff::Zoned) -> Option<jiff::Zoned> {
        self.0.find_next_occurrence(after, false).ok()
    }
}
