//! The state machine that decides: events and the time go in, decisions come out. No I/O, no clock, no wake-ups.
//!
//! Every event ends in one `dispatch`, which looks at the whole picture once and decides all that can be
//! decided: nothing that could be admitted is left for a later event. The driver takes the decisions out with
//! [`Core::next_decision`] and calls [`Core::tick`] at [`Core::wake_at`].

use std::collections::VecDeque;
use std::time::Duration;

use super::idle::IdleSlots;
use super::moment::Moment;
use super::pace::Pace;
use super::queue::{Ask, Place, Queue, ReuseKey};
use super::rate::{Bucket, Rate};
use super::slots::{Counts, Ledger, SlotId, SlotState};

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
    },
    /// Close a kept connection in order. The slot is closing now, and comes back when the socket is gone.
    Close {
        /// The slot of the connection.
        slot: SlotId,
        /// What made it go.
        cause: CloseCause,
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
}

/// The bounds that may refuse a request because of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// The queue has `depth` waiters.
    QueueFull,
    /// The request's own deadline came.
    QueueTimeout,
    /// The process is going down, and its `drain_timeout` is over.
    Draining,
}

/// The picture at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Slots.
    pub slots: usize,
    /// Taken ones by state.
    pub open: Counts,
    /// Those who wait.
    pub waiting: usize,
    /// The time since the arrival of the one who waits longest.
    pub oldest_wait: Duration,
}

/// The admission state of one registry.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    ledger: Ledger,
    idle: IdleSlots,
    queue: Queue,
    bucket: Option<Bucket>,
    pace: Pace,
    mode: Mode,
    decisions: VecDeque<Decision>,
    token_due: Option<Moment>,
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

/// What keeps the head of the queue where it is.
enum Bound {
    Slots,
    Rate,
}

impl Core {
    /// Nothing taken, nobody waiting, a full bucket.
    #[must_use]
    pub fn new(limits: Limits, now: Moment) -> Core {
        Core {
            bucket: limits.rate.map(|rate| Bucket::new(rate, now)),
            limits,
            ledger: Ledger::default(),
            idle: IdleSlots::default(),
            queue: Queue::default(),
            pace: Pace::default(),
            mode: Mode::Running,
            decisions: VecDeque::new(),
            token_due: None,
            arrivals: 0,
        }
    }

    /// A new place at the end of the order, for a request that arrives now. It costs nothing and need not be used.
    pub fn place(&mut self, now: Moment) -> Place {
        self.arrivals += 1;
        Place::new(now, self.arrivals)
    }

    /// Somebody asks to be admitted. The answer is a decision for `ask.place`, now or later.
    pub fn arrive(&mut self, ask: Ask, now: Moment) {
        let place = ask.place;
        let may_wait = ask.again || self.queue.len() < self.limits.depth;
        self.queue.push(ask, now);
        // Nothing is closed for one who may not wait for it.
        self.dispatch_with(may_wait, now);
        if !may_wait {
            self.refuse(place, RefusalReason::QueueFull, now);
        }
    }

    /// One who waits has left. Without effect if a decision was already made.
    pub fn leave(&mut self, place: Place, now: Moment) {
        if self.queue.remove(place).is_some() {
            self.dispatch(now);
        }
    }

    /// `connect()` is about to be called for this slot: its token is spent.
    pub fn dialled(&mut self, slot: SlotId) {
        self.ledger.mark_dialled(slot);
    }

    /// The socket in this slot does something else now.
    pub fn enter(&mut self, slot: SlotId, state: SlotState, now: Moment) {
        self.idle.remove(slot);
        self.ledger.enter(slot, state);
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
        self.idle.add(slot, key, now, expires_in);
        self.dispatch(now);
        true
    }

    /// The socket in this slot is gone, and the registry had the chance to see it go. A token that was not spent
    /// goes to one who waits.
    pub fn released(&mut self, slot: SlotId, now: Moment) {
        self.idle.remove(slot);
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

    /// Goes on serving those who came, but keeps no connection idle.
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
        [self.queue.next_deadline(), self.idle.next_expiry(), self.token_due].into_iter().flatten().min()
    }

    /// The picture now.
    #[must_use]
    pub fn snapshot(&self, now: Moment) -> Snapshot {
        Snapshot {
            slots: self.limits.slots,
            open: self.ledger.counts(),
            waiting: self.queue.len(),
            oldest_wait: self.queue.oldest_wait(now),
        }
    }

    /// Decides all that can be decided now.
    fn dispatch(&mut self, now: Moment) {
        self.dispatch_with(true, now);
    }

    fn dispatch_with(&mut self, may_reclaim: bool, now: Moment) {
        self.close_what_must_go(now);
        while let Some(place) = self.queue.overdue(now) {
            self.refuse(place, RefusalReason::QueueTimeout, now);
        }
        self.token_due = None;
        match self.mode {
            Mode::Running | Mode::Draining => self.admit_in_order(may_reclaim, now),
            Mode::Ended => self.refuse_all(now),
        }
    }

    /// Admits from the head of the queue until something binds.
    fn admit_in_order(&mut self, may_reclaim: bool, now: Moment) {
        while let Some(head) = self.queue.head() {
            let place = head.ask.place;
            let kept = head.ask.reuse.as_ref().and_then(|key| self.idle.freshest(key));
            if let Some(slot) = kept {
                self.admit_to_kept(place, slot, now);
                continue;
            }
            match self.take_slot_and_token(now) {
                Ok(slot) => self.admit_to_new(place, slot, now),
                Err(Bound::Slots) if may_reclaim => return self.reclaim(now),
                Err(Bound::Slots | Bound::Rate) => return self.reuse_past_the_head(now),
            }
        }
    }

    /// Slot and token together, or neither.
    fn take_slot_and_token(&mut self, now: Moment) -> Result<SlotId, Bound> {
        if self.ledger.open() >= self.limits.slots {
            return Err(Bound::Slots);
        }
        if let Some(bucket) = &mut self.bucket
            && let Err(due) = bucket.take(now)
        {
            self.token_due = Some(due);
            return Err(Bound::Rate);
        }
        Ok(self.ledger.take(now))
    }

    /// Tokens bind: a kept connection costs none, so it goes to the first who can use it.
    fn reuse_past_the_head(&mut self, now: Moment) {
        while let Some((place, key)) = self.first_who_can_reuse() {
            let slot = self.idle.freshest(&key).expect("the key was taken from the kept ones");
            self.admit_to_kept(place, slot, now);
        }
    }

    fn first_who_can_reuse(&self) -> Option<(Place, ReuseKey)> {
        let wanted = self.idle.keys().filter_map(|key| Some((self.queue.first_for(key)?, key.clone())));
        wanted.min_by_key(|(place, _)| *place)
    }

    /// Slots bind: goes down the queue and gives each waiter, in order, what there is for it: a kept connection it can
    /// use, else a slot that is already on its way back, else a kept connection that is closed for it. One victim for
    /// one waiter, and none for which no token is there.
    fn reclaim(&mut self, now: Moment) {
        if self.idle.is_empty() {
            return;
        }
        let mut coming = self.coming_back();
        let available = self.bucket.as_ref().map_or(usize::MAX, |bucket| bucket.available(now));
        let mut tokens = available.saturating_sub(coming);
        let asks: Vec<(Place, Option<ReuseKey>)> = self
            .queue
            .in_order()
            .take(coming + self.idle.len())
            .map(|waiter| (waiter.ask.place, waiter.ask.reuse.clone()))
            .collect();
        for (place, key) in asks {
            if let Some(slot) = key.and_then(|key| self.idle.freshest(&key)) {
                self.admit_to_kept(place, slot, now);
            } else if coming > 0 {
                coming -= 1;
            } else if tokens > 0
                && let Some(victim) = self.idle.nearest_to_its_end()
            {
                tokens -= 1;
                self.close(victim, CloseCause::Reclaimed);
            }
        }
        if tokens == 0 {
            self.reuse_past_the_head(now);
        }
        if available == 0 {
            self.token_due = self.bucket.as_ref().map(Bucket::next_due);
        }
    }

    /// Slots that are closing and will be free for a waiter: not those that only bring a shrunk registry down to size.
    fn coming_back(&self) -> usize {
        let excess = self.ledger.open().saturating_sub(self.limits.slots);
        self.ledger.counts().closing.saturating_sub(excess)
    }

    fn admit_to_new(&mut self, place: Place, slot: SlotId, now: Moment) {
        let waited = self.leave_queue(place, now);
        self.decisions.push_back(Decision::Dial { place, slot, waited });
    }

    fn admit_to_kept(&mut self, place: Place, slot: SlotId, now: Moment) {
        self.idle.remove(slot);
        self.ledger.enter(slot, SlotState::Active);
        let waited = self.leave_queue(place, now);
        self.decisions.push_back(Decision::Reuse { place, slot, waited });
    }

    fn leave_queue(&mut self, place: Place, now: Moment) -> Duration {
        let waiter = self.queue.remove(place).expect("only those who wait are admitted");
        self.pace.admitted(now, !self.queue.is_empty());
        waiter.waited(now)
    }

    fn refuse(&mut self, place: Place, reason: RefusalReason, now: Moment) {
        let Some(waiter) = self.queue.remove(place) else {
            return;
        };
        let refusal = Refusal {
            reason,
            waited: waiter.waited(now),
            waiting: self.queue.len(),
            slots: self.limits.slots,
            retry_after: self.pace.expected_wait(self.queue.len()),
        };
        self.decisions.push_back(Decision::Refuse { place, refusal });
    }

    fn refuse_all(&mut self, now: Moment) {
        while let Some(place) = self.queue.head().map(|head| head.ask.place) {
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
        while self.ledger.open() - self.ledger.counts().closing > self.limits.slots
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
