//! Tunnels on which nothing moves, and which may be reclaimed when a request waits.
//!
//! The holder tells how sure it is that its tunnel is idle; here it is only weighed. A reclaim is a question: the tunnel looks
//! at its client once more, and closes or goes on.

use std::collections::BTreeSet;

use super::maps::{NumberMap, NumberSet};
use super::moment::Moment;
use super::slot::{Quiet, SlotId};

#[derive(Debug, Default)]
pub(super) struct QuietTunnels {
    tunnels: NumberMap<SlotId, Quiet>,
    /// When each may be reclaimed.
    by_due: BTreeSet<(Moment, SlotId)>,
    reclaimed: NumberSet<SlotId>,
}

impl QuietTunnels {
    /// Nothing moves in this tunnel. One that says so after a reclaim has not followed it.
    pub fn add(&mut self, slot: SlotId, quiet: Quiet) {
        self.remove(slot);
        self.by_due.insert((quiet.from, slot));
        self.tunnels.insert(slot, quiet);
    }

    /// It moves again, or is gone.
    pub fn remove(&mut self, slot: SlotId) {
        self.reclaimed.remove(&slot);
        self.take_out(slot);
    }

    fn take_out(&mut self, slot: SlotId) {
        if let Some(quiet) = self.tunnels.remove(&slot) {
            self.by_due.remove(&(quiet.from, slot));
        }
    }

    pub fn get(&self, slot: SlotId) -> Option<&Quiet> {
        self.tunnels.get(&slot)
    }

    /// Whether it was asked to close, and has not answered yet.
    pub fn is_reclaimed(&self, slot: SlotId) -> bool {
        self.reclaimed.contains(&slot)
    }

    /// It was asked to close.
    pub fn mark_reclaimed(&mut self, slot: SlotId) {
        self.take_out(slot);
        self.reclaimed.insert(slot);
    }

    /// Tunnels that were asked to close and have not yet.
    pub fn reclaimed(&self) -> usize {
        self.reclaimed.len()
    }

    /// The tunnels that may be reclaimed: the surest first, of the equally sure the longest quiet.
    pub fn due(&self, now: Moment) -> Vec<SlotId> {
        let mut due: Vec<_> = self.by_due.iter().take_while(|(due, _)| *due <= now).map(|(_, slot)| *slot).collect();
        due.sort_by_key(|slot| self.tunnels.get(slot).map(|quiet| (quiet.evidence, quiet.since, *slot)));
        due
    }

    /// When the next one becomes eligible.
    pub fn next_due(&self) -> Option<Moment> {
        self.by_due.first().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::slot::Evidence;
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    /// Tunnels by their slots, the evidence, and since when they are quiet; each may be reclaimed from the tenth second on.
    fn tunnels(all: &[(u64, Evidence, u64)]) -> QuietTunnels {
        let mut tunnels = QuietTunnels::default();
        for &(slot, evidence, since) in all {
            tunnels.add(SlotId(slot), Quiet { evidence, since: at(since), from: at(10) });
        }
        tunnels
    }

    fn due(tunnels: &QuietTunnels, now: Moment) -> Vec<u64> {
        tunnels.due(now).into_iter().map(|slot| slot.0).collect()
    }

    #[test]
    fn the_surest_go_first_and_of_those_the_longest_quiet() {
        let tunnels = tunnels(&[
            (1, Evidence::Stalled, 0),
            (2, Evidence::Unsure, 1),
            (3, Evidence::Idle, 5),
            (4, Evidence::Idle, 3),
            (5, Evidence::Idle, 4),
            (6, Evidence::Unused, 6),
        ]);
        assert_eq!(due(&tunnels, at(10)), [6, 4, 5, 3, 2, 1]);
    }

    #[test]
    fn nothing_goes_before_its_time() {
        let tunnels = tunnels(&[(1, Evidence::Unused, 0)]);
        assert_eq!((due(&tunnels, at(10) - Duration::from_nanos(1)), tunnels.next_due()), (vec![], Some(at(10))));
        assert_eq!(due(&tunnels, at(10)), [1]);
    }

    /// A tunnel that moves, or was asked, is not reclaimed; one that lies quiet again after it was asked is.
    #[test]
    fn what_moves_or_was_asked_is_passed_over() {
        let mut tunnels = tunnels(&[(1, Evidence::Idle, 0), (2, Evidence::Idle, 0)]);
        tunnels.remove(SlotId(1));
        tunnels.mark_reclaimed(SlotId(2));
        assert!(due(&tunnels, at(10)).is_empty() && tunnels.next_due().is_none());
        assert_eq!((tunnels.is_reclaimed(SlotId(2)), tunnels.reclaimed()), (true, 1));
        tunnels.add(SlotId(2), Quiet { evidence: Evidence::Idle, since: at(0), from: at(10) });
        assert_eq!(due(&tunnels, at(10)), [2]);
        assert_eq!((tunnels.is_reclaimed(SlotId(2)), tunnels.reclaimed()), (false, 0));
    }
}
