//! The bytes that both sides still send after their tunnel was reclaimed: it tells whether that was a mistake.
//!
//! A request of the client's that comes now has crossed our FIN on the wire. More of an answer means that the registry had
//! only paused. The slot does not wait for the client.

use tokio::time::Instant;

use super::follow::{Follower, Side};
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
    let (mut of_registry, before) = (follower.clone(), follower.answered());
    let was_inside = follower.is_inside_servers_record();
    let (mut heard, mut went_on, mut spoke) = (0, false, false);
    let from_registry = |bytes: &[u8]| {
        heard += bytes.len();
        of_registry.sent(Side::Server, bytes, epoch.elapsed());
        // Where nothing can be told from records, much is more of an answer.
        let in_doubt = grade == Grade::Unsure && heard > MAX_GOODBYE;
        went_on |= was_inside || in_doubt || of_registry.answered() != before;
    };
    let from_client = |bytes: &[u8]| {
        spoke = true;
        follower.sent(Side::Client, bytes, epoch.elapsed());
    };
    // The socket of the registry goes when its side has ended, whatever the client does.
    tokio::join!(registry.lingering_close(from_registry), client.brief_lingering_close(from_client));
    if went_on {
        ReclaimOutcome::Cut
    } else if spoke && follower.doing() == Doing::InFlight {
        ReclaimOutcome::Crossed
    } else {
        ReclaimOutcome::Clean
    }
}
