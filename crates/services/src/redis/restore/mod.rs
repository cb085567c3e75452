//! Restore: loaded into spare databases of the live server, proven there, and swapped by `SWAPDB`.
//!
//! A private server of our own reads the captured RDB, and so proves that it can be read; keys go
//! from there to the live server as they are. Live databases are touched by one transaction only.
//!
//! Rejected: letting the live server load the file or replicate from ours. Both block its readers,
//! and empty it before the new data is known to be good.

mod auxiliary;
mod copy;
mod marker;
mod plan;

use std::time::Instant;

use auxiliary::Auxiliary;
use marker::{Marker, State};
use plan::Target;

use super::Redis;
use super::connection::{PATIENT, Session};
use super::facts::Facts;
use super::info::{Info, wait_idle};
use super::replication::COULD_NOT_FORK;
use super::save::refuse_failed;
use crate::{Aside, Restore, ServiceError, Source};

pub(super) struct RedisRestore {
    driver: Redis,
    /// Started when it is needed, and kept from load to verify.
    auxiliary: Option<Auxiliary>,
}

impl RedisRestore {
    pub(super) fn new(driver: Redis) -> Self {
        Self { driver, auxiliary: None }
    }

    fn connect(&self) -> Result<Session, ServiceError> {
        self.driver.login.connect(PATIENT)
    }

    /// A session with our server, which has loaded the capture.
    fn loaded(&mut self, source: &dyn Source) -> Result<Session, ServiceError> {
        if self.auxiliary.is_none() {
            let program = self.driver.server_program()?;
            self.auxiliary = Some(Auxiliary::start(&program, Some(source))?);
        }
        match &self.auxiliary {
            Some(auxiliary) => auxiliary.connect(),
            None => Err(ServiceError::new("start an auxiliary server")),
        }
    }
}

impl Restore for RedisRestore {
    fn plan(&mut self, token: &str, source: &dyn Source) -> Result<Aside, ServiceError> {
        let target = plan::plan(&self.driver, token, source)?;
        serde_json::to_value(target)
            .map(Aside)
            .map_err(|e| ServiceError::new("write the restore's plan").because(e))
    }

    fn load(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let target = Target::read(aside)?;
        let mut live = self.connect()?;
        match Marker::find(&mut live, &target)?.map(|marker| marker.state) {
            Some(State::Loaded | State::Swapped) => return Ok(()),
            Some(State::Loading) => {}
            None => target.refuse_used_spares(&Info::all(&mut live)?)?,
        }
        let mut from = self.loaded(source)?;
        target.refuse_other_capture(&Info::all(&mut from)?, &Facts::read(source)?)?;
        // From here on what is in the spare databases is ours.
        Marker::begin(&mut live, &target)?;
        for pair in &target.pairs {
            copy::database(&mut from, &mut live, *pair)?;
        }
        let functions: Vec<u8> = from.run(&["FUNCTION", "DUMP"])?;
        Marker { state: State::Loaded, functions }.store(&mut live, &target)
    }

    fn verify(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let target = Target::read(aside)?;
        let mut live = self.connect()?;
        let marker = Marker::find(&mut live, &target)?;
        let Some(Marker { state: State::Loaded, functions }) = marker else {
            return Err(copy::differs("it was not loaded to its end"));
        };
        let mut from = self.loaded(source)?;
        copy::compare_functions(&mut from, &functions)?;
        // Dumps are compressed alike, so that most of them are equal byte for byte.
        let compressed = plan::setting(&mut live, "rdbcompression")?;
        from.run::<()>(&["CONFIG", "SET", "rdbcompression", &compressed])?;
        target.refuse_eviction(&Info::all(&mut live)?)?;
        for pair in &target.pairs {
            copy::compare(&mut from, &mut live, *pair, &target)?;
        }
        // Its memory is needed no more.
        self.auxiliary = None;
        Ok(())
    }

    fn swap(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let target = Target::read(aside)?;
        let doing = || ServiceError::new("swap the restored databases in");
        let mut live = self.connect()?;
        match Marker::find(&mut live, &target)? {
            Some(Marker { state: State::Swapped, .. }) => Ok(()),
            Some(marker @ Marker { state: State::Loaded, .. }) => {
                let info = Info::all(&mut live)?;
                target.refuse_grown(&info)?;
                // The marker might be next.
                target.refuse_eviction(&info)?;
                marker.exchange(&mut live, &target)
            }
            Some(_) | None => Err(doing().because("nothing was loaded to its end")),
        }
    }

    fn swap_back(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let target = Target::read(aside)?;
        let mut live = self.connect()?;
        match Marker::find(&mut live, &target)? {
            Some(marker @ Marker { state: State::Swapped, .. }) => {
                marker.exchange(&mut live, &target)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn finish(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let target = Target::read(aside)?;
        let doing = || ServiceError::new("finish the restore");
        let mut live = self.connect()?;
        match Marker::find(&mut live, &target)?.map(|marker| marker.state) {
            Some(State::Swapped) => {}
            Some(_) => return Err(doing().because("it was not swapped in")),
            None => return target.refuse_forgotten(&Info::all(&mut live)?),
        }
        // A save before, so that a crash does not bring back what was live before the swap; one
        // after, so that it does not bring back what was aside. Cut off in between, the marker comes
        // back too, and this is done again.
        self.persist(&mut live)?;
        target.empty_spares(&mut live)?;
        self.persist(&mut live)
    }

    fn discard(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let target = Target::read(aside)?;
        self.auxiliary = None;
        let mut live = self.connect()?;
        match Marker::find(&mut live, &target)?.map(|marker| marker.state) {
            Some(State::Swapped) => {
                Err(ServiceError::new("discard what was loaded").because("it was swapped in"))
            }
            Some(_) => target.empty_spares(&mut live),
            // Nothing was loaded, or it is gone: what is there is somebody else's.
            None => Ok(()),
        }
    }
}

impl RedisRestore {
    /// Where the server keeps its data in saves alone: saves. An append-only file has every step in
    /// its order, and lasts as the application's own writes do.
    fn persist(&self, live: &mut Session) -> Result<(), ServiceError> {
        let info = Info::read(live, &["persistence"])?;
        let points = plan::setting(live, "save")?;
        if info.text("aof_enabled") == "1" || points.is_empty() {
            return Ok(());
        }
        let end = Instant::now() + self.driver.patience.prepare;
        loop {
            wait_idle(live, self.driver.patience.prepare)?;
            match live.ask::<String>(&["BGSAVE"]) {
                Ok(_) => break,
                // The server began a save of its own in between.
                Err(e) if e.to_string().contains("in progress") && Instant::now() < end => {}
                Err(e) => {
                    let doing = ServiceError::new("save the swapped databases");
                    return Err(doing.because(e).hint(COULD_NOT_FORK));
                }
            }
        }
        let info = wait_idle(live, self.driver.patience.prepare)?;
        refuse_failed(&info, None)
    }
}
