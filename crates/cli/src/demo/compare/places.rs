//! Reading what each place holds, through that place's own client, and saying of every order
//! whether it is what its number stands for. Nothing here goes through the shop.

mod mariadb;
mod postgres;
mod redis;

pub(super) use mariadb::{client as mariadb_client, read as mariadb};
pub(super) use postgres::{psql, read as postgres};
pub(super) use redis::{flush as redis_flush, read as redis};

use crate::demo::shop::{BoxError, Order};
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long to wait for a lock on the SQLite database.
const BUSY: Duration = Duration::from_secs(10);

/// What one place holds.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Its name: `sqlite`, `postgresql`, `mariadb`, `redis`, `uploads`.
    pub(super) name: &'static str,
    /// Every order found, with what is wrong with it.
    pub(super) orders: BTreeMap<u64, Option<String>>,
    /// What is wrong with the place itself.
    pub(super) oddities: Vec<String>,
}

impl Place {
    fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    fn add(&mut self, found: &Order) {
        let wrong = differs(found, &Order::numbered(found.number));
        if self.orders.insert(found.number, wrong).is_some() {
            self.oddities
                .push(format!("order {} is in {} more than once", found.number, self.name));
        }
    }
}

fn differs(found: &Order, right: &Order) -> Option<String> {
    let (found, right) = (&found.body, &right.body);
    if found.customer != right.customer {
        Some(format!("the customer is {:?} instead of {:?}", found.customer, right.customer))
    } else if found.item != right.item {
        Some(format!("the item is {:?} instead of {:?}", found.item, right.item))
    } else if found.amount != right.amount {
        Some(format!("the amount is {} instead of {}", found.amount, right.amount))
    } else {
        None
    }
}

/// Runs a server's client, without whatever settings of its own the account has that runs the
/// demo: they must not reach the demo's server. Writes `input` to it and returns what it prints.
fn run(name: &str, command: &mut Command, input: String) -> Result<String, BoxError> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("start {name}: {error}"))?;
    let stdin = child.stdin.take();
    // Beside the reading: neither side ever waits for the other's buffer.
    let writer = std::thread::spawn(move || {
        // A client that ends early says why.
        stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()))
    });
    let output = child.wait_with_output();
    let written = writer.join().map_err(|_| format!("write to {name}"))?;
    let output = output.map_err(|error| format!("run {name}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name} ended with {}: {}", output.status, said.trim()).into());
    }
    written.map_err(|error| format!("write to {name}: {error}"))?;
    // A text that was mangled is told with its order, not as an unreadable place.
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command in an environment of its own.
fn client(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C")]);
    command
}

/// Opens the SQLite database read-only and reads all its orders.
pub(super) fn sqlite(path: &Path) -> Result<Place, BoxError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    let mut place = Place::new("sqlite");
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if check != "ok" {
        place.oddities.push(format!("sqlite says of itself: {check}"));
    }
    let mut statement = connection.prepare("SELECT number, customer, item, amount FROM orders")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let number = row.get::<_, i64>(0)?.cast_unsigned();
        let body = crate::demo::shop::Body {
            customer: row.get(1)?,
            item: row.get(2)?,
            amount: row.get(3)?,
        };
        place.add(&Order { number, body });
    }
    Ok(place)
}

/// Reads every file of the uploads directory, without what is Stillpoint's own
/// (`.stillpoint-*`). Returns the files that are no confirmations too, by their path.
pub(super) fn uploads(root: &Path) -> Result<(Place, BTreeMap<PathBuf, Vec<u8>>), BoxError> {
    let mut place = Place::new("uploads");
    let mut others = BTreeMap::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let above = root.join(&directory);
        for entry in fs::read_dir(&above).map_err(|error| at(&above, &error))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            // At the top only: that is where a restore keeps what it puts aside.
            if path.as_os_str().as_encoded_bytes().starts_with(b".stillpoint-") {
                continue;
            }
            if entry.file_type()?.is_dir() {
                directories.push(path);
                continue;
            }
            let content = fs::read(root.join(&path)).map_err(|error| at(&path, &error))?;
            match confirmed(&path) {
                Some(number) => {
                    let right = Order::numbered(number).confirmation();
                    let wrong = (content != right.as_bytes()).then(|| {
                        format!("{} holds {} bytes, not its {}", path.display(), content.len(), {
                            right.len()
                        })
                    });
                    place.orders.insert(number, wrong);
                }
                None => {
                    others.insert(path, content);
                }
            }
        }
    }
    Ok((place, others))
}

fn at(path: &Path, error: &std::io::Error) -> String {
    format!("read {}: {error}", path.display())
}

/// The number of the order whose confirmation has exactly this path.
fn confirmed(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let number = name.strip_prefix("order-")?.strip_suffix(".txt")?.parse().ok()?;
    (Path::new(&Order::numbered(number).path()) == path).then_some(number)
}
