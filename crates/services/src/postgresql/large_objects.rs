//! Large objects: all of a database as one text of SQL statements, a statement a line.
//!
//! The same reader writes the file of a capture, from the session that has the mark's snapshot, and
//! is read again for the verification, from the loaded database: contents, owners, grants and
//! comments are compared at once, by the sum of the lines. So a line must depend on the object
//! alone: not on the order of grants, nor on who had given them.
//!
//! Memory stays bounded: an object's content is read in pieces, however large it is. Only a
//! superuser may read the table that they lie in; `lo_get` is for everyone who may read the object,
//! and reads in the transaction's snapshot.

use std::io::{self, BufRead, BufReader, Read};

use postgres::Client;

use super::names::literal;
use crate::ServiceError;

/// Objects asked for in one query.
const BATCH: i64 = 64;
/// So much of each comes with it.
const FIRST: i32 = 64 << 10;
/// Larger ones are read on in pieces of this size.
const PIECE: i32 = 1 << 20;
/// Statements run at once while loading. Each object is locked for as long as those last, and the
/// server has room for some thousands of locks.
const STATEMENTS: usize = 400;
/// The same, in bytes of their text.
const TEXT: usize = 4 << 20;

/// Which ones this session's role may read, as the server itself decides it.
const READABLE: &str = "\
    (current_setting('is_superuser')::boolean OR current_setting('lo_compat_privileges')::boolean \
     OR EXISTS (SELECT FROM aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) a \
                WHERE a.privilege_type = 'SELECT' \
                AND CASE WHEN a.grantee = 0 THEN true ELSE pg_has_role(a.grantee, 'USAGE') END))";

/// How many large objects there are in this database. Anyone may count them.
pub(super) fn count(client: &mut Client) -> Result<i64, postgres::Error> {
    Ok(client.query_one("SELECT count(*) FROM pg_largeobject_metadata", &[])?.get(0))
}

/// Their owners.
pub(super) fn owners(client: &mut Client) -> Result<Vec<String>, postgres::Error> {
    let query = "SELECT DISTINCT pg_get_userbyid(lomowner)::text FROM pg_largeobject_metadata";
    Ok(client.query(query, &[])?.iter().map(|row| row.get(0)).collect())
}

/// Those that this role may not read, as (whose they are and how many, the statement that lets
/// `user`, quoted, read them).
pub(super) fn unreadable(
    client: &mut Client,
    user: &str,
) -> Result<Vec<(String, String)>, postgres::Error> {
    let rows = client.query(
        &format!(
            "SELECT r.rolname::text, quote_ident(r.rolname), r.rolsuper, count(*), min(m.oid) \
             FROM pg_largeobject_metadata m JOIN pg_roles r ON r.oid = m.lomowner \
             WHERE NOT {READABLE} GROUP BY 1, 2, 3 ORDER BY 1"
        ),
        &[],
    )?;
    let named = |row: &postgres::Row| {
        let (owner, quoted): (String, String) = (row.get(0), row.get(1));
        let (superuser, count, first): (bool, i64, u32) = (row.get(2), row.get(3), row.get(4));
        // To be a member of a superuser is to be one.
        let statement = if superuser {
            format!("GRANT SELECT ON LARGE OBJECT {first} TO {user}; and so for each")
        } else {
            format!("GRANT {quoted} TO {user}")
        };
        (format!("{count} large objects of `{owner}`"), statement)
    };
    Ok(rows.iter().map(named).collect())
}

/// One object, of which nothing but content may be still to come.
struct Object {
    oid: u32,
    /// How much of it is written.
    offset: i64,
    /// What is to follow its content.
    tail: String,
}

/// All large objects of a session's database, as this text.
pub(super) struct Dump<'c> {
    client: &'c mut Client,
    /// The last one that was asked for.
    last: Option<u32>,
    /// Those of the last batch that are to be written yet, in their reversed order, with what came
    /// of their content.
    batch: Vec<(Object, Vec<u8>)>,
    /// The one that is being read on.
    current: Option<Object>,
    text: Vec<u8>,
    /// How much of `text` was given out.
    given: usize,
}

impl<'c> Dump<'c> {
    pub(super) fn new(client: &'c mut Client) -> Self {
        Self { client, last: None, batch: Vec::new(), current: None, text: Vec::new(), given: 0 }
    }

    /// Brings more text. None came: the end.
    fn advance(&mut self) -> Result<(), postgres::Error> {
        self.text.clear();
        self.given = 0;
        if let Some(object) = self.current.take() {
            let query = "SELECT lo_get($1, $2, $3)";
            let row = self.client.query_one(query, &[&object.oid, &object.offset, &PIECE])?;
            self.write(object, row.get(0), PIECE);
            return Ok(());
        }
        if self.batch.is_empty() {
            self.ask()?;
        }
        if let Some((object, first)) = self.batch.pop() {
            self.line(&format!("SELECT pg_catalog.lo_create('{}')", object.oid));
            self.write(object, &first, FIRST);
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<(), postgres::Error> {
        let rows = self.client.query(
            "SELECT m.oid, lo_get(m.oid, 0, $2), quote_ident(pg_get_userbyid(m.lomowner)), \
             m.lomacl IS NOT NULL, obj_description(m.oid, 'pg_largeobject'), \
             ARRAY(SELECT format('GRANT %s ON LARGE OBJECT %s TO %s%s', a.privilege_type, m.oid, \
                   CASE WHEN a.grantee = 0 THEN 'PUBLIC' \
                   ELSE quote_ident(pg_get_userbyid(a.grantee)) END, \
                   CASE WHEN bool_or(a.is_grantable) THEN ' WITH GRANT OPTION' ELSE '' END) \
                   COLLATE \"C\" FROM aclexplode(m.lomacl) a \
                   GROUP BY a.privilege_type, a.grantee ORDER BY 1) \
             FROM pg_largeobject_metadata m WHERE $1::oid IS NULL OR m.oid > $1 \
             ORDER BY m.oid LIMIT $3",
            &[&self.last, &FIRST, &BATCH],
        )?;
        for row in rows.iter().rev() {
            let (oid, owner): (u32, String) = (row.get(0), row.get(2));
            let mut tail = vec![format!("ALTER LARGE OBJECT {oid} OWNER TO {owner}")];
            if row.get(3) {
                tail.push(format!("REVOKE ALL ON LARGE OBJECT {oid} FROM {owner}"));
                tail.extend(row.get::<_, Vec<String>>(5));
            }
            if let Some(comment) = row.get::<_, Option<String>>(4) {
                let comment = one_line(&comment);
                tail.push(format!("COMMENT ON LARGE OBJECT {oid} IS {comment}"));
            }
            let tail = tail.join(";\n") + ";\n";
            self.batch.push((Object { oid, offset: 0, tail }, row.get(1)));
        }
        self.last = rows.last().map(|row| row.get(0)).or(self.last);
        Ok(())
    }

    /// Writes a piece of an object that was asked for with so many bytes. A shorter one is the
    /// last; holes read as zeros.
    fn write(&mut self, mut object: Object, piece: &[u8], asked: i32) {
        if !piece.is_empty() {
            let head =
                format!("SELECT pg_catalog.lo_put('{}', {}, '\\x", object.oid, object.offset);
            self.text.reserve(head.len() + piece.len() * 2 + 8);
            self.text.extend(head.as_bytes());
            for byte in piece {
                self.text.push(b"0123456789abcdef"[usize::from(byte >> 4)]);
                self.text.push(b"0123456789abcdef"[usize::from(byte & 15)]);
            }
            self.line("')");
        }
        if i32::try_from(piece.len()) == Ok(asked) {
            object.offset += i64::from(asked);
            self.current = Some(object);
        } else {
            self.text.extend(object.tail.as_bytes());
        }
    }

    fn line(&mut self, text: &str) {
        self.text.extend(text.as_bytes());
        self.text.extend(b";\n");
    }
}

impl Read for Dump<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.text.len() {
            self.advance().map_err(io::Error::other)?;
        }
        let count = (&self.text[self.given..]).read(buffer)?;
        self.given += count;
        Ok(count)
    }
}

/// A string constant without a line break in it.
fn one_line(text: &str) -> String {
    let constant = literal(text);
    if !constant.contains(['\n', '\r']) {
        return constant;
    }
    let escaped = constant.replace('\n', "\\n").replace('\r', "\\r");
    if escaped.trim_start().starts_with('E') { escaped } else { format!(" E{escaped}") }
}

/// Runs the captured statements.
pub(super) fn load(
    client: &mut Client,
    content: impl Read,
    doing: &str,
) -> Result<(), ServiceError> {
    let fail = || ServiceError::new(doing);
    let mut content = BufReader::with_capacity(1 << 16, content);
    let mut text = String::new();
    let mut count = 0;
    loop {
        let read = content.read_line(&mut text).map_err(|e| fail().because(e))?;
        count += usize::from(read > 0);
        if (read == 0 && count > 0) || count >= STATEMENTS || text.len() >= TEXT {
            client.batch_execute(&text).map_err(|e| fail().because(e))?;
            text.clear();
            count = 0;
        }
        if read == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_constant_stays_on_its_line_and_keeps_what_it_says() {
        assert_eq!(one_line("a 'b'"), "'a ''b'''");
        assert_eq!(one_line("a\nb"), " E'a\\nb'");
        assert_eq!(one_line("a\\n\r\nb"), " E'a\\\\n\\r\\nb'");
    }
}
