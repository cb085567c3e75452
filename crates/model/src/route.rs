//! Which requests a gateway never holds: health checks, by their path.
//!
//! What must never break: a request that writes must not pass during a hold because its path was
//! spelled so that it looks like an exception. So nothing is normalised here. A path that could
//! mean another one to whoever reads it next (percent-encoding, `//`, `.` and `..`, `;`, `\`) is no
//! exception, whatever the patterns say, and only methods that read are: such a request waits like
//! any other, and that is all that it costs.

use std::fmt;
use std::str::FromStr;

/// A pattern of paths: a whole path (`/healthz`), or the beginning of one and a star (`/metrics*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    given: String,
    /// Without the star.
    path: String,
    /// What follows does not matter.
    open: bool,
}

/// Why a pattern cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a path that may pass: {why}")]
pub struct InvalidRoute {
    given: String,
    why: &'static str,
}

impl FromStr for Route {
    type Err = InvalidRoute;

    fn from_str(given: &str) -> Result<Self, InvalidRoute> {
        let refuse = |why| Err(InvalidRoute { given: given.to_owned(), why });
        let (path, open) = match given.strip_suffix('*') {
            Some(path) => (path, true),
            None => (given, false),
        };
        if open && path.bytes().all(|byte| matches!(byte, b'/' | b'*')) {
            return refuse("it is every path, and a gateway that holds nothing proves nothing");
        }
        if !path.starts_with('/') {
            return refuse("it does not begin with `/`");
        }
        if path.contains('*') {
            return refuse("a `*` stands at the end or nowhere");
        }
        if path.contains(['?', '#']) {
            return refuse("a path has no query");
        }
        if !is_plain(path) {
            return refuse(
                "it has `%`, `//`, `..` or the like, and no request that is spelled so may pass",
            );
        }
        Ok(Self { given: given.to_owned(), path: path.to_owned(), open })
    }
}

impl Route {
    /// Whether a request may pass a hold: `path` is its target's, without the query, as it came.
    pub fn lets_pass(&self, method: &str, path: &str) -> bool {
        let reads = matches!(method, "GET" | "HEAD" | "OPTIONS");
        let matches = if self.open { path.starts_with(&self.path) } else { path == self.path };
        reads && matches && is_plain(path)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

/// Whether everybody reads this path alike.
fn is_plain(path: &str) -> bool {
    let characters = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"%;\\".contains(&byte));
    let mut segments = path.split('/').skip(1).peekable();
    characters
        && std::iter::from_fn(|| {
            segments.next().map(|segment| (segment, segments.peek().is_none()))
        })
        .all(|(segment, last)| !matches!(segment, "." | "..") && (last || !segment.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(pattern: &str, method: &str, path: &str) -> bool {
        pattern.parse::<Route>().unwrap().lets_pass(method, path)
    }

    #[test]
    fn a_route_is_a_whole_path_or_the_beginning_of_one() {
        assert!(passes("/healthz", "GET", "/healthz"));
        assert!(!passes("/healthz", "GET", "/healthz/"));
        assert!(!passes("/healthz", "GET", "/healthzz"));
        assert!(!passes("/healthz", "GET", "/"));
        assert!(passes("/", "GET", "/"));
        assert!(!passes("/", "GET", "/orders"));
        assert!(passes("/metrics*", "HEAD", "/metrics"));
        assert!(passes("/metrics*", "GET", "/metrics/db/rows"));
        assert!(!passes("/metrics/*", "GET", "/metrics"));
    }

    #[test]
    fn what_writes_never_passes_by_its_path() {
        for method in ["POST", "PUT", "PATCH", "DELETE", "get", "BREW"] {
            assert!(!passes("/healthz", method, "/healthz"), "{method}");
        }
    }

    #[test]
    fn a_path_that_could_mean_another_one_never_passes() {
        for path in [
            "/public/../orders",
            "/public/%2e%2e/orders",
            "/public/..%2forders",
            "/public/%2E./orders",
            "/public/./x",
            "/public/.",
            "/public/..",
            "/public//orders",
            "//public/x",
            "/public/..;/orders",
            "/public/;a=b",
            "/public/..\\orders",
            "/public/x y",
            "/public/\u{0}",
            "/public/ä",
        ] {
            assert!(!passes("/public/*", "GET", path), "{path}");
        }
        assert!(passes("/public/*", "GET", "/public/..x/.hidden/x.y/"));
    }

    #[test]
    fn a_pattern_that_is_everything_or_nothing_is_refused() {
        for (given, says) in [
            ("*", "every path"),
            ("/*", "every path"),
            ("**", "every path"),
            ("/**", "every path"),
            ("//*", "every path"),
            ("", "begin with `/`"),
            ("healthz", "begin with `/`"),
            ("/a*/b", "at the end"),
            ("/a?b", "no query"),
            ("/a%20b", "may pass"),
            ("/a//b", "may pass"),
            ("/a/../b*", "may pass"),
        ] {
            let said = given.parse::<Route>().unwrap_err().to_string();
            assert!(said.contains(says), "{given}: {said}");
        }
    }
}
