//! One node of a plan: a real admission core, and the requests that wait in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::core::Core;
use crate::admission::decision::{Decision, Limits};
use crate::admission::{
    AdmissionRequest, ClassId, ClientId, Lane, Moment, Place, Principal, SlotEvent, SlotId, SlotUse,
};
use crate::lease::borrowed::Lent;
use crate::lease::node::SlotUsage;

/// A decision of the core, for the request that it is about.
#[derive(Debug)]
pub enum Decided {
    /// The request dials in this slot.
    Dial(usize, SlotId),
    /// The request goes on the pooled connection in this slot.
    Reuse(usize, SlotId),
    /// The request is refused.
    Refuse(usize),
    /// A connection closes.
    Close(SlotId),
}

#[derive(Debug)]
pub struct PlannedNode {
    core: Core,
    waiting: HashMap<Place, usize>,
    /// For which moment the next tick is arranged.
    pub tick_at: Option<Moment>,
}

impl PlannedNode {
    pub fn new(limits: Limits) -> PlannedNode {
        PlannedNode { core: Core::new(limits, Moment::default()), waiting: HashMap::new(), tick_at: None }
    }

    /// The request asks, at the place that is kept for its client if there is one.
    pub fn ask(&mut self, request: usize, ask: &Asking, target: &Arc<str>, now: Moment) -> Place {
        let client = ask.client.clone();
        let (place, _) = self.core.place(&client, target, now);
        self.waiting.insert(place, request);
        let principal = Principal { class: ask.class, client };
        let request = AdmissionRequest {
            lane: ask.lane,
            reuse: (ask.slot_use == SlotUse::Request).then(|| target.clone()),
            ..AdmissionRequest::new(place, now + ask.queue_timeout, principal, target.clone())
        };
        self.core.arrive(request, now);
        place
    }

    /// The request at this place leaves, if it still waits.
    pub fn leave(&mut self, place: Place, now: Moment) -> bool {
        let waits = self.waiting.remove(&place).is_some();
        if waits {
            self.core.leave(place, now);
        }
        waits
    }

    pub fn tell(&mut self, slot: SlotId, event: SlotEvent, now: Moment) {
        self.core.tell(slot, event, now);
    }

    pub fn tick(&mut self, now: Moment) {
        self.core.tick(now);
    }

    /// Slots are lent here.
    pub fn lend(&mut self, lent: Arc<dyn Lent>) {
        self.core.lend(lent);
    }

    /// Other slots are lent than before.
    pub fn look_again(&mut self, now: Moment) {
        self.core.look_again(now);
    }

    pub fn usage(&self, now: Moment) -> SlotUsage {
        let now = self.core.snapshot(now);
        SlotUsage { open: now.open.open() as u64, idle: now.open.idle as u64, waiting: now.waiting as u64 }
    }

    pub fn wake_at(&self) -> Option<Moment> {
        self.core.wake_at()
    }

    /// The next decision that concerns a request or a connection here.
    pub fn next_decision(&mut self, now: Moment) -> Option<Decided> {
        loop {
            match self.core.next_decision()? {
                Decision::Dial { place, slot, .. } => {
                    let request = self.waiting.remove(&place)?;
                    self.core.tell(slot, SlotEvent::Dialled, now);
                    return Some(Decided::Dial(request, slot));
                }
                Decision::Reuse { place, slot, .. } => return Some(Decided::Reuse(self.waiting.remove(&place)?, slot)),
                Decision::Refuse { place, may_return, .. } => {
                    if let Some(owner) = may_return {
                        self.core.keep_place(place, owner, now);
                    }
                    return Some(Decided::Refuse(self.waiting.remove(&place)?));
                }
                Decision::Close { slot, .. } => return Some(Decided::Close(slot)),
                // No tunnel of a plan lies quiet.
                Decision::Reclaim { .. } => {}
            }
        }
    }
}

/// How a request asks.
#[derive(Debug)]
pub struct Asking {
    pub client: ClientId,
    pub class: ClassId,
    pub lane: Lane,
    pub slot_use: SlotUse,
    pub queue_timeout: Duration,
}
