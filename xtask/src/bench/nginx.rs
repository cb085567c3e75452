//! The peer: nginx, as the application that both proxies stand before, and as a proxy.
//!
//! The peer must not be slowed down by its settings: as many workers as the gateway has, no access
//! log, connections kept on both sides and never closed for their age (1,000 requests by default),
//! and buffers that hold the larger answer, so that it never goes by a file. The rest is as Debian
//! has it.

use super::machine::cores;
use super::processes::{Scratch, Server, bound_to_us, free_address, write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An nginx and where it listens.
pub(crate) struct Nginx {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
}

/// The answers that there are: path and size in bytes.
pub(crate) const ANSWERS: [(&str, usize); 2] = [("/1k", 1 << 10), ("/64k", 64 << 10)];

impl Nginx {
    /// The application: small files.
    pub(crate) fn application(scratch: &Scratch) -> Result<Self, String> {
        let root = scratch.dir("application")?;
        for (path, size) in ANSWERS {
            write(&root.join(&path[1..]), vec![b'x'; size])?;
        }
        let site = format!("root {};\nopen_file_cache max=10;", root.display());
        Self::start("the application (nginx)", &scratch.dir("application-nginx")?, "", &site)
    }

    /// A proxy before that application.
    pub(crate) fn proxy(scratch: &Scratch, application: SocketAddr) -> Result<Self, String> {
        let upstream = format!("upstream application {{ server {application}; keepalive 512; }}");
        let site = "location / {\n\
             proxy_pass http://application;\n\
             proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\";\n\
             proxy_set_header Host $host;\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
             proxy_buffers 16 8k;\n\
             }";
        Self::start("the peer (nginx)", &scratch.dir("proxy-nginx")?, &upstream, site)
    }

    fn start(what: &'static str, dir: &Path, http: &str, site: &str) -> Result<Self, String> {
        let address = free_address()?;
        let config = dir.join("nginx.conf");
        write(&config, text(dir, address, http, site))?;
        let mut command = bound_to_us(&program());
        command.arg("-p").arg(dir).args(["-e", "stderr", "-c"]).arg(&config);
        let mut server = Server::start(what, &mut command)?;
        server.await_open(address)?;
        Ok(Self { server, address })
    }
}

/// Debian's is where an ordinary user's PATH does not lead.
pub(crate) fn program() -> PathBuf {
    let debian = Path::new("/usr/sbin/nginx");
    if debian.is_file() { debian.to_owned() } else { "nginx".into() }
}

fn text(dir: &Path, address: SocketAddr, http: &str, site: &str) -> String {
    // Workers of root's nginx are somebody else by default, who may not read the scratch directory.
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let user = if root { "user root;\n" } else { "" };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};\n", dir.join(kind).display()))
        .concat();
    format!(
        "{user}daemon off;\n\
         worker_processes {};\n\
         worker_rlimit_nofile 20000;\n\
         pid {};\n\
         error_log stderr error;\n\
         events {{ worker_connections 9000; }}\n\
         http {{\n\
         {temporary}access_log off;\n\
         keepalive_requests 1000000000;\n\
         {http}\n\
         server {{ listen {address} backlog=4096;\n{site}\n}}\n\
         }}\n",
        cores(),
        dir.join("pid").display()
    )
}
