//! What a gateway is told when it starts, and what can go wrong with that.

use hyper::Uri;
use hyper::http::uri::Authority;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use stillpoint_model::config::{EndpointPart, SyslogAddress};
use stillpoint_model::ids::PartName;
use stillpoint_model::route::Route;

/// What a gateway is told when it starts.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Its name in the environment.
    pub name: PartName,
    /// Where it accepts requests; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where it sends them.
    pub upstream: Upstream,
    /// No hold lasts longer, whatever a coordinator asks for.
    pub max_hold: Duration,
    /// No more requests wait than this; further ones are answered 503.
    pub max_held: usize,
    /// The Unix socket of the control protocol, created with mode 0600. A stale one is replaced
    /// only if nobody answers on it.
    pub control: PathBuf,
    /// Requests that are never held.
    pub pass: Vec<Route>,
    /// Where a proxy asks whether its requests may begin.
    pub endpoint: Option<EndpointPart>,
}

/// The application's address, from `http://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream(Authority);

impl Upstream {
    pub(crate) fn authority(&self) -> &Authority {
        &self.0
    }

    /// Host and port, as the resolver wants them.
    pub(crate) fn host_and_port(&self) -> (String, u16) {
        let host = self.0.host().trim_start_matches('[').trim_end_matches(']');
        (host.to_owned(), self.0.port_u16().unwrap_or(80))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

/// What was wrong with an upstream's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("upstream `{given}` is not valid: {rule}")]
pub struct InvalidUpstream {
    given: String,
    rule: &'static str,
}

impl FromStr for Upstream {
    type Err = InvalidUpstream;

    fn from_str(given: &str) -> Result<Self, InvalidUpstream> {
        let invalid = |rule| InvalidUpstream { given: given.to_owned(), rule };
        let form = "it must have the form http://HOST:PORT";
        let uri: Uri = given.parse().map_err(|_| invalid(form))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(invalid("only http is spoken to the application, not yet https"));
            }
            _ => return Err(invalid(form)),
        }
        if !matches!(uri.path_and_query().map_or("/", |path| path.as_str()), "/" | "") {
            return Err(invalid("it must not have a path: requests keep their own"));
        }
        let authority = uri.authority().ok_or_else(|| invalid(form))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(invalid(form));
        }
        let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        if !port.is_empty() && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(invalid("its port is not a number from 1 to 65535"));
        }
        Ok(Self(authority.clone()))
    }
}

/// Why a gateway could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address for requests could not be taken.
    #[error("could not listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control socket could not be made.
    #[error("could not make the control socket {}", path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another gateway answers on the control socket.
    #[error("another gateway answers on the control socket {}", path.display())]
    ControlTaken {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the control socket's place.
    #[error("{} is in the way of the control socket: it is not a socket", path.display())]
    ControlInTheWay {
        /// The path.
        path: PathBuf,
    },
    /// The socket for a proxy's access log could not be made.
    #[error("could not receive syslog at {address}")]
    Syslog {
        /// The address.
        address: SyslogAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An option makes no sense.
    #[error("{option} must be more than 0")]
    Zero {
        /// Which.
        option: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_host_and_a_port() {
        let upstream: Upstream = "http://127.0.0.1:8080".parse().unwrap();
        assert_eq!(upstream.host_and_port(), ("127.0.0.1".to_owned(), 8080));
        assert_eq!(upstream.to_string(), "http://127.0.0.1:8080");
        let upstream: Upstream = "http://[::1]:81/".parse().unwrap();
        assert_eq!(upstream.host_and_port(), ("::1".to_owned(), 81));
        let upstream: Upstream = "http://app".parse().unwrap();
        assert_eq!(upstream.host_and_port(), ("app".to_owned(), 80));
    }

    #[test]
    fn an_upstream_that_cannot_be_is_refused_with_what_would_be_right() {
        for (given, says) in [
            ("127.0.0.1:8080", "form http://HOST:PORT"),
            ("", "form http://HOST:PORT"),
            ("https://app", "not yet https"),
            ("http://app/base", "must not have a path"),
            ("http://me:secret@app", "form http://HOST:PORT"),
            ("http://app:0", "port"),
            ("http://app:70000", "port"),
        ] {
            let error = given.parse::<Upstream>().unwrap_err().to_string();
            assert!(error.contains(says), "{given}: {error}");
        }
    }
}
