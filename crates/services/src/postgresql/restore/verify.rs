//! Verify: every row and every sequence of the loaded database against the catalog.

use std::io::{self, Read};

use postgres::NoTls;

use super::Target;
use crate::postgresql::capture::copy_out;
use crate::postgresql::catalog::Database;
use crate::postgresql::connection::Login;
use crate::postgresql::large_objects::Dump;
use crate::postgresql::list;
use crate::postgresql::names::qualified;
use crate::postgresql::rows::Summed;
use crate::{ServiceError, Source};

pub(super) fn verify(
    login: &Login,
    target: &Target,
    captured: &Database,
    source: &dyn Source,
) -> Result<(), ServiceError> {
    let aside = target.aside.as_str();
    let mut session = login.connect(aside)?;
    let client = &mut session.client;
    for table in &captured.tables {
        let name = qualified(&table.schema, &table.name);
        let doing = || ServiceError::new(format!("verify {name} in `{aside}`"));
        let statement = copy_out(&name, &table.columns, table.condition.as_deref());
        let cancel = client.cancel_token();
        let rows = client.copy_out(&statement).map_err(|e| doing().because(e))?;
        let mut rows = Summed::new(Watched { rows, source });
        if let Err(error) = io::copy(&mut rows.by_ref(), &mut io::sink()) {
            // Else the session would first take in all that is left of the table.
            let _ = cancel.cancel_query(NoTls);
            return Err(doing().because(error));
        }
        if rows.sum.rows() != table.rows {
            return Err(doing().because(format!(
                "it has {} rows, captured were {}",
                rows.sum.rows(),
                table.rows
            )));
        }
        if rows.sum.to_string() != table.rows_sum {
            return Err(doing().because("its rows differ from those that were captured"));
        }
    }
    if let Some(statements) = &captured.large_object_statements {
        let doing = || ServiceError::new(format!("verify the large objects in `{aside}`"));
        let mut lines = Summed::new(Watched { rows: Dump::new(client), source });
        io::copy(&mut lines, &mut io::sink()).map_err(|e| doing().because(e))?;
        if lines.sum.to_string() != statements.lines_sum {
            return Err(doing().because("they differ from those that were captured"));
        }
    }
    let doing = || ServiceError::new(format!("verify the sequences in `{aside}`"));
    let mut read = || {
        let names = list::sequences(client)?;
        let statements = list::prepare_sequences(client, &names)?;
        let values = list::read_sequences(client, &statements)?;
        list::named(client, &values)
    };
    let found = read().map_err(|e| doing().because(e))?;
    let mut wanted = captured.sequences.clone();
    wanted.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    if found == wanted {
        return Ok(());
    }
    let different: Vec<String> = wanted
        .iter()
        .filter(|sequence| !found.contains(sequence))
        .map(|sequence| qualified(&sequence.schema, &sequence.name))
        .collect();
    Err(doing().because(format!("these differ or are missing: {}", different.join(", "))))
}

/// Rows of the loaded database, until the source of the restore is to give no more.
struct Watched<'a, R> {
    rows: R,
    source: &'a dyn Source,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.source.stopped() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.rows.read(buffer)?;
        self.source.advance(count as u64);
        Ok(count)
    }
}
