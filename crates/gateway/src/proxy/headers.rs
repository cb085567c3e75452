//! What a proxy must change in the headers that pass through it, and nothing else.
//!
//! Hop-by-hop fields (RFC 9110 section 7.6.1) belong to one connection and end here. The guard is
//! against request smuggling and against forged tokens: the in-flight header of a client is taken
//! off whatever it says, and framing is decided anew for each side.

use crate::state::Token;
use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use std::net::{IpAddr, SocketAddr};

/// Carries the token of a request in flight to the application, which sends it back with requests
/// that it makes to its own public address meanwhile.
pub(crate) const IN_FLIGHT: HeaderName = HeaderName::from_static("x-stillpoint-in-flight");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Takes the in-flight token off a client's request.
pub(crate) fn take_token(headers: &mut HeaderMap) -> Option<Token> {
    let value = headers.remove(IN_FLIGHT)?;
    let text = value.to_str().ok()?;
    (text.len() == 32).then(|| Token::from_str_radix(text, 16).ok())?
}

/// The protocol that a message switches to, if it asks for that. `h2c` is not switched to: this
/// proxy speaks HTTP/1.1, and a client that offers `h2c` is content with that.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(UPGRADE)?;
    let connection = connection_tokens(headers);
    let asked = connection.iter().any(|name| name.eq_ignore_ascii_case("upgrade"));
    let h2c = value.as_bytes().eq_ignore_ascii_case(b"h2c");
    (asked && !h2c).then(|| value.clone())
}

/// Makes a client's request headers the application's. `upgrade` is what [`upgrade`] said.
pub(crate) fn to_upstream(
    headers: &mut HeaderMap,
    client: SocketAddr,
    token: Token,
    upgrade: Option<HeaderValue>,
) {
    // Trailers pass if the client takes them; all else in TE belongs to the connection.
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|te| te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")));
    drop_hop_by_hop(headers);
    // The gateway itself says "100 Continue", when the application's side asks for the body.
    headers.remove(EXPECT);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.append(CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(protocol) = upgrade {
        headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    forwarded(headers, client.ip().to_canonical());
    headers.insert(IN_FLIGHT, self::token(token));
}

/// Makes the application's response headers the client's.
pub(crate) fn to_client(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    drop_hop_by_hop(headers);
    headers.remove(IN_FLIGHT);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    for name in connection_tokens(headers) {
        // A client must not be able to take the application's own facts away.
        if let Ok(name) = name.parse::<HeaderName>()
            && name != HOST
            && name != CONTENT_LENGTH
        {
            headers.remove(name);
        }
    }
    if headers.remove(TRANSFER_ENCODING).is_some() {
        // With both, the length is what an attacker hopes the other side believes.
        headers.remove(CONTENT_LENGTH);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, UPGRADE] {
        headers.remove(name);
    }
}

fn connection_tokens(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect()
}

/// Adds this hop. What a proxy in front said is kept; `Forwarded` is added only where it would not
/// hide what such a proxy said in the older fields.
fn forwarded(headers: &mut HeaderMap, client: IpAddr) {
    let behind_older = headers.contains_key(X_FORWARDED_FOR);
    let host = headers.get(HOST).cloned();
    if headers.contains_key(FORWARDED) || !behind_older {
        let node = match client {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("\"[{ip}]\""),
        };
        let mut element = format!("for={node};proto=http");
        if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok())
            && !host.contains(['"', '\\'])
        {
            element.extend([";host=\"", host, "\""]);
        }
        add_to_list(headers, &FORWARDED, &element);
    }
    add_to_list(headers, &X_FORWARDED_FOR, &client.to_string());
    headers.entry(X_FORWARDED_PROTO).or_insert_with(|| HeaderValue::from_static("http"));
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

/// Many applications read only the first line of a field, so the list stays on one.
fn add_to_list(headers: &mut HeaderMap, name: &HeaderName, element: &str) {
    let mut list: Vec<u8> = Vec::new();
    for value in headers.get_all(name) {
        if !list.is_empty() {
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(value.as_bytes());
    }
    if !list.is_empty() {
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name, value);
    }
}

/// A token as it stands in its header.
pub(crate) fn token(token: Token) -> HeaderValue {
    HeaderValue::try_from(format!("{token:032x}")).expect("hexadecimal digits are a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> SocketAddr {
        "192.0.2.7:4321".parse().unwrap()
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn hop_by_hop_fields_and_those_that_connection_names_end_here() {
        let mut headers = map(&[
            ("host", "shop.example"),
            ("connection", "close, X-Private, host, content-length"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("content-length", "3"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
        ]);
        to_upstream(&mut headers, client(), 7, None);
        for gone in
            ["connection", "x-private", "keep-alive", "proxy-connection", "te", "upgrade", "expect"]
        {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!(headers["host"], "shop.example");
        assert_eq!(headers["content-length"], "3");
        assert_eq!(headers["accept"], "*/*");
    }

    #[test]
    fn a_length_beside_a_transfer_encoding_is_not_passed_on() {
        let mut headers = map(&[("transfer-encoding", "chunked"), ("content-length", "3")]);
        to_upstream(&mut headers, client(), 7, None);
        assert!(!headers.contains_key("content-length"));
        assert!(!headers.contains_key("transfer-encoding"));
    }

    #[test]
    fn the_client_is_added_to_what_proxies_before_said() {
        let mut headers = map(&[("host", "shop.example")]);
        to_upstream(&mut headers, client(), 7, None);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "shop.example");
        assert_eq!(headers["forwarded"], "for=192.0.2.7;proto=http;host=\"shop.example\"");

        let mut headers = map(&[
            ("host", "inside"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
        ]);
        to_upstream(&mut headers, client(), 7, None);
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9, 192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "shop.example");
        assert!(!headers.contains_key("forwarded"));
    }

    #[test]
    fn an_ipv6_client_is_quoted_in_forwarded_and_a_mapped_one_is_ipv4() {
        let mut headers = map(&[]);
        to_upstream(&mut headers, "[2001:db8::1]:1".parse().unwrap(), 7, None);
        assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";proto=http");
        let mut headers = map(&[]);
        to_upstream(&mut headers, "[::ffff:192.0.2.7]:1".parse().unwrap(), 7, None);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
    }

    #[test]
    fn a_token_goes_out_as_it_comes_back_and_anything_else_is_stripped() {
        let mut headers = map(&[("x-stillpoint-in-flight", "forged")]);
        assert_eq!(take_token(&mut headers), None);
        assert!(!headers.contains_key(IN_FLIGHT));
        to_upstream(&mut headers, client(), 0xfe, None);
        assert_eq!(take_token(&mut headers), Some(0xfe));
    }

    #[test]
    fn websocket_is_an_upgrade_and_h2c_or_an_unnamed_one_is_not() {
        let websocket = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade(&websocket).unwrap(), "websocket");
        assert!(upgrade(&map(&[("connection", "upgrade"), ("upgrade", "h2c")])).is_none());
        assert!(upgrade(&map(&[("upgrade", "websocket")])).is_none());
    }

    #[test]
    fn trailers_are_offered_on_when_the_client_takes_them() {
        let mut headers = map(&[("te", "gzip, trailers"), ("connection", "te")]);
        to_upstream(&mut headers, client(), 7, None);
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["connection"], "te");
    }
}
