//! Real proxies, as Debian has them, with the configurations that the documentation shows. They run
//! under an account without rights where the tests run as root, on ports that were free a moment
//! ago, and end with the test.

#![allow(clippy::disallowed_methods, reason = "configurations that last as long as the test")]

use super::*;
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// `nobody`.
const NOBODY: u32 = 65534;

const DOCUMENT: &str = include_str!("../../../../docs/gateway-proxies.md");

/// The configuration below a heading of the document.
pub fn documented(heading: &str) -> String {
    let (_, rest) = DOCUMENT
        .split_once(&format!("\n### {heading}\n"))
        .unwrap_or_else(|| panic!("the document has the heading `{heading}`"));
    let (_, rest) = rest.split_once("\n```").expect("a configuration follows");
    let (_, rest) = rest.split_once('\n').expect("the kind of configuration");
    rest.split_once("\n```").expect("it ends").0.to_owned()
}

/// Puts an address in a documented one's place, which must be there.
pub fn put(text: &str, documented: &str, here: &str) -> String {
    assert!(text.contains(documented), "{documented} is in {text}");
    text.replace(documented, here)
}

/// The same of a site of Caddy's, which it names by the port alone.
pub fn put_site(text: &str, port: u16, here: SocketAddr) -> String {
    let documented = format!("http://:{port} ");
    assert!(text.contains(&documented), "{documented} is in {text}");
    let text = text.replace(&documented, &format!("http://:{} ", here.port()));
    // Where it is also an upstream.
    text.replace(&format!("127.0.0.1:{port}"), &here.to_string())
}

/// Which proxy.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Nginx,
    Caddy,
}

/// A proxy that runs. Ends when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    kind: Kind,
    child: Child,
    directory: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end(Signal::TERM);
    }
}

impl Proxy {
    /// The documented proxy that asks a hold endpoint at this address and logs to that one.
    pub async fn asking(
        kind: Kind,
        application: &Application,
        endpoint: SocketAddr,
        syslog: &str,
    ) -> Self {
        let heading = match kind {
            Kind::Nginx => "nginx and the hold endpoint",
            Kind::Caddy => "Caddy and the hold endpoint",
        };
        let text = put(&documented(heading), "127.0.0.1:8080", &application.address.to_string());
        let text = put(&text, "127.0.0.1:8001", &endpoint.to_string());
        let text = put(&text, "127.0.0.1:8514", syslog);
        match kind {
            Kind::Nginx => Self::nginx(&text).await,
            Kind::Caddy => Self::caddy(&put_site(&text, 8002, free_address())).await,
        }
    }

    /// The documented proxy that stands before a gateway.
    pub async fn before(kind: Kind, gateway: SocketAddr) -> Self {
        match kind {
            Kind::Nginx => {
                let text = documented("nginx before the gateway");
                Self::nginx(&put(&text, "127.0.0.1:8009", &gateway.to_string())).await
            }
            Kind::Caddy => {
                let text = documented("Caddy before the gateway");
                Self::caddy(&put(&text, "127.0.0.1:8009", &gateway.to_string())).await
            }
        }
    }

    /// nginx, with what stands in its `http` block. It listens at 127.0.0.1:8000 there.
    pub async fn nginx(configuration: &str) -> Self {
        Self::start(Kind::Nginx, |here, address| {
            let configuration = put(configuration, "127.0.0.1:8000", &address.to_string());
            let text = format!(
                "daemon off;\nworker_processes 2;\npid {0}/pid;\nerror_log {0}/error.log info;\n\
                 events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\n\
                 client_body_temp_path {0}/body;\nproxy_temp_path {0}/proxy;\n\
                 fastcgi_temp_path {0}/fastcgi;\nuwsgi_temp_path {0}/uwsgi;\n\
                 scgi_temp_path {0}/scgi;\n{configuration}\n}}\n",
                here.display()
            );
            fs::write(here.join("nginx.conf"), text).unwrap();
            let mut command = Command::new("/usr/sbin/nginx");
            command.arg("-e").arg(here.join("error.log")).arg("-p").arg(here);
            command.arg("-c").arg(here.join("nginx.conf"));
            command
        })
        .await
    }

    /// Caddy, with a Caddyfile in which it serves `http://:8000`.
    pub async fn caddy(configuration: &str) -> Self {
        Self::start(Kind::Caddy, |here, address| {
            let configuration = put_site(configuration, 8000, address);
            fs::write(here.join("Caddyfile"), configuration).unwrap();
            let mut command = Command::new("caddy");
            command.args(["run", "--adapter", "caddyfile", "--config"]).arg(here.join("Caddyfile"));
            command.env("HOME", here).env("XDG_CONFIG_HOME", here).env("XDG_DATA_HOME", here);
            command
        })
        .await
    }

    async fn start(kind: Kind, command: impl Fn(&Path, SocketAddr) -> Command) -> Self {
        // A port that was free may be taken by then.
        for _ in 0..5 {
            let directory = tempfile::tempdir().unwrap();
            let here = directory.path();
            fs::set_permissions(here, Permissions::from_mode(0o755)).unwrap();
            let address = free_address();
            let mut command = command(here, address);
            let log = fs::File::create(here.join("output")).unwrap();
            command.stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log);
            if fs::metadata("/proc/self").unwrap().uid() == 0 {
                let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
                chownat(CWD, here, Some(user), Some(group), AtFlags::empty()).unwrap();
                command.uid(NOBODY).gid(NOBODY);
            }
            let child = command.spawn().expect("the proxy is installed: `cargo xtask packages`");
            let mut proxy = Self { address, kind, child, directory };
            if proxy.answers().await {
                return proxy;
            }
        }
        panic!("no proxy came up");
    }

    /// Waits until it accepts connections, or has ended.
    async fn answers(&mut self) -> bool {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let said = self.said();
                assert!(said.contains("already in use"), "{status}: {said}");
                return false;
            }
            if TcpStream::connect(self.address).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it wrote to its logs.
    pub fn said(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        read("output") + &read("error.log")
    }

    /// Ends it as a crash would: nothing that it was doing is finished or logged.
    pub fn kill(&mut self) {
        self.end(match self.kind {
            // Its workers end at once when their master is asked for a fast shutdown; killed, the
            // master would leave them behind.
            Kind::Nginx => Signal::TERM,
            Kind::Caddy => Signal::KILL,
        });
    }

    fn end(&mut self, signal: Signal) {
        if self.child.try_wait().unwrap().is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// An address of this host that nobody listened at a moment ago. Its port is below those that the
/// kernel gives to whoever asks for any, so that no test's client takes it by chance.
pub fn free_address() -> SocketAddr {
    const PORTS: std::ops::Range<u32> = 12_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run at the same time begin at places of their own.
    let begin = std::process::id().wrapping_mul(509);
    loop {
        let place = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32;
        let address = SocketAddr::from(([127, 0, 0, 1], (PORTS.start + place) as u16));
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
