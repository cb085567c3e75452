//! Readers of single values: durations, addresses, URLs, paths. None of their refusals repeats a
//! URL, since it could hold a password.

use super::SyslogAddress;
use crate::route::{InvalidRoute, Route};
use globset::{GlobBuilder, GlobMatcher};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a value cannot be, and what could.
pub(super) struct Refusal {
    pub(super) problem: String,
    pub(super) hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn unsupported(what: &str) -> Self {
        Self::new(format!("{what} is not supported by this version yet"))
            .hint("remove it if backups may do without it")
    }

    pub(super) fn password() -> Self {
        Self::new("a password does not belong in this file").hint(
            "take it out of the URL, put it into an environment variable, and name that with \
             `password_env`",
        )
    }

    pub(super) fn not_one_of(given: &str, known: &[&str]) -> Self {
        let one_of = format!("one of: {}", list_of(known));
        Self::new(format!("`{given}` is not a value that this key can have")).hint(
            match closest(given, known) {
                Some(near) => format!("did you mean `{near}`? It is {one_of}"),
                None => format!("it is {one_of}"),
            },
        )
    }
}

/// `a, b, c`.
pub(super) fn list_of(words: &[&str]) -> String {
    words.join(", ")
}

/// The known word that was probably meant.
pub(super) fn closest<'w>(given: &str, known: &[&'w str]) -> Option<&'w str> {
    let given = given.to_lowercase().replace('-', "_");
    let (distance, near) =
        known.iter().map(|word| (edit_distance(&given, word), *word)).min_by_key(|pair| pair.0)?;
    let limit = 1 + near.len() / 4;
    (distance <= limit && distance < near.len()).then_some(near)
}

/// How many insertions, removals, replacements and swaps of neighbours lead from `a` to `b`
/// (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut cost = (last[j - 1] + usize::from(a[i - 1] != b[j - 1]))
                .min(last[j] + 1)
                .min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                cost = cost.min(before[j - 2] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// `10s`, `500ms`, `2m`, `1h`, `1m30s`; more than nothing.
pub(super) fn duration(given: &str) -> Result<Duration, Refusal> {
    let invalid =
        || Refusal::new(format!("`{given}` is not a duration")).hint("write 10s, 500ms, 2m or 1h");
    let mut total = Duration::ZERO;
    let mut rest = given;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (count, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(invalid()),
        };
        let count: u64 = count.parse().map_err(|_| invalid())?;
        let part = count.checked_mul(milliseconds).ok_or_else(invalid)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(invalid)?;
        rest = after;
    }
    if total.is_zero() {
        return Err(Refusal::new("must be more than 0").hint("write 10s, 500ms, 2m or 1h"));
    }
    Ok(total)
}

/// `50MB/s`: bytes in a second; more than nothing.
pub(super) fn rate(given: &str) -> Result<NonZeroU64, Refusal> {
    let invalid = || {
        Refusal::new(format!("`{given}` is not a rate"))
            .hint("write 50MB/s or 500kB/s; MiB and KiB are known as well")
    };
    let amount = given.strip_suffix("/s").ok_or_else(invalid)?;
    let digits = amount.find(|c: char| !c.is_ascii_digit()).unwrap_or(amount.len());
    let (count, unit) = amount.split_at(digits);
    let unit: u64 = match unit.trim_start() {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(invalid()),
    };
    let count: u64 = count.parse().map_err(|_| invalid())?;
    let rate = count.checked_mul(unit).ok_or_else(invalid)?;
    NonZeroU64::new(rate)
        .ok_or_else(|| Refusal::new("must be more than 0").hint("leave `rate` out for no limit"))
}

/// `ADDRESS:PORT` to listen at.
pub(super) fn listen(given: &str) -> Result<SocketAddr, Refusal> {
    given.parse().map_err(|_| {
        let port = given.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        let port = port.unwrap_or(8000);
        Refusal::new(format!("`{given}` is not an IP address with a port")).hint(format!(
            "write \"127.0.0.1:{port}\" for this host only, \"0.0.0.0:{port}\" for every network"
        ))
    })
}

/// A path that passes a hold.
pub(super) fn route(given: &str) -> Result<Route, Refusal> {
    given.parse().map_err(|error: InvalidRoute| {
        Refusal::new(error.to_string()).hint("write \"/healthz\", or \"/metrics*\"")
    })
}

/// Where syslog is received: `unixgram:/PATH` or `udp:ADDRESS:PORT`.
pub(super) fn syslog(given: &str) -> Result<SyslogAddress, Refusal> {
    let refuse = |problem: &str| {
        Refusal::new(problem)
            .hint("write \"unixgram:/run/stillpoint/log.sock\" or \"udp:127.0.0.1:8514\"")
    };
    if let Some(path) = given.strip_prefix("unixgram:") {
        // What the kernel takes for a socket's path.
        return if path.starts_with('/') && path.len() < 108 && !path.contains('\0') {
            Ok(SyslogAddress::Unix(path.into()))
        } else {
            Err(refuse("a socket's path is absolute, and shorter than 108 bytes"))
        };
    }
    let Some(address) = given.strip_prefix("udp:") else {
        return Err(refuse("this is not an address for syslog"));
    };
    address
        .parse()
        .map(SyslogAddress::Udp)
        .map_err(|_| refuse(&format!("`{address}` is not an IP address with a port")))
}

/// The application's address, `http://HOST[:PORT]`. The gateway's own reading agrees with this.
pub(super) fn upstream(given: &str) -> Result<String, Refusal> {
    let form = "write \"http://HOST:PORT\"";
    let Some(rest) = given.strip_prefix("http://") else {
        return Err(if given.starts_with("https://") {
            Refusal::unsupported("https to the application").hint(form)
        } else {
            Refusal::new("this is not the URL of a web application").hint(form)
        });
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err(Refusal::new("an upstream has no path: requests keep their own").hint(form));
    }
    let (host, port) = host_and_port(rest).map_err(|refusal| refusal.hint(form))?;
    if host.is_empty() || port == Some(0) {
        return Err(Refusal::new("the URL lacks a host, or its port is 0").hint(form));
    }
    Ok(given.to_owned())
}

fn host_and_port(authority: &str) -> Result<(&str, Option<u16>), Refusal> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "-._~%:".contains(c);
    if !host.chars().all(valid) {
        return Err(Refusal::new("the URL's host has characters that no host has"));
    }
    let port = match port {
        None => None,
        Some(port) => Some(
            port.parse()
                .map_err(|_| Refusal::new("the URL's port is not a number from 1 to 65535"))?,
        ),
    };
    Ok((host, port))
}

/// A PostgreSQL URL without a password. The name of the database in it, if any, comes with it.
pub(super) fn postgresql_url(given: &str) -> Result<(String, Option<String>), Refusal> {
    database_url(
        given,
        &["postgres://", "postgresql://"],
        "host",
        "this is not a PostgreSQL URL",
        "write \"postgres://USER@HOST:PORT/DATABASE\"",
    )
}

/// The same of a MariaDB or MySQL URL.
pub(super) fn mariadb_url(given: &str) -> Result<(String, Option<String>), Refusal> {
    database_url(
        given,
        &["mysql://", "mariadb://"],
        "socket",
        "this is not a MariaDB or MySQL URL",
        "write \"mysql://USER@HOST:PORT/DATABASE\"",
    )
}

/// `SCHEME://USER@HOST[:PORT][/DATABASE][?...]`; with the parameter `elsewhere` the host may be
/// missing.
fn database_url(
    given: &str,
    schemes: &[&str],
    elsewhere: &str,
    other: &str,
    form: &str,
) -> Result<(String, Option<String>), Refusal> {
    let refuse = |problem: &str| Refusal::new(problem).hint(form);
    let rest = schemes
        .iter()
        .find_map(|scheme| given.strip_prefix(scheme))
        .ok_or_else(|| refuse(other))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // A password may hold a `/` that should have been escaped: look for the last `@`.
    let (user, rest) = rest.rsplit_once('@').ok_or_else(|| refuse("the URL names no user"))?;
    let parameter = |name: &str| {
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)
    };
    if user.contains(':') || parameter("password").is_some() {
        return Err(Refusal::password());
    }
    if user.is_empty() || user.contains('/') {
        return Err(refuse("the URL names no user"));
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains(',') {
        return Err(refuse("the URL names several hosts; a backup is of one server"));
    }
    let (host, port) = host_and_port(authority).map_err(|refusal| refusal.hint(form))?;
    if host.is_empty() && parameter(elsewhere).is_none() {
        return Err(refuse("the URL names no host"));
    }
    if port == Some(0) {
        return Err(refuse("the URL's port is not a number from 1 to 65535"));
    }
    if database.contains('/') {
        return Err(refuse("the URL's path is more than a database's name"));
    }
    let database = (!database.is_empty()).then(|| database.to_owned());
    Ok((given.to_owned(), database))
}

/// A Redis or Valkey URL without a password: of a server, with all its databases.
pub(super) fn redis_url(given: &str) -> Result<String, Refusal> {
    let form = "write \"redis://HOST:PORT\", or \"redis+unix:///PATH\" for a socket";
    let refuse = |problem: &str| Refusal::new(problem).hint(form);
    if given.starts_with("rediss://") || given.starts_with("valkeys://") {
        return Err(Refusal::unsupported("TLS to Redis").hint(form));
    }
    let after = |schemes: &[&str]| schemes.iter().find_map(|s| given.strip_prefix(s));
    let socket = after(&["redis+unix://", "valkey+unix://", "unix://"]);
    let rest = socket
        .or_else(|| after(&["redis://", "valkey://"]))
        .ok_or_else(|| refuse("this is not a Redis URL"))?;
    let (user, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    if user.contains(':') {
        return Err(Refusal::password());
    }
    if rest.contains(['?', '#']) {
        return Err(refuse("the URL has options, and none is known"));
    }
    if socket.is_some() {
        let absolute = rest.starts_with('/');
        return if absolute {
            Ok(given.to_owned())
        } else {
            Err(refuse("a socket's path is absolute"))
        };
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if !database.is_empty() {
        return Err(refuse("the whole server is backed up: the URL names no database"));
    }
    let (host, port) = host_and_port(authority).map_err(|refusal| refusal.hint(form))?;
    if host.is_empty() || port == Some(0) {
        return Err(refuse("the URL lacks a host, or its port is 0"));
    }
    Ok(given.to_owned())
}

/// An etcd URL without a password: of a server, with all its keys.
pub(super) fn etcd_url(given: &str) -> Result<String, Refusal> {
    let form = "write \"http://HOST:PORT\", or \"http://USER@HOST:PORT\"";
    let refuse = |problem: &str| Refusal::new(problem).hint(form);
    if given.starts_with("https://") {
        return Err(Refusal::unsupported("TLS to etcd").hint(form));
    }
    let rest = given.strip_prefix("http://").ok_or_else(|| refuse("this is not an etcd URL"))?;
    let (user, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    if user.contains(':') {
        return Err(Refusal::password());
    }
    if rest.contains(',') {
        return Err(refuse("the URL names several hosts; any one of the cluster will do"));
    }
    let (host, port) =
        host_and_port(rest.trim_end_matches('/')).map_err(|refusal| refusal.hint(form))?;
    if host.is_empty() || host.contains(['/', '?', '#']) || port == Some(0) {
        return Err(refuse("the URL is not HOST:PORT alone"));
    }
    Ok(given.to_owned())
}

/// The name of an environment variable. What was given is not repeated: it may be the secret
/// itself.
pub(super) fn variable_name(given: &str) -> Result<String, Refusal> {
    let mut bytes = given.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if valid {
        return Ok(given.to_owned());
    }
    Err(Refusal::new("this is not the name of an environment variable")
        .hint("write the variable's name, like SHOP_DB_PASSWORD, not its value, and no `$`"))
}

/// A location's URL: for now an absolute `file://` one.
pub(super) fn directory_url(given: &str) -> Result<PathBuf, Refusal> {
    let form = "write \"file:///PATH\"";
    let Some(rest) = given.strip_prefix("file://") else {
        return Err(match given.split_once("://") {
            Some((scheme @ ("s3" | "gs" | "az" | "rest" | "http" | "https" | "sftp"), _)) => {
                Refusal::unsupported(&format!("a location at `{scheme}://`"))
                    .hint(format!("{form}: a directory, which may be a mounted file system"))
            }
            _ => Refusal::new("this is not the URL of a location").hint(form),
        });
    };
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(Refusal::new("a file URL has an absolute path").hint(form));
    }
    percent_decoded(path)
        .map(PathBuf::from)
        .ok_or_else(|| Refusal::new("the URL has a `%` that is not followed by two digits"))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            decoded.push((digit(rest.next())? * 16 + digit(rest.next())?) as u8);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// A path, as it stands.
pub(super) fn path(given: &str) -> Result<PathBuf, Refusal> {
    if given.contains('\0') {
        return Err(Refusal::new("a path has no zero bytes"));
    }
    if given.starts_with('~') {
        return Err(Refusal::new("`~` is a shell's word, not a directory")
            .hint("write the whole path, or one relative to this file"));
    }
    Ok(PathBuf::from(given))
}

/// A pattern of a mount's `exclude`. Read as the capture reads it: without a `/` it matches a name
/// at any depth, with one the path from the mount's top; `*` does not match `/`.
pub(super) fn pattern(given: &str) -> Result<GlobMatcher, Refusal> {
    let trimmed = given.trim_start_matches('/').trim_end_matches('/');
    let invalid = |why: &str| {
        Refusal::new(format!("`{given}` is not a pattern: {why}"))
            .hint("write a name (\"*.tmp\") or a path from the mount's top (\"cache/**\")")
    };
    if trimmed.is_empty() {
        return Err(invalid("it is empty"));
    }
    let glob = GlobBuilder::new(trimmed).literal_separator(true).build();
    Ok(glob.map_err(|error| invalid(&error.kind().to_string()))?.compile_matcher())
}

/// Whether patterns leave out the file `relative` to the mount, or a directory that it is in.
pub(super) fn excludes(patterns: &[String], relative: &Path) -> bool {
    let leaves_out = |given: &String, path: &Path| {
        let Ok(matcher) = pattern(given) else { return false };
        if given.trim_end_matches('/').contains('/') {
            matcher.is_match(path)
        } else {
            path.file_name().is_some_and(|name| matcher.is_match(name))
        }
    };
    relative.ancestors().any(|path| patterns.iter().any(|given| leaves_out(given, path)))
}
