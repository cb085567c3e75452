//! The control socket's place in the file system: made with mode 0600 before anyone can connect,
//! never taken from a gateway that still answers, and removed in the end only if it is still ours.

use crate::control_session::Session;
use crate::endpoint::Ledger;
use crate::gate::Gate;
use crate::options::{GatewayError, GatewayOptions};
use rustix::fs::{Mode, fchmod};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::task::JoinSet;

/// A control socket that accepts connections. Dropping it removes its file.
pub(crate) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file that is ours.
    file: (u64, u64),
}

impl ControlSocket {
    pub(crate) async fn bind(path: &Path) -> Result<Self, GatewayError> {
        let failed = |source| GatewayError::Control { path: path.to_owned(), source };
        make_way(path).await?;
        let socket = UnixSocket::new_stream().map_err(failed)?;
        // Linux takes the socket's own mode for the file that bind makes: there is no moment at
        // which others could connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
        socket.bind(path).map_err(failed)?;
        let listener = socket.listen(64).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let bound =
            Self { listener, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) };
        if metadata.mode() & 0o077 != 0 {
            return Err(failed(io::Error::other("this system lets others use the new socket")));
        }
        Ok(bound)
    }

    /// Serves coordinators until it is dropped, which ends their sessions and so their holds.
    pub(crate) async fn serve(
        self,
        gate: Arc<Gate>,
        options: Arc<GatewayOptions>,
        ledger: Option<Arc<Ledger>>,
    ) {
        let mut sessions = JoinSet::new();
        loop {
            while sessions.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let session = Session::new(gate.clone(), options.clone(), ledger.clone());
                    sessions.spawn(session.run(stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a control connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            // The next gateway finds that nobody answers on it, and replaces it.
            tracing::debug!(%error, path = %self.path.display(), "could not remove the socket");
        }
    }
}

async fn make_way(path: &Path) -> Result<(), GatewayError> {
    let failed = |source| GatewayError::Control { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(GatewayError::ControlInTheWay { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(GatewayError::ControlTaken { path: path.to_owned() }),
    }
}
