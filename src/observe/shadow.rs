//! The decision on the side: what the same core would do with the same requests, if slots and rate held.
//!
//! Time is virtual. A request asks here when it asks in reality, and its slot here lives through what its slot lived through
//! in reality, later by as long as the request had to wait: its *lag*. So it holds a slot here for as long as it took in
//! reality. A tunnel that is reclaimed here asks again when its client speaks again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::waits::Waits;
use crate::admission::core::Core;
use crate::admission::decision::Decision;
use crate::admission::{AdmissionRequest, Limits, Moment, Occurrence, Place, Quiet, SlotEvent, SlotId, SlotState};

/// Events of one slot that are kept until they are due; beyond it, moves of a tunnel are merged. The memory is bounded, as
/// `depth` and the slots bound the requests.
const MAX_SCRIPT: usize = 16;
/// How long a connection takes to close, until the first was seen to.
const CLOSING: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Shadow {
    core: Core,
    limits: Limits,
    now: Moment,
    /// Requests that asked in reality, with their patience.
    asked: HashMap<Place, (AdmissionRequest, Duration)>,
    /// By their places here.
    jobs: HashMap<Place, Job>,
    /// The jobs of slots in reality, and when each began to close.
    real: HashMap<SlotId, (Place, Option<Moment>)>,
    /// The jobs that hold slots here.
    holders: HashMap<SlotId, Place>,
    due: BTreeMap<(Moment, u64), Due>,
    sequence: u64,
    /// How long the last connection took to close.
    closing: Duration,
    pub figures: Figures,
}

/// The figures of what would have happened.
#[derive(Debug, Default)]
pub struct Figures {
    pub requests: u64,
    /// Those of them that had to wait, each once.
    pub waited: u64,
    pub refused: u64,
    pub waiting: usize,
    pub peak_waiting: usize,
    /// Those that were over at once do not count. A tunnel that was reclaimed may wait again.
    pub waits: Waits,
}

#[derive(Debug)]
struct Job {
    request: AdmissionRequest,
    patience: Duration,
    stage: Stage,
    /// The events in reality that are still to happen here.
    script: VecDeque<(Moment, SlotEvent)>,
    /// Whether the first of them stands in `due`.
    scheduled: bool,
    /// It was counted as a request, and not as one that had to wait.
    may_count: bool,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Since it was admitted in reality, at that moment.
    Waits(Moment),
    Holds(SlotId, Duration),
    /// Its connection was reclaimed here.
    Reclaimed(Duration),
}

#[derive(Debug)]
enum Due {
    Event(Place),
    /// The end of a connection that was closed here.
    Gone(SlotId),
}

impl Shadow {
    pub fn new(limits: Limits, now: Moment) -> Shadow {
        Shadow {
            core: Core::new(limits.clone(), now),
            limits,
            now,
            asked: HashMap::new(),
            jobs: HashMap::new(),
            real: HashMap::new(),
            holders: HashMap::new(),
            due: BTreeMap::new(),
            sequence: 0,
            closing: CLOSING,
            figures: Figures::default(),
        }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Other limits hold from now on; the figures begin anew.
    pub fn change(&mut self, limits: Limits) {
        self.core.change(limits.clone(), self.now);
        self.limits = limits;
        for job in self.jobs.values_mut() {
            job.may_count = matches!(job.stage, Stage::Waits(_));
        }
        let waiting = self.figures.waiting;
        self.figures = Figures { requests: waiting as u64, waiting, peak_waiting: waiting, ..Figures::default() };
        self.settle();
    }

    /// Something was missed: requests of before are forgotten, the figures stay.
    pub fn forget(&mut self, now: Moment) {
        let figures = std::mem::take(&mut self.figures);
        *self = Shadow { figures: Figures { waiting: 0, ..figures }, ..Shadow::new(self.limits.clone(), now) };
    }

    /// When something happens next, if nothing is seen before.
    pub fn next_due(&self) -> Option<Moment> {
        let event = self.due.first_key_value().map(|((at, _), _)| *at);
        [event, self.core.wake_at()].into_iter().flatten().min()
    }

    /// Lets everything happen that is due until then; false if `may_go_on` says that this is enough for now.
    pub fn advance(&mut self, to: Moment, mut may_go_on: impl FnMut() -> bool) -> bool {
        while let Some(at) = self.next_due().filter(|at| *at <= to) {
            if !may_go_on() {
                return false;
            }
            self.now = self.now.max(at);
            match self.due.first_entry().filter(|entry| entry.key().0 <= at) {
                None => self.core.tick(self.now),
                Some(entry) => match entry.remove() {
                    Due::Gone(slot) => self.core.tell(slot, SlotEvent::Released, self.now),
                    Due::Event(place) => self.deliver(place),
                },
            }
            self.settle();
        }
        self.now = self.now.max(to);
        true
    }

    /// This happened in reality, now.
    pub fn saw(&mut self, seen: Occurrence) {
        match seen {
            Occurrence::Asked(request) => {
                let patience = request.deadline.since(self.now);
                self.asked.insert(request.place, (request, patience));
            }
            Occurrence::Ended(place) => drop(self.asked.remove(&place)),
            Occurrence::Admitted { place, slot, pooled } => {
                let Some((request, patience)) = self.asked.remove(&place) else { return };
                // Its place in reality may still be taken here, by the same request before it asked again.
                self.sequence += 1;
                let place = Place::new(place.arrived(), self.sequence);
                let mut script = VecDeque::new();
                if pooled {
                    script.extend(
                        [SlotEvent::Dialled, SlotEvent::Established(SlotState::Active)].map(|event| (self.now, event)),
                    );
                }
                let request = AdmissionRequest { place, held: false, ..request };
                let stage = Stage::Waits(self.now);
                self.jobs.insert(place, Job { request, patience, stage, script, scheduled: false, may_count: true });
                self.real.insert(slot, (place, None));
                self.figures.requests += 1;
                self.arrive(place);
            }
            Occurrence::Slot(slot, event) => self.saw_event(slot, event),
        }
        self.settle();
    }

    fn saw_event(&mut self, slot: SlotId, event: SlotEvent) {
        let Some((place, closes)) = self.real.get_mut(&slot) else { return };
        let place = *place;
        match &event {
            // A failed dial holds nothing back here: only slots and rate count.
            SlotEvent::DialRefused | SlotEvent::Unreachable | SlotEvent::NodeFull => return,
            SlotEvent::Entered(SlotState::Closing) => *closes = Some(self.now),
            SlotEvent::Released => {
                self.closing = closes.map_or(self.closing, |since| self.now.since(since));
                self.real.remove(&slot);
            }
            SlotEvent::Pooled(_) => drop(self.real.remove(&slot)),
            _ => {}
        }
        let Some(job) = self.jobs.get_mut(&place) else { return };
        let is_move = |event: &SlotEvent| matches!(event, SlotEvent::Entered(_) | SlotEvent::Quiet(_));
        if job.script.len() >= MAX_SCRIPT && job.script.back().is_some_and(|(_, last)| is_move(last)) {
            job.script.pop_back();
        }
        job.script.push_back((self.now, event));
        self.schedule(place);
    }

    /// A job asks for a slot.
    fn arrive(&mut self, place: Place) {
        let Some(job) = self.jobs.get(&place) else { return };
        self.figures.waiting += 1;
        let request = AdmissionRequest { deadline: self.now + job.patience, ..job.request.clone() };
        self.core.arrive(request, self.now);
    }

    /// Puts the next event of a job in its time, once that is known.
    fn schedule(&mut self, place: Place) {
        let Some(job) = self.jobs.get_mut(&place) else { return };
        let (Stage::Holds(_, lag) | Stage::Reclaimed(lag)) = job.stage else { return };
        if let Some((at, _)) = job.script.front()
            && !std::mem::replace(&mut job.scheduled, true)
        {
            self.sequence += 1;
            self.due.insert(((*at + lag).max(self.now), self.sequence), Due::Event(place));
        }
    }

    /// The next event of a job happens.
    fn deliver(&mut self, place: Place) {
        let Some(job) = self.jobs.get_mut(&place) else { return };
        job.scheduled = false;
        let Some((at, event)) = job.script.pop_front() else { return };
        let is_end = matches!(event, SlotEvent::Released | SlotEvent::Pooled(_));
        match job.stage {
            Stage::Waits(_) => job.script.push_front((at, event)),
            Stage::Holds(slot, lag) => {
                if is_end {
                    self.jobs.remove(&place);
                    self.holders.remove(&slot);
                }
                self.core.tell(slot, later(event, lag), self.now);
            }
            Stage::Reclaimed(_) if is_end => drop(self.jobs.remove(&place)),
            Stage::Reclaimed(_) => {
                if let SlotEvent::Entered(SlotState::Active | SlotState::Connecting) = event {
                    // Its client would have opened another tunnel.
                    let dial = [SlotEvent::Dialled, SlotEvent::Established(SlotState::Idle), event];
                    dial.into_iter().rev().for_each(|event| job.script.push_front((at, event)));
                    job.stage = Stage::Waits(at);
                    self.arrive(place);
                }
            }
        }
        self.schedule(place);
    }

    /// Carries out what the core decided.
    fn settle(&mut self) {
        while let Some(decision) = self.core.next_decision() {
            match decision {
                Decision::Dial { place, slot, waited } => self.admitted(place, slot, waited, false),
                Decision::Reuse { place, slot, waited } => self.admitted(place, slot, waited, true),
                Decision::Refuse { place, refusal, .. } => {
                    self.waited(place, refusal.waited);
                    self.jobs.remove(&place);
                    self.figures.refused += 1;
                }
                Decision::Close { slot, .. } => self.closes(slot),
                Decision::Reclaim { slot } => {
                    if let Some(job) = self.holders.remove(&slot).and_then(|place| self.jobs.get_mut(&place))
                        && let Stage::Holds(_, lag) = job.stage
                    {
                        job.stage = Stage::Reclaimed(lag);
                    }
                    self.core.tell(slot, SlotEvent::Entered(SlotState::Closing), self.now);
                    self.closes(slot);
                }
            }
        }
        self.figures.peak_waiting = self.figures.peak_waiting.max(self.figures.waiting);
    }

    fn admitted(&mut self, place: Place, slot: SlotId, waited: Duration, pooled: bool) {
        self.waited(place, waited);
        let Some(job) = self.jobs.get_mut(&place) else { return };
        let Stage::Waits(mut origin) = job.stage else { return };
        // A pooled connection needs no dial, whatever was dialled in reality.
        while pooled && let Some((at, SlotEvent::Dialled | SlotEvent::Established(_))) = job.script.front() {
            origin = *at;
            job.script.pop_front();
        }
        job.stage = Stage::Holds(slot, self.now.since(origin));
        self.holders.insert(slot, place);
        self.schedule(place);
    }

    fn waited(&mut self, place: Place, waited: Duration) {
        self.figures.waiting -= 1;
        if waited.is_zero() {
            return;
        }
        self.figures.waits.add(waited);
        let may_count = self.jobs.get_mut(&place).is_some_and(|job| std::mem::take(&mut job.may_count));
        self.figures.waited += u64::from(may_count);
    }

    fn closes(&mut self, slot: SlotId) {
        self.sequence += 1;
        self.due.insert((self.now + self.closing, self.sequence), Due::Gone(slot));
    }
}

/// The same event, later by so long.
fn later(event: SlotEvent, lag: Duration) -> SlotEvent {
    match event {
        SlotEvent::Quiet(Quiet { evidence, since, from }) => {
            SlotEvent::Quiet(Quiet { evidence, since: since + lag, from: from + lag })
        }
        other => other,
    }
}

#[cfg(test)]
#[path = "shadow_tests.rs"]
mod tests;
