//! A proxy's access log, by syslog: which request has ended.
//!
//! Two forms are read, whatever stands before them in a datagram:
//! - `stillpoint id=ID answer=STATUS`, which nginx's `log_format` writes. `STATUS` is what the
//!   endpoint answered; a request that nginx did not ask about has none, and is none of ours.
//! - Caddy's JSON, with the id in the response's `X-Stillpoint-Request`.
//!
//! Datagrams are dropped where the kernel's buffer is full, so they are taken out of it at once and
//! the buffer is made large. What is lost all the same costs the label, see `ledger`.

use super::ledger::Name;
use super::question::is_id;
use rustix::net::sockopt;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use stillpoint_model::config::SyslogAddress;
use tokio::net::{UdpSocket, UnixDatagram};

/// Asked of the kernel; it gives what it may.
const BUFFER: usize = 8 << 20;

/// The largest datagram that there is.
const LARGEST: usize = 64 << 10;

/// A Unix socket's queue is no longer than this sysctl says, in datagrams.
const QUEUE: &str = "/proc/sys/net/unix/max_dgram_qlen";

/// With a shorter queue a busy proxy loses lines. It is what systemd sets.
const LONG_QUEUE: u64 = 512;

/// Where datagrams come in.
pub(super) enum Syslog {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Syslog {
    /// Takes the address. A Unix socket is made so that every account of this host may write to it,
    /// as with `/dev/log`: proxies run under accounts of their own. A stale one is replaced.
    pub(super) async fn bind(address: &SyslogAddress) -> io::Result<Self> {
        match address {
            SyslogAddress::Udp(address) => {
                let socket = UdpSocket::bind(address).await?;
                // Beyond what everybody may have only with privilege; less is not an error.
                if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
                    sockopt::set_socket_recv_buffer_size(&socket, BUFFER)?;
                }
                Ok(Self::Udp(socket))
            }
            SyslogAddress::Unix(path) => {
                warn_of_a_short_queue();
                make_way(path)?;
                let socket = UnixDatagram::bind(path)?;
                fs::set_permissions(path, Permissions::from_mode(0o666))?;
                Ok(Self::Unix(socket))
            }
        }
    }

    /// Where it is, if it has an address that a person would not know.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Hands over the name of each request that has ended, for ever.
    pub(super) async fn receive(self, mut ended: impl FnMut(Name)) {
        let mut buffer = vec![0; LARGEST];
        loop {
            let received = match &self {
                Self::Udp(socket) => socket.recv(&mut buffer).await,
                Self::Unix(socket) => socket.recv(&mut buffer).await,
            };
            match received {
                Ok(length) => {
                    if let Some(name) = name_in(&buffer[..length]) {
                        ended(name);
                    }
                }
                Err(error) => tracing::warn!(%error, "could not receive a proxy's log"),
            }
        }
    }
}

fn warn_of_a_short_queue() {
    // A system that does not tell has no such limit.
    let length = fs::read_to_string(QUEUE).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if let Some(length) = length
        && length < LONG_QUEUE
    {
        tracing::warn!(
            length,
            "net.unix.max_dgram_qlen is so low that lines of the proxy's log will be lost under \
             load, and backups their label: raise it to {LONG_QUEUE}, or use `udp:`"
        );
    }
}

fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::other("what is there is not a socket"));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The request that a datagram says has ended, if it is one that was to be asked about.
fn name_in(datagram: &[u8]) -> Option<Name> {
    let text = std::str::from_utf8(datagram).ok()?;
    if let Some((_, said)) = text.split_once("stillpoint id=") {
        let mut words = said.split_ascii_whitespace();
        let id = words.next()?;
        let answer = words.next().and_then(|word| word.strip_prefix("answer="))?;
        let ours = !matches!(answer, "" | "-");
        return (ours && is_id(id)).then(|| id.into());
    }
    let record: Record = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let (_, ids) =
        record.resp_headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(RESPONSE_ID))?;
    // The proxy's own comes first; others would be the application's.
    ids.first().filter(|id| is_id(id)).map(|id| id.as_str().into())
}

const RESPONSE_ID: &str = "x-stillpoint-request";

/// What is read of a record of Caddy's.
#[derive(Deserialize)]
struct Record {
    resp_headers: HashMap<String, Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(datagram: &str) -> Option<String> {
        name_in(datagram.as_bytes()).map(|name| name.to_string())
    }

    #[test]
    fn a_line_of_nginx_names_what_was_asked_about_and_nothing_else() {
        let line =
            |said: &str| name(&format!("<190>Nov 27 14:38:49 host nginx: stillpoint {said}"));
        assert_eq!(line("id=0a1b answer=204"), Some("0a1b".to_owned()));
        assert_eq!(line("id=0a1b answer=502"), Some("0a1b".to_owned()));
        assert_eq!(line("id=0a1b answer=-"), None);
        assert_eq!(line("id=0a1b answer="), None);
        assert_eq!(line("id=0a1b"), None);
        assert_eq!(line("id= answer=204"), None);
        assert_eq!(name("<190>Nov 27 14:38:49 host nginx: GET / 200"), None);
    }

    #[test]
    fn a_record_of_caddy_names_its_request() {
        let record = r#"{"msg":"handled request","status":200,"resp_headers":{"Server":["Caddy"],
            "X-Stillpoint-Request":["8d5aa505-bf37"]}}"#;
        assert_eq!(name(record), Some("8d5aa505-bf37".to_owned()));
        assert_eq!(
            name(&format!("<14>1 - host caddy: {record}\n")),
            Some("8d5aa505-bf37".to_owned())
        );
        assert_eq!(name(r#"{"resp_headers":{"Server":["Caddy"]}}"#), None);
        assert_eq!(name(r#"{"msg":"started"}"#), None);
        assert_eq!(name("{"), None);
        assert_eq!(name_in(&[0xff, b'{']), None);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_one_in_use_or_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.sock");
        let address = SyslogAddress::Unix(path.clone());
        let first = Syslog::bind(&address).await.unwrap();
        let error = Syslog::bind(&address).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        drop(Syslog::bind(&address).await.unwrap());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(Syslog::bind(&address).await.is_err());
        assert!(path.is_dir());
    }
}
