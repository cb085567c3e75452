//! Who logs in, and where: the url, read strictly.
//!
//! What a url asks for and is not done (TLS above all) is refused by name: a session that was meant
//! to be encrypted must never be answered with a plain one. A password in the url is refused as
//! well: it would be shown wherever the url is.

use std::path::PathBuf;

use crate::ServiceError;

/// Where the server listens.
#[derive(Clone)]
pub(super) enum Address {
    Socket(PathBuf),
    Tcp(String, u16),
}

/// Who logs in, and where.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Option<String>,
    pub(super) address: Address,
    pub(super) database: Option<String>,
}

fn refuse(why: impl Into<String>) -> ServiceError {
    ServiceError::new("read the url of the MariaDB service")
        .because(why.into())
        .hint("write \"mysql://USER@HOST:PORT/DATABASE\"")
}

impl Login {
    /// Reads `mysql://USER@HOST[:PORT][/DATABASE][?socket=/PATH]`; all parts may be
    /// percent-encoded.
    pub(super) fn new(url: &str, password: Option<String>) -> Result<Self, ServiceError> {
        let rest = url
            .strip_prefix("mysql://")
            .or_else(|| url.strip_prefix("mariadb://"))
            .ok_or_else(|| refuse("it does not begin with mysql://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, rest) = rest.rsplit_once('@').ok_or_else(|| refuse("it names no user"))?;
        if user.contains(':') {
            return Err(refuse("it holds a password").hint("name it with `password_env`"));
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let address = match socket(query)? {
            Some(path) => Address::Socket(path),
            None => tcp(authority)?,
        };
        let database = (!database.is_empty()).then(|| decoded(database)).transpose()?;
        Ok(Self { user: decoded(user)?, password, address, database })
    }

    /// For messages.
    pub(super) fn shown(&self) -> String {
        match &self.address {
            Address::Socket(path) => format!("{}@{}", self.user, path.display()),
            Address::Tcp(host, port) => format!("{}@{host}:{port}", self.user),
        }
    }
}

/// The socket that a query names. Everything else in it is refused, unless it asks for nothing.
fn socket(query: &str) -> Result<Option<PathBuf>, ServiceError> {
    let mut socket = None;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let plain = ["disabled", "false", "off", "no", "0"];
        match key.to_ascii_lowercase().as_str() {
            "socket" => socket = Some(PathBuf::from(decoded(value)?)),
            "ssl" | "tls" | "sslmode" | "ssl-mode" | "ssl_mode" | "require_ssl" => {
                if !plain.contains(&value.to_ascii_lowercase().as_str()) {
                    return Err(refuse(format!("it asks for TLS (`{part}`)")).hint(
                        "TLS is not supported yet for MariaDB; use a socket, or a tunnel of your own",
                    ));
                }
            }
            _ => return Err(refuse(format!("it asks for `{key}`, which is not known"))),
        }
    }
    Ok(socket)
}

fn tcp(authority: &str) -> Result<Address, ServiceError> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.contains(']') => {
            (host, port.parse().map_err(|_| refuse("its port is not a number"))?)
        }
        _ => (authority, 3306),
    };
    if host.is_empty() {
        return Err(refuse("it names no host"));
    }
    Ok(Address::Tcp(host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

fn decoded(text: &str) -> Result<String, ServiceError> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit(), digit());
        let pair = high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        bytes.push(pair.ok_or_else(|| refuse("a % in it is not followed by two hex digits"))?);
    }
    String::from_utf8(bytes).map_err(|_| refuse("it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::{Address, Login};

    fn read(url: &str) -> Login {
        Login::new(url, None).unwrap_or_else(|e| panic!("{url}: {e:?}"))
    }

    fn refused(url: &str) -> String {
        format!("{:?}", Login::new(url, None).err().expect("it is refused"))
    }

    #[test]
    fn a_url_is_read_with_everything_that_it_may_hold() {
        let login = read("mysql://sh%40p@db:3307/a%20b");
        assert_eq!((login.user.as_str(), login.database.as_deref()), ("sh@p", Some("a b")));
        assert!(matches!(login.address, Address::Tcp(host, 3307) if host == "db"));
        let login = read("mysql://shop@[::1]/shop?ssl-mode=disabled");
        assert!(matches!(login.address, Address::Tcp(host, 3306) if host == "::1"));
        let login = read("mariadb://shop@localhost?socket=/run/my%20sql/s");
        assert!(matches!(login.address, Address::Socket(path) if path.ends_with("my sql/s")));
        assert_eq!(login.database, None);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name_and_a_password_is_never_shown() {
        for asks in ["ssl-mode=required", "tls=true", "sslmode=preferred", "ssl"] {
            let said = refused(&format!("mysql://shop@db/shop?{asks}"));
            assert!(said.contains("TLS") && said.contains(asks), "{said}");
        }
        assert!(refused("mysql://shop@db/shop?compress=1").contains("compress"));
        let said = refused("mysql://shop:s3cret@db/shop");
        assert!(said.contains("password_env") && !said.contains("s3cret"), "{said}");
        assert!(refused("postgres://shop@db/shop").contains("mysql://"));
        assert!(refused("mysql://db/shop").contains("no user"));
        assert!(refused("mysql://shop@db:x/shop").contains("port"));
        assert!(refused("mysql://shop@db/%zz").contains("hex"));
    }
}
