//! Tunnels on which nothing moves, and which may be reclaimed when a request waits.
//!
//! The holder tells how sure it is that its tunnel is idle; here it is only weighed. A reclaim is a question: the tunnel looks
//! at its client once more, and closes or goes on.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};

use super::moment::Moment;
use super::request::ClientId;
use super::slot::{Evidence, Quiet, SlotId};

#[derive(Debug, Default)]
pub(super) struct QuietTunnels {
    tunnels: HashMap<SlotId, (ClientId, Quiet)>,
    /// When each may be reclaimed for anybody.
    by_due: BTreeSet<(Moment, SlotId)>,
    /// When each may be reclaimed for its own client.
    by_due_for_own: HashMap<ClientId, BTreeSet<(Moment, SlotId)>>,
    reclaimed: HashSet<SlotId>,
}

impl QuietTunnels {
    /// Nothing moves in this tunnel. One that says so after a reclaim has not followed it.
    pub fn add(&mut self, slot: SlotId, client: ClientId, quiet: Quiet) {
        self.remove(slot);
        self.by_due.insert((quiet.due(false), slot));
        self.by_due_for_own.entry(client.clone()).or_default().insert((quiet.due(true), slot));
        self.tunnels.insert(slot, (client, quiet));
    }

    /// It moves again, or is gone.
    pub fn remove(&mut self, slot: SlotId) {
        self.reclaimed.remove(&slot);
        self.take_out(slot);
    }

    fn take_out(&mut self, slot: SlotId) {
        let Some((client, quiet)) = self.tunnels.remove(&slot) else {
            return;
        };
        self.by_due.remove(&(quiet.due(false), slot));
        if let Some(own) = self.by_due_for_own.get_mut(&client) {
            own.remove(&(quiet.due(true), slot));
            if own.is_empty() {
                self.by_due_for_own.remove(&client);
            }
        }
    }

    pub fn get(&self, slot: SlotId) -> Option<&Quiet> {
        self.tunnels.get(&slot).map(|(_, quiet)| quiet)
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

    /// The tunnels to reclaim for `waiting`, at most `most`: the surest first; among those its own before others, then the
    /// greatest holder's, then the longest quiet. `waits` tells whether another client waits for a connection: it hardly needs
    /// those that it has.
    pub fn choose(
        &self,
        waiting: &ClientId,
        waits: impl Fn(&ClientId) -> bool,
        held: impl Fn(&ClientId) -> usize,
        most: usize,
        now: Moment,
    ) -> Vec<(SlotId, Evidence)> {
        let due = |dues: &&(Moment, SlotId)| dues.0 <= now;
        let own = self.of_those(waits).flat_map(|own| own.iter().take_while(due));
        let eligible: BTreeSet<SlotId> = self.by_due.iter().take_while(due).chain(own).map(|(_, slot)| *slot).collect();
        let ranked = eligible.into_iter().map(|slot| {
            let (client, quiet) = &self.tunnels[&slot];
            (quiet.evidence, client != waiting, Reverse(held(client)), quiet.since, slot)
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_unstable();
        ranked.into_iter().take(most).map(|(evidence, .., slot)| (slot, evidence)).collect()
    }

    /// When the next one becomes eligible.
    pub fn next_due(&self, waits: impl Fn(&ClientId) -> bool) -> Option<Moment> {
        let own = self.of_those(waits).filter_map(BTreeSet::first);
        self.by_due.first().into_iter().chain(own).map(|(due, _)| *due).min()
    }

    /// The tunnels of clients that wait.
    fn of_those(&self, waits: impl Fn(&ClientId) -> bool) -> impl Iterator<Item = &BTreeSet<(Moment, SlotId)>> {
        self.by_due_for_own.iter().filter(move |(client, _)| waits(client)).map(|(_, own)| own)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Quiet since that second; others may have it from the tenth on, its own client from the fifth.
    fn quiet(evidence: Evidence, since: u64) -> Quiet {
        Quiet { evidence, since: at(since), from: at(10), from_for_own: at(5) }
    }

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    /// Tunnels by their slots: whose, what speaks for it being idle, since when.
    fn tunnels(all: &[(u64, &str, Evidence, u64)]) -> QuietTunnels {
        let mut tunnels = QuietTunnels::default();
        for &(slot, client, evidence, since) in all {
            tunnels.add(SlotId(slot), client.into(), quiet(evidence, since));
        }
        tunnels
    }

    /// The slots to reclaim for `waiting`, where `greedy` holds nine, `modest` two, and everybody else one.
    fn chosen(tunnels: &QuietTunnels, waiting: &str, most: usize, now: Moment) -> Vec<u64> {
        let held = |client: &ClientId| match client.to_string().as_str() {
            "greedy" => 9,
            "modest" => 2,
            _ => 1,
        };
        let waits = |client: &ClientId| *client == waiting.into();
        tunnels.choose(&waiting.into(), waits, held, most, now).into_iter().map(|(slot, _)| slot.0).collect()
    }

    /// Everything else speaks for the other order.
    #[test]
    fn the_surest_go_first() {
        let tunnels = tunnels(&[
            (1, "me", Evidence::Stalled, 0),
            (2, "greedy", Evidence::Unsure, 1),
            (3, "modest", Evidence::Idle, 2),
            (4, "other", Evidence::Unused, 3),
        ]);
        assert_eq!(chosen(&tunnels, "me", 4, at(10)), [4, 3, 2, 1]);
        assert_eq!(chosen(&tunnels, "me", 2, at(10)), [4, 3]);
    }

    #[test]
    fn of_the_equally_sure_the_own_go_first() {
        let tunnels = tunnels(&[(1, "greedy", Evidence::Idle, 0), (2, "me", Evidence::Idle, 1)]);
        assert_eq!(chosen(&tunnels, "me", 2, at(10)), [2, 1]);
        assert_eq!(chosen(&tunnels, "greedy", 2, at(10)), [1, 2]);
    }

    #[test]
    fn of_the_others_the_greatest_holders_go_first() {
        let tunnels = tunnels(&[
            (1, "other", Evidence::Idle, 0),
            (2, "modest", Evidence::Idle, 1),
            (3, "greedy", Evidence::Idle, 2),
        ]);
        assert_eq!(chosen(&tunnels, "me", 3, at(10)), [3, 2, 1]);
    }

    #[test]
    fn of_one_holders_the_longest_quiet_go_first() {
        let tunnels = tunnels(&[
            (1, "greedy", Evidence::Idle, 3),
            (2, "greedy", Evidence::Idle, 2),
            (3, "greedy", Evidence::Idle, 1),
        ]);
        assert_eq!(chosen(&tunnels, "me", 3, at(10)), [3, 2, 1]);
        assert_eq!(chosen(&tunnels, "greedy", 3, at(10)), [3, 2, 1]);
    }

    /// Neither for others nor for its own client, whose time comes first; and whoever drives it wakes up in time.
    #[test]
    fn nothing_goes_before_its_time() {
        let tunnels = tunnels(&[(1, "me", Evidence::Unused, 0), (2, "greedy", Evidence::Unused, 0)]);
        let early = |at: Moment| at - Duration::from_nanos(1);
        assert!(chosen(&tunnels, "me", 2, early(at(5))).is_empty());
        assert_eq!(chosen(&tunnels, "me", 2, at(5)), [1]);
        assert_eq!(chosen(&tunnels, "me", 2, early(at(10))), [1]);
        assert_eq!(chosen(&tunnels, "me", 2, at(10)), [1, 2]);
        assert!(chosen(&tunnels, "other", 2, early(at(10))).is_empty());
        assert_eq!(chosen(&tunnels, "other", 2, at(10)), [2, 1]);
        let next_due = |waiting: &str| tunnels.next_due(|client| *client == waiting.into());
        assert_eq!(["me", "other"].map(next_due), [Some(at(5)), Some(at(10))]);
    }

    /// A client that waits for a connection will hardly use the one that it parked, whoever's turn it is.
    #[test]
    fn a_client_that_waits_hardly_needs_what_it_parked() {
        let tunnels = tunnels(&[(1, "greedy", Evidence::Unused, 0), (2, "modest", Evidence::Unused, 0)]);
        let waits = |client: &ClientId| ["me", "modest"].map(ClientId::from).contains(client);
        let chosen = tunnels.choose(&"me".into(), waits, |_| 1, 2, at(5));
        assert_eq!(chosen, [(SlotId(2), Evidence::Unused)]);
        assert_eq!(tunnels.next_due(waits), Some(at(5)));
    }

    /// One that moves, or was asked, is nobody's victim; one that lies quiet again after it was asked is.
    #[test]
    fn what_moves_or_was_asked_is_passed_over() {
        let mut tunnels = tunnels(&[(1, "me", Evidence::Idle, 0), (2, "me", Evidence::Idle, 0)]);
        tunnels.remove(SlotId(1));
        tunnels.mark_reclaimed(SlotId(2));
        assert!(chosen(&tunnels, "me", 2, at(10)).is_empty() && tunnels.next_due(|_| true).is_none());
        assert_eq!((tunnels.is_reclaimed(SlotId(2)), tunnels.reclaimed()), (true, 1));
        tunnels.add(SlotId(2), "me".into(), quiet(Evidence::Idle, 0));
        assert_eq!(chosen(&tunnels, "me", 2, at(10)), [2]);
        assert_eq!((tunnels.is_reclaimed(SlotId(2)), tunnels.reclaimed()), (false, 0));
    }
}
