//! Targets that take no connections, and nodes that have no slot left.
//!
//! When every address of a target refused, no other request is sent there: those that wait for it are held back, and one at a
//! time probes, with pauses that grow. The first connection that stands lets all of them go. Other targets of the same
//! registry (another port, say) are not touched. An outage for which no request waits is forgotten when its pause is over.
//!
//! A target is *full* when its node has no slot of its own left. Requests for it are held back as well, and one at a time tries
//! again, not after a pause, but when a slot of the registry comes back or lies idle.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::moment::Moment;
use super::request::Place;
use crate::backoff::Backoff;

/// The pauses before probes.
const PROBES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// When a full target is tried again of which nothing lies idle: only an event tells.
const NO_TIME: Moment = Moment(Duration::MAX);

#[derive(Debug, Default)]
pub(super) struct Outages {
    targets: HashMap<Arc<str>, Outage>,
    /// Those that another request may probe, by when.
    by_due: BTreeSet<(Moment, Arc<str>)>,
    full: BTreeSet<Arc<str>>,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    /// How often all addresses refused.
    failures: u32,
    /// When the next probe may start.
    due: Moment,
    probe: Option<Place>,
    /// Whether the probe is between two addresses: it holds no slot, but will ask for one at once.
    between: bool,
}

impl Outage {
    const fn new(failures: u32, due: Moment) -> Outage {
        Outage { failures, due, probe: None, between: false }
    }

    /// Whether another request may probe when it is due.
    fn is_open(&self) -> bool {
        (self.probe.is_none() || self.between) && self.due < NO_TIME
    }
}

impl Outages {
    pub fn is_out(&self, target: &str) -> bool {
        self.targets.contains_key(target) && !self.full.contains(target)
    }

    /// Whether a target is out that is not merely full.
    pub fn any_out(&self) -> bool {
        self.targets.len() > self.full.len()
    }

    /// The node of this request has no slot left. Tells whether that is news.
    pub fn fill(&mut self, target: &Arc<str>, place: Place) -> bool {
        if self.targets.contains_key(target) {
            if self.is_probe(target, place) {
                self.full.insert(target.clone());
                self.change(target, |outage| *outage = Outage::new(0, NO_TIME));
            }
            return false;
        }
        self.full.insert(target.clone());
        self.targets.insert(target.clone(), Outage::new(0, NO_TIME)).is_none()
    }

    /// A slot came back, or lies idle: full targets may be tried again.
    pub fn retry_full(&mut self, now: Moment) {
        for target in self.full.clone() {
            self.change(&target, |outage| outage.due = now);
        }
    }

    /// This full target may be tried again then: something there may be reclaimed.
    pub fn retry_at(&mut self, target: &Arc<str>, due: Moment) {
        if self.full.contains(target) {
            self.change(target, |outage| outage.due = outage.due.min(due));
        }
    }

    /// A request asks. Tells whether it is held back until the outage is over. The probe goes on to its next address.
    pub fn hold_back(&mut self, target: &Arc<str>, place: Place) -> bool {
        let Some(outage) = self.targets.get(target) else {
            return false;
        };
        let is_probe = outage.between && outage.probe == Some(place);
        if is_probe {
            self.change(target, |outage| outage.between = false);
        }
        !is_probe
    }

    /// Every address refused this request. Tells whether that is news.
    pub fn fail(&mut self, target: &Arc<str>, place: Place, now: Moment) -> bool {
        let Some(outage) = self.targets.get(target) else {
            let due = now + PROBES.after(1);
            self.targets.insert(target.clone(), Outage::new(1, due));
            self.by_due.insert((due, target.clone()));
            return true;
        };
        // One that was dialled before the outage was known tells nothing new.
        if outage.probe == Some(place) {
            self.full.remove(target);
            self.change(target, |outage| {
                outage.failures = outage.failures.saturating_add(1);
                outage.due = now + PROBES.after(outage.failures);
                outage.probe = None;
            });
        }
        false
    }

    /// An address refused this request, which asks again for the next one. If it is the probe, it stays so: one probe tries all
    /// addresses of its target. Should it not come back, another request may probe after the pause.
    pub fn try_next_address(&mut self, target: &Arc<str>, place: Place, now: Moment) {
        if self.is_probe(target, place) {
            self.change(target, |outage| {
                outage.between = true;
                outage.due = now + PROBES.after(outage.failures);
            });
        }
    }

    /// This request is connected. Tells whether an outage is over. Where the target was full, another request may try.
    pub fn connected(&mut self, target: &Arc<str>, place: Place, now: Moment) -> bool {
        if self.full.contains(target) {
            self.leave(target, place, now);
            return false;
        }
        self.end(target)
    }

    /// The outage is over, or forgotten. Tells whether there was one.
    pub fn end(&mut self, target: &Arc<str>) -> bool {
        self.full.remove(target);
        let ended = self.targets.remove(target);
        if let Some(outage) = ended {
            self.by_due.remove(&(outage.due, target.clone()));
        }
        ended.is_some()
    }

    /// A request is gone. If it was the probe, and told nothing, another request may probe.
    pub fn leave(&mut self, target: &Arc<str>, place: Place, now: Moment) {
        if self.is_probe(target, place) {
            self.change(target, |outage| {
                if !outage.between {
                    outage.probe = None;
                    outage.due = now;
                }
            });
        }
    }

    /// A target that may be probed now.
    pub fn first_due(&self, now: Moment) -> Option<Arc<str>> {
        self.by_due.first().filter(|(due, _)| *due <= now).map(|(_, target)| target.clone())
    }

    /// When the next one may be probed.
    pub fn next_due(&self) -> Option<Moment> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// This request probes.
    pub fn probe(&mut self, target: &Arc<str>, place: Place) {
        self.change(target, |outage| {
            outage.probe = Some(place);
            outage.between = false;
        });
    }

    fn is_probe(&self, target: &str, place: Place) -> bool {
        self.targets.get(target).is_some_and(|outage| outage.probe == Some(place))
    }

    /// The only way an outage changes: the index follows.
    fn change(&mut self, target: &Arc<str>, change: impl FnOnce(&mut Outage)) {
        let Some(outage) = self.targets.get_mut(target) else { return };
        self.by_due.remove(&(outage.due, target.clone()));
        change(outage);
        if outage.is_open() {
            self.by_due.insert((outage.due, target.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::core::Core;
    use super::super::decision::{Decision, Limits};
    use super::super::request::{AdmissionRequest, ClassId, Principal};
    use super::super::slot::SlotEvent;
    use super::*;

    #[test]
    fn probes_come_one_at_a_time_with_pauses_that_grow_to_two_seconds() {
        let mut outages = Outages::default();
        let (target, mut now): (Arc<str>, _) = ("t:443".into(), Moment::default());
        let place = |number| Place::new(Moment::default(), number);
        outages.fail(&target, place(0), now);
        outages.fail(&target, place(1), now);
        let mut pauses = Vec::new();
        for number in 2..9 {
            let due = outages.next_due().unwrap();
            assert!(outages.first_due(now).is_none());
            pauses.push(due.since(now).as_millis());
            now = due;
            assert_eq!(outages.first_due(now).as_ref(), Some(&target));
            outages.probe(&target, place(number));
            assert_eq!((outages.next_due(), outages.first_due(now)), (None, None));
            outages.fail(&target, place(number), now);
            outages.leave(&target, place(number), now);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert!(outages.end(&target) && !outages.is_out(&target));
    }

    #[test]
    fn a_probe_that_vanishes_makes_room_for_another() {
        let mut outages = Outages::default();
        let (target, now): (Arc<str>, _) = ("t:443".into(), Moment::default());
        outages.fail(&target, Place::new(now, 0), now);
        outages.probe(&target, Place::new(now, 1));
        outages.leave(&target, Place::new(now, 1), now);
        assert_eq!(outages.first_due(now), Some(target));
    }

    #[test]
    fn a_probe_that_does_not_come_back_for_its_next_address_makes_room_after_the_pause() {
        let mut outages = Outages::default();
        let (target, now): (Arc<str>, _) = ("t:443".into(), Moment::default());
        let [probe, other] = [1, 2].map(|number| Place::new(now, number));
        outages.fail(&target, Place::new(now, 0), now);
        outages.probe(&target, probe);
        outages.try_next_address(&target, probe, now);
        outages.leave(&target, probe, now);
        assert!(outages.first_due(now).is_none() && outages.hold_back(&target, other));
        let due = now + PROBES.after(1);
        assert_eq!((outages.next_due(), outages.first_due(due)), (Some(due), Some(target.clone())));
        outages.probe(&target, other);
        assert!(outages.hold_back(&target, probe), "it came too late");
    }

    /// Runs a core whose only target has so many addresses, all of which refuse at once; tells when it dialled, by
    /// milliseconds, and how often.
    fn dials_of_an_outage(addresses: usize, waiters: usize, until: Duration) -> BTreeMap<u128, usize> {
        let limits = Limits {
            slots: 10,
            depth: 100,
            rate: None,
            idle_timeout: Duration::ZERO,
            max_lifetime: Duration::ZERO,
            max_connecting: 10,
            keep_place: Duration::ZERO,
            weights: vec![1],
        };
        let (mut core, mut now) = (Core::new(limits, Moment::default()), Moment::default());
        let target: Arc<str> = "t:443".into();
        let principal = Principal { class: ClassId::default(), client: "client".into() };
        let deadline = Moment(Duration::from_secs(3600));
        let ask = |place| AdmissionRequest::new(place, deadline, principal.clone(), target.clone());
        for _ in 0..waiters {
            let (place, _) = core.place(&principal.client, &target, now);
            core.arrive(ask(place), now);
        }
        let mut tried: HashMap<Place, usize> = HashMap::new();
        let mut dials = BTreeMap::new();
        loop {
            while let Some(decision) = core.next_decision() {
                let Decision::Dial { place, slot, .. } = decision else { panic!("{decision:?}") };
                *dials.entry(now.0.as_millis()).or_insert(0) += 1;
                core.tell(slot, SlotEvent::Dialled, now);
                let tried = tried.entry(place).or_default();
                *tried += 1;
                if tried.is_multiple_of(addresses) {
                    core.tell(slot, SlotEvent::Unreachable, now);
                } else {
                    core.tell(slot, SlotEvent::DialRefused, now);
                }
                core.tell(slot, SlotEvent::Released, now);
                core.arrive(ask(place), now);
            }
            now = core.wake_at().expect("an outage is probed");
            if now.0 > until {
                return dials;
            }
            core.tick(now);
        }
    }

    #[test]
    fn a_probe_tries_every_address_once_and_the_pauses_hold_for_all_of_them() {
        for addresses in 1..=4 {
            let dials = dials_of_an_outage(addresses, 5, Duration::from_secs(10));
            let times: Vec<u128> = dials.keys().copied().collect();
            assert_eq!(times, [0, 100, 300, 700, 1500, 3100, 5100, 7100, 9100], "{addresses} addresses");
            assert!(dials.iter().skip(1).all(|(_, dials)| *dials <= addresses), "{addresses} addresses: {dials:?}");
            assert_eq!(dials[&9100], addresses);
        }
    }
}
