//! One level of start-time fair queueing: flows that share by weight what they use while another flow waits.
//!
//! Each flow has a *level*: the slot time that it was charged, divided by its weight. The waiting flow with the lowest level
//! is next. Slot time costs a flow only while another flow waits, or while it waits for more and another flow holds a slot: a
//! flow that asks for little must not pay alone beside one that takes all it can get. Use of an idle machine is free. An estimate
//! is charged when a slot is granted, and corrected when the slot comes back.
//!
//! The *present* is the virtual time: what a flow that always waits has been charged by now. A grant that turns out dearer than
//! estimated does not lift it above the flows that wait. A flow that begins to wait starts at the present, or where it stands above
//! it, but not by more than one *quantum*, which is what one of its grants costs. When no flow waits any more, all are level again.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash};

use super::maps::TextState;
use super::moment::Moment;

/// Slot-nanoseconds divided by a weight, times [`SCALE`], so that weights divide well.
type Level = i128;
const SCALE: Level = 1 << 20;

/// Flows remembered above the present that neither wait nor hold. Beyond it the lowest are forgotten.
pub(super) const MAX_REMEMBERED: usize = 1000;

/// The expected cost of a first grant, in slot-nanoseconds. A low estimate is corrected soon.
const FIRST_ESTIMATE: u64 = 1000;

/// The charge of one flow for one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct GrantCharge {
    charged: Level,
    weight: u32,
    /// How many flows waited, for a grant that moved the present.
    waiting: Level,
    /// Readings of the clocks at the grant; see [`FairRound::cost_of`].
    contended: u64,
    alone: u64,
}

/// The flows of one level. `T` is what belongs to a flow; `S` hashes the keys.
#[derive(Clone, Debug, Default)]
pub(super) struct FairRound<K, T, S = TextState> {
    flows: HashMap<K, Flow<T>, S>,
    /// The flows that wait, the next one first.
    order: BTreeSet<Rank<K>>,
    /// Flows above the present that neither wait nor hold.
    remembered: BTreeSet<(Level, K)>,
    present: Level,
    highest: Level,
    /// Flows that hold a slot.
    holding: usize,
    estimate: Option<u64>,
    /// Nanoseconds so far in which a flow waited, up to `at`.
    contended: u64,
    at: Moment,
    ranks: u64,
}

/// By level; of equal levels the one that holds the fewest slots, then the one that was ranked first.
type Rank<K> = (Level, usize, u64, K);

#[derive(Clone, Debug, Default)]
struct Flow<T> {
    inner: T,
    level: Level,
    /// The smoothed cost of one of its grants, in slot-nanoseconds.
    estimate: Option<u64>,
    quantum: Level,
    waits: bool,
    held: usize,
    ranked: u64,
    /// Nanoseconds so far in which it was the only one that waited, and no other held a slot.
    alone: u64,
}

impl<K: Clone + Eq + Hash + Ord, T: Default, S: BuildHasher> FairRound<K, T, S> {
    pub fn any_waits(&self) -> bool {
        !self.order.is_empty()
    }

    pub fn next(&self) -> Option<&T> {
        let (.., key) = self.order.first()?;
        self.get(key)
    }

    pub fn get(&self, key: &K) -> Option<&T> {
        self.flows.get(key).map(|flow| &flow.inner)
    }

    /// The inner value of this flow. An unknown flow starts with a default.
    pub fn inner(&mut self, key: &K) -> &mut T {
        &mut self.flows.entry(key.clone()).or_default().inner
    }

    /// The flow begins to wait, if it does not yet.
    pub fn wait(&mut self, key: &K, now: Moment) {
        self.advance(now);
        let (present, rank) = (self.present, self.next_rank());
        self.change(key, |flow| {
            if !flow.waits {
                flow.waits = true;
                flow.ranked = rank;
                flow.level = flow.level.clamp(present, present + flow.quantum);
            }
        });
    }

    pub fn rest(&mut self, key: &K, now: Moment) {
        self.advance(now);
        self.change(key, |flow| flow.waits = false);
        if self.order.is_empty() {
            self.present = self.present.max(self.highest);
        }
        self.forget();
    }

    /// The flow is granted a slot. `in_turn` is false for one that passes the others with a connection that none of them can
    /// use: it is charged, and the present stays.
    pub fn grant(&mut self, key: &K, weight: u32, in_turn: bool, now: Moment) -> GrantCharge {
        self.advance(now);
        let (waiting, rank, general) = (self.order.len(), self.next_rank(), self.estimate);
        let Some(flow) = self.flows.get(key) else {
            return GrantCharge { charged: 0, weight, waiting: 0, contended: self.contended, alone: 0 };
        };
        let others_wait = waiting > usize::from(flow.waits);
        let estimate = flow.estimate.or(general).unwrap_or(FIRST_ESTIMATE);
        let quantum = weigh(estimate, weight);
        let charged = if others_wait { quantum } else { 0 };
        let waiting = if in_turn { Level::try_from(waiting.max(1)).unwrap_or(Level::MAX) } else { 0 };
        let share = GrantCharge { charged, weight, waiting, contended: self.contended, alone: flow.alone };
        if in_turn {
            self.present = self.present.max(flow.level) + charged / waiting;
        }
        let present = self.present;
        self.change(key, |flow| {
            flow.held += 1;
            flow.ranked = rank;
            flow.quantum = quantum;
            flow.level = (flow.level + charged).min(flow.level.max(present + quantum));
        });
        share
    }

    pub fn settle(&mut self, key: &K, share: GrantCharge, now: Moment) {
        self.advance(now);
        let Some(flow) = self.flows.get(key) else { return };
        let cost = self.cost_of(flow, share);
        let estimate = if share.charged == 0 { flow.estimate } else { Some(smooth(flow.estimate, cost)) };
        if share.charged > 0 {
            self.estimate = Some(smooth(self.estimate, cost));
        }
        let correction = weigh(cost, share.weight) - share.charged;
        if share.charged > 0 {
            let lifted = self.present + correction.checked_div(share.waiting).unwrap_or(0);
            let lowest = self.order.first().map_or(Level::MAX, |(level, ..)| *level);
            self.present = lifted.min(self.present.max(lowest));
        }
        let present = self.present;
        self.change(key, |flow| {
            flow.held = flow.held.saturating_sub(1);
            flow.estimate = estimate;
            flow.quantum = weigh(estimate.unwrap_or(0).max(cost), share.weight);
            flow.level = (flow.level + correction).min(flow.level.max(present + flow.quantum));
        });
        self.forget();
    }

    /// The slot time since the grant in which another flow waited, or this one beside another that held a slot.
    fn cost_of(&self, flow: &Flow<T>, share: GrantCharge) -> u64 {
        (self.contended - share.contended).saturating_sub(flow.alone - share.alone)
    }

    /// Time passes. Each change tells it first: which flows wait is the same from `at` until now.
    fn advance(&mut self, now: Moment) {
        let passed = now.nanos().saturating_sub(self.at.nanos());
        self.at = self.at.max(now);
        if let Some((.., key)) = self.order.first() {
            self.contended += passed;
            if self.order.len() == 1
                && let Some(flow) = self.flows.get_mut(key)
                && self.holding == usize::from(flow.held > 0)
            {
                flow.alone += passed;
            }
        }
    }

    fn next_rank(&mut self) -> u64 {
        self.ranks += 1;
        self.ranks
    }

    /// The only way a flow changes: out of the sets, change, into the sets where it belongs.
    fn change(&mut self, key: &K, change: impl FnOnce(&mut Flow<T>)) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        if flow.waits {
            self.order.remove(&flow.rank(key));
        } else if flow.held == 0 {
            self.remembered.remove(&(flow.level, key.clone()));
        }
        self.holding -= usize::from(flow.held > 0);
        change(flow);
        self.holding += usize::from(flow.held > 0);
        self.highest = self.highest.max(flow.level);
        if flow.waits {
            self.order.insert(flow.rank(key));
        } else if flow.held == 0 {
            self.remembered.insert((flow.level, key.clone()));
        }
    }

    /// A flow that neither waits nor holds, and does not stand above the present, is as good as unknown.
    fn forget(&mut self) {
        while let Some((level, _)) = self.remembered.first()
            && (*level <= self.present || self.remembered.len() > MAX_REMEMBERED)
        {
            let (_, key) = self.remembered.pop_first().expect("there is a first");
            self.flows.remove(&key);
        }
    }
}

impl<T> Flow<T> {
    fn rank<K: Clone>(&self, key: &K) -> Rank<K> {
        (self.level, self.held, self.ranked, key.clone())
    }
}

fn weigh(slot_nanos: u64, weight: u32) -> Level {
    Level::from(slot_nanos) * SCALE / Level::from(weight.max(1))
}

pub(super) fn smooth(before: Option<u64>, latest: u64) -> u64 {
    before.map_or(latest, |before| before - before / 8 + latest / 8)
}

/// The state that tests of the queue look at.
#[cfg(test)]
mod looks {
    use super::*;

    impl<K: Clone + Eq + Hash + Ord, T: Default, S: BuildHasher> FairRound<K, T, S> {
        pub fn len(&self) -> usize {
            self.flows.len()
        }

        pub fn next_key(&self) -> Option<K> {
            self.order.first().map(|(.., key)| key.clone())
        }

        pub fn rank_of(&self, key: &K) -> Rank<K> {
            self.flows[key].rank(key)
        }

        pub fn cost(&mut self, key: &K, share: GrantCharge, now: Moment) -> u64 {
            self.advance(now);
            self.cost_of(&self.flows[key], share)
        }

        /// How far it stands above the present, or below it.
        pub fn lead(&self, key: &K) -> Level {
            self.flows[key].level - self.present
        }

        pub fn greatest_quantum(&self) -> Level {
            self.flows.values().map(|flow| flow.quantum).max().unwrap_or_default()
        }

        pub fn is_at_most_one_quantum_ahead(&self, key: &K) -> bool {
            self.flows.get(key).is_none_or(|flow| flow.level <= self.present + flow.quantum)
        }
    }
}
