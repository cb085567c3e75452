//! The listening socket, TLS, and the end of both.
//!
//! Plain HTTP carries tokens for everybody on the way to read: on anything but a loopback address
//! it is refused, unless it was asked for by name.

use crate::{Api, router};
use axum::body::Body;
use axum::http::{Request, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::fs::File;
use std::io::{self, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use stillpoint_control::Control;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower::ServiceExt;

/// How long a client may take for the head of a request, or for the handshake of TLS.
const HEAD: Duration = Duration::from_secs(15);
/// How long requests may take to end once the server is to end.
const GRACE: Duration = Duration::from_secs(5);

/// A certificate and its key, PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate, and those up to its root.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How the API is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where; port 0 takes a free one.
    pub listen: SocketAddr,
    /// With TLS.
    pub tls: Option<TlsFiles>,
    /// Without TLS although others can reach it.
    pub insecure_http: bool,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It would carry tokens in the clear.
    #[error("{0} is not a loopback address, and there is no TLS")]
    Insecure(SocketAddr),
    /// The address cannot be had.
    #[error("listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The certificate or key cannot be used.
    #[error("use the certificate {certificate} with the key {key}: {why}")]
    Tls {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
        /// In words.
        why: String,
    },
}

/// An API that listens.
pub struct Bound {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Bound {
    /// Binds the address.
    pub async fn new(options: &ServeOptions) -> Result<Self, ServeError> {
        let listen = options.listen;
        if options.tls.is_none() && !listen.ip().is_loopback() && !options.insecure_http {
            return Err(ServeError::Insecure(listen));
        }
        let tls = options.tls.as_ref().map(acceptor).transpose()?;
        let listener =
            TcpListener::bind(listen).await.map_err(|e| ServeError::Listen(listen, e))?;
        Ok(Self { listener, tls })
    }

    /// Where it is, as a URL.
    pub fn url(&self) -> io::Result<String> {
        let scheme = self.scheme();
        Ok(format!("{scheme}://{}", self.listener.local_addr()?))
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Serves until `end`; requests under way are finished, streams of logs are cut off.
    pub async fn serve(self, control: Control, end: impl Future<Output = ()>) {
        let (close, closing) = watch::channel(false);
        let api = router(Api { control, scheme: self.scheme(), closing });
        let graceful = GracefulShutdown::new();
        let mut end = std::pin::pin!(end);
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Too many open files, mostly: others have to end first.
                        tracing::warn!("accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = &mut end => break,
            };
            let watcher = graceful.watcher();
            let (api, tls) = (api.clone(), self.tls.clone());
            tokio::spawn(async move {
                let Some(tls) = tls else { return converse(stream, api, watcher).await };
                match tokio::time::timeout(HEAD, tls.accept(stream)).await {
                    Ok(Ok(stream)) => converse(stream, api, watcher).await,
                    Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            });
        }
        drop(self.listener);
        close.send_replace(true);
        // Whoever is not done by then is cut off with the process.
        drop(tokio::time::timeout(GRACE, graceful.shutdown()).await);
    }
}

/// One connection.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    api: axum::Router,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(uri) = single_slashes(request.uri()) {
            *request.uri_mut() = uri;
        }
        api.clone().oneshot(request.map(Body::new))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!("a connection ended: {error}");
    }
}

/// The same without doubled slashes in its path, if it has any: some clients send them.
fn single_slashes(uri: &Uri) -> Option<Uri> {
    if !uri.path().contains("//") {
        return None;
    }
    let mut path = String::new();
    for segment in uri.path().split('/').filter(|segment| !segment.is_empty()) {
        path.push('/');
        path.push_str(segment);
    }
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    path.parse().ok()
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ServeError> {
    let fail = |why: String| ServeError::Tls {
        certificate: files.certificate.display().to_string(),
        key: files.key.display().to_string(),
        why,
    };
    let open = |path: &PathBuf| {
        File::open(path).map(BufReader::new).map_err(|e| fail(format!("{}: {e}", path.display())))
    };
    let chain = CertificateDer::pem_reader_iter(open(&files.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| fail(format!("the certificate: {e}")))?;
    let key = PrivateKeyDer::from_pem_reader(open(&files.key)?)
        .map_err(|e| fail(format!("the key: {e}")))?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| fail(e.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_slash_is_read_as_one() {
        let uri: Uri = "/projects/x//environments/main?a=b//c".parse().unwrap();
        assert_eq!(single_slashes(&uri).unwrap(), "/projects/x/environments/main?a=b//c");
        assert_eq!(single_slashes(&"/projects/x?a=//".parse().unwrap()), None);
    }
}
