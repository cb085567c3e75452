//! What a proxy says of a request when it asks. A field counts only if it is there exactly once: a
//! second one is the client's, which the proxy should have replaced.

use super::ledger::Name;
use crate::proxy::headers;
use crate::state::{About, Token};
use hyper::header::HeaderName;
use hyper::{HeaderMap, Method, Request, Uri};
use std::net::{IpAddr, SocketAddr};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const TARGET: HeaderName = HeaderName::from_static("x-forwarded-uri");
const UPGRADE: HeaderName = HeaderName::from_static("x-forwarded-upgrade");
const CLIENTS: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A longer id is none.
pub(super) const LONGEST_ID: usize = 128;

/// One question: may this request begin?
pub(super) struct Question {
    /// How the proxy names the request; none if it does not say.
    pub(super) name: Option<Name>,
    pub(super) about: About,
    /// The in-flight token that the request carries.
    pub(super) presented: Option<Token>,
    /// It asks for another protocol, so it may stay open for days.
    pub(super) upgrade: bool,
}

impl Question {
    /// Reads it. `proxy` stands in for a client of which nothing is said.
    pub(super) fn read<B>(request: &mut Request<B>, proxy: SocketAddr) -> Self {
        let presented = headers::take_token(request.headers_mut());
        let upgrade = headers::upgrade(request.headers()).is_some();
        let headers = request.headers();
        let upgrade = upgrade || only(headers, &UPGRADE).is_some_and(|value| !value.is_empty());
        let name = only(headers, &REQUEST_ID).filter(|id| is_id(id)).map(Name::from);
        // What cannot be read matches no exception.
        let method = only(headers, &METHOD).and_then(|method| method.parse().ok());
        let uri = only(headers, &TARGET).and_then(|uri| uri.parse().ok());
        let about = About {
            method: method.unwrap_or(Method::POST),
            uri: uri.unwrap_or_else(|| Uri::from_static("*")),
            client: client(headers).map_or(proxy, |ip| SocketAddr::new(ip, 0)),
        };
        Self { name, about, presented, upgrade }
    }
}

/// Whether this can be the id of a request: something that a line of a log carries unchanged.
pub(super) fn is_id(id: &str) -> bool {
    (1..=LONGEST_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whom the proxy itself saw: the last of the list.
fn client(headers: &HeaderMap) -> Option<IpAddr> {
    let list = headers.get_all(&CLIENTS).iter().next_back()?.to_str().ok()?;
    list.rsplit(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &str)]) -> Question {
        let mut request = Request::get("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        Question::read(&mut request.body(()).unwrap(), "127.0.0.1:5".parse().unwrap())
    }

    #[test]
    fn a_question_names_the_request_that_it_is_about() {
        let question = read(&[
            ("x-request-id", "0a1b"),
            ("x-forwarded-method", "PUT"),
            ("x-forwarded-uri", "/orders/7?card=1"),
            ("x-forwarded-for", "203.0.113.1, 192.0.2.7"),
            ("x-stillpoint-in-flight", "000000000000000000000000000000fe"),
        ]);
        assert_eq!(question.name.as_deref(), Some("0a1b"));
        assert_eq!(question.about.method, Method::PUT);
        assert_eq!(question.about.uri.path(), "/orders/7");
        assert_eq!(question.about.client, "192.0.2.7:0".parse().unwrap());
        assert_eq!(question.presented, Some(0xfe));
        assert!(!question.upgrade);
    }

    #[test]
    fn what_is_said_twice_or_cannot_be_read_is_not_said() {
        let question = read(&[
            ("x-request-id", "mine"),
            ("x-request-id", "theirs"),
            ("x-forwarded-method", "GET"),
            ("x-forwarded-uri", "/healthz"),
            ("x-forwarded-uri", "/orders"),
        ]);
        assert_eq!(question.name, None);
        assert_eq!(question.about.uri.path(), "*");
        for id in ["", "a b", "a\"b", "ä", &"x".repeat(129)] {
            assert_eq!(read(&[("x-request-id", id)]).name, None, "{id}");
        }
    }

    #[test]
    fn an_upgrade_is_seen_where_the_proxy_says_so_or_passes_it_on() {
        assert!(read(&[("x-forwarded-upgrade", "websocket")]).upgrade);
        assert!(read(&[("upgrade", "websocket"), ("connection", "Upgrade")]).upgrade);
        assert!(!read(&[("x-forwarded-upgrade", "")]).upgrade);
    }
}
