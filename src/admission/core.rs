//! The state machine that decides: events and the time go in, decisions come out. No I/O, no clock, no wake-ups.
//!
//! Every event ends in one `dispatch`, which looks at the whole picture once and decides all that can be
//! decided: nothing that could be admitted is left for a later event. The driver takes the decisions out with
//! [`Core::next_decision`] and calls [`Core::tick`] at [`Core::wake_at`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use std::sync::Arc;

use super::activity::Activity;
use super::fair_queue::{ClassId, Client, Lane, Principal, Turn};
use super::idle::IdleSlots;
use super::moment::Moment;
use super::occupancy::Occupancy;
use super::outages::Outages;
use super::queue::{AdmissionRequest, Kind, Place, Queue, ReuseKey};
use super::quiet::{Evidence, Quiet, QuietTunnels};
use super::rate::{Bucket, Rate};
use super::slots::{Counts, Entry, Ledger, Occupant, SlotId, SlotState};
use super::tickets::{Owner, Tickets};
use super::usage::{Usage, Used};
use super::wait_estimate::WaitEstimate;
use crate::metrics::Direction;

/// Positions are counted so far, that a refusal costs the same in the longest queue.
const FARTHEST_POSITION: usize = 1000;

/// What holds for one registry on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sockets toward the registry at once; `usize::MAX` where nothing bounds them.
    pub slots: usize,
    /// Waiters at once; 0 refuses whoever would have to wait.
    pub depth: usize,
    /// Token bucket on `connect()`; `None`: no rate limit.
    pub rate: Option<Rate>,
    /// How long a kept connection may lie idle.
    pub idle_timeout: Duration,
    /// How old a connection may get and still be kept.
    pub max_lifetime: Duration,
    /// Slots that may be dialling or shaking hands at once.
    pub max_connecting: usize,
    /// How long the place of one who left is kept for it.
    pub keep_place: Duration,
    /// The weights of the classes; the first is `default`.
    pub weights: Vec<u32>,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let this request open a socket in a new slot.
    Dial {
        /// Whose turn it is.
        place: Place,
        /// The slot it has now.
        slot: SlotId,
        /// How long it waited.
        waited: Duration,
    },
    /// Hand this request a kept connection.
    Reuse {
        /// Whose turn it is.
        place: Place,
        /// The slot of the connection; it is active now.
        slot: SlotId,
        /// How long it waited.
        waited: Duration,
    },
    /// Tell this request that it will not be admitted.
    Refuse {
        /// Who is refused.
        place: Place,
        /// Why, and what to tell.
        refusal: Refusal,
        /// Whom its place is to be kept for, with [`Core::keep_place`], as soon as it knows: before that nobody can come
        /// back to it. `None`: it is not kept.
        may_return: Option<Owner>,
    },
    /// Close a kept connection in order. The slot is closing now, and comes back when the socket is gone.
    Close {
        /// The slot of the connection.
        slot: SlotId,
        /// What made it go.
        cause: CloseCause,
    },
    /// Ask a quiet tunnel to close, because somebody waits. It answers by closing, or by going on.
    OnReclaim {
        /// The slot of the tunnel.
        slot: SlotId,
        /// What spoke for it being idle.
        evidence: Evidence,
    },
}

/// Why a kept connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// Somebody waits who needs its slot.
    Reclaimed,
    /// It was idle for `idle_timeout`, or older than `max_lifetime`.
    Expired,
    /// More connections stand than there are slots now.
    Shrunk,
    /// The process is going down.
    Draining,
}

/// A request that will not be admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which bound was met.
    pub reason: RefusalReason,
    /// How long the request waited.
    pub waited: Duration,
    /// Others waiting at that moment.
    pub waiting: usize,
    /// Slots at that moment.
    pub slots: usize,
    /// When coming back makes sense.
    pub retry_after: Duration,
    /// What kept the one whose turn it was from being admitted; `None` where waiting was not the reason.
    pub limited_by: Option<LimitedBy>,
    /// By arrival among those who waited, from 1; `None` for one too far back to count.
    pub position: Option<usize>,
    /// How much longer it would have waited; `None` where the past does not tell.
    pub expected_wait: Option<Duration>,
}

/// The bounds that may refuse a request because of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// The queue has `depth` waiters.
    QueueFull,
    /// The request's own deadline came.
    QueueTimeout,
    /// The request's own deadline came while the registry took no connections.
    Unreachable,
    /// The process is going down, and its `drain_timeout` is over.
    Draining,
}

/// What keeps the one whose turn it is from being admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedBy {
    /// Admissions are held by the operator.
    Paused,
    /// The registry takes no connections.
    Unreachable,
    /// `max_connecting` slots are dialling or shaking hands.
    Connecting,
    /// No slot is free.
    Slots,
    /// No token is due.
    Rate,
}

impl LimitedBy {
    /// The word in status pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LimitedBy::Paused => "paused",
            LimitedBy::Unreachable => "unreachable",
            LimitedBy::Connecting => "max_connecting",
            LimitedBy::Slots => "slots",
            LimitedBy::Rate => "rate_per_second",
        }
    }
}

/// The picture at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Slots.
    pub slots: usize,
    /// Those of them that are still held elsewhere: by another process, or from before a reload.
    pub reserved: usize,
    /// Taken ones by state.
    pub open: Counts,
    /// Those who wait.
    pub waiting: usize,
    /// Those who wait, by class.
    pub waiting_by_class: Vec<usize>,
    /// The time since the arrival of the one who waits longest.
    pub oldest_wait: Duration,
    /// Whether admissions are held.
    pub paused: bool,
    /// What keeps the one whose turn it is from being admitted, if somebody waits.
    pub limited_by: Option<LimitedBy>,
    /// How long slots were held and busy so far.
    pub used: Used,
}

/// Who waits for what.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What keeps the one whose turn it is from being admitted, if somebody waits.
    pub limited_by: Option<LimitedBy>,
    /// Those who wait.
    pub waiters: Vec<WaiterInfo>,
    /// Those who hold a slot.
    pub holders: Vec<HolderInfo>,
}

/// One who waits.
#[derive(Clone, Debug)]
pub struct WaiterInfo {
    /// By arrival, from 1.
    pub position: usize,
    /// Who asks.
    pub principal: Principal,
    /// What kind of request it is.
    pub kind: Kind,
    /// Among its client's own requests.
    pub lane: Lane,
    /// Where it wants to go.
    pub target: Arc<str>,
    /// The time since it first arrived.
    pub age: Duration,
    /// The time until its patience ends.
    pub patience_left: Duration,
    /// When it will be admitted, as far as the past tells; `None` where it does not.
    pub expected_wait: Option<Duration>,
}

/// One who holds a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderInfo {
    /// The slot.
    pub slot: SlotId,
    /// What it is used for.
    pub kind: Kind,
    /// What its socket is doing.
    pub state: SlotState,
    /// The time since it was granted.
    pub age: Duration,
    /// The time since its connection last carried a byte; `None` before the first.
    pub last_bytes: Option<Duration>,
    /// Bytes that its connection has carried to the registry.
    pub bytes_up: u64,
    /// And from the registry.
    pub bytes_down: u64,
    /// What a tunnel that lies quiet seems to be doing, and for how long.
    pub quiet: Option<(Evidence, Duration)>,
    /// Whether a tunnel was asked to close, and has not answered yet.
    pub reclaimed: bool,
    /// Whose request it serves, and where that goes; nobody's while it is kept for reuse.
    pub occupant: Option<(Principal, Arc<str>)>,
}

/// The admission state of one registry.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    ledger: Ledger,
    idle: IdleSlots,
    queue: Queue,
    bucket: Option<Bucket>,
    quiet: QuietTunnels,
    places: Tickets,
    outages: Outages,
    /// How fast each class moves.
    wait_estimates: Vec<WaitEstimate>,
    usage: Usage,
    mode: Mode,
    paused: bool,
    limited_by: Option<LimitedBy>,
    decisions: VecDeque<Decision>,
    /// When the bound may give way by time alone.
    limited_until: Option<Moment>,
    /// Slots that are still held elsewhere.
    reserved: usize,
    /// Slots that this one keeps while it hands over to another process; `usize::MAX`: all.
    kept: usize,
    arrivals: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// All is open.
    Running,
    /// Those who came are served, nothing is kept.
    Draining,
    /// Nobody is admitted any more.
    Ended,
}

impl Core {
    /// Nothing taken, nobody waiting, a full bucket.
    #[must_use]
    pub fn new(limits: Limits, now: Moment) -> Core {
        Core {
            bucket: limits.rate.map(|rate| Bucket::new(rate, now)),
            ledger: Ledger::default(),
            idle: IdleSlots::default(),
            queue: Queue::new(&limits.weights),
            quiet: QuietTunnels::default(),
            places: Tickets::new(limits.keep_place),
            outages: Outages::default(),
            wait_estimates: vec![WaitEstimate::default(); limits.weights.len()],
            usage: Usage::default(),
            mode: Mode::Running,
            paused: false,
            limited_by: None,
            decisions: VecDeque::new(),
            limited_until: None,
            reserved: 0,
            kept: usize::MAX,
            arrivals: 0,
            limits,
        }
    }

    /// A place for a request that arrives now: the one that was kept for this client and target, if it left unserved
    /// not long ago, or one at the end of the order. The flag tells whether it came back. A place costs nothing and need
    /// not be used; one that was kept can be given back.
    pub fn place(&mut self, owner: &Owner, now: Moment) -> (Place, bool) {
        if let Some(kept) = self.places.take(owner, now) {
            return (kept, true);
        }
        self.arrivals += 1;
        (Place::new(now, self.arrivals), false)
    }

    /// Keeps the place of a request that was refused and knows it now; or of one that came back to it, and ended before it
    /// asked.
    pub fn keep_place(&mut self, place: Place, owner: Owner, now: Moment) {
        self.places.keep(owner, place, now);
    }

    /// Somebody asks to be admitted. The answer is a decision for `ask.place`, now or later.
    pub fn arrive(&mut self, ask: AdmissionRequest, now: Moment) {
        let place = ask.place;
        let may_wait = ask.again || self.queue.len() < self.limits.depth;
        let aside = self.outages.sets_aside(&ask.target, place);
        self.queue.push(ask, aside, now);
        // Nothing is closed for one who may not wait for it.
        self.dispatch_with(may_wait, now);
        if !may_wait {
            self.refuse(place, RefusalReason::QueueFull, now);
            self.dispatch(now);
        }
    }

    /// One who waits has left. Without effect if a decision was already made.
    pub fn leave(&mut self, place: Place, now: Moment) {
        if let Some(waiter) = self.queue.remove(place) {
            self.outages.gone(&waiter.ask.target, place, now);
            self.keep_place(place, waiter.ask.owner(), now);
            self.dispatch(now);
        }
    }

    /// `connect()` is about to be called for this slot: its token is spent.
    pub fn dialled(&mut self, slot: SlotId) {
        self.ledger.mark_dialled(slot);
    }

    /// The socket in this slot does something else now.
    pub fn enter(&mut self, slot: SlotId, state: SlotState, now: Moment) {
        self.move_to(slot, state, now);
        self.dispatch(now);
    }

    fn move_to(&mut self, slot: SlotId, state: SlotState, now: Moment) {
        self.idle.remove(slot);
        self.quiet.remove(slot);
        self.ledger.enter(slot, state);
        self.usage.turns(slot, matches!(state, SlotState::Connecting | SlotState::Active), now);
    }

    /// The connection in this slot stands: its target takes connections. It is active, or idle with a handshake to come.
    pub fn established(&mut self, slot: SlotId, state: SlotState, now: Moment) {
        if let Some(occupant) = self.ledger.occupant(slot)
            && self.outages.over(&occupant.target)
        {
            self.queue.bring_all_back(&occupant.target);
        }
        self.move_to(slot, state, now);
        if state == SlotState::Idle {
            self.ledger.expect_handshake(slot);
        }
        self.dispatch(now);
    }

    /// An address of its target refused the holder of this slot, which is about to be released; it will ask again for the
    /// next address.
    pub fn goes_on(&mut self, slot: SlotId, now: Moment) {
        if let Some(occupant) = self.ledger.occupant(slot) {
            self.outages.goes_on(&occupant.target, occupant.place, now);
        }
    }

    /// Every address of its target refused the holder of this slot, which is about to be released.
    pub fn unreachable(&mut self, slot: SlotId, now: Moment) {
        if let Some(occupant) = self.ledger.occupant(slot)
            && self.outages.failed(&occupant.target, occupant.place, now)
        {
            self.queue.set_aside(&occupant.target);
        }
        self.dispatch(now);
    }

    /// The tunnel in this slot lies quiet.
    pub fn quiet(&mut self, slot: SlotId, quiet: Quiet, now: Moment) {
        let client = self.ledger.occupant(slot).map(|occupant| occupant.principal.client.clone());
        let state = match quiet.evidence {
            Evidence::Unused | Evidence::Idle => SlotState::Idle,
            Evidence::Unsure | Evidence::Stalled => SlotState::Active,
        };
        if let Some(client) = client
            && self.ledger.enter(slot, state)
        {
            self.usage.turns(slot, quiet.evidence == Evidence::Stalled, quiet.since);
            self.quiet.add(slot, client, quiet);
            self.dispatch(now);
        }
    }

    /// Somebody needs a slot that leads to this target, and does not come to this gate any more: one that lies idle gives
    /// way.
    pub fn make_way_toward(&mut self, target: &str, now: Moment) {
        let leads_there = |entry: &Entry| entry.target.as_deref() == Some(target);
        let among = self.ledger.entries().filter(|(_, entry)| leads_there(entry)).map(|(slot, _)| slot);
        self.make_way(&among.collect::<Vec<_>>(), &"".into(), now);
    }

    /// This client needs one of these very slots, though others may be free: one that lies idle gives way.
    pub fn make_way(&mut self, among: &[SlotId], client: &Client, now: Moment) {
        let gives_way = |slot: &SlotId| {
            let is_closing = self.ledger.get(*slot).is_some_and(|entry| entry.state == SlotState::Closing);
            is_closing || self.quiet.is_reclaimed(*slot)
        };
        if among.iter().any(gives_way) {
            return;
        }
        if let Some(slot) = among.iter().find(|slot| self.idle.holds(**slot)) {
            return self.close(*slot, CloseCause::Reclaimed);
        }
        let held = |client: &Client| self.ledger.held_by(client);
        let victims = self.quiet.victims(client, |waiting| waiting == client, held, usize::MAX, now);
        if let Some((slot, evidence)) = victims.into_iter().find(|(slot, _)| among.contains(slot)) {
            self.quiet.reclaim(slot);
            self.decisions.push_back(Decision::OnReclaim { slot, evidence });
        }
    }

    /// Holds all admissions; the queue stays and takes more.
    pub fn pause(&mut self, now: Moment) {
        self.paused = true;
        self.dispatch(now);
    }

    /// Goes on, in order.
    pub fn resume(&mut self, now: Moment) {
        self.paused = false;
        self.dispatch(now);
    }

    /// Keeps the connection in this slot for reuse. Returns whether it is kept: if not, it is to be closed.
    pub fn park(&mut self, slot: SlotId, key: ReuseKey, now: Moment) -> bool {
        let Some(expires_in) = self.may_lie_idle(slot, now) else {
            return false;
        };
        if !self.ledger.enter(slot, SlotState::Idle) {
            return false;
        }
        self.quiet.remove(slot);
        self.usage.turns(slot, false, now);
        self.settle(slot, now);
        self.idle.add(slot, key, now, expires_in);
        self.dispatch(now);
        true
    }

    /// The socket in this slot is gone, and the registry had the chance to see it go. A token that was not spent
    /// goes to one who waits.
    pub fn released(&mut self, slot: SlotId, now: Moment) {
        self.idle.remove(slot);
        self.quiet.remove(slot);
        self.usage.released(slot, now);
        self.settle(slot, now);
        let Some(entry) = self.ledger.release(slot) else {
            return;
        };
        if !entry.dialled
            && let Some(bucket) = &mut self.bucket
        {
            bucket.give_back();
        }
        self.dispatch(now);
        if let Some(bucket) = &mut self.bucket {
            bucket.spill();
        }
    }

    /// Changes the number of slots. Holders keep theirs; fewer slots admit nobody until enough have come back.
    pub fn resize(&mut self, slots: usize, now: Moment) {
        self.limits.slots = slots;
        self.dispatch(now);
    }

    /// Leaves this many of the slots to those who hold them elsewhere.
    pub fn reserve(&mut self, slots: usize, now: Moment) {
        self.reserved = slots;
        self.dispatch(now);
    }

    /// Hands slots on to another process: of all slots, those are kept that are open or waited for, `least` of them at
    /// least, but together with those that an older process holds no more than `most`. Tells how many these are together:
    /// all others are the other process's.
    pub fn hand_on(&mut self, least: usize, most: usize, now: Moment) -> usize {
        let open = self.ledger.open();
        let needed = (open + self.queue.len()).max(least);
        let taken = (self.reserved + needed).min(most).max(self.reserved + open);
        self.kept = taken - self.reserved;
        self.dispatch(now);
        taken
    }

    /// Changes what holds. Who waits and who holds goes on; a rate that changes keeps the tokens that are left, so that
    /// no change makes a burst. Classes keep their numbers: there may be more of them, never fewer. What was drained is
    /// open again.
    pub fn change(&mut self, limits: Limits, now: Moment) {
        self.bucket = match (self.bucket.take(), limits.rate) {
            (Some(bucket), Some(rate)) => Some(bucket.changed(rate, now)),
            (None, Some(rate)) => Some(Bucket::new(rate, now)),
            (_, None) => None,
        };
        self.queue.change_weights(&limits.weights);
        self.wait_estimates.resize(limits.weights.len().max(self.wait_estimates.len()), WaitEstimate::default());
        self.places.change(limits.keep_place);
        self.limits = limits;
        if self.mode == Mode::Draining {
            self.mode = Mode::Running;
        }
        self.dispatch(now);
    }

    /// Begins without tokens, however many the bucket holds.
    pub fn spend_tokens(&mut self, now: Moment) {
        if let Some(bucket) = &mut self.bucket {
            bucket.empty(now);
        }
    }

    /// Taken slots by where their connections go.
    #[must_use]
    pub fn targets(&self) -> BTreeMap<Arc<str>, usize> {
        self.ledger.targets()
    }

    /// Slots that this process may take.
    fn slots(&self) -> usize {
        self.limits.slots.saturating_sub(self.reserved).min(self.kept)
    }

    /// Goes on serving those who came, but keeps no connection idle, and lets quiet tunnels go as if somebody waited.
    pub fn drain(&mut self, now: Moment) {
        if self.mode == Mode::Running {
            self.mode = Mode::Draining;
        }
        self.dispatch(now);
    }

    /// Refuses all who wait and all who come.
    pub fn end(&mut self, now: Moment) {
        self.mode = Mode::Ended;
        self.dispatch(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        self.dispatch(now);
    }

    /// The next decision that was made and not taken yet.
    pub fn next_decision(&mut self) -> Option<Decision> {
        self.decisions.pop_front()
    }

    /// When to call [`Core::tick`], if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Moment> {
        let probe = if self.queue.is_empty() { None } else { self.outages.next_due() };
        [self.queue.next_deadline(), self.idle.next_expiry(), self.limited_until, probe].into_iter().flatten().min()
    }

    /// The picture now.
    #[must_use]
    pub fn snapshot(&self, now: Moment) -> Snapshot {
        Snapshot {
            slots: self.limits.slots,
            reserved: self.reserved,
            open: self.ledger.counts(),
            waiting: self.queue.len(),
            waiting_by_class: (0..self.limits.weights.len())
                .map(|class| self.queue.waiting_in(ClassId(class)))
                .collect(),
            oldest_wait: self.queue.oldest_wait(now),
            paused: self.paused,
            limited_by: self.limited_by,
            used: self.usage.used(now),
        }
    }

    /// Who waits, by arrival, and who holds what, the oldest first; at most `most` of each.
    #[must_use]
    pub fn explain(&self, most: usize, now: Moment) -> Explanation {
        let mut positions = vec![0; self.wait_estimates.len()];
        let waiters = self.queue.by_arrival().take(most).enumerate().map(|(index, waiter)| {
            let class = waiter.ask.principal.class;
            positions[class.0] += 1;
            WaiterInfo {
                position: index + 1,
                principal: waiter.ask.principal.clone(),
                kind: waiter.ask.kind(),
                lane: waiter.ask.lane,
                target: waiter.ask.target.clone(),
                age: now.since(waiter.ask.place.arrived()),
                patience_left: waiter.ask.deadline.since(now),
                expected_wait: self.expected_wait(class, positions[class.0]),
            }
        });
        Explanation { limited_by: self.limited_by, waiters: waiters.collect(), holders: self.holders(most, now) }
    }

    /// Who holds a slot, the oldest first, at most `most`.
    #[must_use]
    pub fn holders(&self, most: usize, now: Moment) -> Vec<HolderInfo> {
        let oldest = self.ledger.entries().take(most).map(|(slot, entry)| HolderInfo {
            slot,
            kind: entry.occupant.as_ref().map_or(Kind::Kept, |occupant| occupant.kind),
            state: entry.state,
            age: now.since(entry.born),
            last_bytes: entry.activity.silence(now),
            bytes_up: entry.activity.bytes(Direction::Up),
            bytes_down: entry.activity.bytes(Direction::Down),
            quiet: self.quiet.get(slot).map(|quiet| (quiet.evidence, now.since(quiet.since))),
            reclaimed: self.quiet.is_reclaimed(slot),
            occupant: entry.occupant.as_ref().map(|occupant| (occupant.principal.clone(), occupant.target.clone())),
        });
        oldest.collect()
    }

    /// Who waits and who holds, by client, at most `most` of them.
    #[must_use]
    pub fn occupancy(&self, most: usize) -> Occupancy {
        Occupancy::take(&self.queue, &self.ledger, self.limits.weights.len(), most)
    }

    /// Where the connection in this slot tells what it carries.
    #[must_use]
    pub fn activity(&self, slot: SlotId) -> Arc<Activity> {
        self.ledger.get(slot).map(|entry| entry.activity.clone()).unwrap_or_default()
    }

    /// When the one at this position of its class will be admitted, as far as the past tells: nobody knows when a pause or an
    /// outage ends.
    fn expected_wait(&self, class: ClassId, position: usize) -> Option<Duration> {
        let moves = !matches!(self.limited_by, Some(LimitedBy::Paused | LimitedBy::Unreachable));
        moves.then(|| self.wait_estimates[class.0].expected_wait(position))
    }

    /// Decides all that can be decided now.
    fn dispatch(&mut self, now: Moment) {
        self.dispatch_with(true, now);
    }

    fn dispatch_with(&mut self, may_reclaim: bool, now: Moment) {
        self.close_what_must_go(now);
        while let Some(place) = self.queue.overdue(now) {
            self.refuse_overdue(place, now);
        }
        self.send_probes(now);
        self.limited_by = None;
        self.limited_until = None;
        match self.mode {
            Mode::Running => self.admit_in_turn(may_reclaim, now),
            Mode::Draining => {
                self.admit_in_turn(may_reclaim, now);
                self.let_quiet_ones_go(now);
            }
            Mode::Ended => self.refuse_all(now),
        }
    }

    /// Draining is like somebody who always waits: what lies quiet past its pause is recalled.
    fn let_quiet_ones_go(&mut self, now: Moment) {
        let nobody: Client = "".into();
        for (slot, evidence) in self.quiet.victims(&nobody, |_| false, |_| 0, usize::MAX, now) {
            self.quiet.reclaim(slot);
            self.decisions.push_back(Decision::OnReclaim { slot, evidence });
        }
        self.limited_until = [self.limited_until, self.quiet.next_due(|_| false)].into_iter().flatten().min();
    }

    fn refuse_overdue(&mut self, place: Place, now: Moment) {
        let out = self.queue.get(place).is_some_and(|waiter| self.outages.is_out(&waiter.ask.target));
        self.refuse(place, if out { RefusalReason::Unreachable } else { RefusalReason::QueueTimeout }, now);
    }

    /// One request for each target that is out and may be probed takes its turn again. Where nobody waits for it, the
    /// outage is forgotten: the next to come finds out by itself.
    fn send_probes(&mut self, now: Moment) {
        for target in self.outages.due(now) {
            match self.queue.bring_one_back(&target) {
                Some(place) => self.outages.probe(&target, place),
                None => {
                    self.outages.over(&target);
                }
            }
        }
    }

    /// Admits whose turn it is until something binds.
    fn admit_in_turn(&mut self, may_reclaim: bool, now: Moment) {
        while let Some(head) = self.queue.head() {
            if self.paused {
                self.limited_by = Some(LimitedBy::Paused);
                return;
            }
            let place = head.ask.place;
            let kept = head.ask.reuse.as_ref().and_then(|key| self.idle.freshest(key));
            if let Some(slot) = kept {
                self.admit_to_kept(place, slot, Turn::Own, now);
                continue;
            }
            match self.take_slot_and_token(now) {
                Ok(slot) => self.admit_to_new(place, slot, now),
                Err(limited_by) => {
                    self.limited_by = Some(limited_by);
                    if limited_by == LimitedBy::Slots && may_reclaim {
                        self.make_room(now);
                    }
                    return self.reuse_out_of_turn(now);
                }
            }
        }
        if !self.queue.is_empty() {
            self.limited_by = Some(if self.paused { LimitedBy::Paused } else { LimitedBy::Unreachable });
        }
        if !self.paused {
            self.reuse_out_of_turn(now);
        }
    }

    /// Slot and token together, or neither.
    fn take_slot_and_token(&mut self, now: Moment) -> Result<SlotId, LimitedBy> {
        if self.ledger.open() >= self.slots() {
            return Err(LimitedBy::Slots);
        }
        if self.ledger.connecting() >= self.limits.max_connecting {
            return Err(LimitedBy::Connecting);
        }
        if let Some(bucket) = &mut self.bucket
            && let Err(due) = bucket.take(now)
        {
            self.limited_until = Some(due);
            return Err(LimitedBy::Rate);
        }
        let slot = self.ledger.take(now);
        self.usage.granted(slot, now);
        Ok(slot)
    }

    /// Whose turn it is cannot go on, but a kept connection takes no slot, no token and no dial from it: it goes to the
    /// first who can use it.
    fn reuse_out_of_turn(&mut self, now: Moment) {
        while let Some((place, key)) = self.first_who_can_reuse() {
            let slot = self.idle.freshest(&key).expect("the key was taken from the kept ones");
            self.admit_to_kept(place, slot, Turn::Passing, now);
        }
    }

    fn first_who_can_reuse(&self) -> Option<(Place, ReuseKey)> {
        let wanted = self.idle.keys().filter_map(|key| Some((self.queue.first_for(key)?, key.clone())));
        wanted.min_by_key(|(place, _)| *place)
    }

    /// Slots bind: connections that do nothing give way, one for each who waits beyond the slots that are on their way
    /// back, and none for which no token is there. The first goes for the one whose turn it is; what is left of kept
    /// connections goes to those who can use it, before more are closed.
    fn make_room(&mut self, now: Moment) {
        let tokens = self.bucket.as_ref().map_or(usize::MAX, |bucket| bucket.available(now));
        while self.wanted_back(tokens) > 0
            && let Some(slot) = self.idle.nearest_to_its_end()
        {
            self.close(slot, CloseCause::Reclaimed);
            self.reuse_out_of_turn(now);
        }
        self.reclaim_quiet(tokens, now);
        if self.queue.in_line() > tokens {
            let next_token = self.bucket.as_ref().and_then(|bucket| bucket.next_due(now));
            self.limited_until = [self.limited_until, next_token].into_iter().flatten().min();
        }
    }

    fn reclaim_quiet(&mut self, tokens: usize, now: Moment) {
        let Some(head) = self.queue.head().map(|head| head.ask.principal.client.clone()) else {
            return;
        };
        let wanted = self.wanted_back(tokens);
        if wanted == 0 {
            return;
        }
        let waits = |client: &Client| self.queue.waits(client);
        let holds = |client: &Client| self.ledger.held_by(client);
        for (slot, evidence) in self.quiet.victims(&head, waits, holds, wanted, now) {
            self.quiet.reclaim(slot);
            self.decisions.push_back(Decision::OnReclaim { slot, evidence });
        }
        // All that were due are among them.
        if self.wanted_back(tokens) > 0 {
            self.limited_until = self.quiet.next_due(|client| self.queue.waits(client));
        }
    }

    /// Connections that have to give way yet: for each who waits and may dial then, and before that to bring a shrunk
    /// registry down to size.
    fn wanted_back(&self, tokens: usize) -> usize {
        let may_dial = self.limits.max_connecting.saturating_sub(self.ledger.connecting());
        let awaited = self.queue.in_line().min(tokens).min(may_dial);
        if awaited == 0 {
            return 0;
        }
        let excess = self.ledger.open().saturating_sub(self.slots());
        (awaited + excess).saturating_sub(self.ledger.counts().closing + self.quiet.reclaimed())
    }

    fn admit_to_new(&mut self, place: Place, slot: SlotId, now: Moment) {
        let waited = self.admit(place, slot, Turn::Own, now);
        self.decisions.push_back(Decision::Dial { place, slot, waited });
    }

    fn admit_to_kept(&mut self, place: Place, slot: SlotId, turn: Turn, now: Moment) {
        self.idle.remove(slot);
        self.ledger.enter(slot, SlotState::Active);
        self.usage.turns(slot, true, now);
        // It tells nothing about whether its target takes connections: another one may probe.
        if let Some(waiter) = self.queue.get(place) {
            self.outages.gone(&waiter.ask.target, place, now);
        }
        let waited = self.admit(place, slot, turn, now);
        self.decisions.push_back(Decision::Reuse { place, slot, waited });
    }

    fn admit(&mut self, place: Place, slot: SlotId, turn: Turn, now: Moment) -> Duration {
        let (waiter, charged) = self.queue.take(place, turn).expect("only those who wait are admitted");
        let class = waiter.ask.principal.class;
        self.wait_estimates[class.0].admitted(now, self.queue.waiting_in(class) > 0);
        let had_to_wait = waiter.waited(now);
        let kind = waiter.ask.kind();
        let AdmissionRequest { principal, target, .. } = waiter.ask;
        self.ledger.let_to(slot, Occupant { principal, target, kind, place, since: now, charged });
        had_to_wait
    }

    /// The slot serves its request no longer: what was charged in advance is set right.
    fn settle(&mut self, slot: SlotId, now: Moment) {
        let Some(occupant) = self.ledger.vacate(slot) else {
            return;
        };
        self.outages.gone(&occupant.target, occupant.place, now);
        self.queue.settle(&occupant.principal, occupant.charged, nanos(now.since(occupant.since)));
    }

    fn refuse(&mut self, place: Place, reason: RefusalReason, now: Moment) {
        let Some(waiter) = self.queue.remove(place) else { return };
        self.outages.gone(&waiter.ask.target, place, now);
        let limited_by = match reason {
            RefusalReason::QueueFull | RefusalReason::QueueTimeout => self.limited_by,
            RefusalReason::Unreachable => Some(LimitedBy::Unreachable),
            RefusalReason::Draining => None,
        };
        let ahead = self.queue.ahead_of(place, FARTHEST_POSITION);
        // Of its own class, if those ahead are as mixed as all are: looking at each would take too long here.
        let (class, waiting) = (waiter.ask.principal.class, self.queue.len());
        let of_class = self.queue.waiting_in(class);
        let ahead_in_class = (ahead * of_class).div_ceil(waiting.max(1));
        let refusal = Refusal {
            limited_by,
            position: (ahead < FARTHEST_POSITION).then_some(ahead + 1),
            expected_wait: limited_by.and_then(|_| self.expected_wait(class, ahead_in_class + 1)),
            reason,
            waited: waiter.waited(now),
            waiting,
            slots: self.limits.slots,
            retry_after: self.wait_estimates[class.0].expected_wait(of_class),
        };
        let is_over = matches!(reason, RefusalReason::QueueTimeout | RefusalReason::Unreachable);
        let may_return = is_over.then(|| waiter.ask.owner());
        self.decisions.push_back(Decision::Refuse { place, refusal, may_return });
    }

    fn refuse_all(&mut self, now: Moment) {
        while let Some(place) = self.queue.first().map(|waiter| waiter.ask.place) {
            self.refuse(place, RefusalReason::Draining, now);
        }
    }

    /// How long the connection in this slot may be kept from now on; `None`: not at all.
    fn may_lie_idle(&self, slot: SlotId, now: Moment) -> Option<Duration> {
        let entry = self.ledger.get(slot)?;
        let life_left = self.limits.max_lifetime.checked_sub(now.since(entry.born))?;
        let keep = self.limits.idle_timeout.min(life_left);
        (self.mode == Mode::Running && !keep.is_zero()).then_some(keep)
    }

    fn close_what_must_go(&mut self, now: Moment) {
        while let Some(slot) = self.idle.expired(now) {
            self.close(slot, CloseCause::Expired);
        }
        if self.mode != Mode::Running {
            while let Some(slot) = self.idle.nearest_to_its_end() {
                self.close(slot, CloseCause::Draining);
            }
        }
        while self.ledger.open() - self.ledger.counts().closing > self.slots()
            && let Some(slot) = self.idle.nearest_to_its_end()
        {
            self.close(slot, CloseCause::Shrunk);
        }
    }

    fn close(&mut self, slot: SlotId, cause: CloseCause) {
        self.idle.remove(slot);
        self.ledger.enter(slot, SlotState::Closing);
        self.decisions.push_back(Decision::Close { slot, cause });
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
