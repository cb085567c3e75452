//! A worker as a participant: looked up after the drain, frozen before the marks, thawed after them.

use super::frozen::Frozen;
use super::{Aimed, Shell, Standing, Target, target};
use crate::CaptureError;
use crate::participant::{Account, HoldOrder, Participant, Rank};
use crate::watchdog::{Undo, When};
use jiff::Timestamp;
use std::time::{Duration, Instant};
use stillpoint_model::config::{Freezer, WorkerPart};
use stillpoint_model::ids::PartName;
use stillpoint_model::manifest::WorkerEvidence;
use stillpoint_model::progress::Monitor;
use stillpoint_repository::Writer;

/// Finds what is to be frozen, at the moment when it is asked.
pub trait Aim: Send {
    /// Looks it up, within that time.
    fn aim(&self, within: Duration) -> Result<Aimed, CaptureError>;

    /// From now on nothing of it begins, until [`Aim::open`]. Not all can be kept from that.
    fn close(&self, within: Duration) -> Result<(), CaptureError> {
        let _ = within;
        Ok(())
    }

    /// It may begin again.
    fn open(&self) {}
}

/// By a worker's configuration.
struct Configured {
    freezer: Freezer,
    shell: Box<dyn Fn(&str) -> Shell + Send>,
}

impl Aim for Configured {
    fn aim(&self, within: Duration) -> Result<Aimed, CaptureError> {
        target::aim(&self.freezer, &self.shell, Instant::now() + within)
    }
}

/// One worker.
pub struct WorkerParticipant {
    name: PartName,
    aim: Box<dyn Aim>,
    quiesce: Option<Shell>,
    resume: Option<Shell>,
    /// Stopped anywhere, what it has written is whole.
    atomic: bool,
    timeout: Duration,
    /// It should run at all times.
    is_expected: bool,
    /// When the watchdog thaws it: never while data is half swapped.
    when: When,
    aimed: Option<Frozen>,
    /// It was asked to stand still: it may, whatever the answer was.
    asked: bool,
    frozen: Option<Timestamp>,
    evidence: Option<WorkerEvidence>,
    doubts: Vec<String>,
}

impl WorkerParticipant {
    /// The worker `name`; `shell` makes a command of the user's words.
    pub fn new(
        name: PartName,
        part: &WorkerPart,
        shell: impl Fn(&str) -> Shell + Send + 'static,
    ) -> Self {
        let (quiesce, resume) =
            (part.quiesce.as_deref().map(&shell), part.resume.as_deref().map(&shell));
        let aim = Configured { freezer: part.freezer.clone(), shell: Box::new(shell) };
        let mut worker = Self::by(name, Box::new(aim), part.timeout);
        (worker.quiesce, worker.resume, worker.atomic) = (quiesce, resume, part.atomic);
        worker.is_expected = true;
        worker
    }

    /// Something that is found by `aim`, and may be stopped anywhere.
    pub fn atomic(name: PartName, aim: Box<dyn Aim>) -> Self {
        Self::by(name, aim, WorkerPart::TIMEOUT)
    }

    fn by(name: PartName, aim: Box<dyn Aim>, timeout: Duration) -> Self {
        Self {
            name,
            aim,
            quiesce: None,
            resume: None,
            atomic: true,
            timeout,
            is_expected: false,
            when: When::Silent,
            aimed: None,
            asked: false,
            frozen: None,
            evidence: None,
            doubts: Vec::new(),
        }
    }

    /// From now on this process's silence thaws it, or only its end: nothing may run on half swapped
    /// data.
    pub(crate) fn thaws_when(&mut self, when: When) {
        self.when = when;
    }

    /// It still stands still, if it was frozen.
    pub(crate) fn assert_still(&mut self) -> Result<(), CaptureError> {
        let stands = self.look_back();
        stands.map_err(|e| self.of("keep an eye on", e))
    }

    /// Checks that it can be frozen. Nothing stands still yet; what does not run is told.
    pub(crate) fn reach(&self, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        let of = |e| self.of("prepare", e);
        let aimed = self.aim.aim(self.timeout).map_err(of)?;
        match &aimed.target {
            Some(target) => target.permitted().map_err(of)?,
            None if self.is_expected => {
                monitor.note(&format!("worker `{}` does not run", self.name));
            }
            None => {}
        }
        Ok(())
    }

    fn of(&self, doing: &str, source: CaptureError) -> CaptureError {
        CaptureError::over(format!("{doing} worker `{}`", self.name), source)
    }

    fn target(&self) -> Option<&Target> {
        self.aimed.as_ref().map(|frozen| &frozen.target)
    }

    /// Compares how it stands with how it was left. Called before it is thawed.
    fn look_back(&mut self) -> Result<(), CaptureError> {
        let Some(target) = self.target() else { return Ok(()) };
        match target.standing()? {
            Standing::Still => {}
            Standing::Working => {
                return Err(CaptureError::new(format!("{} went on", target.describe()))
                    .because("it did not stand still until the marks were taken")
                    .hint(
                        "was it continued by hand, or by the watchdog since this was too slow?",
                    ));
            }
            Standing::Gone => self.doubts.push(format!(
                "{}: {} ended while it stood still",
                self.name,
                target.describe()
            )),
        }
        Ok(())
    }

    /// Whether something runs now that was not frozen: it was started in the meantime.
    fn look_for_others(&mut self) -> Result<(), CaptureError> {
        let now = self.aim.aim(self.timeout)?;
        if now.target.is_some() && now.target.as_ref() != self.target() {
            self.doubts.push(format!("{}: it was started while it should stand still", self.name));
        }
        Ok(())
    }
}

impl Participant for WorkerParticipant {
    fn name(&self) -> &PartName {
        &self.name
    }

    fn rank(&self) -> Rank {
        Rank::Worker
    }

    fn prepare(&mut self, _: &Writer, monitor: &dyn Monitor) -> Result<(), CaptureError> {
        self.reach(monitor)
    }

    fn hold(&mut self, _: &HoldOrder) -> Result<(), CaptureError> {
        self.aim.close(self.timeout).map_err(|e| self.of("hold", e))
    }

    fn aim(&mut self) -> Result<(), CaptureError> {
        let Aimed { target, doubt } = self.aim.aim(self.timeout).map_err(|e| self.of("find", e))?;
        self.doubts = doubt.map(|doubt| format!("{}: {doubt}", self.name)).into_iter().collect();
        self.evidence = None;
        self.aimed = target.map(|target| Frozen {
            worker: self.name.clone(),
            target,
            resume: self.resume.clone(),
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
        });
        Ok(())
    }

    fn undo(&self) -> Vec<Undo> {
        let thaw =
            |frozen: &Frozen| Undo::Thaw { when: self.when, frozen: Box::new(frozen.clone()) };
        self.aimed.as_ref().map(thaw).into_iter().collect()
    }

    fn freeze(&mut self) -> Result<(), CaptureError> {
        self.asked = true;
        let Some(target) = self.aimed.as_ref().map(|frozen| &frozen.target) else {
            self.frozen = Some(Timestamp::now());
            return Ok(());
        };
        if let Some(quiesce) = &self.quiesce {
            quiesce.run(Instant::now() + self.timeout).map_err(|e| self.of("quiesce", e))?;
        }
        target.freeze(Instant::now() + self.timeout).map_err(|e| self.of("freeze", e))?;
        self.frozen = Some(Timestamp::now());
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), CaptureError> {
        if !std::mem::take(&mut self.asked) {
            self.aimed = None;
            return Ok(());
        }
        let frozen = self.frozen.take();
        let thawed = Timestamp::now();
        // Whatever it finds, what stands still goes on first.
        let stood = if frozen.is_some() { self.look_back() } else { Ok(()) };
        if let Some(aimed) = &self.aimed {
            aimed.let_go()?;
        }
        let others = self.look_for_others();
        if let (Some(frozen), Some(aimed)) = (frozen, &self.aimed) {
            if self.quiesce.is_none() && !self.atomic {
                self.doubts.push(format!(
                    "{}: it was frozen where it stood, maybe in the middle of a job; `quiesce` \
                     lets it finish, and `atomic: true` says that it need not",
                    self.name
                ));
            }
            let (worker, by) = (self.name.clone(), aimed.target.describe());
            self.evidence = Some(WorkerEvidence { worker, by, frozen, thawed });
        }
        self.aimed = None;
        stood.and(others).map_err(|e| self.of("keep an eye on", e))
    }

    fn release(&mut self) -> Result<(), CaptureError> {
        self.aim.open();
        Ok(())
    }

    fn owed(&self) -> Vec<Undo> {
        self.undo()
    }

    fn account(&mut self) -> Account {
        Account {
            worker: self.evidence.take(),
            doubts: std::mem::take(&mut self.doubts),
            ..Account::default()
        }
    }
}

impl Drop for WorkerParticipant {
    fn drop(&mut self) {
        // Left behind in the middle: the watchdog was told, and goes on where this fails. On half
        // swapped data it is the watchdog's alone.
        if let (true, When::Silent, Some(aimed)) = (self.asked, self.when, &self.aimed)
            && let Err(error) = aimed.let_go()
        {
            tracing::error!("{error}; the watchdog tries again");
        }
    }
}
