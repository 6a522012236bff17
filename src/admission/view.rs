//! The read-only view of the core. It changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::activity::Activity;
use super::core::Core;
use super::decision::LimitedBy;
use super::moment::Moment;
use super::occupancy::Occupancy;
use super::request::{ClassId, Lane, Place, Principal, RequestLabel, SlotUse};
use super::slot::{Counts, Evidence, SlotId, SlotState};
use super::usage::Used;
use crate::metrics::Direction;

/// Seconds as people read them, to the millisecond.
pub fn shown_seconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1000.0).round() / 1000.0
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub slots: usize,
    pub slots_in_force: usize,
    /// Those of them that are still held elsewhere: by another process, or from before a reload.
    pub reserved: usize,
    pub open: Counts,
    pub waiting: usize,
    pub waiting_by_class: Vec<usize>,
    /// The time since the arrival of the one who waits longest.
    pub oldest_wait: Duration,
    pub paused: bool,
    /// The reason why the next waiter is not admitted, if there is a waiter.
    pub limited_by: Option<LimitedBy>,
    pub used: Used,
    /// How long the slot has been busy that is so for longest.
    pub longest_busy: Duration,
}

#[derive(Clone, Debug)]
pub struct Explanation {
    /// The reason why the next waiter is not admitted, if there is a waiter.
    pub limited_by: Option<LimitedBy>,
    pub waiters: Vec<WaiterInfo>,
    pub holders: Vec<HolderInfo>,
}

#[derive(Clone, Debug)]
pub struct WaiterInfo {
    /// By arrival, from 1.
    pub position: usize,
    /// In the order of admission as it is now; `None` for one that is held back, or beyond those that are counted.
    pub turn: Option<usize>,
    pub principal: Principal,
    pub kind: SlotUse,
    /// Among its client's own requests.
    pub lane: Lane,
    pub target: Arc<str>,
    pub label: RequestLabel,
    pub age: Duration,
    /// The time until its patience ends.
    pub patience_left: Duration,
    /// When it will be admitted, as far as the past tells; `None` where it does not.
    pub expected_wait: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderInfo {
    pub slot: SlotId,
    pub kind: SlotUse,
    pub state: SlotState,
    pub age: Duration,
    /// The time since its connection last carried a byte; `None` before the first.
    pub last_bytes: Option<Duration>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// The evidence about a quiet tunnel, and for how long it has been quiet.
    pub quiet: Option<(Evidence, Duration)>,
    /// Whether a tunnel was asked to close, and has not answered yet.
    pub reclaimed: bool,
    /// Whose request it serves, and where that goes; nobody's while it is kept for reuse.
    pub occupant: Option<(Principal, Arc<str>)>,
}

impl Core {
    pub fn snapshot(&self, now: Moment) -> Snapshot {
        Snapshot {
            slots: self.books.slots_given(),
            slots_in_force: self.books.slots_in_force(),
            reserved: self.books.reserved,
            open: self.books.ledger.counts(),
            waiting: self.books.queue.len(),
            waiting_by_class: (0..self.books.limits.weights.len())
                .map(|class| self.books.queue.waiting_in(ClassId(class)))
                .collect(),
            oldest_wait: self.books.queue.oldest_wait(now),
            paused: self.paused,
            limited_by: self.books.limited_by,
            used: self.books.usage.used(now),
            longest_busy: self.books.usage.longest_busy(now),
        }
    }

    pub fn may_hold(&self) -> bool {
        self.books.may_hold()
    }

    /// The slots that are configured or leased, and whether all that are in force are busy.
    pub fn load(&self) -> (usize, bool) {
        let busy = self.books.ledger.open() - self.books.ledger.counts().idle;
        let is_full = matches!(self.books.limited_by, Some(LimitedBy::Slots | LimitedBy::Distress));
        (self.books.slots_given(), is_full || busy >= self.books.slots())
    }

    /// The connections that are cut so that so many slots come free: the youngest, which have done the least. A slot without a
    /// socket frees nothing: it dials no more, or another process has its socket.
    pub fn youngest(&self, most: usize) -> Vec<Arc<Activity>> {
        let has_socket = |activity: &Activity| activity.cutter.0.get().is_some();
        let stay = self.books.ledger.entries().rev().filter(|(_, entry)| entry.state != SlotState::Closing);
        let stay = stay.filter(|(_, entry)| has_socket(&entry.activity));
        let most = most.saturating_sub(self.books.ledger.counts().closing);
        stay.take(most).map(|(_, entry)| entry.activity.clone()).collect()
    }

    /// Waiters by arrival, and holders, oldest first; at most `most` of each.
    pub fn explain(&self, most: usize, now: Moment) -> Explanation {
        let turns = self.books.queue.by_turn(most, now);
        let turns: HashMap<Place, usize> = turns.into_iter().zip(1..).collect();
        let mut positions = vec![0; self.books.wait_estimates.len()];
        let waiters = self.books.queue.by_arrival().take(most).enumerate().map(|(index, waiter)| {
            let class = waiter.request.principal.class;
            positions[class.0] += 1;
            WaiterInfo {
                position: index + 1,
                turn: turns.get(&waiter.request.place).copied(),
                principal: waiter.request.principal.clone(),
                kind: waiter.request.slot_use(),
                lane: waiter.request.lane,
                target: waiter.request.target.clone(),
                label: waiter.request.label.clone(),
                age: now.since(waiter.request.place.arrived()),
                patience_left: waiter.request.deadline.since(now),
                expected_wait: self.books.expected_wait(class, positions[class.0]),
            }
        });
        Explanation { limited_by: self.books.limited_by, waiters: waiters.collect(), holders: self.holders(most, now) }
    }

    /// Holders of a slot, oldest first, at most `most`.
    pub fn holders(&self, most: usize, now: Moment) -> Vec<HolderInfo> {
        let oldest = self.books.ledger.entries().take(most).map(|(slot, entry)| HolderInfo {
            slot,
            kind: entry.occupant.as_ref().map_or(SlotUse::Pooled, |occupant| occupant.slot_use),
            state: entry.state,
            age: now.since(entry.born),
            last_bytes: entry.activity.silence(now),
            bytes_up: entry.activity.bytes(Direction::Up),
            bytes_down: entry.activity.bytes(Direction::Down),
            quiet: self.books.quiet.get(slot).map(|quiet| (quiet.evidence, now.since(quiet.since))),
            reclaimed: self.books.quiet.is_reclaimed(slot),
            occupant: entry.occupant.as_ref().map(|occupant| (occupant.principal.clone(), occupant.target.clone())),
        });
        oldest.collect()
    }

    pub fn occupancy(&self, most: usize) -> Occupancy {
        Occupancy::take(&self.books.queue, &self.books.ledger, self.books.limits.weights.len(), most)
    }

    pub fn targets(&self) -> BTreeMap<Arc<str>, usize> {
        self.books.ledger.targets()
    }
}
