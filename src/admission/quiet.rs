//! Tunnels that lie quiet, and may be recalled when somebody waits.
//!
//! How sure it is that a quiet tunnel is idle is told by whoever follows its bytes; here it is only weighed. A recall is
//! a question: the tunnel looks at its client once more, and closes or goes on.

use std::collections::{HashMap, HashSet};

use super::moment::Moment;
use super::slots::SlotId;
use super::turns::Client;

/// What speaks for a tunnel being idle; the surest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// It never carried a request.
    Unused,
    /// The client asked, and the registry answered in full, as far as can be told.
    Idle,
    /// Nothing moves, but an answer may be under way.
    Unsure,
    /// A request is under way, and has not moved for very long.
    Stalled,
}

impl Evidence {
    /// The word in status pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Evidence::Unused => "unused",
            Evidence::Idle => "idle",
            Evidence::Unsure => "unsure",
            Evidence::Stalled => "in_flight",
        }
    }
}

/// A quiet tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// How sure it is that nothing is under way.
    pub evidence: Evidence,
    /// Since when nothing moved.
    pub since: Moment,
    /// From when on it may be recalled.
    pub from: Moment,
    /// From when on it may be recalled for its own client, who waits for another connection.
    pub from_for_own: Moment,
}

/// All quiet tunnels.
#[derive(Debug, Default)]
pub(super) struct QuietTunnels {
    tunnels: HashMap<SlotId, (Client, Quiet)>,
    recalled: HashSet<SlotId>,
}

impl QuietTunnels {
    /// This tunnel lies quiet. One that says so after a recall has not followed it.
    pub fn add(&mut self, slot: SlotId, client: Client, quiet: Quiet) {
        self.recalled.remove(&slot);
        self.tunnels.insert(slot, (client, quiet));
    }

    /// It moves again, or is gone.
    pub fn remove(&mut self, slot: SlotId) {
        self.tunnels.remove(&slot);
        self.recalled.remove(&slot);
    }

    /// What is known of a tunnel that lies quiet.
    pub fn get(&self, slot: SlotId) -> Option<&Quiet> {
        self.tunnels.get(&slot).map(|(_, quiet)| quiet)
    }

    /// Whether it was asked to close, and has not answered yet.
    pub fn is_recalled(&self, slot: SlotId) -> bool {
        self.recalled.contains(&slot)
    }

    /// It was asked to close.
    pub fn recall(&mut self, slot: SlotId) {
        self.tunnels.remove(&slot);
        self.recalled.insert(slot);
    }

    /// Tunnels that were asked to close and have not yet.
    pub fn recalled(&self) -> usize {
        self.recalled.len()
    }

    /// The tunnel to recall for `waiting`: the surest; among those its own before others, then the greatest holder's,
    /// then the longest quiet.
    pub fn victim(&self, waiting: &Client, held: impl Fn(&Client) -> usize, now: Moment) -> Option<(SlotId, Evidence)> {
        let eligible = self.tunnels.iter().filter(|(_, (client, quiet))| quiet.due(client == waiting) <= now);
        let best = eligible.min_by_key(|(slot, (client, quiet))| {
            (quiet.evidence, client != waiting, usize::MAX - held(client), quiet.since, **slot)
        });
        best.map(|(slot, (_, quiet))| (*slot, quiet.evidence))
    }

    /// When the next one becomes eligible for `waiting`.
    pub fn next_due(&self, waiting: &Client) -> Option<Moment> {
        self.tunnels.values().map(|(client, quiet)| quiet.due(client == waiting)).min()
    }
}

impl Quiet {
    fn due(&self, own: bool) -> Moment {
        if own { self.from.min(self.from_for_own) } else { self.from }
    }
}
