//! Restore: loaded into a database of its own, proven, and swapped by one `RENAME TABLE`.
//!
//! A table of our own, the marker, is renamed together with all others: in which database it is
//! found tells whether the swap was done, whoever asks. Whoever takes a step first takes a lock at
//! the server that ends with its session: a statement of a killed process goes on there, and what
//! it does must not be taken for undone.
//!
//! Nothing of the live database is dropped before `finish`, save for triggers and views, which are
//! statements in the journal.

mod load;
mod swap;
mod target;

use mysql::Conn;

use super::catalog::{self, Catalog};
use super::connection::{name, run};
use super::objects::{drop_object, objects};
use super::tools::Version;
use super::{Mariadb, rights};
use crate::{Aside, Restore, ServiceError, Source};
use target::{Found, MARKER, Plan, Target, find};

pub(super) struct MariadbRestore {
    driver: Mariadb,
}

impl MariadbRestore {
    pub(super) fn new(driver: Mariadb) -> Self {
        Self { driver }
    }

    /// A session that nobody else takes a step of this restore beside.
    fn begin(&self, aside: &Aside) -> Result<(Conn, Plan), ServiceError> {
        let plan = Plan::parse(aside)?;
        let mut session = self.driver.login.connect()?;
        target::alone(&mut session, &plan)?;
        Ok((session, plan))
    }
}

impl Restore for MariadbRestore {
    fn plan(&mut self, token: &str, source: &dyn Source) -> Result<Aside, ServiceError> {
        let catalog = Catalog::read(source)?;
        let mut session = self.driver.login.connect()?;
        let server = Version::of_server(&mut session)?;
        if Version::new(&catalog.server).mariadb != server.mariadb {
            return Err(ServiceError::new(format!("restore into {}", server.text))
                .because(format!("it was captured from {}", catalog.server))
                .hint("load the dump by hand: MariaDB and MySQL differ"));
        }
        self.driver.tool(["mariadb", "mysql"])?;
        rights::refuse_restore(&mut session, &self.driver.databases)?;
        let mut targets = Vec::new();
        for (number, live) in self.driver.databases.iter().enumerate() {
            let captured = catalog.database(live)?;
            target::refuse(&mut session, captured, server.mariadb)?;
            let defaults = catalog::defaults(&mut session, live)?;
            let before = match &defaults {
                Some(_) => objects(&mut session, live)?,
                None => Vec::new(),
            };
            targets.push(Target {
                live: live.clone(),
                new: format!("stillpoint_{token}_{number}_new"),
                old: format!("stillpoint_{token}_{number}_old"),
                defaults_before: defaults,
                defaults_after: captured.defaults.clone(),
                before,
                after: captured.objects.clone(),
            });
        }
        let objects: Vec<_> =
            targets.iter().flat_map(|t| t.before.iter().chain(&t.after)).cloned().collect();
        rights::refuse_objects(&mut session, &objects, &server)?;
        serde_json::to_value(Plan { mariadb: server.mariadb, targets })
            .map(Aside)
            .map_err(|e| ServiceError::new("write the restore's plan").because(e))
    }

    fn load(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let (mut session, plan) = self.begin(aside)?;
        self.load_all(&mut session, &plan, source)
    }

    fn verify(&mut self, aside: &Aside, source: &dyn Source) -> Result<(), ServiceError> {
        let (mut session, plan) = self.begin(aside)?;
        load::verify_all(&mut session, &plan, &Catalog::read(source)?)
    }

    fn swap(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let (mut session, plan) = self.begin(aside)?;
        swap::forth(&mut session, &plan)
    }

    fn swap_back(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let (mut session, plan) = self.begin(aside)?;
        swap::back(&mut session, &plan)
    }

    fn finish(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let (mut session, plan) = self.begin(aside)?;
        for target in &plan.targets {
            if find(&mut session, target)? == Found::Loaded {
                return Err(ServiceError::new(format!("finish the restore of {}", target.live))
                    .because("it was not swapped"));
            }
            for obsolete in &target.before {
                if obsolete.is_routine() && !target.after.iter().any(|o| o.replaces(obsolete)) {
                    drop_object(&mut session, &target.live, obsolete)?;
                }
            }
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.new)))?;
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.old)))?;
        }
        Ok(())
    }

    fn discard(&mut self, aside: &Aside) -> Result<(), ServiceError> {
        let (mut session, plan) = self.begin(aside)?;
        for target in &plan.targets {
            let doing = || ServiceError::new(format!("discard what was loaded of {}", target.live));
            if find(&mut session, target)? == Found::Swapped {
                return Err(doing().because("it was swapped in"));
            }
            let aside = catalog::tables(&mut session, &target.old)?;
            if let Some((table, _)) = aside.iter().find(|(table, _)| *table != MARKER) {
                let why = format!("{} still holds the table {table}", target.old);
                return Err(doing().because(why).hint("move it back to where it belongs"));
            }
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.new)))?;
            run(&mut session, &format!("DROP DATABASE IF EXISTS {}", name(&target.old)))?;
        }
        Ok(())
    }
}
