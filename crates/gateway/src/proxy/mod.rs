//! One request's way: off the client's connection, through the gate, to the application and back,
//! with both bodies streamed.
//!
//! A request that waits at the gate has had its head read and no more: its body stays in the
//! client's socket. Every answer of the gateway itself is plain text that says who speaks.
//!
//! Upgraded connections (WebSocket) stop counting as in flight with the application's 101, so that
//! they do not block a drain; what their clients send during a hold is held.

mod body;
pub(crate) mod headers;
mod stream;
mod upgrade;

use body::Passing;
pub(crate) use body::ResponseBody;
pub(crate) use stream::{ClientProbe, ClientStream, Leaving};

use crate::descriptors::Place;
use crate::gate::{Entered, Gate, Seat};
use crate::state::{About, Refusal, RefusedFor, Token};
use crate::upstream::RequestBody;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Version};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

/// The client went away; there is nobody to answer, and its connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("the client went away")]
pub(crate) struct ClientGone;

/// One client's connection, as its requests see it.
pub(crate) struct Visitor {
    pub(crate) gate: Arc<Gate>,
    pub(crate) client: SocketAddr,
    pub(crate) place: Place,
    pub(crate) probe: ClientProbe,
    pub(crate) leaving: Arc<Leaving>,
}

impl Visitor {
    /// Answers one request.
    pub(crate) async fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, ClientGone> {
        if request.method() == Method::CONNECT {
            return Ok(words(
                StatusCode::NOT_IMPLEMENTED,
                "stillpoint gateway: CONNECT is not supported\n".to_owned(),
            ));
        }
        let presented = headers::take_token(request.headers_mut());
        let about = About {
            method: request.method().clone(),
            uri: request.uri().clone(),
            client: self.client,
        };
        match self.gate.enter(about, presented, self.probe.gone()).await {
            Entered::Passed(seat, token) => self.forward(request, seat, token).await,
            Entered::Refused(refusal) => Ok(refused(refusal)),
            Entered::ClientGone => Err(ClientGone),
        }
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        seat: Seat,
        token: Token,
    ) -> Result<Response<ResponseBody>, ClientGone> {
        let protocol = headers::upgrade(request.headers());
        let switch = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
        name_host(&mut request);
        headers::to_upstream(request.headers_mut(), self.client, token, protocol);
        *request.version_mut() = Version::HTTP_11;
        // Extensions belong to this side (hyper keeps its upgrade there).
        request.extensions_mut().clear();
        let request = request.map(RequestBody::from);

        let response = tokio::select! {
            biased;
            response = self.gate.pool.send(request) => response,
            () = self.probe.gone() => return Err(ClientGone),
        };
        let (mut response, mut link) = match response {
            Ok(answered) => answered,
            Err(error) => {
                let answer = self.bad_gateway(&error);
                return Ok(answer.map(|body| body.seated(seat, self.leaving.clone())));
            }
        };

        *response.version_mut() = Version::HTTP_11;
        let mut switched = None;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = switch else {
                // Nobody asked for it: the application's connection is not HTTP any more.
                let answer = self.bad_gateway(&UnaskedUpgrade);
                return Ok(answer.map(|body| body.seated(seat, self.leaving.clone())));
            };
            switched = headers::upgrade(response.headers());
            let upstream = hyper::upgrade::on(&mut response);
            link.detach();
            upgrade::join(client, upstream, self.gate.count_upgrade(), self.place.clone());
        }
        headers::to_client(response.headers_mut(), switched);
        let leaving = self.leaving.clone();
        let pool = self.gate.pool.clone();
        Ok(response
            .map(|body| ResponseBody::passing(Passing::new(body, link, pool), seat, leaving)))
    }

    fn bad_gateway(&self, error: &(dyn Error + 'static)) -> Response<ResponseBody> {
        self.gate.count_bad_gateway();
        let upstream = self.gate.pool.upstream();
        tracing::warn!(error = chain(error), %upstream, "the application did not answer");
        words(
            StatusCode::BAD_GATEWAY,
            format!("stillpoint gateway: no answer from the application at {upstream}\n"),
        )
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the application switched protocols unasked")]
struct UnaskedUpgrade;

/// A request in absolute form names its host in the target, which overrides the field.
fn name_host(request: &mut Request<Incoming>) {
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
}

fn refused(refusal: Refusal) -> Response<ResponseBody> {
    let mut response = words(StatusCode::SERVICE_UNAVAILABLE, refusal_in_words(refusal));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after(refusal)));
    response
}

/// What a client that is refused is told.
pub(crate) fn refusal_in_words(refusal: Refusal) -> String {
    let why = match refusal.why {
        RefusedFor::TooManyHeld => "too many requests wait already; please try again",
        RefusedFor::RestoreUnfinished => "a restore is being finished; please try again",
    };
    format!("stillpoint gateway: {why}\n")
}

/// In whole seconds, and never "at once".
pub(crate) fn retry_after(refusal: Refusal) -> u64 {
    refusal.retry_after.as_millis().div_ceil(1000).max(1) as u64
}

fn words(status: StatusCode, text: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::words(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An error with its causes, on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
