//! The gateway's life: it takes its address and its control socket, serves, and ends gracefully.
//!
//! Ending: no new connection is accepted, a hold that is on ends (its coordinator is told that it
//! ran out), requests that waited and requests in flight are finished, and what is still open
//! after [`GRACE`] is closed.

use crate::control_socket::ControlSocket;
use crate::descriptors::{Place, Room};
use crate::endpoint::Endpoint;
use crate::gate::Gate;
use crate::options::{GatewayError, GatewayOptions};
use crate::proxy::{ClientStream, Visitor};
use crate::upstream::Pool;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long requests in flight have when the gateway is told to stop.
const GRACE: Duration = Duration::from_secs(30);

/// How long a connection may idle, or take to send a request's head. Longer than proxies in front
/// keep idle connections (nginx: 60 s), so that they are the ones to close.
const IDLE: Duration = Duration::from_secs(75);

/// A gateway that has its address and its control socket, and does not serve yet.
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    room: Room,
    control: ControlSocket,
    endpoint: Option<Endpoint>,
    options: GatewayOptions,
}

impl Gateway {
    /// Takes the address for requests and makes the control socket. Raises the process's limit of
    /// open files as far as `max_held` needs it and the hard limit allows.
    pub async fn bind(options: GatewayOptions) -> Result<Self, GatewayError> {
        for (option, zero) in
            [("max_hold", options.max_hold.is_zero()), ("max_held", options.max_held == 0)]
        {
            if zero {
                return Err(GatewayError::Zero { option });
            }
        }
        let room = Room::make(options.max_held);
        let failed = |source| GatewayError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let endpoint = match &options.endpoint {
            Some(part) => Some(Endpoint::bind(part, room.clone()).await?),
            None => None,
        };
        let control = ControlSocket::bind(&options.control).await?;
        Ok(Self { listener, address, room, control, endpoint, options })
    }

    /// Where it accepts requests.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its hold endpoint is asked, if it has one.
    pub fn endpoint_address(&self) -> Option<SocketAddr> {
        self.endpoint.as_ref().map(Endpoint::address)
    }

    /// Where it receives a proxy's access log by UDP, if it does.
    pub fn syslog_address(&self) -> Option<SocketAddr> {
        self.endpoint.as_ref().and_then(Endpoint::syslog_address)
    }

    /// Serves until `shutdown` ends, then finishes what is in flight.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), GatewayError> {
        let Self { listener, address, room, control, endpoint, options } = self;
        let pool = Pool::new(options.upstream.clone());
        let sweeper = tokio::spawn(pool.clone().sweep());
        let gate = Gate::new(options.max_held, options.pass.clone(), pool);
        let (stop, stopping) = watch::channel(());
        let timer = tokio::spawn(gate.clone().keep_time());
        let ledger = endpoint.as_ref().map(Endpoint::ledger);
        let endpoint = endpoint.map(|endpoint| endpoint.serve(gate.clone(), stopping.clone()));
        let control = tokio::spawn(control.serve(gate.clone(), Arc::new(options.clone()), ledger));
        tracing::info!(gateway = %options.name, %address, upstream = %options.upstream, "serving");

        let mut shutdown = pin!(shutdown);
        loop {
            let (stream, client, place) = tokio::select! {
                accepted = room.accept(&listener) => accepted,
                () = &mut shutdown => break,
            };
            tokio::spawn(connection(gate.clone(), stream, client, place, stopping.clone()));
        }

        tracing::info!(gateway = %options.name, "stopping");
        drop(listener);
        gate.transition(|state, now| ((), state.shut_down(now)));
        drop(stopping);
        stop.send_replace(());
        if tokio::time::timeout(GRACE, stop.closed()).await.is_err() {
            tracing::warn!(gateway = %options.name, "closing connections that did not end in time");
        }
        control.abort();
        // The control socket is removed when its task has really ended.
        let _ = control.await;
        timer.abort();
        sweeper.abort();
        drop(endpoint);
        Ok(())
    }
}

async fn connection(
    gate: Arc<Gate>,
    stream: TcpStream,
    client: SocketAddr,
    place: Place,
    mut stopping: watch::Receiver<()>,
) {
    // Failing to set an option leaves a connection that works, only with a delay.
    let _ = stream.set_nodelay(true);
    let (stream, probe, leaving) = ClientStream::new(stream);
    let visitor = Arc::new(Visitor { gate, client, place, probe, leaving });
    let service = service_fn(move |request| {
        let visitor = visitor.clone();
        async move { visitor.answer(request).await }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let result = tokio::select! {
        result = &mut connection => result,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%client, %error, "a client's connection ended early");
    }
}
