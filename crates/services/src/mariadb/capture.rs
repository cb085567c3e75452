//! Capture: the dumps, and a catalog of what they must amount to.
//!
//! Rows are counted by a session that shares the dumps' instant. A definition that changed since
//! the mark fails the capture: an open snapshot reads a table that was swapped, truncated or lost a
//! partition as empty, and says nothing.

use std::collections::BTreeMap;
use std::io::Cursor;

use super::catalog::{self, CATALOG, Catalog, Database, Table};
use super::connection::run;
use super::count::count;
use super::dump::Dump;
use super::objects::objects;
use super::prepared::PreparedMariadb;
use super::scan::Seen;
use crate::{Captured, ServiceError, Sink};

/// Tables by database and name, of engines without snapshots.
type Unheld = BTreeMap<(String, String), Table>;

impl PreparedMariadb {
    pub(super) fn capture_marked(&mut self, sink: &dyn Sink) -> Result<Captured, ServiceError> {
        let mut captured = Captured::default();
        let before = self.unheld()?;
        let seen = self.stream(sink, &mut captured)?;
        let mut after = self.unheld()?;
        after.retain(|table, counted| before.get(table) == Some(counted));
        let mut databases = Vec::new();
        let histories: Vec<bool> = self.prints.iter().map(|p| self.carries_history(p)).collect();
        for ((database, seen), history) in
            self.databases.clone().into_iter().zip(seen).zip(histories)
        {
            let tables = self.count_all(&database, history, &after, &mut captured)?;
            if let Some(odd) = seen.tables.iter().find(|name| !tables.contains_key(*name)) {
                return Err(changed(&database, &format!("the table {odd}")));
            }
            if let Some(odd) = tables.keys().find(|name| !seen.tables.contains(*name)) {
                return Err(ServiceError::new(format!("capture the database {database}"))
                    .because(format!("the dump holds no table {odd}")));
            }
            let mariadb = self.server.mariadb;
            let foreign = catalog::foreign(&mut self.control, &database, mariadb)?;
            captured.gaps.extend(foreign.iter().map(|key| {
                let why = "a restore cannot keep foreign keys between databases, and is refused";
                (format!("foreign key {key}"), why.to_owned())
            }));
            let defaults = catalog::defaults(&mut self.control, &database)?
                .ok_or_else(|| changed(&database, "the database itself"))?;
            let objects = objects(&mut self.control, &database)?;
            captured.items += tables.len() as u64;
            let longest = seen.longest;
            databases.push(Database {
                name: database,
                defaults,
                tables,
                objects,
                foreign,
                longest,
            });
        }
        run(&mut self.reader, "ROLLBACK")?;
        self.refuse_changed()?;
        let catalog = Catalog::new(self.server.text.clone(), databases);
        let text = serde_json::to_string_pretty(&catalog)
            .map_err(|e| ServiceError::new(format!("write {CATALOG}")).because(e))?;
        captured.bytes += sink
            .write(CATALOG, &mut Cursor::new(text.as_bytes()))
            .map_err(|e| ServiceError::new(format!("store {CATALOG}")).because(e))?;
        Ok(captured)
    }

    /// Streams every dump, all at once; what was seen in each.
    fn stream(
        &mut self,
        sink: &dyn Sink,
        captured: &mut Captured,
    ) -> Result<Vec<Seen>, ServiceError> {
        let dumps: Vec<(Dump, &String)> = self.dumps.drain(..).zip(&self.databases).collect();
        let streamed: Vec<Result<(u64, Seen), ServiceError>> = std::thread::scope(|scope| {
            let running: Vec<_> = dumps
                .into_iter()
                .map(|(dump, database)| {
                    scope.spawn(move || dump.stream(&format!("{database}.sql"), sink))
                })
                .collect();
            running
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|_| Err(ServiceError::new("stream a dump")))
                })
                .collect()
        });
        let mut all = Vec::new();
        for outcome in streamed {
            let (bytes, seen) = outcome?;
            captured.bytes += bytes;
            all.push(seen);
        }
        Ok(all)
    }

    /// Counts the tables that no snapshot holds still: what is the same before and after the
    /// dump, the dump has as well.
    fn unheld(&mut self) -> Result<Unheld, ServiceError> {
        let histories: Vec<bool> = self.prints.iter().map(|p| self.carries_history(p)).collect();
        let mut found = Unheld::new();
        let databases = self.databases.iter().zip(&self.prints).zip(histories);
        for ((database, print), history) in databases {
            for (table, engine) in &print.others {
                let counted = count(&mut self.reader, database, table, engine, history)
                    .map_err(|e| changed(database, &format!("the table {table}")).because(e))?;
                found.insert((database.clone(), table.clone()), counted.table);
            }
        }
        Ok(found)
    }

    fn count_all(
        &mut self,
        database: &str,
        history: bool,
        still: &Unheld,
        captured: &mut Captured,
    ) -> Result<BTreeMap<String, Table>, ServiceError> {
        let mut tables = BTreeMap::new();
        for (table, engine) in catalog::tables(&mut self.reader, database)? {
            let counted = count(&mut self.reader, database, &table, &engine, history)
                .map_err(|e| changed(database, &format!("the table {table}")).because(e))?;
            captured.gaps.extend(counted.gaps);
            let mut found = counted.table;
            if !engine.eq_ignore_ascii_case("InnoDB") {
                let known = still.get(&(database.to_owned(), table.clone()));
                found = known.cloned().unwrap_or(Table { rows: None, checksum: None, ..found });
            }
            tables.insert(table, found);
        }
        Ok(tables)
    }

    fn refuse_changed(&mut self) -> Result<(), ServiceError> {
        let now = self.look()?;
        for (database, (now, before)) in self.databases.iter().zip(now.iter().zip(&self.prints)) {
            if let Some(what) = now.differs(before) {
                return Err(changed(database, what));
            }
        }
        Ok(())
    }
}

fn changed(database: &str, what: &str) -> ServiceError {
    ServiceError::new(format!("capture the database {database}"))
        .because(format!("{what} was changed while the backup ran"))
        .hint("back up again when no tables, views, triggers or routines are being changed")
}
