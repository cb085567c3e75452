//! Two connections that have left HTTP, joined byte by byte until both sides have closed.

use crate::gate::UpgradeCount;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// Joins a client's and the application's connection once both have switched. The connection
/// counts as upgraded, and not as in flight, for as long as `count` lives.
pub(crate) fn join(client: OnUpgrade, upstream: OnUpgrade, count: UpgradeCount) {
    tokio::spawn(async move {
        let _count = count;
        let (client, upstream) = match tokio::try_join!(client, upstream) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "an upgrade came to nothing");
                return;
            }
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
            tracing::debug!(%error, "an upgraded connection broke");
        }
    });
}
