//! A response's body on its way to the client. It carries the request's seat: when the body is
//! dropped, complete or not, the seat goes to where it is given up at the next flush.

use super::stream::Leaving;
use crate::gate::Seat;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The application's response, or the gateway's own words.
pub(crate) struct ResponseBody {
    body: Either<Incoming, Full<Bytes>>,
    seat: Option<Seat>,
    leaving: Option<Arc<Leaving>>,
}

impl ResponseBody {
    /// What the application sends, streamed.
    pub(crate) fn passing(body: Incoming, seat: Seat, leaving: Arc<Leaving>) -> Self {
        Self { body: Either::Left(body), seat: Some(seat), leaving: Some(leaving) }
    }

    /// The gateway's own words.
    pub(crate) fn words(text: String) -> Self {
        Self { body: Either::Right(Full::new(text.into())), seat: None, leaving: None }
    }

    /// Keeps the seat until these words have been written.
    pub(crate) fn seated(mut self, seat: Seat, leaving: Arc<Leaving>) -> Self {
        self.seat = Some(seat);
        self.leaving = Some(leaving);
        self
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let (Some(seat), Some(leaving)) = (self.seat.take(), &self.leaving) {
            leaving.push(seat);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.body {
            Either::Left(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Either::Right(body) => {
                Pin::new(body).poll_frame(cx).map_err(|never: Infallible| match never {})
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
