//! Histories of tunnels, record by record, and what the follower makes of each step.

mod histories;
mod properties;
mod relayed;
mod wire;

use std::time::Duration;

use super::framing::Side;
use super::{Doing, Follower};

/// One tunnel in a test, at a time of its own.
struct Tunnel {
    follower: Follower,
    now: Duration,
}

impl Tunnel {
    fn new() -> Tunnel {
        Tunnel { follower: Follower::new(Duration::ZERO, false), now: Duration::ZERO }
    }

    fn sent(&mut self, side: Side, bytes: &[u8]) {
        self.follower.sent(side, bytes, self.now);
    }

    fn wait(&mut self, span: Duration) {
        self.now += span;
    }

    fn doing(&self) -> Doing {
        self.follower.doing()
    }
}

#[test]
fn a_follower_is_small() {
    let size = size_of::<Follower>();
    assert!(size <= 320, "{size} bytes");
}
