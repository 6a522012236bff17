//! A world in virtual time, run with its limits and run without limits under the eyes of a shadow: both must tell the same.

use std::sync::Arc;

use super::*;
use crate::admission::{ClassId, Evidence, Principal, RateLimit};
use crate::observe::unbounded;

const SECOND: Duration = Duration::from_secs(1);

fn at(millis: u64) -> Moment {
    Moment(Duration::from_millis(millis))
}

fn limits(slots: usize) -> Limits {
    Limits {
        slots,
        depth: 10_000,
        rate: None,
        idle_timeout: SECOND * 60,
        max_lifetime: SECOND * 600,
        max_connecting: slots,
        keep_place: Duration::ZERO,
        weights: vec![1, 4],
    }
}

/// One request of a world: it comes then, and its slot works for it for so long.
#[derive(Clone, Debug)]
struct Arrival {
    at: Moment,
    takes: Duration,
    client: u64,
    /// The authority that it asks; a tunnel shows none, stays open for so long afterwards, and is quiet then.
    key: Result<&'static str, Duration>,
}

/// The time between the dial and its connection.
const DIAL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(20);
const IDLE_AFTER: Duration = Duration::from_secs(1);

enum Next {
    Arrives(usize),
    Tells(SlotId, SlotEvent),
}

/// A core with its clients and its registry.
struct World {
    core: Core,
    arrivals: Vec<Arrival>,
    requests: HashMap<Place, usize>,
    due: BTreeMap<(Moment, u64), Next>,
    sequence: u64,
    shadow: Option<Shadow>,
    figures: Figures,
}

impl World {
    fn new(limits: Limits, arrivals: &[Arrival], shadow: Option<Shadow>) -> World {
        let mut world = World {
            core: Core::new(limits, Moment::default()),
            arrivals: arrivals.to_vec(),
            requests: HashMap::new(),
            due: BTreeMap::new(),
            sequence: 0,
            shadow,
            figures: Figures::default(),
        };
        for (index, arrival) in arrivals.iter().enumerate() {
            world.at(arrival.at, Next::Arrives(index));
        }
        world
    }

    fn at(&mut self, at: Moment, next: Next) {
        self.sequence += 1;
        self.due.insert((at, self.sequence), next);
    }

    fn show(&mut self, seen: Occurrence, now: Moment) {
        if let Some(shadow) = &mut self.shadow {
            assert!(shadow.advance(now, || true));
            shadow.saw(seen);
        }
    }

    fn run(mut self) -> (Figures, Option<Shadow>) {
        loop {
            let next = self.due.first_key_value().map(|((at, _), _)| *at);
            let Some(now) = [next, self.core.wake_at()].into_iter().flatten().min() else { break };
            match self.due.first_entry().filter(|entry| entry.key().0 <= now) {
                None => self.core.tick(now),
                Some(entry) => match entry.remove() {
                    Next::Arrives(index) => self.arrive(index, now),
                    Next::Tells(slot, event) => {
                        self.core.tell(slot, event.clone(), now);
                        self.show(Occurrence::Slot(slot, event), now);
                    }
                },
            }
            self.carry_out(now);
        }
        if let Some(shadow) = &mut self.shadow {
            assert!(shadow.advance(Moment(SECOND * 100_000), || true));
            assert_eq!((shadow.jobs.len(), shadow.real.len(), shadow.holders.len()), (0, 0, 0));
            assert_eq!((shadow.due.len(), shadow.asked.len(), shadow.core.snapshot(shadow.now).open.open()), (0, 0, 0));
        }
        (self.figures, self.shadow)
    }

    fn arrive(&mut self, index: usize, now: Moment) {
        let arrival = &self.arrivals[index];
        let client = format!("client {}", arrival.client).into();
        let (place, _) = self.core.place(&client, "t:443", now);
        let class = ClassId(usize::from(arrival.client.is_multiple_of(3)));
        let mut request = AdmissionRequest::new(place, now + PATIENCE, Principal { class, client }, "t:443".into());
        request.reuse = arrival.key.ok().map(Arc::from);
        self.requests.insert(place, index);
        self.figures.requests += 1;
        self.figures.waiting += 1;
        self.show(Occurrence::Asked(request.clone()), now);
        self.core.arrive(request, now);
    }

    fn carry_out(&mut self, now: Moment) {
        while let Some(decision) = self.core.next_decision() {
            match decision {
                Decision::Dial { place, slot, waited } => self.admitted(place, slot, waited, false, now),
                Decision::Reuse { place, slot, waited } => self.admitted(place, slot, waited, true, now),
                Decision::Refuse { place, refusal, .. } => {
                    self.figures.refused += 1;
                    self.waited(refusal.waited);
                    self.show(Occurrence::Ended(place), now);
                }
                Decision::Close { slot, .. } => self.at(now + CLOSING, Next::Tells(slot, SlotEvent::Released)),
                Decision::Reclaim { slot } => {
                    self.due.retain(|_, next| !matches!(next, Next::Tells(of, _) if *of == slot));
                    self.at(now, Next::Tells(slot, SlotEvent::Entered(SlotState::Closing)));
                    self.at(now + CLOSING, Next::Tells(slot, SlotEvent::Released));
                }
            }
        }
        self.figures.peak_waiting = self.figures.peak_waiting.max(self.figures.waiting);
    }

    fn waited(&mut self, waited: Duration) {
        self.figures.waiting -= 1;
        if !waited.is_zero() {
            self.figures.waits.add(waited);
        }
    }

    fn admitted(&mut self, place: Place, slot: SlotId, waited: Duration, pooled: bool, now: Moment) {
        self.waited(waited);
        self.show(Occurrence::Admitted { place, slot, pooled }, now);
        let arrival = self.arrivals[self.requests[&place]].clone();
        let begins = if pooled { now } else { now + DIAL };
        let done = begins + arrival.takes;
        if !pooled {
            self.at(now, Next::Tells(slot, SlotEvent::Dialled));
            let state = if arrival.key.is_ok() { SlotState::Active } else { SlotState::Idle };
            self.at(begins, Next::Tells(slot, SlotEvent::Established(state)));
        }
        match arrival.key {
            Ok(key) => self.at(done, Next::Tells(slot, SlotEvent::Pooled(key.into()))),
            Err(quiet_for) => {
                self.at(begins, Next::Tells(slot, SlotEvent::Entered(SlotState::Active)));
                let quiet = Quiet { evidence: Evidence::Idle, since: done, from: done + IDLE_AFTER };
                self.at(done, Next::Tells(slot, SlotEvent::Quiet(quiet)));
                let end = done + quiet_for;
                self.at(end, Next::Tells(slot, SlotEvent::Entered(SlotState::Closing)));
                self.at(end + CLOSING, Next::Tells(slot, SlotEvent::Released));
            }
        }
    }
}

fn compare(name: &str, limits: &Limits, arrivals: &[Arrival]) {
    let (enforced, _) = World::new(limits.clone(), arrivals, None).run();
    let shadow = Shadow::new(limits.clone(), Moment::default());
    let (free, shadow) = World::new(unbounded(limits), arrivals, Some(shadow)).run();
    assert_eq!((free.waits.count, free.refused, free.peak_waiting), (0, 0, 0), "{name}");
    let observed = shadow.unwrap().figures;
    let told = |figures: &Figures| (figures.requests, figures.refused, figures.waits.count, figures.peak_waiting);
    assert_eq!(told(&observed), told(&enforced), "{name}");
    let apart = |one: Duration, other: Duration| one.abs_diff(other);
    let (one, other) = (&observed.waits, &enforced.waits);
    let most = DIAL * 2 + one.longest.max(other.longest) / 20;
    assert!(apart(one.longest, other.longest) <= most, "{name}: {:?}, {:?}", one.longest, other.longest);
    assert!(apart(one.sum, other.sum) <= (one.sum / 20).max(DIAL), "{name}: {:?}, {:?}", one.sum, other.sum);
}

#[test]
fn the_side_tells_what_an_enforced_run_tells() {
    let arrival = |at: Moment, millis, client, key| Arrival { at, takes: Duration::from_millis(millis), client, key };
    let storm = |key: fn(u64) -> Result<&'static str, Duration>| -> Vec<Arrival> {
        (0..300).map(|number| arrival(at(number / 10), 100, number % 7, key(number))).collect()
    };
    compare("requests", &limits(10), &storm(|_| Ok("a")));
    compare("two authorities", &limits(10), &storm(|number| Ok(if number % 2 == 0 { "a" } else { "b" })));
    compare("tunnels", &limits(10), &storm(|_| Err(Duration::ZERO)));
    compare("tunnels that are reclaimed", &limits(40), &storm(|_| Err(SECOND * 500)));
    compare("tunnels that end first", &limits(20), &storm(|_| Err(Duration::from_millis(300))));
    compare("refused", &limits(1), &storm(|_| Ok("a")));
    compare("a full queue", &Limits { depth: 50, ..limits(10) }, &storm(|_| Ok("a")));
    compare("handshakes", &Limits { max_connecting: 2, ..limits(50) }, &storm(|_| Err(Duration::ZERO)));
    let rate = RateLimit { period: Duration::from_millis(50), burst: 5.try_into().unwrap() };
    compare("rate", &Limits { rate: Some(rate), ..limits(100) }, &storm(|_| Err(Duration::ZERO))[..100]);
    let slow: Vec<Arrival> = (0..500).map(|number| arrival(at(number * 40), 300, number, Ok("a"))).collect();
    compare("a queue that grows and drains", &limits(7), &slow);
    compare("nothing waits", &limits(9), &slow);
}

/// A request, admitted at once in reality.
fn ask(shadow: &mut Shadow, real: &mut Core, now: Moment) -> SlotId {
    assert!(shadow.advance(now, || true));
    let client = "client".into();
    let (place, _) = real.place(&client, "t:443", now);
    let principal = Principal { class: ClassId(0), client };
    let request = AdmissionRequest::new(place, now + PATIENCE, principal, "t:443".into());
    real.arrive(request.clone(), now);
    let Some(Decision::Dial { slot, .. }) = real.next_decision() else { panic!("nothing is held") };
    shadow.saw(Occurrence::Asked(request));
    shadow.saw(Occurrence::Admitted { place, slot, pooled: false });
    for event in [SlotEvent::Dialled, SlotEvent::Established(SlotState::Active)] {
        shadow.saw(Occurrence::Slot(slot, event));
    }
    slot
}

fn tell(shadow: &mut Shadow, slot: SlotId, event: SlotEvent, now: Moment) {
    assert!(shadow.advance(now, || true));
    shadow.saw(Occurrence::Slot(slot, event));
    assert!(shadow.advance(now, || true));
}

fn quiet(now: Moment) -> SlotEvent {
    SlotEvent::Quiet(Quiet { evidence: Evidence::Idle, since: now, from: now + IDLE_AFTER })
}

/// Its tunnel went to another request; the client would have to open one again, and wait for it.
#[test]
fn a_client_whose_tunnel_was_reclaimed_asks_again_when_it_speaks() {
    let mut real = Core::new(unbounded(&limits(1)), Moment::default());
    let mut shadow = Shadow::new(limits(1), Moment::default());
    let first = ask(&mut shadow, &mut real, at(0));
    tell(&mut shadow, first, quiet(at(100)), at(100));
    let _second = ask(&mut shadow, &mut real, at(200));
    assert_eq!(shadow.figures.waiting, 1);
    assert!(shadow.advance(at(1109), || true));
    assert_eq!(shadow.figures.waiting, 1, "its pause is not over, or it closes");
    assert!(shadow.advance(at(1110), || true));
    assert_eq!((shadow.figures.waiting, shadow.figures.waits.longest), (0, Duration::from_millis(910)));
    tell(&mut shadow, first, SlotEvent::Entered(SlotState::Active), at(2000));
    assert_eq!((shadow.figures.waiting, shadow.figures.requests, shadow.figures.waited), (1, 2, 1));
    assert!(shadow.advance(at(2000) + PATIENCE, || true));
    assert_eq!((shadow.figures.waiting, shadow.figures.refused), (0, 1));
}

/// Two tunnels that take the only slot from each other again and again are two that had to wait.
#[test]
fn a_tunnel_that_waits_often_counts_once() {
    let mut real = Core::new(unbounded(&limits(1)), Moment::default());
    let mut shadow = Shadow::new(limits(1), Moment::default());
    let slots = [0, 1].map(|_| ask(&mut shadow, &mut real, at(0)));
    for round in 1..20 {
        let (now, slot) = (at(round * 2_000), slots[usize::try_from(round % 2).unwrap()]);
        tell(&mut shadow, slot, SlotEvent::Entered(SlotState::Active), now);
        tell(&mut shadow, slot, quiet(now), now);
    }
    let Figures { requests, waited, waits, .. } = &shadow.figures;
    assert!((*requests, *waited) == (2, 2) && waits.count > 10, "{requests}, {waited}, {}", waits.count);
}

/// However much a tunnel moves whose request waits here, and however many requests come.
#[test]
fn the_memory_is_bounded() {
    let depth = 20;
    let mut real = Core::new(unbounded(&limits(1)), Moment::default());
    let mut shadow = Shadow::new(Limits { depth, ..limits(1) }, Moment::default());
    let slots: Vec<SlotId> = (0..1000).map(|_| ask(&mut shadow, &mut real, at(0))).collect();
    assert_eq!((shadow.jobs.len(), shadow.figures.refused), (depth + 1, 979));
    for (slot, millis) in slots.iter().flat_map(|slot| (0..100).map(move |millis| (*slot, millis))) {
        shadow.saw(Occurrence::Slot(slot, quiet(at(millis))));
        shadow.saw(Occurrence::Slot(slot, SlotEvent::Entered(SlotState::Active)));
    }
    assert!(shadow.jobs.values().all(|job| job.script.len() <= MAX_SCRIPT), "{shadow:?}");
    assert!(slots.iter().all(|slot| shadow.real.contains_key(slot)));
    for slot in slots {
        tell(&mut shadow, slot, SlotEvent::Released, at(200));
    }
    assert!(shadow.advance(at(100_000), || true));
    assert_eq!((shadow.jobs.len(), shadow.real.len(), shadow.core.snapshot(shadow.now).open.open()), (0, 0, 0));
}

#[test]
fn work_is_done_in_slices_and_a_gap_forgets_what_was_under_way() {
    let mut real = Core::new(unbounded(&limits(1)), Moment::default());
    let mut shadow = Shadow::new(limits(1), Moment::default());
    let slots: Vec<SlotId> = (0..10).map(|_| ask(&mut shadow, &mut real, at(0))).collect();
    let mut steps = 3;
    let may_go_on = || {
        steps -= 1;
        steps >= 0
    };
    assert!(shadow.advance(at(10), || true));
    for slot in &slots {
        shadow.saw(Occurrence::Slot(*slot, SlotEvent::Released));
    }
    assert!(!shadow.advance(at(1000), may_go_on) && shadow.figures.waiting > 0);
    shadow.forget(at(1000));
    assert_eq!((shadow.figures.waiting, shadow.figures.requests, shadow.jobs.len()), (0, 10, 0));
    tell(&mut shadow, slots[9], SlotEvent::Entered(SlotState::Active), at(1001));
    let _ = ask(&mut shadow, &mut real, at(1002));
    assert_eq!((shadow.figures.waiting, shadow.figures.requests), (0, 11));
}

#[test]
fn other_limits_begin_the_figures_anew_and_keep_what_waits() {
    let mut real = Core::new(unbounded(&limits(1)), Moment::default());
    let mut shadow = Shadow::new(limits(1), Moment::default());
    for _ in 0..5 {
        let _ = ask(&mut shadow, &mut real, at(0));
    }
    assert_eq!((shadow.figures.waiting, shadow.figures.requests), (4, 5));
    shadow.change(limits(3));
    assert_eq!((shadow.figures.waiting, shadow.figures.peak_waiting, shadow.figures.requests), (2, 4, 4));
    assert!(shadow.advance(at(0) + PATIENCE, || true));
    assert_eq!((shadow.figures.waiting, shadow.figures.waited), (0, 2), "those that were served are of before");
}
