//! What the account may do, as `SHOW GRANTS` tells it: its own privileges and those of the roles
//! that are set.

use mysql::Conn;
use mysql::prelude::Queryable;

use crate::ServiceError;

/// One line of `SHOW GRANTS`.
#[derive(Debug, PartialEq, Eq)]
struct Grant {
    privileges: Vec<String>,
    /// `*`, or a database's name as a pattern.
    database: String,
    /// `*`, or a table's name.
    object: String,
}

/// The account with its grants.
pub(super) struct Held {
    /// `user@host`, as definers are written.
    pub(super) account: String,
    grants: Vec<Grant>,
}

impl Held {
    pub(super) fn read(session: &mut Conn) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new("read the account's own privileges");
        let account: Option<String> =
            session.query_first("SELECT CURRENT_USER()").map_err(|e| doing().because(e))?;
        let lines: Vec<String> = session.query("SHOW GRANTS").map_err(|e| doing().because(e))?;
        let grants = lines.iter().filter_map(|line| parse(line)).collect();
        Ok(Self { account: account.unwrap_or_default(), grants })
    }

    /// The account as GRANT takes it.
    pub(super) fn grantee(&self) -> String {
        let (user, host) = self.account.rsplit_once('@').unwrap_or((&self.account, "%"));
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        format!("{}@{}", quoted(user), quoted(host))
    }

    pub(super) fn globally(&self, right: &str) -> bool {
        let global = self.grants.iter().filter(|g| g.database == "*" && g.object == "*");
        global.into_iter().any(|grant| grant.gives(right))
    }

    /// On a whole database. Where a grant names the very database, the server looks at no patterns.
    pub(super) fn on(&self, database: &str, right: &str) -> bool {
        let of_databases = || self.grants.iter().filter(|g| g.database != "*" && g.object == "*");
        let exact: Vec<&Grant> = of_databases()
            .filter(|grant| plain(&grant.database) == Some(database.into()))
            .collect();
        self.globally(right)
            || if exact.is_empty() {
                of_databases().any(|g| matches(&g.database, database) && g.gives(right))
            } else {
                exact.iter().any(|grant| grant.gives(right))
            }
    }

    pub(super) fn on_table(&self, database: &str, table: &str, right: &str) -> bool {
        self.on(database, right)
            || self.grants.iter().any(|grant| {
                grant.database == database && grant.object == table && grant.gives(right)
            })
    }
}

impl Grant {
    fn gives(&self, right: &str) -> bool {
        self.privileges.iter().any(|held| held == right || held == "ALL PRIVILEGES")
    }
}

/// `GRANT SELECT, SHOW VIEW ON ``shop``.* TO ...`; none for a line that grants a role or the like.
fn parse(line: &str) -> Option<Grant> {
    let rest = line.strip_prefix("GRANT ")?;
    let (privileges, rest) = rest.split_once(" ON ")?;
    let (database, rest) = identifier(rest)?;
    let (object, _) = identifier(rest.strip_prefix('.')?)?;
    let privileges = privileges.split(", ").map(str::to_ascii_uppercase).collect();
    Some(Grant { privileges, database, object })
}

/// A name, quoted or `*`, and what follows it.
fn identifier(text: &str) -> Option<(String, &str)> {
    if let Some(rest) = text.strip_prefix('*') {
        return Some(("*".to_owned(), rest));
    }
    let inner = text.strip_prefix('`')?;
    let mut name = String::new();
    let mut letters = inner.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        if letter == '`' && letters.next_if(|(_, next)| *next == '`').is_none() {
            return Some((name, &inner[at + 1..]));
        }
        name.push(letter);
    }
    None
}

/// The name that a pattern without wildcards means.
fn plain(pattern: &str) -> Option<String> {
    let mut name = String::new();
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if letters.peek().is_some() => name.extend(letters.next()),
            // A lone `_` is a wildcard that most people mean as itself.
            '%' => return None,
            other => name.push(other),
        }
    }
    Some(name)
}

/// As the server matches names of databases: `%`, `_`, and `\` before what is meant as itself.
fn matches(pattern: &str, name: &str) -> bool {
    fn from(pattern: &[char], name: &[char]) -> bool {
        match pattern {
            [] => name.is_empty(),
            ['%', rest @ ..] => (0..=name.len()).any(|skip| from(rest, &name[skip..])),
            ['_', rest @ ..] => !name.is_empty() && from(rest, &name[1..]),
            ['\\', letter, rest @ ..] | [letter, rest @ ..] => {
                name.first() == Some(letter) && from(rest, &name[1..])
            }
        }
    }
    let letters = |text: &str| text.chars().collect::<Vec<_>>();
    from(&letters(pattern), &letters(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(lines: &[&str]) -> Held {
        let grants = lines.iter().filter_map(|line| parse(line)).collect();
        Held { account: "o'neil@%".to_owned(), grants }
    }

    #[test]
    fn grants_are_read_as_the_server_means_them() {
        let held = held(&[
            "GRANT `r` TO `p`@`localhost`",
            "GRANT RELOAD, SET USER ON *.* TO `p`@`localhost` IDENTIFIED BY PASSWORD '*X ON `a`.*'",
            "GRANT ALL PRIVILEGES ON `stillpoint\\_%`.* TO `p`@`localhost`",
            "GRANT SELECT, SHOW VIEW ON `a``b`.* TO `p`@`localhost` WITH GRANT OPTION",
            "GRANT SELECT ON `mysql`.`proc` TO `p`@`localhost`",
            "GRANT EVENT ON `shop_1`.* TO `p`@`localhost`",
            "GRANT ALL PRIVILEGES ON `shop%`.* TO `p`@`localhost`",
        ]);
        assert_eq!(held.grantee(), "'o\\'neil'@'%'");
        assert!(held.globally("SET USER") && !held.globally("SELECT"));
        assert!(held.on("stillpoint_x_0_new", "DROP") && !held.on("stillpointx", "DROP"));
        assert!(held.on("a`b", "SHOW VIEW") && !held.on("a`b", "EVENT"));
        assert!(held.on("a`b", "RELOAD"), "a global privilege holds everywhere");
        assert!(held.on_table("mysql", "proc", "SELECT") && !held.on("mysql", "SELECT"));
        assert!(!held.on("shop_1", "SELECT"), "the server takes the grant that names it alone");
        assert!(held.on("shop_2", "SELECT"));
    }
}
