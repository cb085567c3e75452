//! Load: create the database aside, run its definitions, copy the rows in.
//!
//! Definitions are sent to the server as they are, without a client that would obey commands
//! hidden in them. What is before the data makes tables without triggers, keys or indexes; those
//! come after it, so rows are taken as they were.

use std::fmt::Write as _;
use std::io::{self, Read};

use postgres::Client;
use postgres::error::SqlState;

use super::{Found, Plan, PostgresRestore, Target, look, mark};
use crate::postgresql::capture::column_list;
use crate::postgresql::catalog::{Database, Properties};
use crate::postgresql::large_objects;
use crate::postgresql::names::{ident, literal, qualified};
use crate::{ServiceError, Source};

impl PostgresRestore {
    pub(super) fn load_one(
        &self,
        plan: &Plan,
        target: &Target,
        captured: &Database,
        source: &dyn Source,
    ) -> Result<(), ServiceError> {
        let aside = target.aside.as_str();
        let doing = |what: &str| format!("{what} `{aside}`");
        let fail = |what: &str| {
            let doing = doing(what);
            move |e: postgres::Error| ServiceError::new(doing).because(e)
        };
        let mut maintenance = self.maintenance_for(plan)?;
        let client = &mut maintenance.client;
        // Swapped in already: loading again would not touch it, and would mislead.
        if look(client, &target.live, &plan.token).map_err(fail("look for"))? == Found::Loaded {
            return Err(ServiceError::new(format!("`{}` is already restored", target.live)));
        }
        let drop = format!("DROP DATABASE IF EXISTS {}", ident(aside));
        client.batch_execute(&drop).map_err(fail("drop"))?;
        client
            .batch_execute(&create_statement(aside, &captured.properties, &target.properties))
            .map_err(fail("create"))?;
        let mark =
            format!("COMMENT ON DATABASE {} IS {}", ident(aside), literal(&mark(&plan.token)));
        client.batch_execute(&mark).map_err(fail("mark"))?;

        let mut session = self.login.connect(aside)?;
        if !captured.has_public {
            session.client.batch_execute("DROP SCHEMA public").map_err(fail("prepare"))?;
        }
        drop_session(session);
        self.run_section(aside, source, &format!("{}/pre-data.sql", captured.directory))?;
        self.copy_in(aside, captured, source)?;
        self.load_large_objects(aside, captured, source)?;
        self.run_section(aside, source, &format!("{}/post-data.sql", captured.directory))?;
        // Last, since a setting may make the database read-only.
        for statement in property_statements(aside, &target.properties) {
            client.batch_execute(&statement).map_err(|e| {
                ServiceError::new(format!("carry over to `{aside}`: {statement}"))
                    .because(e)
                    .hint("restore with a role that may do this, or take it off the live database")
            })?;
        }
        Ok(())
    }

    fn run_section(
        &self,
        aside: &str,
        source: &dyn Source,
        path: &str,
    ) -> Result<(), ServiceError> {
        let mut text = String::new();
        source
            .open(path)
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|e| ServiceError::new(format!("read {path}")).because(e))?;
        // A session of its own: what the definitions set does not outlive them.
        let mut session = self.login.connect(aside)?;
        let section = Section::parse(&text);
        let run = |client: &mut Client| {
            for statement in &section.settings {
                match client.batch_execute(statement) {
                    // A newer pg_dump sets what an older server does not know.
                    Err(e) if e.code() == Some(&SqlState::UNDEFINED_OBJECT) => {}
                    outcome => outcome?,
                }
            }
            client.batch_execute(&section.body)
        };
        run(&mut session.client).map_err(|e| {
            let place = statement_at(&section.body, &e);
            let error = ServiceError::new(format!("run {path} in `{aside}`{place}"));
            error.because(e)
        })
    }

    fn load_large_objects(
        &self,
        aside: &str,
        captured: &Database,
        source: &dyn Source,
    ) -> Result<(), ServiceError> {
        let Some(statements) = &captured.large_object_statements else { return Ok(()) };
        let doing = format!("load the large objects into `{aside}`");
        let content = source
            .open(&statements.path)
            .map_err(|e| ServiceError::new(doing.as_str()).because(e))?;
        large_objects::load(&mut self.login.connect(aside)?.client, content, &doing)
    }

    fn copy_in(
        &self,
        aside: &str,
        captured: &Database,
        source: &dyn Source,
    ) -> Result<(), ServiceError> {
        let mut session = self.login.connect(aside)?;
        for table in &captured.tables {
            let name = qualified(&table.schema, &table.name);
            let doing = || ServiceError::new(format!("load {name} into `{aside}`"));
            let mut content = source.open(&table.path).map_err(|e| doing().because(e))?;
            let statement = format!("COPY {name}{} FROM STDIN", column_list(&table.columns));
            let mut writer = session.client.copy_in(&statement).map_err(|e| doing().because(e))?;
            io::copy(&mut content, &mut writer).map_err(|e| doing().because(e))?;
            let rows = writer.finish().map_err(|e| doing().because(e))?;
            if rows != table.rows {
                return Err(doing().because(format!("{rows} rows of {} arrived", table.rows)));
            }
        }
        for sequence in &captured.sequences {
            let name = qualified(&sequence.schema, &sequence.name);
            session
                .client
                .execute(
                    "SELECT setval($1::text::regclass, $2, $3)",
                    &[&name, &sequence.last_value, &sequence.is_called],
                )
                .map_err(|e| {
                    ServiceError::new(format!("set the sequence {name} in `{aside}`")).because(e)
                })?;
        }
        session
            .client
            .batch_execute("ANALYZE")
            .map_err(|e| ServiceError::new(format!("analyze `{aside}`")).because(e))
    }
}

/// Ends a session, so that the next one finds its locks gone.
fn drop_session(session: crate::postgresql::connection::Session) {
    let _ = session.client.close();
}

/// What is stored is `like` the captured one; whose it is and where, as `carried` over.
fn create_statement(name: &str, like: &Properties, carried: &Properties) -> String {
    let mut statement = format!(
        "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        ident(name),
        ident(&carried.owner),
        literal(&like.encoding),
        literal(&like.collate),
        literal(&like.ctype),
    );
    if let Some(locale) = &like.locale {
        let locale = literal(locale);
        match like.provider.as_deref() {
            Some("i") => {
                let _ = write!(statement, " LOCALE_PROVIDER icu ICU_LOCALE {locale}");
            }
            Some("b") => {
                let _ = write!(statement, " LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}");
            }
            _ => {}
        }
    }
    if let Some(tablespace) = &carried.tablespace {
        let _ = write!(statement, " TABLESPACE {}", ident(tablespace));
    }
    statement
}

/// Statements that give `database` what belonged to the other one itself; but for the comment,
/// whose place the mark takes until the restore is finished.
fn property_statements(database: &str, properties: &Properties) -> Vec<String> {
    let name = ident(database);
    let mut statements = Vec::new();
    if properties.connection_limit >= 0 {
        statements.push(format!(
            "ALTER DATABASE {name} CONNECTION LIMIT {}",
            properties.connection_limit
        ));
    }
    if let Some(grants) = &properties.grants {
        statements.push(format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"));
        for grant in grants {
            let role = grant.role.as_deref().map_or_else(|| "PUBLIC".to_owned(), ident);
            let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
            statements
                .push(format!("GRANT {} ON DATABASE {name} TO {role}{option}", grant.privilege));
        }
    }
    for setting in &properties.settings {
        let whose = match &setting.role {
            Some(role) => format!("ROLE {} IN DATABASE {name}", ident(role)),
            None => format!("DATABASE {name}"),
        };
        let parts: Vec<String> = setting.name.split('.').map(ident).collect();
        statements.push(format!(
            "ALTER {whose} SET {} = {}",
            parts.join("."),
            setting_value(&setting.name, &setting.value)
        ));
    }
    statements
}

/// Lists are stored with their commas, quoted as they must be; anything else is one text.
fn setting_value(name: &str, value: &str) -> String {
    let lists = [
        "search_path",
        "temp_tablespaces",
        "session_preload_libraries",
        "local_preload_libraries",
        "datestyle",
    ];
    if lists.contains(&name.to_ascii_lowercase().as_str()) {
        if value.is_empty() { "''".to_owned() } else { value.to_owned() }
    } else {
        literal(value)
    }
}

/// A dumped section: its settings, each for itself, and the rest.
struct Section {
    settings: Vec<String>,
    body: String,
}

impl Section {
    /// Leaves out the two lines that guard the client `psql` against commands in the text; nothing
    /// here obeys such commands.
    fn parse(text: &str) -> Self {
        let mut key = None;
        let mut settings = Vec::new();
        let mut body = String::with_capacity(text.len());
        let mut in_head = true;
        for line in text.split_inclusive('\n') {
            let bare = line.trim_end();
            if in_head && key.is_none() && bare.starts_with("\\restrict ") {
                key = bare.strip_prefix("\\restrict ").map(|key| format!("\\unrestrict {key}"));
            } else if key.as_deref() == Some(bare) {
                // The closing line: only pg_dump knows the key.
            } else if in_head && bare.starts_with("SET ") && bare.ends_with(';') {
                settings.push(bare.to_owned());
            } else {
                let set_config = bare.starts_with("SELECT pg_catalog.set_config(");
                in_head &= bare.is_empty() || bare.starts_with("--") || set_config;
                body.push_str(line);
            }
        }
        Self { settings, body }
    }
}

/// The beginning of the statement that an error is about, as ` at: ...`.
fn statement_at(body: &str, error: &postgres::Error) -> String {
    let Some(postgres::error::ErrorPosition::Original(position)) =
        error.as_db_error().and_then(|error| error.position())
    else {
        return String::new();
    };
    let skipped = (*position as usize).saturating_sub(1);
    let place: String = body.chars().skip(skipped.saturating_sub(40)).take(120).collect();
    format!(" at: {}", place.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guards_for_psql_are_left_out_and_settings_taken_apart() {
        let text = "--\n-- dump\n--\n\n\\restrict abc\n\nSET transaction_timeout = 0;\n\
                    SELECT pg_catalog.set_config('search_path', '', false);\nSET a = on;\n\n\
                    CREATE FUNCTION f() AS $$\nSET x = 1;\n\\restrict abc\n$$;\n\\unrestrict abc\n";
        let section = Section::parse(text);
        assert_eq!(section.settings, ["SET transaction_timeout = 0;", "SET a = on;"]);
        assert!(section.body.contains("$$\nSET x = 1;\n\\restrict abc\n$$;"));
        assert!(!section.body.contains("unrestrict"));
    }

    #[test]
    fn lists_in_settings_keep_their_quotes_and_texts_get_them() {
        assert_eq!(setting_value("search_path", "\"$user\", public"), "\"$user\", public");
        assert_eq!(setting_value("application_name", "a, b"), "'a, b'");
    }
}
