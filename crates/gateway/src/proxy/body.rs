//! A response's body on its way to the client. It carries the request's seat: when the body is
//! dropped, complete or not, the seat goes to where it is given up at the next flush. Reading it
//! drives the connection that it comes from, which is kept for others once the body is complete.

use super::stream::Leaving;
use crate::gate::Seat;
use crate::upstream::{Link, Pool};
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
    body: Either<Passing, Full<Bytes>>,
    seat: Option<Seat>,
    leaving: Option<Arc<Leaving>>,
}

/// The application's response and the connection that it comes from.
pub(crate) struct Passing {
    body: Incoming,
    /// It has said that there is no more.
    ended: bool,
    /// Why there is no more, though there should be.
    broken: Option<hyper::Error>,
    link: Option<Link>,
    pool: Arc<Pool>,
}

impl Passing {
    pub(crate) fn new(body: Incoming, link: Link, pool: Arc<Pool>) -> Self {
        Self { body, ended: false, broken: None, link: Some(link), pool }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let mut frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending()
            && let Some(link) = &mut self.link
        {
            link.drive(cx);
            frame = Pin::new(&mut self.body).poll_frame(cx);
        }
        match frame {
            Poll::Ready(Some(Err(error))) => {
                // What came before it goes out first: hyper forgets what it has not yet written
                // when a body fails, and all of it may have come at once.
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            frame => frame,
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if (self.ended || self.body.is_end_stream())
            && let Some(link) = self.link.take()
        {
            self.pool.keep(link);
        }
    }
}

impl ResponseBody {
    /// What the application sends, streamed.
    pub(crate) fn passing(body: Passing, seat: Seat, leaving: Arc<Leaving>) -> Self {
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
            Either::Left(body) => body.poll_frame(cx).map_err(Into::into),
            Either::Right(body) => {
                Pin::new(body).poll_frame(cx).map_err(|never: Infallible| match never {})
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Left(passing) => passing.body.is_end_stream(),
            Either::Right(words) => words.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Left(passing) => passing.body.size_hint(),
            Either::Right(words) => words.size_hint(),
        }
    }
}
