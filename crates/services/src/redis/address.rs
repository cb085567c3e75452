//! Where a server is, and who logs in there. The password is never part of the url, nor of an error's
//! words.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::ServiceError;

const SHAPE: &str = "write \"redis://[USER@]HOST[:PORT]\" or \"redis+unix://[USER@]/PATH\"";

/// Where the server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    Socket(PathBuf),
    Tcp(String, u16),
}

impl Address {
    /// True where the server's files may be on this machine.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Tcp(host, _) => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Who logs in, and where.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) address: Address,
}

impl Login {
    pub(super) fn new(url: &str, password: Option<String>) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new("read the url of the Redis service");
        let refuse = |why: &str| doing().because(why.to_owned()).hint(SHAPE);
        if url.starts_with("rediss://") || url.starts_with("valkeys://") {
            return Err(doing()
                .because("rediss:// (TLS) is not supported yet")
                .hint("give the address of a listener without TLS, or a unix socket"));
        }
        let socket = ["redis+unix://", "valkey+unix://", "unix://"];
        let tcp = ["redis://", "valkey://"];
        let rest_after = |schemes: &[&str]| schemes.iter().find_map(|s| url.strip_prefix(s));
        let (rest, is_socket) = match (rest_after(&socket), rest_after(&tcp)) {
            (Some(rest), _) => (rest, true),
            (None, Some(rest)) => (rest, false),
            (None, None) => return Err(refuse("it does not begin with redis:// or redis+unix://")),
        };
        if rest.contains(['?', '#']) {
            return Err(refuse("it has options, and none is known"));
        }
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(doing()
                .because("it holds a password")
                .hint("leave the password out of the url, and name its variable: password_env"));
        }
        let user = user.filter(|user| !user.is_empty()).map(str::to_owned);
        let address = if is_socket {
            if !rest.starts_with('/') {
                return Err(refuse("it names no absolute path of a socket"));
            }
            Address::Socket(PathBuf::from(rest))
        } else {
            let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
            if !database.is_empty() {
                return Err(doing()
                    .because("it names a database, and the whole server is backed up")
                    .hint(format!("leave \"/{database}\" out of the url")));
            }
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) if !port.contains(']') => {
                    (host, port.parse().map_err(|_| refuse("its port is not a number"))?)
                }
                _ => (authority, 6379),
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if host.is_empty() {
                return Err(refuse("it names no host"));
            }
            Address::Tcp(host.to_owned(), port)
        };
        if user.is_some() && password.is_none() {
            return Err(doing()
                .because("it names a user, and there is no password")
                .hint("name the variable that holds it: password_env"));
        }
        Ok(Self { user, password, address })
    }

    /// The account's name, as the server's access lists know it.
    pub(super) fn account(&self) -> &str {
        self.user.as_deref().unwrap_or("default")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        let error = Login::new(url, Some("secret".to_owned())).err().expect("it is refused");
        format!("{} {}", crate::chain(&error), error.advice().unwrap_or_default())
    }

    #[test]
    fn urls_say_user_and_address_and_nothing_else() {
        let read = |url: &str| {
            let login = Login::new(url, Some("secret".to_owned())).unwrap();
            (login.account().to_owned(), login.address.to_string())
        };
        assert_eq!(read("redis://h"), ("default".to_owned(), "h:6379".to_owned()));
        assert_eq!(
            read("redis://keeper@[::1]:7000/"),
            ("keeper".to_owned(), "::1:7000".to_owned())
        );
        assert_eq!(read("unix:///run/r.sock"), ("default".to_owned(), "/run/r.sock".to_owned()));
        assert_eq!(read("redis+unix://keeper@/r"), ("keeper".to_owned(), "/r".to_owned()));
        assert!(refusal("redis://keeper:secret@h").contains("password_env"));
        assert!(refusal("rediss://h").contains("rediss:// (TLS) is not supported yet"));
        assert!(refusal("redis://h/3").contains("leave \"/3\" out"));
        assert!(refusal("redis://h:x").contains("port"));
        assert!(refusal("http://h").contains("does not begin with"));
        let alone = Login::new("redis://keeper@h", None).err().expect("it is refused");
        assert!(alone.advice().unwrap().contains("password_env"));
    }

    #[test]
    fn only_loopback_and_sockets_are_local() {
        let local = |url: &str| Login::new(url, None).unwrap().address.is_local();
        assert!(local("redis://127.0.0.2") && local("redis://[::1]") && local("unix:///s"));
        assert!(!local("redis://10.0.0.1") && !local("redis://cache"));
    }
}
