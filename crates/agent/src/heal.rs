//! Background healing: the agent looks at the locations when it begins, after each task, when it is
//! asked to and once a minute, and gives each what it lacks.
//!
//! Looking compares names and costs little. It heals only while no task runs, since both would want
//! the same disks and lines; a task that begins meanwhile does not wait. A connection to the server
//! has one healer, which ends with it: what it was copying is taken up by the next one.

use crate::failure::{Failure, FailureKind};
use crate::place::{Where, data_dir, read_config, vault};
use crate::protocol::{self, FromAgent};
use crate::stored::{Copies, copies};
use crate::vault::Vault;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stillpoint_model::config::{Config, Location};
use stillpoint_model::ids::LocationName;
use stillpoint_model::progress::Monitor;
use stillpoint_repository::LocationState;

/// How often the locations are looked at.
const EVERY: Duration = Duration::from_secs(60);
/// How often packs are compared as well.
const THOROUGH_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Tells the server something; what cannot be told is found out by whoever reads the connection.
type Say = Box<dyn Fn(&FromAgent) + Send>;

/// The healer of one connection. Ends with this value.
pub(crate) struct Healer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    wish: Mutex<Wish>,
    changed: Condvar,
    ending: AtomicBool,
}

#[derive(Default)]
struct Wish {
    /// Look now.
    asked: bool,
    /// Somebody asked: compare packs too.
    thorough: bool,
    /// Tasks that run.
    tasks: usize,
    /// Locations whose disk was replaced.
    replaced: BTreeSet<LocationName>,
}

impl Healer {
    pub(crate) fn start(place: Where, say: Say) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.lock().asked = true;
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("heal".into())
            .spawn(move || own.run(&place, say.as_ref()))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Look now, thoroughly.
    pub(crate) fn ask(&self, replaced: Option<LocationName>) {
        let mut wish = self.shared.lock();
        (wish.asked, wish.thorough) = (true, true);
        wish.replaced.extend(replaced);
        self.shared.changed.notify_all();
    }

    /// What is told of the beginning and end of each task.
    pub(crate) fn tasks(&self) -> Tasks {
        Tasks(Arc::clone(&self.shared))
    }
}

impl Drop for Healer {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        // Under the lock: the thread is either before its look at `ending`, or waits.
        drop(self.shared.lock());
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

/// Counts tasks for a healer.
#[derive(Clone)]
pub(crate) struct Tasks(Arc<Shared>);

impl Tasks {
    pub(crate) fn begun(&self) {
        self.0.lock().tasks += 1;
    }

    pub(crate) fn ended(&self) {
        let mut wish = self.0.lock();
        wish.tasks -= 1;
        wish.asked = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().expect("nobody panicked who asked for healing")
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn run(&self, place: &Where, say: &(dyn Fn(&FromAgent) + Send)) {
        let mut last_thorough: Option<Instant> = None;
        loop {
            let until = Instant::now() + EVERY;
            let mut wish = self.lock();
            while !self.is_ending() && (wish.tasks > 0 || !wish.asked) {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() && wish.tasks == 0 {
                    break;
                }
                let pause = if left.is_zero() { EVERY } else { left };
                let waited = self.changed.wait_timeout(wish, pause);
                wish = waited.expect("nobody panicked who asked for healing").0;
            }
            if self.is_ending() {
                return;
            }
            let due = last_thorough.is_none_or(|at| at.elapsed() > THOROUGH_EVERY);
            let thorough = wish.thorough || due;
            let replaced = std::mem::take(&mut wish.replaced);
            (wish.asked, wish.thorough) = (false, false);
            drop(wish);
            if thorough {
                last_thorough = Some(Instant::now());
            }
            if let Err(failure) = self.round(place, say, thorough, &replaced) {
                tracing::warn!("heal the locations: {}", failure.lines().join(": "));
            }
        }
    }

    fn round(
        &self,
        place: &Where,
        say: &(dyn Fn(&FromAgent) + Send),
        thorough: bool,
        replaced: &BTreeSet<LocationName>,
    ) -> Result<(), Failure> {
        let (config, _) = read_config(place)?;
        let vaults = vaults(place, &config)?;
        for vault in &vaults {
            for name in replaced {
                vault.forget_site(name)?;
            }
        }
        let mut to_heal = Vec::new();
        for vault in &vaults {
            let states = vault.survey(thorough)?;
            // A thorough round counts copies again as well: a count may have been lost.
            if vault.is_known()? && (thorough || states.iter().any(LocationState::can_be_healed)) {
                to_heal.push(vault);
            }
        }
        let mut before = states(&config, &vaults, thorough)?;
        for state in &mut before {
            if !to_heal.is_empty() && matches!(state.health.as_str(), "behind" | "empty") {
                "healing".clone_into(&mut state.health);
            }
        }
        say(&FromAgent::Locations { locations: before });
        let mut failed = Vec::new();
        let mut failure = None;
        for vault in &to_heal {
            match self.heal_one(vault, say) {
                Ok(left) => failed.extend(left),
                Err(cancelled) if cancelled.kind() == FailureKind::Cancelled => {
                    return Err(cancelled);
                }
                // That of another environment type is healed all the same.
                Err(other) => {
                    let why = other.lines().join(": ");
                    failed.extend(vault.sites.iter().map(|s| (s.name.to_string(), why.clone())));
                    failure.get_or_insert(other);
                }
            }
        }
        if !to_heal.is_empty() {
            let mut after = states(&config, &vaults, thorough)?;
            for state in &mut after {
                let why = failed.iter().find(|(name, _)| name == state.name.as_str());
                if let (Some((_, why)), None) = (why, &state.why) {
                    state.why = Some(why.clone());
                }
            }
            say(&FromAgent::Locations { locations: after });
        }
        failure.map_or(Ok(()), Err)
    }

    /// The locations that were not made whole, each with the reason.
    fn heal_one(
        &self,
        vault: &Vault,
        say: &(dyn Fn(&FromAgent) + Send),
    ) -> Result<Vec<(String, String)>, Failure> {
        let mut failed = Vec::new();
        let Some(healing) = vault.heal(self)? else { return Ok(failed) };
        for location in healing.healed.locations {
            if location.files + location.deleted > 0 {
                tracing::info!(
                    "location {}: {} files copied, {} deleted",
                    location.name,
                    location.files,
                    location.deleted
                );
            }
            failed.extend(location.left.map(|why| (location.name, why)));
        }
        let Copies { counts, all_asked } = copies(&healing.opened)?;
        say(&FromAgent::Copies { copies: counts, all_asked });
        Ok(failed)
    }
}

impl Monitor for Shared {
    fn cancelled(&self) -> bool {
        self.is_ending()
    }
}

/// The vault of every type that an environment has.
fn vaults(place: &Where, config: &Config) -> Result<Vec<Vault>, Failure> {
    if config.regions.is_empty() {
        return Ok(Vec::new());
    }
    let data = data_dir(place)?;
    let kinds: BTreeSet<_> = config.environments.values().map(|e| e.kind).collect();
    kinds.into_iter().map(|kind| vault(config, kind, &data)).collect()
}

/// How the locations are, over all types: the worst counts.
fn states(
    config: &Config,
    vaults: &[Vault],
    thorough: bool,
) -> Result<Vec<protocol::LocationState>, Failure> {
    let mut all: BTreeMap<String, protocol::LocationState> = BTreeMap::new();
    let mut devices: Vec<(u64, LocationName)> = Vec::new();
    for (name, location) in config.regions.values().flat_map(|region| &region.locations) {
        let Location::Directory { path } = location;
        let state = protocol::LocationState {
            name: name.clone(),
            url: format!("file://{}", path.display()),
            health: "healthy".to_owned(),
            why: None,
            missing: 0,
            warning: None,
            checked_at: Timestamp::now(),
        };
        all.insert(name.to_string(), state);
    }
    for vault in vaults {
        let known = vault.is_known()?;
        for found in vault.survey(thorough)? {
            let Some(state) = all.get_mut(&found.name) else { continue };
            state.missing += found.missing;
            let health = match (&found.down, found.empty) {
                (Some(_), _) => "down",
                (None, true) if known => "empty",
                (None, false) if found.missing > 0 => "behind",
                _ => "healthy",
            };
            let rank = |health: &str| {
                ["healthy", "empty", "behind", "down"].iter().position(|h| *h == health)
            };
            if rank(health) > rank(&state.health) {
                health.clone_into(&mut state.health);
            }
            state.why = state.why.take().or(found.down);
        }
    }
    for site in vaults.iter().take(1).flat_map(|vault| &vault.sites) {
        let Some(device) = Vault::device(site) else { continue };
        let same = devices.iter().find(|(other, _)| *other == device).map(|(_, name)| name.clone());
        if let (Some(other), Some(state)) = (same, all.get_mut(site.name.as_str())) {
            state.warning =
                Some(format!("on the same file system as {other}: one disk that dies takes both"));
        }
        devices.push((device, site.name.clone()));
    }
    Ok(all.into_values().collect())
}
