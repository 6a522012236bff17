//! What both sides still send after a tunnel was taken: it tells whether that was a mistake.
//!
//! A request of the client's that comes now has crossed our FIN on the wire. More of an answer means that the registry had
//! only paused.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::follow::{Doing, Follower};
use crate::admission::Evidence;
use crate::proxy::client::Client;
use crate::upstream::socket::Socket;

/// No goodbye is longer: an alert of TLS, a last frame of HTTP/2.
const LONGEST_GOODBYE: usize = 100;

/// A tunnel that was taken back, while both sides learn of it.
pub struct CloseObserver {
    follower: Arc<Mutex<Follower>>,
    epoch: Instant,
}

impl CloseObserver {
    /// Follows on from where the tunnel ended.
    #[must_use]
    pub fn new(follower: Follower, epoch: Instant) -> CloseObserver {
        CloseObserver { follower: Arc::new(Mutex::new(follower)), epoch }
    }

    /// Ends the registry's side in order. What comes back completes once the registry goes on with an answer; it fails when
    /// the registry has ended without.
    pub fn overhear(&self, socket: Socket, evidence: Evidence) -> oneshot::Receiver<()> {
        let (goes_on, told) = oneshot::channel();
        let (follower, epoch, mut goes_on, mut heard) = (self.follower.clone(), self.epoch, Some(goes_on), 0);
        let (before, was_inside) = {
            let follower = lock(&follower);
            (follower.answered(), follower.is_inside_servers_record())
        };
        socket.lingering_close_showing(move |bytes| {
            heard += bytes.len();
            let mut follower = lock(&follower);
            follower.server_sent(bytes, epoch.elapsed());
            // Where nothing can be told from records, much is more of an answer.
            let in_doubt = evidence == Evidence::Unsure && heard > LONGEST_GOODBYE;
            if (was_inside || in_doubt || follower.answered() != before)
                && let Some(goes_on) = goes_on.take()
            {
                // Nobody listens when the process goes down.
                let _ = goes_on.send(());
            }
        });
        told
    }

    /// Sees off the client. Whether it had sent a request before it knew.
    pub async fn crosses(&self, client: &Client) -> bool {
        let mut spoke = false;
        let show = |bytes: &[u8]| {
            spoke = true;
            lock(&self.follower).client_sent(bytes, self.epoch.elapsed());
        };
        client.brief_lingering_close(show).await;
        spoke && lock(&self.follower).doing() == Doing::InFlight
    }
}

fn lock(follower: &Mutex<Follower>) -> std::sync::MutexGuard<'_, Follower> {
    follower.lock().unwrap_or_else(PoisonError::into_inner)
}
