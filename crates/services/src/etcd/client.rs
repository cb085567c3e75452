//! A client of etcd's JSON gateway: calls, tokens, and what the server says when it refuses.
//!
//! The password leaves this module only in the call that logs in, and no error shows it. Tokens run
//! out after some minutes without a call; then a new one is got, once a call.

use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;

use super::entry::{OURS, encode};
use crate::ServiceError;

const SHAPE: &str = "write \"http://[USER@]HOST[:PORT]\"";
/// Where a server listens if nothing else is said.
const PORT: u16 = 2379;
/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one call may take. No call reads more than some megabytes.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The oldest version: its gateway is at `/v3/`.
const OLDEST: (u32, u32) = (3, 4);

/// gRPC's numbers of what this driver tells apart.
pub(super) const NOT_FOUND: i64 = 5;
pub(super) const PERMISSION_DENIED: i64 = 7;
pub(super) const FAILED_PRECONDITION: i64 = 9;
pub(super) const OUT_OF_RANGE: i64 = 11;
const UNAUTHENTICATED: i64 = 16;

/// Where the server is and who logs in. Never shows the password.
#[derive(Clone)]
pub(super) struct Login {
    authority: String,
    pub(super) user: Option<String>,
    password: Option<String>,
}

impl Login {
    pub(super) fn new(url: &str, password: Option<String>) -> Result<Self, ServiceError> {
        let doing = || ServiceError::new("read the url of the etcd service");
        let refuse = |why: &str| doing().because(why.to_owned()).hint(SHAPE);
        if url.starts_with("https://") {
            return Err(doing()
                .because("https:// (TLS) is not supported yet")
                .hint("give the address of a listener without TLS, on this host"));
        }
        let rest = url.strip_prefix("http://").ok_or_else(|| refuse("it is not http://"))?;
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(doing()
                .because("it holds a password")
                .hint("leave the password out of the url, and name its variable: password_env"));
        }
        let authority = authority.trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '?', '#', ',']) {
            return Err(refuse("it is not the address of one server alone"));
        }
        let user = user.filter(|user| !user.is_empty()).map(str::to_owned);
        if user.is_some() != password.is_some() {
            return Err(doing()
                .because("a user and a password go together")
                .hint("name both, the user in `url` and the variable in `password_env`, or none"));
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:{PORT}") };
        Ok(Self { authority, user, password })
    }

    /// The server for people.
    pub(super) fn shown(&self) -> String {
        match &self.user {
            Some(user) => format!("http://{user}@{}", self.authority),
            None => format!("http://{}", self.authority),
        }
    }

    /// Whose rights are meant, for people.
    pub(super) fn whose(&self) -> String {
        self.user.as_ref().map_or("this user".to_owned(), |user| format!("`{user}`"))
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It was not answered, or not by an etcd server.
    #[error("no answer")]
    Lost(#[source] ureq::Error),
    /// It was refused.
    #[error("{message}")]
    Refused {
        /// gRPC's number.
        code: i64,
        /// The server's words.
        message: String,
    },
    /// It was answered with something else.
    #[error("the answer lacks {0}")]
    Strange(&'static str),
    /// A transaction's conditions did not hold.
    #[error("somebody else wrote a key in the middle of it, past the hold")]
    Overtaken,
}

impl CallError {
    pub(super) fn has_code(&self, wanted: i64) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }
}

/// A connection, logged in where the server knows users.
pub(super) struct Client {
    agent: Agent,
    pub(super) login: Login,
    token: Option<String>,
    /// As the server says it: `3.4.23`.
    pub(super) version: String,
}

impl Client {
    pub(super) fn connect(login: &Login) -> Result<Self, ServiceError> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Never by way of a proxy that a variable names.
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(CALL_TIMEOUT))
            .build()
            .new_agent();
        let mut client = Self { agent, login: login.clone(), token: None, version: String::new() };
        let doing = || ServiceError::new(format!("connect to {}", login.shown()));
        let version = client.get("/version").map_err(|e| {
            doing().because(e).hint("is etcd running there, with its JSON gateway enabled?")
        })?;
        let version: Value = serde_json::from_str(&version)
            .map_err(|e| doing().because(e).hint("this does not answer as an etcd server"))?;
        let version = version["etcdserver"].as_str().unwrap_or_default().to_owned();
        if is_too_old(&version) {
            return Err(doing()
                .because(format!("it is etcd {version}"))
                .hint("etcd 3.4 or newer is needed"));
        }
        client.version = version;
        client.log_in().map_err(|e| {
            doing().because(e).hint(format!(
                "is the password of {} right? `etcdctl user passwd` sets another",
                login.whose()
            ))
        })?;
        Ok(client)
    }

    fn log_in(&mut self) -> Result<(), CallError> {
        let (Some(user), Some(password)) = (&self.login.user, &self.login.password) else {
            return Ok(());
        };
        let body = json!({ "name": user, "password": password });
        match self.post("/v3/auth/authenticate", &body) {
            Ok(answer) => {
                let token = answer["token"].as_str().ok_or(CallError::Strange("a token"))?;
                self.token = Some(token.to_owned());
                Ok(())
            }
            // Anyone may do everything there.
            Err(e) if e.has_code(FAILED_PRECONDITION) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The text at a path beside the gateway.
    pub(super) fn get(&self, path: &str) -> Result<String, CallError> {
        let url = format!("http://{}{path}", self.login.authority);
        let mut response = self.agent.get(url).call().map_err(CallError::Lost)?;
        let text = response.body_mut().read_to_string().map_err(CallError::Lost)?;
        if response.status().is_success() {
            return Ok(text);
        }
        Err(CallError::Refused { code: -1, message: format!("{path}: {}", response.status()) })
    }

    /// Calls a procedure.
    pub(super) fn call(&mut self, path: &str, body: &Value) -> Result<Value, CallError> {
        match self.post(path, body) {
            Err(e) if e.has_code(UNAUTHENTICATED) && self.token.take().is_some() => {
                self.log_in()?;
                self.post(path, body)
            }
            outcome => outcome,
        }
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        let mut request = self.agent.post(format!("http://{}{path}", self.login.authority));
        if let Some(token) = &self.token {
            request = request.header("Authorization", token);
        }
        let mut response = request.send_json(body).map_err(CallError::Lost)?;
        let status = response.status();
        let content = response.body_mut().with_config().limit(u64::MAX);
        let content = content.read_to_vec().map_err(CallError::Lost)?;
        let answer: Value = match serde_json::from_slice(&content) {
            Ok(answer) if status.is_success() => return Ok(answer),
            // Where the gateway is switched off there is a page without JSON.
            other => other.unwrap_or_default(),
        };
        let message = answer["message"].as_str().or(answer["error"].as_str());
        Err(CallError::Refused {
            code: answer["code"].as_i64().unwrap_or(-1),
            message: message.map_or_else(|| format!("{path}: {status}"), str::to_owned),
        })
    }

    /// The number of the newest revision, by consensus. Asked for with a single key: a range of
    /// keys takes the server as long as it has keys.
    pub(super) fn revision(&mut self) -> Result<i64, CallError> {
        let one = json!({ "key": encode(OURS), "count_only": true });
        let answer = self.call("/v3/kv/range", &one)?;
        number(&answer["header"]["revision"]).ok_or(CallError::Strange("a revision"))
    }
}

/// Whatever says no version counts as none.
fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST
}

/// A 64-bit number, which JSON carries as text; absent where it is zero.
pub(super) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str, password: Option<&str>) -> String {
        let error = Login::new(url, password.map(str::to_owned)).err().unwrap();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        format!("{error}: {cause}: {}", error.advice().unwrap())
    }

    #[test]
    fn urls_that_would_mislead_are_refused_and_no_password_is_shown() {
        assert!(refusal("https://etcd", None).contains("TLS"));
        let said = refusal("http://shop:secret@etcd", Some("x"));
        assert!(said.contains("holds a password") && !said.contains("secret"), "{said}");
        assert!(refusal("http://a:2379,b:2379", None).contains("one server"));
        assert!(refusal("http://shop@etcd", None).contains("go together"));
        assert!(refusal("http://etcd", Some("x")).contains("go together"));
    }

    #[test]
    fn versions_before_the_gateway_was_at_its_place_are_too_old() {
        for (version, too_old) in
            [("3.3.25", true), ("", true), ("2.3.8", true), ("3.4.0", false), ("3.10.1", false)]
        {
            assert_eq!(is_too_old(version), too_old, "{version}");
        }
    }

    #[test]
    fn a_port_that_is_not_named_is_etcds_own() {
        let shown = |url: &str| Login::new(url, None).unwrap().shown();
        assert_eq!(shown("http://etcd"), "http://etcd:2379");
        assert_eq!(shown("http://etcd:1/"), "http://etcd:1");
        assert_eq!(shown("http://[::1]"), "http://[::1]:2379");
        assert_eq!(shown("http://[::1]:7"), "http://[::1]:7");
    }
}
