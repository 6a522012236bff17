//! The bytes that both sides still send after their tunnel was reclaimed: it tells whether that was a mistake.
//!
//! A request of the client's that comes now has crossed our FIN on the wire. More of an answer means that the registry had
//! only paused. The slot does not wait for the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::follow::Follower;
use crate::proxy::client::Client;
use crate::reclaim::{Doing, Grade};
use crate::upstream::socket::Socket;

/// No goodbye is longer: an alert of TLS, a last frame of HTTP/2.
const MAX_GOODBYE: usize = 100;

/// The result of a reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReclaimOutcome {
    /// Nothing was under way.
    Clean,
    /// A request of the client's crossed our FIN.
    Crossed,
    /// The registry went on with its answer.
    Cut,
}

/// Closes both sides in order.
pub(super) async fn close(
    registry: Socket,
    client: &Client,
    mut follower: Follower,
    grade: Grade,
    epoch: Instant,
) -> ReclaimOutcome {
    let cut = hear_registry_out(registry, follower.clone(), grade, epoch);
    let mut spoke = false;
    let show = |bytes: &[u8]| {
        spoke = true;
        follower.client_sent(bytes, epoch.elapsed());
    };
    client.brief_lingering_close(show).await;
    if cut.await {
        ReclaimOutcome::Cut
    } else if spoke && follower.doing() == Doing::InFlight {
        ReclaimOutcome::Crossed
    } else {
        ReclaimOutcome::Clean
    }
}

/// Ends the registry's side in order. The returned receiver completes when the registry has ended, and tells whether it went on
/// with an answer.
fn hear_registry_out(
    registry: Socket,
    mut follower: Follower,
    grade: Grade,
    epoch: Instant,
) -> impl Future<Output = bool> {
    let (before, was_inside) = (follower.answered(), follower.is_inside_servers_record());
    let went_on = Arc::new(AtomicBool::new(false));
    let (mut heard, told) = (0, went_on.clone());
    // The sender goes with the socket.
    let (closed, ended) = oneshot::channel::<()>();
    registry.lingering_close_showing(move |bytes| {
        let _ = &closed;
        heard += bytes.len();
        follower.server_sent(bytes, epoch.elapsed());
        // Where nothing can be told from records, much is more of an answer.
        let in_doubt = grade == Grade::Unsure && heard > MAX_GOODBYE;
        if was_inside || in_doubt || follower.answered() != before {
            told.store(true, Ordering::Relaxed);
        }
    });
    async move {
        let _ = ended.await;
        went_on.load(Ordering::Relaxed)
    }
}
