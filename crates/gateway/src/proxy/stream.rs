//! A client's connection, with two things that hyper does not tell: when everything that was
//! written has really left, and whether a client whose body nobody reads is still there.
//!
//! hyper drops a response's body when its last byte is in hyper's buffer, which may be long before
//! a slow client took it. So seats of ended responses wait in [`Leaving`] until hyper flushes,
//! which it does only after all of its buffer was written.

use crate::gate::Seat;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// How often a silent client is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Seats of responses that are complete, but perhaps not written yet.
#[derive(Default)]
pub(crate) struct Leaving(Mutex<Vec<Seat>>);

impl Leaving {
    pub(crate) fn push(&self, seat: Seat) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(seat);
    }

    fn take(&self) -> Vec<Seat> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A client's connection as hyper uses it.
pub(crate) struct ClientStream {
    stream: Arc<TcpStream>,
    leaving: Arc<Leaving>,
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream) -> (Self, ClientProbe, Arc<Leaving>) {
        let stream = Arc::new(stream);
        let leaving = Arc::<Leaving>::default();
        let probe = ClientProbe { stream: stream.clone(), look: Mutex::new(Box::pin(sleep(LOOK))) };
        (Self { stream, leaving: leaving.clone() }, probe, leaving)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        // The client is gone: what was not written never will be.
        drop(self.leaving.take());
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let room = buf.remaining();
            let mut read = 0;
            let result = self.stream.try_io(Interest::READABLE, || {
                read = self.stream.try_read_buf(buf)?;
                if 0 < read && read < room {
                    // That was all there is: the next read waits, rather than try in vain first.
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && read == 0 => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        drop(self.leaving.take());
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write);
        Poll::Ready(done.map_err(io::Error::from))
    }
}

/// Sees whether a client has hung up, without reading what it sent.
pub(crate) struct ClientProbe {
    stream: Arc<TcpStream>,
    /// When to look next. One timer for all of a connection's requests: most are answered long
    /// before it is due, and then it costs them nothing.
    look: Mutex<Pin<Box<Sleep>>>,
}

impl ClientProbe {
    /// Ends once the client has closed its side. hyper notices that by itself only for requests
    /// whose body has been read, and bodies of parked requests are left unread on purpose.
    pub(crate) async fn gone(&self) {
        poll_fn(|cx| {
            let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                ready!(look.as_mut().poll(cx));
                look.as_mut().reset(Instant::now() + LOOK);
                if self.hung_up() {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }

    fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&*self.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A failed look proves nothing; there will be another.
        poll(&mut fds, Some(&now)).is_ok()
            && fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ResponseBody;
    use super::*;
    use crate::gate::{Entered, Gate};
    use crate::state::About;
    use crate::upstream::Pool;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Method, Response, Uri};
    use hyper_util::rt::TokioIo;
    use std::convert::Infallible;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_response_stays_in_flight_until_its_last_byte_has_left_hypers_buffer() {
        let gate = Gate::new(1, Vec::new(), Pool::new("http://127.0.0.1:9".parse().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, address) = listener.accept().await.unwrap();
        let about = About { method: Method::GET, uri: Uri::from_static("/"), client: address };
        let Entered::Passed(seat, _) = gate.enter(about, None, std::future::pending()).await else {
            panic!("nothing is held");
        };

        let (stream, _, leaving) = ClientStream::new(stream);
        let (seat, seats) = (Mutex::new(Some(seat)), leaving.clone());
        let service = service_fn(move |_| {
            // One chunk, larger than the kernel takes: hyper has it all, and drops the body.
            let body = ResponseBody::words("x".repeat(64 << 20));
            let seat = seat.lock().unwrap().take().unwrap();
            let response = Response::new(body.seated(seat, seats.clone()));
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        client.read_u8().await.unwrap();

        let in_flight = || gate.look(|state, _| state.snapshot().in_flight);
        assert_eq!(leaving.0.lock().unwrap().len(), 1, "hyper has dropped the body");
        assert_eq!(in_flight(), 1);
        tokio::io::copy(&mut client, &mut tokio::io::sink()).await.unwrap();
        assert_eq!(in_flight(), 0);
    }
}
