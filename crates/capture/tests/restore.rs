//! The order of a restore's steps, and what becomes of it when any of them fails or it is cut off
//! there. The steps themselves are scripted; the real ones are tested with their services.

mod common;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use stillpoint_capture::restore::{
    Journal, JournalPart, Phase, Recovered, RestoreOrder, RestorePart, recover, restore,
};
use stillpoint_capture::watchdog::Guard;
use stillpoint_capture::{CaptureError, Limits, NoStreams};
use stillpoint_model::ids::BackupId;
use stillpoint_model::manifest::Role;
use stillpoint_model::progress::Silent;
use stillpoint_services::{Aside, Restore, ServiceError, Source};

/// What one part's data is, and what was done to it.
#[derive(Debug, Default)]
struct World {
    log: Vec<String>,
    /// Parts whose live data is the backup's.
    swapped: Vec<String>,
    fails: Vec<String>,
}

struct Steps {
    name: &'static str,
    world: Arc<Mutex<World>>,
}

impl Steps {
    fn step(&self, step: &str) -> Result<(), ServiceError> {
        let mut world = self.world.lock().unwrap();
        let call = format!("{step} {}", self.name);
        world.log.push(call.clone());
        match step {
            "swap" => world.swapped.push(self.name.to_owned()),
            "swap_back" => world.swapped.retain(|name| name != self.name),
            _ => {}
        }
        if world.fails.contains(&call) {
            return Err(ServiceError::new(format!("{call} fails")));
        }
        Ok(())
    }
}

impl Restore for Steps {
    fn plan(&mut self, _: &str, _: &dyn Source) -> Result<Aside, ServiceError> {
        self.step("plan").map(|()| Aside(self.name.into()))
    }
    fn load(&mut self, _: &Aside, _: &dyn Source) -> Result<(), ServiceError> {
        self.step("load")
    }
    fn verify(&mut self, _: &Aside, _: &dyn Source) -> Result<(), ServiceError> {
        self.step("verify")
    }
    fn swap(&mut self, _: &Aside) -> Result<(), ServiceError> {
        self.step("swap")
    }
    fn swap_back(&mut self, _: &Aside) -> Result<(), ServiceError> {
        self.step("swap_back")
    }
    fn finish(&mut self, _: &Aside) -> Result<(), ServiceError> {
        self.step("finish")
    }
    fn discard(&mut self, _: &Aside) -> Result<(), ServiceError> {
        self.step("discard")
    }
}

struct Scene {
    top: tempfile::TempDir,
    guard: Guard,
    world: Arc<Mutex<World>>,
}

impl Scene {
    fn failing(fails: &[&str]) -> Self {
        let top = tempfile::tempdir().unwrap();
        let guard = common::guard(top.path());
        let fails = fails.iter().map(|f| (*f).to_owned()).collect();
        let world = Arc::new(Mutex::new(World { fails, ..World::default() }));
        Self { top, guard, world }
    }

    fn journal(&self) -> PathBuf {
        self.top.path().join("journal.json")
    }

    fn restore(&self) -> Result<(), CaptureError> {
        let order = RestoreOrder {
            backup: BackupId::random(),
            token: "token".to_owned(),
            journal: self.journal(),
            recovery: vec!["recover".to_owned()],
            limits: Limits::default(),
        };
        let parts = ["a", "b"].map(|name| RestorePart {
            name: name.parse().unwrap(),
            role: Role::Service,
            steps: Box::new(Steps { name, world: Arc::clone(&self.world) }),
            source: Box::new(NoStreams),
        });
        restore(&order, parts.into(), Vec::new(), Vec::new(), &self.guard, &Silent).map(drop)
    }

    fn recover(&self) -> Result<Option<Recovered>, CaptureError> {
        let steps = |part: &JournalPart| {
            let name = if part.name.as_str() == "a" { "a" } else { "b" };
            Ok(Box::new(Steps { name, world: Arc::clone(&self.world) }) as Box<dyn Restore>)
        };
        recover(&self.journal(), steps, &[]).map(|done| done.map(|(_, how)| how))
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.world.lock().unwrap().log)
    }

    fn swapped(&self) -> Vec<String> {
        self.world.lock().unwrap().swapped.clone()
    }

    fn mend(&self) {
        self.world.lock().unwrap().fails.clear();
    }
}

#[test]
fn every_part_is_loaded_and_verified_before_any_is_swapped() {
    let scene = Scene::failing(&[]);
    scene.restore().unwrap();
    assert_eq!(
        scene.log(),
        [
            "plan a", "plan b", "load a", "verify a", "load b", "verify b", "swap a", "swap b",
            "finish a", "finish b"
        ]
    );
    assert!(!scene.journal().exists());
}

#[test]
fn a_refusal_in_the_plan_changes_nothing() {
    let scene = Scene::failing(&["plan b"]);
    assert!(scene.restore().is_err());
    assert_eq!(scene.log(), ["plan a", "plan b"]);
    assert!(!scene.journal().exists());
}

#[test]
fn a_failure_aside_is_discarded_and_the_live_data_was_never_touched() {
    for step in ["load a", "verify a", "load b", "verify b"] {
        let scene = Scene::failing(&[step]);
        assert!(scene.restore().is_err());
        let log = scene.log();
        assert!(log.ends_with(&["discard a".to_owned(), "discard b".to_owned()]), "{log:?}");
        assert!(!log.iter().any(|call| call.starts_with("swap")), "{log:?}");
        assert!(!scene.journal().exists());
    }
}

#[test]
fn a_failed_swap_puts_every_part_back() {
    for step in ["swap a", "swap b"] {
        let scene = Scene::failing(&[step]);
        let error = scene.restore().unwrap_err();
        assert!(error.to_string().contains("swap in"), "{error}");
        assert_eq!(scene.swapped(), [""; 0], "after {step}");
        let log = scene.log();
        let back = log.iter().position(|call| call == "swap_back b").unwrap();
        assert_eq!(log[back..], ["swap_back b", "swap_back a", "discard a", "discard b"]);
        assert!(!scene.journal().exists());
    }
}

#[test]
fn what_could_not_be_put_back_is_left_to_recovery_and_nothing_is_removed() {
    let scene = Scene::failing(&["swap b", "swap_back a"]);
    let error = scene.restore().unwrap_err();
    assert!(error.advice().unwrap().contains("stillpoint recover"));
    let log = scene.log();
    assert!(!log.iter().any(|c| c.starts_with("discard") || c.starts_with("finish")), "{log:?}");
    assert_eq!(Journal::read(&scene.journal()).unwrap().unwrap().phase, Phase::Swapping);
    // No second restore meanwhile, and recovery as often as it takes.
    assert!(scene.restore().is_err());
    assert_eq!(scene.log(), [""; 0]);
    assert!(scene.recover().is_err());
    scene.mend();
    assert_eq!(scene.recover().unwrap(), Some(Recovered::Back));
    assert_eq!(scene.swapped(), [""; 0]);
    assert_eq!(scene.recover().unwrap(), None);
}

#[test]
fn a_restore_that_could_not_clean_up_is_finished_forward() {
    let scene = Scene::failing(&["finish a"]);
    assert!(scene.restore().is_err());
    assert_eq!(scene.swapped(), ["a", "b"]);
    assert_eq!(Journal::read(&scene.journal()).unwrap().unwrap().phase, Phase::Swapped);
    scene.log();
    scene.mend();
    assert_eq!(scene.recover().unwrap(), Some(Recovered::Forward));
    assert_eq!(scene.log(), ["finish a", "finish b"]);
    assert_eq!(scene.swapped(), ["a", "b"]);
}
