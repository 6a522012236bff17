//! The node's side of a lease: what it may use, what it must cut, and what it says to the store.
//!
//! No I/O and no clock: every event comes with the time that has passed since some moment, suspends included. One request is
//! under way at a time. A node never uses more than the promise of the request that was sent last, until that one is answered;
//! so no answer or push that comes late can lend the same slot twice.

use std::time::Duration;

use super::message::{Intent, LeaseAnswer, LeasePush, LeaseRequest, Process, Times};

/// The shortest time between two requests that ask for more, or that give back.
const SHORTEST_GAP: Duration = Duration::from_millis(20);
/// A node that needs less than before says so, but no sooner than this for each node of the fleet: a fleet in which all wishes
/// move does not load the store with them.
const GAP_PER_NODE: Duration = Duration::from_millis(10);
/// The pauses after requests that were not answered: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The terms of a fleet, for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetTerms {
    pub times: Times,
    /// Slots that this node has whatever the store says.
    pub floor: u64,
    /// The slots that are lent: the cap without all floors.
    pub pool: u64,
    /// The nodes that the operator expects.
    pub nodes: u64,
}

/// The use that is made of the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotUsage {
    /// Sockets, in whatever state.
    pub open: u64,
    pub waiting: u64,
}

/// The leases of one registry at one node.
#[derive(Debug)]
pub struct Borrower {
    terms: FleetTerms,
    process: Process,
    intent: Intent,
    is_draining: bool,
    has_left: bool,
    used: SlotUsage,
    /// The store's life and clock, and when it was heard of.
    epoch: String,
    clock: (u64, Duration),
    learning_until: Option<Duration>,
    /// The lease in force: since the request was sent that was answered.
    began: Option<Duration>,
    answered: u64,
    granted: u64,
    limit: u64,
    /// The last request: its number, and when it was sent if it is not answered.
    number: u64,
    pending: Option<Duration>,
    wished: u64,
    sent: Option<Duration>,
    /// When to ask without a cause.
    next: Duration,
    failures: u32,
    /// It came before the answer that it follows.
    early: Option<LeasePush>,
}

impl Borrower {
    pub fn new(process: Process, terms: FleetTerms) -> Borrower {
        Borrower {
            terms,
            process,
            intent: Intent::Renew,
            is_draining: false,
            has_left: false,
            used: SlotUsage::default(),
            epoch: String::new(),
            clock: (0, Duration::ZERO),
            learning_until: None,
            began: None,
            answered: 0,
            granted: 0,
            limit: 0,
            number: 0,
            pending: None,
            wished: 0,
            sent: None,
            next: Duration::ZERO,
            failures: 0,
            early: None,
        }
    }

    /// No other process of this node runs, and the kernel has no socket of one: what was lent to them is free.
    pub fn others_are_gone(&mut self, now: Duration) {
        self.intent = Intent::TakeOver;
        self.next = now;
    }

    /// Slots are given back as they are released, and all of them at the end.
    pub fn drain(&mut self, now: Duration) {
        self.is_draining = true;
        self.next = now;
    }

    /// The terms of another config.
    pub fn change(&mut self, terms: FleetTerms) {
        self.terms = terms;
    }

    pub fn uses(&mut self, used: SlotUsage) {
        self.used = used;
        if self.is_draining {
            self.limit = self.limit.min(self.leased() + used.waiting);
        }
    }

    /// All slots that may be used at this moment.
    pub fn slots(&self, now: Duration) -> u64 {
        self.terms.floor + self.leased_slots(now).0
    }

    /// The slots beside the floor that may be used, and until when; no end if there is no lease.
    pub fn leased_slots(&self, now: Duration) -> (u64, Option<Duration>) {
        match self.began.map(|began| began + self.terms.times.admit).filter(|until| now < *until) {
            Some(until) => (self.limit, Some(until)),
            None => (0, None),
        }
    }

    /// Connections that must be cut at this moment.
    pub fn surplus(&self, now: Duration) -> u64 {
        let bound = if self.close_by().is_some_and(|until| now < until) { self.granted } else { 0 };
        self.leased().saturating_sub(bound)
    }

    /// When the leased connections that are still open are cut; none if there is no lease.
    pub fn close_by(&self) -> Option<Duration> {
        self.began.map(|began| began + self.terms.times.admit + self.terms.times.close)
    }

    /// The next moment at which something is to be done without another event.
    pub fn wake_at(&self, now: Duration) -> Duration {
        let ends = [self.leased_slots(now).1, self.close_by().filter(|until| now < *until && self.leased() > 0)];
        ends.into_iter().flatten().chain(self.due()).min().unwrap_or(Duration::MAX)
    }

    /// Whether the store knows that this process holds nothing any more.
    pub fn has_left(&self) -> bool {
        self.has_left
    }

    pub fn picture(&self, now: Duration) -> LeasePicture {
        LeasePicture {
            granted: if self.close_by().is_some_and(|until| now < until) { self.granted } else { 0 },
            limit: self.leased_slots(now).0,
            wished: self.wish(),
            held: self.leased(),
            until: self.leased_slots(now).1,
            learning: self.learning_until.and_then(|until| until.checked_sub(now)),
            unanswered: self.failures,
        }
    }

    /// The request that is due, which is under way from now on.
    pub fn request(&mut self, now: Duration) -> Option<LeaseRequest> {
        if self.due().is_none_or(|due| now < due) {
            return None;
        }
        if self.is_draining && self.used == SlotUsage::default() {
            self.intent = Intent::Leave;
        }
        // Nothing is admitted on a lease that has ended, so that what is open is the most that can be.
        let may_use = self.leased_slots(now).0;
        (self.granted, self.limit) = (may_use.max(self.leased()), may_use);
        self.number += 1;
        self.pending = Some(now);
        self.sent = Some(now);
        self.wished = self.wish();
        Some(LeaseRequest {
            process: self.process.clone(),
            number: self.number,
            epoch: self.epoch.clone(),
            clock: self.clock.0 + millis(now.saturating_sub(self.clock.1)),
            held: self.granted,
            wished: self.wished,
            pool: self.terms.pool,
            hold: millis(self.terms.times.hold()),
            intent: self.intent,
        })
    }

    /// Whether this request waits for its answer.
    pub fn is_pending(&self, number: u64) -> bool {
        self.pending.is_some() && number == self.number
    }

    /// The answer to a request. One to an earlier request than the last says nothing any more.
    pub fn answer(&mut self, answer: &LeaseAnswer, now: Duration) {
        let Some(sent) = self.pending.filter(|_| answer.number == self.number) else { return };
        self.pending = None;
        self.failures = 0;
        self.has_left = self.intent == Intent::Leave;
        self.intent = Intent::Renew;
        if self.epoch != answer.epoch || self.clock.0 < answer.clock {
            self.epoch.clone_from(&answer.epoch);
            self.clock = (answer.clock, now);
        }
        self.began = Some(sent);
        self.answered = answer.number;
        (self.granted, self.limit) = (answer.granted, answer.limit.min(answer.granted));
        let learning = Duration::from_millis(answer.learning);
        self.learning_until = (answer.learning > 0).then(|| now + learning);
        self.next = now + self.terms.times.renew;
        for pause in [answer.again, answer.learning].into_iter().filter(|pause| *pause > 0) {
            self.next = self.next.min(now + Duration::from_millis(pause) + SHORTEST_GAP);
        }
        if let Some(push) = self.early.take() {
            self.push(&push);
        }
        let used = self.used;
        self.uses(used);
    }

    /// The request that is under way was not answered in time, or the answer does not count.
    pub fn failed(&mut self, now: Duration) {
        self.pending = None;
        self.early = None;
        let pause = FIRST_PAUSE * (1 << self.failures.min(8));
        self.failures += 1;
        self.next = now + pause.min(LONGEST_PAUSE);
    }

    /// The store says that something changed since the last request.
    pub fn push(&mut self, push: &LeasePush) {
        if push.process != self.process {
            return;
        }
        if self.pending.is_some() && push.number == self.number {
            self.early = Some(push.clone());
        } else if push.epoch == self.epoch && push.number == self.answered {
            if self.pending.is_some() || push.number != self.number {
                self.limit = self.limit.min(push.limit);
            } else if push.granted >= self.granted {
                (self.granted, self.limit) = (push.granted, push.limit.min(push.granted));
            }
        }
    }

    /// Asks again at once, since something may have been missed.
    pub fn ask(&mut self, now: Duration) {
        self.next = self.next.min(now);
    }

    fn leased(&self) -> u64 {
        self.used.open.saturating_sub(self.terms.floor)
    }

    fn wish(&self) -> u64 {
        (self.used.open + self.used.waiting).saturating_sub(self.terms.floor).min(self.terms.pool)
    }

    /// When the next request is due; none while one is under way.
    fn due(&self) -> Option<Duration> {
        if self.pending.is_some() || self.has_left {
            return None;
        }
        let Some(sent) = self.sent.filter(|_| self.failures == 0) else { return Some(self.next) };
        let wish = self.wish();
        let is_content = self.granted >= self.wished;
        let needs_more = wish > self.granted && (is_content && wish > self.wished || wish >= 2 * self.wished.max(1));
        let gives_back = self.limit.max(self.leased()) < self.granted;
        let fewer = (GAP_PER_NODE * u32::try_from(self.terms.nodes).unwrap_or(u32::MAX).min(500)).max(SHORTEST_GAP);
        let causes = [
            (needs_more || gives_back).then_some(sent + SHORTEST_GAP),
            (wish < self.wished && wish < self.granted).then_some(sent + fewer),
            (self.is_draining && self.used == SlotUsage::default()).then_some(sent + SHORTEST_GAP),
            Some(self.next),
        ];
        causes.into_iter().flatten().min()
    }
}

/// The picture of a lease, for pages and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeasePicture {
    pub granted: u64,
    /// Below `granted` while slots are given back.
    pub limit: u64,
    pub wished: u64,
    pub held: u64,
    /// No leased slot is given to a request after this, unless the store answers before.
    pub until: Option<Duration>,
    pub learning: Option<Duration>,
    /// Requests in a row that were not answered.
    pub unanswered: u32,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn borrower(floor: u64) -> Borrower {
        let terms = FleetTerms { times: Times::default(), floor, pool: 10, nodes: 3 };
        let process = Process { node: "n".to_owned(), instance: "1".to_owned() };
        let mut borrower = Borrower::new(process, terms);
        borrower.uses(SlotUsage { open: 0, waiting: 8 });
        borrower
    }

    fn granting(request: &LeaseRequest, granted: u64, limit: u64) -> LeaseAnswer {
        let epoch = "e".to_owned();
        LeaseAnswer { number: request.number, epoch, clock: 0, granted, limit, again: 0, learning: 0 }
    }

    fn pushing(request: &LeaseRequest, granted: u64, limit: u64) -> LeasePush {
        let (process, epoch) = (request.process.clone(), "e".to_owned());
        LeasePush { process, epoch, number: request.number, granted, limit }
    }

    #[test]
    fn a_lease_counts_from_before_its_request_was_sent() {
        let mut borrower = borrower(2);
        assert_eq!(borrower.slots(at(0)), 2);
        let request = borrower.request(at(0)).unwrap();
        assert_eq!((request.held, request.wished), (0, 6));
        borrower.answer(&granting(&request, 5, 5), at(30));
        borrower.uses(SlotUsage { open: 7, waiting: 1 });
        assert_eq!((borrower.slots(at(59)), borrower.surplus(at(59))), (7, 0));
        // Nothing is admitted any more, then what is open is cut; the floor stays.
        assert_eq!((borrower.slots(at(60)), borrower.surplus(at(119))), (2, 0));
        assert_eq!((borrower.slots(at(120)), borrower.surplus(at(120))), (2, 5));
    }

    #[test]
    fn an_answer_to_an_earlier_request_lends_nothing() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        borrower.failed(at(1));
        let second = borrower.request(at(2)).unwrap();
        borrower.answer(&granting(&first, 5, 5), at(3));
        borrower.push(&pushing(&first, 5, 5));
        assert_eq!(borrower.slots(at(3)), 0);
        borrower.answer(&granting(&second, 1, 1), at(3));
        borrower.answer(&granting(&second, 9, 9), at(3));
        borrower.push(&pushing(&first, 5, 5));
        assert_eq!(borrower.slots(at(3)), 1);
    }

    #[test]
    fn a_push_counts_only_until_the_next_promise() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        // It overtook the answer.
        borrower.push(&pushing(&first, 4, 4));
        assert_eq!(borrower.slots(at(1)), 0);
        borrower.answer(&granting(&first, 2, 2), at(1));
        assert_eq!(borrower.slots(at(1)), 4);
        borrower.push(&pushing(&first, 3, 3));
        assert_eq!(borrower.slots(at(1)), 4, "an older push");
        let second = borrower.request(at(10)).unwrap();
        assert_eq!(second.held, 4);
        borrower.push(&pushing(&first, 9, 9));
        assert_eq!(borrower.slots(at(10)), 4, "the promise was 4");
        borrower.push(&pushing(&first, 4, 1));
        assert_eq!(borrower.slots(at(10)), 1, "less is always right");
    }

    #[test]
    fn a_shrink_is_confirmed_slot_by_slot() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        borrower.answer(&granting(&first, 4, 4), at(0));
        borrower.uses(SlotUsage { open: 4, waiting: 4 });
        borrower.push(&pushing(&first, 4, 2));
        assert_eq!((borrower.slots(at(1)), borrower.request(at(1))), (2, None));
        for (now, open) in [(2, 3), (3, 2)] {
            borrower.uses(SlotUsage { open, waiting: 4 });
            let request = borrower.request(at(now)).unwrap();
            assert_eq!(request.held, open);
            borrower.answer(&granting(&request, open, 2), at(now));
        }
        borrower.uses(SlotUsage { open: 1, waiting: 4 });
        assert_eq!(borrower.request(at(4)), None);
    }

    #[test]
    fn a_draining_process_gives_back_what_it_does_not_use_and_leaves() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        borrower.answer(&granting(&first, 6, 6), at(0));
        borrower.uses(SlotUsage { open: 2, waiting: 0 });
        borrower.drain(at(1));
        borrower.uses(SlotUsage { open: 1, waiting: 0 });
        let request = borrower.request(at(1)).unwrap();
        assert_eq!((request.held, request.intent), (1, Intent::Renew));
        borrower.answer(&granting(&request, 1, 1), at(1));
        borrower.uses(SlotUsage::default());
        let request = borrower.request(at(2)).unwrap();
        assert_eq!((request.held, request.intent), (0, Intent::Leave));
        borrower.answer(&granting(&request, 0, 0), at(2));
        assert!(borrower.has_left());
        assert_eq!(borrower.request(at(600)), None);
    }
}
