//! The node's side of a lease: what it may use, what it must cut, and what it says to the store.
//!
//! No I/O and no clock: every event comes with the time that has passed since some moment, suspends included. One request is
//! under way at a time. A node never uses more than the promise of the request that was sent last, until that one is answered;
//! so no answer or push that comes late can lend the same slot twice.

use std::time::Duration;

use super::borrowed::LeasePicture;
use super::message::{
    FleetEvidence, FleetOrder, Intent, LeaseAnswer, LeasePush, LeaseRequest, PoolForce, Process, Times,
};

/// The shortest time between two requests that ask for more, or that give back.
const SHORTEST_GAP: Duration = Duration::from_millis(20);
/// A node that needs less than before says so, but no sooner than this for each node of the fleet: a fleet in which all wishes
/// move does not load the store with them.
const GAP_PER_NODE: Duration = Duration::from_millis(10);
/// A node that sees signs of overload says so no sooner than this after its last request, and than the time above.
const GAP_OF_SIGNS: Duration = Duration::from_millis(200);
/// The pauses after requests that were not answered: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// So many renewals of another process show that it goes on.
const SEEN: u32 = 3;
/// A node that runs has told the store what it knows after one renewal and so long: the longest pause after a failure, and a
/// connection.
const TOLD_AGAIN: Duration = Duration::from_secs(5);

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
    /// Those of them that carry nothing.
    pub idle: u64,
    pub waiting: u64,
}

/// Another process of this node at the store. One that was killed may have a lease still, but does not renew it.
#[derive(Clone, Copy, Debug, Default)]
struct Twin {
    is_watched: bool,
    until: u64,
    renewals: u32,
    seen: Duration,
}

impl Twin {
    fn answered(&mut self, until: u64, now: Duration) {
        if self.is_watched && until > self.until && self.until > 0 {
            (self.renewals, self.seen) = (self.renewals + 1, now);
        }
        if until == 0 {
            self.renewals = 0;
        }
        self.until = until;
    }
}

/// The leases of one registry at one node.
#[derive(Debug)]
pub struct Borrower {
    terms: FleetTerms,
    process: Process,
    intent: Intent,
    /// Processes that are gone, of which the store is told.
    gone: Vec<String>,
    /// The request before which they were known: its answer says nothing of them.
    gone_since: u64,
    twin: Twin,
    is_draining: bool,
    /// Nothing comes any more that could ask for a slot.
    is_ending: bool,
    has_left: bool,
    used: SlotUsage,
    /// Connections that have carried nothing for a while: others may need their slots more.
    quiet: u64,
    /// Those that have carried nothing since a moment, until that is a while ago.
    resting: Option<(u64, Duration)>,
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
    order: FleetOrder,
    /// The order that was in the last request.
    told: FleetOrder,
    certainty: Certainty,
    /// Signs of overload that the store does not know.
    signs: u64,
    /// The slots in force of all nodes together, as the store said last, and when they were lowered by the time here.
    force: PoolForce,
    lowered: Option<Duration>,
}

/// Whether the last order is known: that of a store that is not learning.
#[derive(Clone, Copy, Debug)]
enum Certainty {
    NotAsked,
    AskedFirst(Duration),
    Known,
}

impl Borrower {
    pub fn new(process: Process, terms: FleetTerms) -> Borrower {
        Borrower {
            terms,
            process,
            intent: Intent::Renew,
            gone: Vec::new(),
            gone_since: 0,
            twin: Twin::default(),
            is_draining: false,
            is_ending: false,
            has_left: false,
            used: SlotUsage::default(),
            quiet: 0,
            resting: None,
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
            order: FleetOrder::default(),
            told: FleetOrder::default(),
            certainty: Certainty::NotAsked,
            signs: 0,
            force: PoolForce::default(),
            lowered: None,
        }
    }

    /// These earlier processes of this node are gone, and the kernel has no socket of theirs: what was lent to them is free.
    pub fn others_are_gone(&mut self, gone: Vec<String>) {
        (self.gone, self.gone_since) = (gone, self.number);
    }

    /// No other process of this node should be there from now on.
    pub fn is_alone(&mut self) {
        self.twin.is_watched = true;
    }

    /// Whether another process renews a lease by the name of this node, which should be alone.
    pub fn has_twin(&self, now: Duration) -> bool {
        let renewal = self.terms.times.renew;
        !self.is_draining && self.twin.renewals >= SEEN && now < self.twin.seen + SEEN * renewal + TOLD_AGAIN
    }

    /// Slots are given back as they are released. Requests that came before may still ask for some.
    pub fn drain(&mut self, now: Duration) {
        self.is_draining = true;
        self.next = now;
    }

    /// All slots go back, once none is used.
    pub fn end(&mut self, now: Duration) {
        self.is_ending = true;
        self.drain(now);
    }

    /// The terms of another config.
    pub fn change(&mut self, terms: FleetTerms) {
        self.terms = terms;
    }

    pub fn uses(&mut self, used: SlotUsage) {
        self.used = used;
        self.quiet = self.quiet.min(used.idle);
        self.resting = self.resting.map(|(resting, since)| (resting.min(used.idle), since));
        if self.is_draining {
            self.limit = self.limit.min(self.leased() + used.waiting);
        }
    }

    /// So many signs of overload were seen that are not in the last request.
    pub fn sees(&mut self, signs: u64) {
        self.signs = signs;
    }

    /// The slots in force of all nodes together.
    pub fn force(&self) -> &PoolForce {
        &self.force
    }

    /// When those were lowered last, also if all are in force again; none where the store has been away for long.
    pub fn pool_lowered(&self, now: Duration) -> Option<Duration> {
        self.lowered.filter(|_| self.leased_slots(now).1.is_some())
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
        let ends = [
            self.leased_slots(now).1,
            self.close_by().filter(|until| now < *until && self.leased() > 0),
            self.certain_at().filter(|certain| now < *certain),
            self.resting.filter(|_| self.pending.is_none()).map(|(_, since)| since + self.while_of_fleet()),
        ];
        ends.into_iter().flatten().chain(self.due()).min().unwrap_or(Duration::MAX)
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Whether the store knows that this process holds nothing any more.
    pub fn has_left(&self) -> bool {
        self.has_left
    }

    pub fn picture(&self, now: Duration) -> LeasePicture {
        let (limit, until) = self.leased_slots(now);
        LeasePicture {
            granted: if self.close_by().is_some_and(|until| now < until) { self.granted } else { 0 },
            limit,
            wished: self.wish(),
            held: self.leased(),
            until,
            close_by: self.close_by(),
            is_paused: self.is_paused(now),
            learning: self.learning_until.and_then(|until| until.checked_sub(now)),
            unanswered: self.failures,
            has_twin: self.has_twin(now),
            pool: self.terms.pool,
            pool_in_force: if until.is_some() && self.force.slots > 0 { self.force.slots } else { self.terms.pool },
        }
    }

    /// The request that is due, which is under way from now on.
    pub fn request(&mut self, now: Duration) -> Option<LeaseRequest> {
        self.notice_rest(now);
        if self.due().is_none_or(|due| now < due) {
            return None;
        }
        if self.is_ending && self.used == SlotUsage::default() {
            self.intent = Intent::Leave;
        }
        // Nothing is admitted on a lease that has ended, so that what is open is the most that can be.
        let may_use = self.leased_slots(now).0;
        (self.granted, self.limit) = (may_use.max(self.leased()), may_use);
        self.number += 1;
        self.pending = Some(now);
        self.sent = Some(now);
        if matches!(self.certainty, Certainty::NotAsked) {
            self.certainty = Certainty::AskedFirst(now);
        }
        self.wished = self.wish();
        self.told = self.order;
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
            gone: self.gone.clone(),
            order: self.order,
            evidence: FleetEvidence::default(),
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
        if answer.number > self.gone_since {
            self.gone.clear();
        }
        self.twin.answered(answer.twin, now);
        if self.epoch != answer.epoch || self.clock.0 < answer.clock {
            self.epoch.clone_from(&answer.epoch);
            self.clock = (answer.clock, now);
        }
        self.order = self.order.max(answer.order);
        let lowered = Duration::from_millis(answer.clock.saturating_sub(answer.force.lowered));
        (self.force, self.lowered) = (answer.force.clone(), Some(now.saturating_sub(lowered)));
        if answer.learning == 0 {
            self.certainty = Certainty::Known;
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

    /// The store passes over the request that is under way: it has no record of this process any more, or knows a later request. The
    /// next one begins anew.
    pub fn is_forgotten(&mut self, now: Duration) {
        self.failed(now);
        self.epoch.clear();
    }

    /// The store says that something changed since the last request.
    pub fn push(&mut self, push: &LeasePush) {
        if push.process != self.process {
            return;
        }
        if self.pending.is_some() && push.number == self.number {
            self.early = Some(push.clone());
        } else if push.epoch == self.epoch && push.number == self.answered {
            self.force.lowered = self.force.lowered.max(push.lowered);
            if self.pending.is_some() || push.number != self.number {
                self.limit = self.limit.min(push.limit);
            } else if push.granted >= self.granted {
                (self.granted, self.limit) = (push.granted, push.limit.min(push.granted));
            }
        }
    }

    /// The store tells all nodes of an order.
    pub fn obey(&mut self, order: FleetOrder) {
        self.order = self.order.max(order);
    }

    /// The last order that is known here.
    pub fn order(&self) -> FleetOrder {
        self.order
    }

    /// Whether no request may be admitted, on the floor neither: the fleet is paused, or may be. A node that starts does not know
    /// before a store says so that has its records, or before the other nodes had the time to tell a store that has lost them.
    pub fn is_paused(&self, now: Duration) -> bool {
        self.order.is_pause() || self.certain_at().is_none_or(|certain| now < certain)
    }

    /// When a node that starts waits no longer for the order of before; none before it asks.
    fn certain_at(&self) -> Option<Duration> {
        match self.certainty {
            Certainty::NotAsked => None,
            Certainty::AskedFirst(asked) => Some(asked + self.terms.times.renew + TOLD_AGAIN),
            Certainty::Known => Some(Duration::ZERO),
        }
    }

    /// Asks again at once, since something may have been missed; of a store that does not answer, after the pause that is due.
    pub fn ask(&mut self, now: Duration) {
        if self.failures == 0 {
            self.next = self.next.min(now);
        }
    }

    /// Connections that carried nothing for a while are not wished for any more.
    fn notice_rest(&mut self, now: Duration) {
        let is_over = |since: Duration| now >= since + self.while_of_fleet();
        if let Some((resting, _)) = self.resting.filter(|(_, since)| is_over(*since)) {
            self.quiet = self.quiet.max(resting);
            self.resting = None;
        }
        if self.used.idle <= self.quiet {
            self.resting = None;
        } else if self.resting.is_none_or(|(resting, _)| resting <= self.quiet) {
            self.resting = Some((self.used.idle, now));
        }
    }

    /// The shortest time between two words that are of no use to this node itself.
    fn while_of_fleet(&self) -> Duration {
        (GAP_PER_NODE * u32::try_from(self.terms.nodes).unwrap_or(u32::MAX).min(500)).max(SHORTEST_GAP)
    }

    /// This evidence with the work of leased slots only: those of the floor do not yield. Without a floor all work is theirs, also where
    /// nothing is open any more.
    pub fn on_leases(&self, evidence: FleetEvidence) -> FleetEvidence {
        if self.terms.floor == 0 {
            return evidence;
        }
        let on_leases = (evidence.worked * self.leased()).checked_div(self.used.open);
        FleetEvidence { worked: on_leases.unwrap_or(0), ..evidence }
    }

    fn leased(&self) -> u64 {
        self.used.open.saturating_sub(self.terms.floor)
    }

    fn wish(&self) -> u64 {
        (self.used.open + self.used.waiting).saturating_sub(self.quiet + self.terms.floor).min(self.terms.pool)
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
        let knows_more = self.order > self.told || !self.gone.is_empty();
        let causes = [
            (needs_more || gives_back || knows_more).then_some(sent + SHORTEST_GAP),
            (wish < self.wished && wish < self.granted).then_some(sent + self.while_of_fleet()),
            (self.signs > 0).then_some(sent + self.while_of_fleet().max(GAP_OF_SIGNS)),
            (self.is_ending && self.used == SlotUsage::default()).then_some(sent + SHORTEST_GAP),
            Some(self.next),
        ];
        causes.into_iter().flatten().min()
    }
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
        borrower.uses(SlotUsage { open: 0, idle: 0, waiting: 8 });
        borrower
    }

    fn granting(request: &LeaseRequest, granted: u64, limit: u64) -> LeaseAnswer {
        let epoch = "e".to_owned();
        LeaseAnswer {
            number: request.number,
            epoch,
            clock: 0,
            granted,
            limit,
            again: 0,
            learning: 0,
            order: FleetOrder::default(),
            twin: 0,
            force: PoolForce::default(),
        }
    }

    fn pushing(request: &LeaseRequest, granted: u64, limit: u64) -> LeasePush {
        let (process, epoch) = (request.process.clone(), "e".to_owned());
        LeasePush { process, epoch, number: request.number, granted, limit, lowered: 0 }
    }

    /// A node may ask when nothing is open any more.
    #[test]
    fn the_work_of_the_floor_is_not_that_of_leases() {
        let told = |floor, open| {
            let mut borrower = borrower(floor);
            borrower.uses(SlotUsage { open, idle: 0, waiting: 0 });
            borrower.on_leases(FleetEvidence { worked: 600, ..FleetEvidence::default() }).worked
        };
        assert_eq!([told(0, 3), told(0, 0), told(1, 3), told(3, 3), told(1, 1), told(3, 0)], [600, 600, 400, 0, 0, 0]);
    }

    #[test]
    fn a_lease_counts_from_before_its_request_was_sent() {
        let mut borrower = borrower(2);
        assert_eq!(borrower.slots(at(0)), 2);
        let request = borrower.request(at(0)).unwrap();
        assert_eq!((request.held, request.wished), (0, 6));
        borrower.answer(&granting(&request, 5, 5), at(30));
        borrower.uses(SlotUsage { open: 7, idle: 0, waiting: 1 });
        assert_eq!((borrower.slots(at(59)), borrower.surplus(at(59))), (7, 0));
        // Nothing is admitted any more, then what is open is cut; the floor stays.
        assert_eq!((borrower.slots(at(60)), borrower.surplus(at(119))), (2, 0));
        assert_eq!((borrower.slots(at(120)), borrower.surplus(at(120))), (2, 5));
    }

    /// Time that the request was on its way may have passed at the store already.
    #[test]
    fn the_store_is_told_only_the_time_since_its_answer_arrived() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        assert_eq!((first.clock, first.epoch.as_str()), (0, ""));
        borrower.answer(&LeaseAnswer { clock: 1000, ..granting(&first, 1, 1) }, at(3));
        let second = borrower.request(at(10)).unwrap();
        assert_eq!((second.clock, second.epoch.as_str()), (8000, "e"));
        // One that says no more than is known changes nothing.
        borrower.answer(&LeaseAnswer { clock: 1000, ..granting(&second, 1, 1) }, at(11));
        assert_eq!(borrower.request(at(20)).unwrap().clock, 18_000);
    }

    /// The clock of the node is slow by 1 %, and those that drive the store's clock are fast by as much.
    #[test]
    fn the_store_keeps_a_lease_for_longer_than_a_slow_clock_uses_it() {
        let tenths = |tenths: u64| Duration::from_millis(tenths * 100);
        for (admit, close, drops) in [(600, 600, 900), (15, 10, 5), (1, 1, 1), (36_000, 36_000, 1), (20, 600, 90_000)] {
            let (admit, close, registry_drops) = (tenths(admit), tenths(close), tenths(drops));
            let times = Times { renew: tenths(1), admit, close, registry_drops };
            let (used, kept) = ((admit + close).mul_f64(1.0 / 0.99) + registry_drops, times.hold().mul_f64(1.0 / 1.01));
            assert!(kept > used, "{times:?}: {kept:?} after {used:?}");
        }
    }

    /// A pause that a node has missed comes with the next answer; one that the store has lost comes with the next request.
    #[test]
    fn the_highest_order_that_anybody_knows_holds() {
        let mut borrower = borrower(2);
        let first = borrower.request(at(0)).unwrap();
        borrower.answer(&LeaseAnswer { order: FleetOrder(1), ..granting(&first, 5, 5) }, at(0));
        assert!(borrower.is_paused(at(0)));
        let told = borrower.request(at(0) + SHORTEST_GAP).expect("it says so at once");
        borrower.answer(&granting(&told, 5, 5), at(1));
        borrower.obey(FleetOrder(2));
        borrower.obey(FleetOrder(1));
        assert!(!borrower.is_paused(at(1)));
        let second = borrower.request(at(1)).expect("it says so at once");
        assert_eq!((told.order, second.order), (FleetOrder(1), FleetOrder(2)));
        borrower.answer(&granting(&second, 5, 5), at(1));
        assert_eq!((borrower.order(), borrower.is_paused(at(1))), (FleetOrder(2), false));
    }

    /// A server that takes connections and closes them is not asked without a pause.
    #[test]
    fn a_connection_that_ends_does_not_shorten_the_pause_after_a_failure() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        borrower.answer(&granting(&first, 5, 5), at(0));
        borrower.ask(at(1));
        borrower.request(at(1)).expect("something may have been missed");
        borrower.failed(at(1));
        borrower.ask(at(1));
        assert_eq!(borrower.request(at(1)), None);
        assert_eq!(borrower.wake_at(at(1)), at(1) + FIRST_PAUSE);
    }

    /// Those that carry something again before it is due to say so are wished for still.
    #[test]
    fn connections_that_stay_idle_are_not_wished_for() {
        let mut borrower = borrower(0);
        let used = |idle| SlotUsage { open: 4, idle, waiting: 0 };
        borrower.uses(used(0));
        let first = borrower.request(at(0)).unwrap();
        borrower.answer(&granting(&first, 4, 4), at(0));
        borrower.uses(used(3));
        let second = borrower.request(at(5)).unwrap();
        assert_eq!(second.wished, 4, "they were busy a moment ago");
        borrower.answer(&granting(&second, 4, 4), at(5));
        borrower.uses(used(1));
        borrower.uses(used(3));
        assert_eq!(borrower.wake_at(at(5)), at(5) + GAP_PER_NODE * 3);
        let third = borrower.request(at(5) + GAP_PER_NODE * 3).unwrap();
        assert_eq!((third.wished, third.held), (3, 4), "one was idle all the time, and all are held");
    }

    /// The floor needs no store, but an order of before may hold. The other nodes tell a store that has lost it.
    #[test]
    fn a_node_that_starts_uses_its_floor_when_it_knows_that_the_fleet_is_not_paused_or_nobody_says_so() {
        let waits = Times::default().renew + TOLD_AGAIN;
        let mut without_store = borrower(2);
        assert!(without_store.is_paused(at(0)));
        without_store.request(at(1)).unwrap();
        without_store.failed(at(2));
        assert!(without_store.is_paused(at(2)) && without_store.is_paused(waits));
        assert!(!without_store.is_paused(at(1) + waits));
        let mut hears = borrower(2);
        let request = hears.request(at(0)).unwrap();
        hears.answer(&granting(&request, 0, 0), at(0));
        assert!(!hears.is_paused(at(0)));
        // A store that learns may have lost the order.
        let mut learns = borrower(2);
        for now in [0, 6] {
            let request = learns.request(at(now)).unwrap();
            learns.answer(&LeaseAnswer { learning: 600_000, ..granting(&request, 0, 0) }, at(now));
            assert!(learns.is_paused(at(now)));
        }
        assert_eq!((learns.wake_at(at(6)), learns.is_paused(at(10))), (at(10), false));
        learns.obey(FleetOrder(1));
        assert!(learns.is_paused(at(11)));
    }

    /// Slots that are lent and rest are of use to others a moment later, not at the next renewal.
    #[test]
    fn a_connection_that_rests_is_noticed_between_renewals() {
        let mut borrower = borrower(0);
        borrower.uses(SlotUsage { open: 4, idle: 0, waiting: 0 });
        let first = borrower.request(at(0)).unwrap();
        borrower.answer(&granting(&first, 4, 4), at(0));
        borrower.uses(SlotUsage { open: 4, idle: 3, waiting: 0 });
        assert_eq!(borrower.request(at(1)), None);
        let gap = GAP_PER_NODE * 3;
        assert_eq!(borrower.wake_at(at(1)), at(1) + gap);
        borrower.uses(SlotUsage { open: 4, idle: 2, waiting: 0 });
        assert_eq!(borrower.request(at(1) + gap).map(|request| request.wished), Some(2));
    }

    /// One that was killed has a lease for a while, and one that is expected to go on may renew it.
    #[test]
    fn a_process_with_the_name_of_this_node_is_noticed_when_it_goes_on_renewing() {
        let mut borrower = borrower(0);
        let renewed = |borrower: &mut Borrower, second: u64, twin| {
            let request = borrower.request(at(second)).unwrap();
            borrower.answer(&LeaseAnswer { twin, ..granting(&request, 1, 1) }, at(second));
            borrower.has_twin(at(second))
        };
        let dead = [0, 5, 10, 15].map(|second| renewed(&mut borrower, second, 100));
        let old = [20, 25, 30, 35].map(|second| renewed(&mut borrower, second, 100 + second));
        borrower.is_alone();
        let twin = [40, 45, 50, 55, 60].map(|second| renewed(&mut borrower, second, 100 + second));
        assert_eq!((dead, old, twin), ([false; 4], [false; 4], [false, false, true, true, true]));
        assert!(!borrower.has_twin(at(85)), "it is gone");
        renewed(&mut borrower, 90, 0);
        assert!(!borrower.has_twin(at(90)));
    }

    #[test]
    fn the_store_is_told_of_processes_that_are_gone_until_it_answers() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        borrower.others_are_gone(vec!["0".to_owned()]);
        borrower.answer(&granting(&first, 1, 1), at(0));
        let second = borrower.request(at(1)).expect("at once");
        borrower.failed(at(2));
        let third = borrower.request(at(3)).unwrap();
        let gone = vec!["0".to_owned()];
        assert_eq!((first.gone, second.gone, third.gone.clone()), (Vec::new(), gone.clone(), gone));
        borrower.answer(&granting(&third, 1, 1), at(3));
        assert_eq!(borrower.request(at(8)).unwrap().gone, Vec::<String>::new());
    }

    /// It was frozen for longer than its lease: it comes back as one that starts.
    #[test]
    fn a_process_that_the_store_has_forgotten_begins_anew() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        borrower.answer(&granting(&first, 5, 5), at(0));
        assert_eq!(borrower.request(at(300)).unwrap().epoch, "e");
        borrower.is_forgotten(at(300));
        let again = borrower.request(at(300) + FIRST_PAUSE).unwrap();
        assert_eq!((again.epoch.as_str(), again.held), ("", 0));
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
        borrower.uses(SlotUsage { open: 4, idle: 0, waiting: 4 });
        borrower.push(&pushing(&first, 4, 2));
        assert_eq!((borrower.slots(at(1)), borrower.request(at(1))), (2, None));
        for (now, open) in [(2, 3), (3, 2)] {
            borrower.uses(SlotUsage { open, idle: 0, waiting: 4 });
            let request = borrower.request(at(now)).unwrap();
            assert_eq!(request.held, open);
            borrower.answer(&granting(&request, open, 2), at(now));
        }
        borrower.uses(SlotUsage { open: 1, idle: 0, waiting: 4 });
        assert_eq!(borrower.request(at(4)), None);
    }

    #[test]
    fn a_draining_process_gives_back_what_it_does_not_use_and_leaves_at_the_end() {
        let mut borrower = borrower(0);
        let first = borrower.request(at(0)).unwrap();
        borrower.answer(&granting(&first, 6, 6), at(0));
        borrower.uses(SlotUsage { open: 2, idle: 0, waiting: 0 });
        borrower.drain(at(1));
        borrower.uses(SlotUsage { open: 1, idle: 0, waiting: 0 });
        let request = borrower.request(at(1)).unwrap();
        assert_eq!((request.held, request.intent), (1, Intent::Renew));
        borrower.answer(&granting(&request, 1, 1), at(1));
        borrower.uses(SlotUsage::default());
        // A request that was accepted before, and looks a name up, may come yet.
        let request = borrower.request(at(2)).unwrap();
        assert_eq!((request.held, request.intent), (0, Intent::Renew));
        borrower.answer(&granting(&request, 0, 0), at(2));
        borrower.uses(SlotUsage { open: 0, idle: 0, waiting: 1 });
        let request = borrower.request(at(3)).unwrap();
        assert_eq!((request.wished, request.intent), (1, Intent::Renew));
        borrower.answer(&granting(&request, 1, 1), at(3));
        assert_eq!(borrower.slots(at(3)), 1);
        borrower.uses(SlotUsage::default());
        borrower.end(at(4));
        let request = borrower.request(at(4)).unwrap();
        assert_eq!((request.held, request.intent), (0, Intent::Leave));
        borrower.answer(&granting(&request, 0, 0), at(4));
        assert!(borrower.has_left());
        assert_eq!(borrower.request(at(600)), None);
    }
}
