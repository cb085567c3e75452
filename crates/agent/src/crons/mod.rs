//! Crons: commands that the agent runs at set times, each run in a process group of its own.
//!
//! A still point freezes a run like an atomic worker, and waits for none; the run that asked for this
//! very backup is left alone, or it could not wait for it. While one of them holds, no run begins:
//! what was due in a hold begins after it (`record`).
//!
//! What must never break:
//! - no two runs of one cron at the same time, even if another agent began the first;
//! - no run begins while a still point or a restore's swap relies on what it found;
//! - when the agent stops, so do the runs: asked first, killed after `shutdown_timeout`.

mod record;
mod run;

pub(crate) use record::Runs;

use crate::failure::Failure;
use crate::place::{Place, Where, read_config};
use jiff::Zoned;
use jiff::tz::TimeZone;
use run::Run;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the clock and the configuration are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Runs the crons of every environment until it is ended.
pub(crate) struct Crons {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the scheduler and its runs share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ending: bool,
    runs: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no cron's thread panicked")
    }

    /// Waits, at most so long; true once all is to end.
    fn is_ending_within(&self, wait: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), wait, |state| !state.ending);
        waited.expect("no cron's thread panicked").0.ending
    }
}

impl Crons {
    /// Begins. `program` is this one: runs find it in their PATH.
    pub(crate) fn start(place: Where, program: PathBuf) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let scheduler = Scheduler { place, program, shared: own, refused: None };
        let thread =
            std::thread::Builder::new().name("crons".into()).spawn(move || scheduler.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Asks all runs to end, and waits until they have.
    pub(crate) fn end(mut self) {
        self.shared.lock().ending = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
        let state = self.shared.lock();
        drop(self.shared.changed.wait_while(state, |state| state.runs > 0));
    }
}

struct Scheduler {
    place: Where,
    program: PathBuf,
    shared: Arc<Shared>,
    /// Why the configuration could not be read, so that it is said once.
    refused: Option<String>,
}

impl Scheduler {
    fn run(mut self) {
        let mut seen = now();
        while !self.shared.is_ending_within(EVERY) {
            let now = now();
            // A clock that was set back makes nothing due a second time before it was due once.
            if now > seen {
                self.look(&seen, &now);
            }
            seen = now;
        }
    }

    /// Begins what became due after `seen`. A clock that leapt makes each due once.
    fn look(&mut self, seen: &Zoned, now: &Zoned) {
        match self.due(seen, now) {
            Ok(due) => {
                self.refused = None;
                for run in due {
                    self.begin(run);
                }
            }
            Err(failure) => {
                let why = failure.lines().join(": ");
                if self.refused.as_ref() != Some(&why) {
                    tracing::error!("no cron can be run: {why}");
                    self.refused = Some(why);
                }
            }
        }
    }

    fn due(&self, seen: &Zoned, now: &Zoned) -> Result<Vec<Run>, Failure> {
        let (config, _) = read_config(&self.place)?;
        let mut due = Vec::new();
        for (environment, parts) in &config.environments {
            let is_due = |cron: &stillpoint_model::config::CronPart| {
                cron.spec.next(seen).is_some_and(|next| next <= *now)
            };
            for (name, cron) in parts.crons.iter().filter(|(_, cron)| is_due(cron)) {
                let place = Place::find(&self.place, Some(environment.as_str()))?;
                due.push(Run::of(&place, name, cron, &self.program)?);
            }
        }
        Ok(due)
    }

    fn begin(&self, run: Run) {
        self.shared.lock().runs += 1;
        let ended = Ended(Arc::clone(&self.shared));
        let name = run.name().to_owned();
        let spawned = std::thread::Builder::new().name(name.clone()).spawn(move || {
            run.carry_out(|wait| ended.0.is_ending_within(wait));
            drop(ended);
        });
        if let Err(error) = spawned {
            tracing::error!(target: "cron", "{name}: not run: {error}");
        }
    }
}

/// Counts a run's end, however it ended.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.lock().runs -= 1;
        self.0.changed.notify_all();
    }
}

fn now() -> Zoned {
    Zoned::now().with_time_zone(TimeZone::UTC)
}

/// What a run is told of where it runs, in this program's words and in those of the hosted platform.
fn variables(place: &Place) -> BTreeMap<String, String> {
    let mut variables = crate::parts::variables(place);
    let branch = crate::parts::code(place).and_then(|code| code.branch);
    let branch = branch.unwrap_or_else(|| place.name.to_string());
    let own = [
        ("BRANCH", branch),
        ("APPLICATION_NAME", place.config.project.to_string()),
        ("APP_DIR", crate::parts::directory(place).display().to_string()),
    ];
    variables.extend(own.map(|(name, value)| (format!("STILLPOINT_{name}"), value)));
    let others: Vec<(String, String)> = variables
        .iter()
        .filter_map(|(name, value)| {
            let name = name.strip_prefix("STILLPOINT_")?;
            Some((format!("PLATFORM_{name}"), value.clone()))
        })
        .collect();
    variables.extend(others);
    // With these the commands of this program need no flags.
    let config = place.config_file.display().to_string();
    variables.insert("STILLPOINT_CONFIG".to_owned(), config);
    variables.insert("STILLPOINT_DATA_DIR".to_owned(), place.data.display().to_string());
    variables
}
