//! The bytes of a tunnel that pass: seen by the follower, and counted.

use std::time::Duration;

use super::follow::{Follower, Side};
use crate::admission::Slot;
use crate::metrics::{Direction, RegistryMetrics};
use crate::proxy::record::Carried;
use crate::splice::{HEADER, Sight};

/// Where a tunnel counts its bytes.
#[derive(Clone, Debug)]
pub(super) struct ByteCounters<'a> {
    pub metrics: &'a RegistryMetrics,
    pub carried: &'a Carried,
}

/// Sees and counts the bytes of one side that pass.
pub(super) struct Passing<'a> {
    pub side: Side,
    pub follower: &'a mut Follower,
    pub counters: &'a ByteCounters<'a>,
    pub slot: &'a Slot,
    pub now: Duration,
    pub moved: usize,
}

impl Passing<'_> {
    fn count(&mut self, bytes: usize) {
        self.moved += bytes;
        let direction = if self.side == Side::Client { Direction::Up } else { Direction::Down };
        self.counters.count(self.slot, direction, bytes);
    }
}

impl Sight for Passing<'_> {
    fn passing(&mut self, bytes: &[u8]) {
        self.follower.sent(self.side, bytes, self.now);
        self.count(bytes.len());
    }

    fn unseen(&self) -> usize {
        self.follower.unseen(self.side)
    }

    fn passing_unseen(&mut self, bytes: usize) {
        self.follower.passing_unseen(self.side, bytes, self.now);
        self.count(bytes);
    }

    fn stride(&self) -> Option<usize> {
        self.follower.stride(self.side)
    }

    fn passing_alike(&mut self, records: usize, next: [u8; HEADER]) -> bool {
        let bytes = self.stride().unwrap_or_default() * records + HEADER;
        let can_be = self.follower.passing_alike(self.side, records, next, self.now);
        self.count(if can_be { bytes } else { 0 });
        can_be
    }
}

impl ByteCounters<'_> {
    pub fn count(&self, slot: &Slot, direction: Direction, bytes: usize) {
        slot.carried(direction, bytes);
        self.metrics.relayed(direction, bytes);
        self.carried.add(direction, bytes);
    }
}
