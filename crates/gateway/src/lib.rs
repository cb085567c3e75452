//! The gateway: where requests wait while a still point is taken.
//!
//! It is an HTTP/1.1 reverse proxy in a process of its own, without keys or passwords. A
//! coordinator in another process asks for a hold over a private control socket ([`control`]); from
//! then on new requests are parked, those in flight are finished, and none is dropped. Whatever
//! becomes of the coordinator, the hold ends: by release, when it lasted too long, when the
//! coordinator falls silent, or when its connection closes. The gateway records which, so that a
//! hold that ran out can never be taken for one that was released.
//!
//! The rooms: `state` is the hold as a state machine without I/O; `gate` puts the lock, the clock
//! and the waiting around it; `proxy` is a request's way through; `upstream` the connections to the
//! application; `endpoint` answers proxies that only ask; `control_socket` and `control_session` serve coordinators; `wire` is the control
//! protocol's vocabulary; [`control`] is the coordinator's side of it, blocking and without an
//! async runtime.

pub mod control;
mod control_session;
mod control_socket;
mod descriptors;
mod endpoint;
mod gate;
mod options;
mod proxy;
mod server;
pub mod state;
mod upstream;
mod wire;

pub use options::{GatewayError, GatewayOptions, InvalidUpstream, Upstream};
pub use server::Gateway;
