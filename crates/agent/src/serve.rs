//! The agent's own process: a connection to the server, and a process for each order.
//!
//! What must never break: each order gets exactly one `Ended`, whatever becomes of its process; and
//! when the server or this process is gone, every task is asked to stop, by the end of its input.
//! A task is never killed by us: the watchdog ends those that keep others waiting.

use crate::crons::Crons;
use crate::failure::Failure;
use crate::heal::{self, Healer};
use crate::parts;
use crate::place::{Place, Where, data_dir, read_config, socket};
use crate::protocol::{
    EnvironmentSummary, Event, FromAgent, FromServer, Inventory, Order, Outcome, PROTOCOL,
};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use stillpoint_model::ids::ActivityId;

/// How long to wait for a server that cannot be reached, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How an agent runs.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Where the configuration and the data directory are.
    pub place: Where,
    /// The agent's name.
    pub name: String,
    /// This program: its command `task` runs one order.
    pub program: PathBuf,
}

/// A running agent's handle.
#[derive(Clone, Default)]
pub struct Stop(Arc<(Mutex<Stopping>, Condvar)>);

#[derive(Default)]
struct Stopping {
    asked: bool,
    wire: Option<UnixStream>,
}

impl Stop {
    /// Asks the agent to end: it cancels its tasks and waits for them.
    pub fn stop(&self) {
        let mut stopping = self.lock();
        stopping.asked = true;
        if let Some(wire) = &stopping.wire {
            // One that is closed already is as good.
            wire.shutdown(std::net::Shutdown::Both).unwrap_or(());
        }
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Stopping> {
        self.0.0.lock().expect("nobody panicked who asked to stop")
    }

    /// Waits, at most so long; true once the agent is to end.
    fn wait(&self, pause: Duration) -> bool {
        let waited = self.0.1.wait_timeout_while(self.lock(), pause, |s| !s.asked);
        waited.expect("nobody panicked who asked to stop").0.asked
    }

    /// From now on `wire` is closed when the agent is to end; false if that is so already.
    fn watch(&self, wire: &UnixStream) -> io::Result<bool> {
        let mut stopping = self.lock();
        stopping.wire = Some(wire.try_clone()?);
        Ok(!stopping.asked)
    }
}

/// Where the server listens for agents.
pub fn server_socket(place: &Where) -> Result<PathBuf, Failure> {
    socket(&data_dir(place)?, "server.sock")
}

/// Serves until `stop` is asked. `ready` is called once, when a server has welcomed the agent.
pub fn serve(
    options: &AgentOptions,
    stop: &Stop,
    ready: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut ready = Some(ready);
    let path = server_socket(&options.place)?;
    // One that cannot be read is refused here; later changes are seen at each connection.
    inventory(&options.place)?;
    let crons = Crons::start(options.place.clone(), options.program.clone())
        .map_err(|e| Failure::new("start the crons").because(&e))?;
    let mut pause = PAUSES.0;
    let mut told = false;
    loop {
        match UnixStream::connect(&path) {
            Ok(wire) => {
                (pause, told) = (PAUSES.0, false);
                let welcome = || match ready.take() {
                    Some(ready) => ready().map_err(io::Error::other),
                    None => Ok(()),
                };
                if let Err(error) = talk(options, wire, stop, welcome) {
                    tracing::warn!("the connection to the server ended: {error}");
                }
            }
            Err(error) if !told => {
                tracing::info!("no server at {} yet: {error}", path.display());
                told = true;
            }
            Err(_) => {}
        }
        if stop.wait(pause) {
            crons.end();
            return Ok(());
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// One connection: from the greeting until it ends. Every task has ended when this returns.
fn talk(
    options: &AgentOptions,
    wire: UnixStream,
    stop: &Stop,
    mut welcome: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    if !stop.watch(&wire)? {
        return Ok(());
    }
    let inventory = inventory(&options.place).map_err(io::Error::other)?;
    let out = Arc::new(Mutex::new(wire.try_clone()?));
    say(&out, &FromAgent::Hello { protocol: PROTOCOL, name: options.name.clone(), inventory })?;
    let heard = Arc::clone(&out);
    let healer = Healer::start(
        options.place.clone(),
        // A connection that has ended is noticed by its reader.
        Box::new(move |message| say(&heard, message).unwrap_or(())),
    )?;
    let tasks = Tasks::default();
    let mut lines = BufReader::new(wire);
    let outcome = (|| {
        loop {
            let mut line = Vec::new();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            match serde_json::from_slice(&line)? {
                FromServer::Welcome => welcome()?,
                FromServer::Refused { why } => {
                    return Err(io::Error::other(format!("the server refused: {why}")));
                }
                FromServer::Run { activity, order } => {
                    tasks.run(options, activity, &order, &out, healer.tasks());
                }
                FromServer::Cancel { activity } => tasks.cancel(&activity),
                FromServer::Heal { replaced } => healer.ask(replaced),
            }
        }
    })();
    tasks.end();
    outcome
}

fn say(out: &Mutex<UnixStream>, message: &FromAgent) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    out.lock().expect("no writer panicked").write_all(&line)
}

/// The tasks of one connection.
#[derive(Clone, Default)]
struct Tasks(Arc<(Mutex<Inputs>, Condvar)>);

/// Each running task's input, as long as it has not been asked to stop.
type Inputs = HashMap<ActivityId, Option<ChildStdin>>;

impl Tasks {
    /// Starts the order in a process of its own, and passes on what it says.
    fn run(
        &self,
        options: &AgentOptions,
        activity: ActivityId,
        order: &Order,
        out: &Arc<Mutex<UnixStream>>,
        counted: heal::Tasks,
    ) {
        let event = |event| FromAgent::Event { activity: activity.clone(), event };
        match start(options, order) {
            Ok((child, input)) => {
                self.lock().insert(activity.clone(), Some(input));
                let (tasks, out) = (self.clone(), Arc::clone(out));
                counted.begun();
                std::thread::spawn(move || {
                    follow(child, &activity, &out);
                    counted.ended();
                    tasks.lock().remove(&activity);
                    tasks.0.1.notify_all();
                });
            }
            Err(error) => {
                let message = format!("start the task\nbecause: {error}");
                let outcome = Outcome::Failed { message, hint: None };
                // If it cannot be told, the connection has ended, and its reader finds out.
                say(out, &event(Event::Ended { outcome })).unwrap_or(());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inputs> {
        self.0.0.lock().expect("no thread of a task panicked")
    }

    /// Asks one to stop, by the end of its input. One that has ended has nothing to stop.
    fn cancel(&self, activity: &ActivityId) {
        if let Some(input) = self.lock().get_mut(activity) {
            *input = None;
        }
    }

    /// Asks all to stop and waits until they have.
    fn end(&self) {
        let mut tasks = self.lock();
        tasks.values_mut().for_each(|input| *input = None);
        while !tasks.is_empty() {
            tasks = self.0.1.wait(tasks).expect("no thread of a task panicked");
        }
    }
}

fn start(options: &AgentOptions, order: &Order) -> io::Result<(Child, ChildStdin)> {
    let mut command = Command::new(&options.program);
    command.arg("task").arg("--config").arg(&options.place.config);
    if let Some(data) = &options.place.data_dir {
        command.arg("--data-dir").arg(data);
    }
    // A group of its own: what a terminal sends to ours is not meant for it.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().expect("it was asked for");
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    // A task that is gone already is told of by the end of its output.
    input.write_all(&line).unwrap_or(());
    Ok((child, input))
}

/// Passes a task's events on until it has ended, and says that it has, if it did not itself.
fn follow(mut child: Child, activity: &ActivityId, out: &Mutex<UnixStream>) {
    let mut ended = None;
    let mut lines = BufReader::new(child.stdout.take().expect("it was asked for"));
    loop {
        let mut line = Vec::new();
        match lines.read_until(b'\n', &mut line) {
            Ok(read) if read > 0 => {}
            _ => break,
        }
        match serde_json::from_slice::<Event>(&line) {
            Ok(event @ Event::Ended { .. }) => ended = Some(event),
            Ok(event) => {
                let message = FromAgent::Event { activity: activity.clone(), event };
                // The connection's reader finds out that it has ended, and cancels this task.
                say(out, &message).unwrap_or(());
            }
            Err(error) => tracing::warn!(%activity, "a task said what nobody understands: {error}"),
        }
    }
    // Only once the process is gone: what it had locked is free when its end is told.
    let status = child.wait();
    let event = ended.unwrap_or_else(|| {
        let how = match status {
            Ok(status) => match status.signal() {
                Some(signal) => format!("its process was killed by signal {signal}"),
                None => format!("its process ended early: {status}"),
            },
            Err(error) => format!("its process cannot be waited for: {error}"),
        };
        Event::Ended { outcome: Outcome::Failed { message: how, hint: None } }
    });
    say(out, &FromAgent::Event { activity: activity.clone(), event }).unwrap_or(());
}

/// What the configuration holds, in names.
fn inventory(place: &Where) -> Result<Inventory, Failure> {
    let (config, _) = read_config(place)?;
    let environments = config
        .environments
        .iter()
        .map(|(name, environment)| {
            let found = Place::find(place, Some(name.as_str()))?;
            Ok(EnvironmentSummary {
                name: name.clone(),
                kind: environment.kind.to_string(),
                parts: environment
                    .services
                    .keys()
                    .chain(environment.mounts.keys())
                    .cloned()
                    .collect(),
                head_commit: parts::code(&found).map(|code| code.commit),
            })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let region = config.regions.iter().next();
    Ok(Inventory {
        project: config.project.clone(),
        environments,
        region: region.map(|(name, _)| name.clone()),
        write_quorum: region.map_or(1, |(_, region)| region.write_quorum as u32),
    })
}
