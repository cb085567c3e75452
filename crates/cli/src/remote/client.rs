//! The API's client: one connection, an access token got with the API token and got again when it
//! has run out. No token is ever shown.

use crate::arguments::Global;
use crate::failure::Failure;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::Read;
use std::time::Duration;
use stillpoint_agent::place::data_dir;
use ureq::http::{Method, Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// Where the server is if nothing says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:8470";

/// A client of one server.
pub(crate) struct Client {
    agent: Agent,
    base: String,
    api_token: String,
    access_token: RefCell<Option<String>>,
}

/// What can become of a request.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The server cannot be reached, or the connection broke.
    Lost(ureq::Error),
    /// It answered, but not as was hoped.
    Refused(Failure),
}

impl Client {
    /// By the flags, the variables, or what `up` left in the data directory.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let left = |name: &str| {
            let data = data_dir(&global.place()).ok()?;
            let text = std::fs::read_to_string(data.join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        let base = variable("STILLPOINT_API_URL")
            .or_else(|| left("server.url"))
            .unwrap_or_else(|| DEFAULT_URL.to_owned());
        let api_token =
            variable("STILLPOINT_CLI_TOKEN").or_else(|| left("admin.token")).ok_or_else(|| {
                Failure::usage("there is no API token to log in with").hint(
                    "set STILLPOINT_CLI_TOKEN; or, on the server's host, name its data directory \
                     with --data-dir; or act without a server with --local",
                )
            })?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)));
        if let Some(file) = variable("STILLPOINT_CA_FILE") {
            config = config.tls_config(trusting(&file)?);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            base: base.trim_end_matches('/').to_owned(),
            api_token,
            access_token: RefCell::default(),
        })
    }

    /// Gets a resource.
    pub(crate) fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(&Method::GET, path, None)
    }

    /// Asks for something.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(&Method::POST, path, Some(body))
    }

    /// Changes something.
    pub(crate) fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(&Method::PATCH, path, Some(body))
    }

    /// Removes something.
    pub(crate) fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.json(&Method::DELETE, path, None)
    }

    /// The same as [`Self::get`], for those who try again when the server was lost.
    pub(crate) fn try_get(&self, path: &str) -> Result<Value, Trouble> {
        let mut response = self.send(&Method::GET, path, None)?;
        parsed(&mut response)
    }

    /// Opens a stream of lines.
    pub(crate) fn stream(&self, path: &str) -> Result<impl Read + use<>, Trouble> {
        let mut response = self.send(&Method::GET, path, None)?;
        if !response.status().is_success() {
            return Err(Trouble::Refused(refusal(&mut response)));
        }
        Ok(response.into_body().into_reader())
    }

    fn json(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        self.send(method, path, body)
            .and_then(|mut response| parsed(&mut response))
            .map_err(|trouble| self.explain(trouble))
    }

    /// A trouble for people.
    pub(crate) fn explain(&self, trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Refused(failure) => failure,
            Trouble::Lost(error) => {
                Failure::new(format!("reach the server at {}", self.base)).because(&error).hint(
                    "is it running? `stillpoint up` starts it; STILLPOINT_API_URL says where it \
                     is; --local acts without one",
                )
            }
        }
    }

    fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Body>, Trouble> {
        let known = self.access_token.borrow().clone();
        let fresh = known.is_none();
        let token = known.map_or_else(|| self.log_in(), Ok)?;
        let response = self.send_with(&token, method, path, body)?;
        if response.status() == 401 && !fresh {
            // It has run out, or the server was started again.
            let token = self.log_in()?;
            return self.send_with(&token, method, path, body);
        }
        Ok(response)
    }

    fn send_with(
        &self,
        token: &str,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Body>, Trouble> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("Authorization", format!("Bearer {token}"))
            .header("Content-Type", "application/json");
        let sent = match body {
            Some(_) => request.body(text).map(|request| self.agent.run(request)),
            None => request.body(()).map(|request| self.agent.run(request)),
        };
        sent.map_err(|e| Trouble::Refused(Failure::usage("ask the server").because(&e)))?
            .map_err(Trouble::Lost)
    }

    fn log_in(&self) -> Result<String, Trouble> {
        let body = json!({ "grant_type": "api_token", "api_token": self.api_token });
        let mut response = self
            .agent
            .post(format!("{}/oauth2/token", self.base))
            .header("Content-Type", "application/json")
            .send(body.to_string())
            .map_err(Trouble::Lost)?;
        if response.status() == 400 {
            return Err(Trouble::Refused(
                Failure::new("the API token is invalid or has been revoked")
                    .hint("make another one with `stillpoint api-token:create NAME`"),
            ));
        }
        let answer = parsed(&mut response)?;
        let token = answer["access_token"].as_str().unwrap_or_default().to_owned();
        *self.access_token.borrow_mut() = Some(token.clone());
        Ok(token)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn trusting(file: &str) -> Result<TlsConfig, Failure> {
    let fail = || Failure::usage(format!("read the certificates in {file}"));
    let pem = std::fs::read(file).map_err(|e| fail().because(&e))?;
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| fail().because(&e))? {
            roots.push(certificate);
        }
    }
    if roots.is_empty() {
        return Err(fail().hint("there is none in it"));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots)).build())
}

fn parsed(response: &mut Response<Body>) -> Result<Value, Trouble> {
    if !response.status().is_success() {
        return Err(Trouble::Refused(refusal(response)));
    }
    let text = response.body_mut().read_to_string().map_err(Trouble::Lost)?;
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text)
        .map_err(|e| Trouble::Refused(Failure::new("understand the server").because(&e)))
}

/// What the server said, as it said it.
fn refusal(response: &mut Response<Body>) -> Failure {
    let status = response.status();
    let text = response.body_mut().read_to_string().unwrap_or_default();
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    let message = answer["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    let failure = Failure::new(message);
    match status.as_u16() {
        401 => failure.hint("log in with another token: STILLPOINT_CLI_TOKEN"),
        403 => failure.hint("an admin of the project can give you the role: `stillpoint user:add`"),
        _ => failure,
    }
}
