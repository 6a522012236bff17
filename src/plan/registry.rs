//! The registry of a plan: transfers share its bandwidth evenly, and it stands so many connections.
//!
//! All arithmetic is exact. The *level* is the amount that a transfer would have got which was there from the beginning, so
//! one number serves for all transfers, and each of them ends at a level that is known when it starts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::admission::Moment;

/// Parts of a byte in which levels are counted, as a power of two.
const PARTS: u32 = 20;
const NANOS: u128 = 1_000_000_000;

#[derive(Debug)]
pub struct RegistryModel {
    /// Bytes a second; `None`: the time of a transfer is part of its service time.
    bandwidth: Option<u64>,
    /// Connections with which it still serves each request.
    stands: usize,
    open: usize,
    most_open: usize,
    level: u128,
    level_at: Moment,
    /// Those under way, by the level at which it ends.
    transfers: BinaryHeap<Reverse<(u128, usize)>>,
}

impl RegistryModel {
    pub fn new(bandwidth: Option<u64>, stands: usize) -> RegistryModel {
        RegistryModel {
            bandwidth,
            stands,
            open: 0,
            most_open: 0,
            level: 0,
            level_at: Moment::default(),
            transfers: BinaryHeap::new(),
        }
    }

    pub fn open(&self) -> usize {
        self.open
    }

    pub fn most_open(&self) -> usize {
        self.most_open
    }

    /// A socket is about to be dialled.
    pub fn connect(&mut self) {
        self.open += 1;
        self.most_open = self.most_open.max(self.open);
    }

    /// The registry saw the end of a socket.
    pub fn close(&mut self) {
        self.open -= 1;
    }

    /// Whether more connections are open than it stands.
    pub fn is_overloaded(&self) -> bool {
        self.open > self.stands
    }

    /// A transfer starts, and `next_end` tells when it is over. Whether it takes any time at all.
    pub fn start(&mut self, transfer: usize, bytes: u64, now: Moment) -> bool {
        if self.bandwidth.is_none() || bytes == 0 {
            return false;
        }
        self.advance(now);
        self.transfers.push(Reverse((self.level + (u128::from(bytes) << PARTS), transfer)));
        true
    }

    /// When the next transfer ends, if no other one starts before.
    pub fn next_end(&self) -> Option<Moment> {
        let Reverse((end, _)) = self.transfers.peek()?;
        let nanos = (end.saturating_sub(self.level) * self.count() * NANOS).div_ceil(self.speed());
        Some(self.level_at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Ends the transfer of `next_end`.
    pub fn end_next(&mut self, now: Moment) -> Option<usize> {
        self.advance(now);
        let Reverse((end, transfer)) = self.transfers.pop()?;
        self.level = self.level.max(end);
        Some(transfer)
    }

    fn advance(&mut self, now: Moment) {
        if !self.transfers.is_empty() {
            self.level += self.speed() * now.since(self.level_at).as_nanos() / (self.count() * NANOS);
        }
        self.level_at = now;
    }

    fn count(&self) -> u128 {
        self.transfers.len() as u128
    }

    /// Parts of bytes a second, all transfers together.
    fn speed(&self) -> u128 {
        u128::from(self.bandwidth.unwrap_or(u64::MAX)) << PARTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    /// Two of 1,000 bytes at 1,000 bytes a second, the second one half a second later: the first has 500 bytes by then, both
    /// have 500 a second until it ends at 1.5 s, and the second gets its last 500 alone.
    #[test]
    fn transfers_share_the_bandwidth_evenly() {
        let mut registry = RegistryModel::new(Some(1000), 9);
        assert!(registry.start(1, 1000, at(0)));
        assert_eq!(registry.next_end(), Some(at(1000)));
        assert!(registry.start(2, 1000, at(500)));
        assert_eq!(registry.next_end(), Some(at(1500)));
        assert_eq!(registry.end_next(at(1500)), Some(1));
        assert_eq!(registry.next_end(), Some(at(2000)));
        assert_eq!(registry.end_next(at(2000)), Some(2));
        assert_eq!(registry.next_end(), None);
    }

    /// However transfers overlap, the bytes that all of them have take as long as the bandwidth says, as long as one is there.
    #[test]
    fn the_bandwidth_is_used_whole_and_never_exceeded() {
        let mut registry = RegistryModel::new(Some(3_000_000), 1000);
        let (mut now, mut bytes) = (at(0), 0);
        for transfer in 0..700 {
            let size = 1 + (transfer as u64 * 7919) % 100_000;
            assert!(registry.start(transfer, size, now));
            bytes += size;
            if transfer % 3 == 2 {
                now = registry.next_end().unwrap();
                registry.end_next(now).unwrap();
            }
        }
        while let Some(end) = registry.next_end() {
            assert!(end >= now, "time goes on");
            now = end;
            registry.end_next(now).unwrap();
        }
        let ideal = Duration::from_nanos(bytes * 1_000_000_000 / 3_000_000);
        let off = now.since(Moment(ideal)) + Moment(ideal).since(now);
        assert!(off < Duration::from_micros(10), "{now:?} and not {ideal:?}");
    }

    #[test]
    fn without_bandwidth_or_bytes_a_transfer_takes_no_time() {
        assert!(!RegistryModel::new(None, 1).start(0, 1000, at(0)));
        assert!(!RegistryModel::new(Some(1), 1).start(0, 0, at(0)));
    }

    #[test]
    fn it_is_overloaded_above_what_it_stands() {
        let mut registry = RegistryModel::new(None, 1);
        registry.connect();
        assert!(!registry.is_overloaded());
        registry.connect();
        assert!(registry.is_overloaded());
        registry.close();
        assert!(!registry.is_overloaded());
        assert_eq!((registry.open(), registry.most_open()), (1, 2));
    }
}
