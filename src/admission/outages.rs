//! Targets that take no connections.
//!
//! When every address of a target refused, nobody else is sent against the wall: those who wait for it are set aside, and
//! one at a time probes, with pauses that grow. The first connection that stands lets all of them go on. Other targets of
//! the same registry (another port, say) are not touched.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::moment::Moment;
use super::request::Place;
use crate::backoff::Backoff;

/// The pauses before probes.
const PROBES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// The targets that are out.
#[derive(Debug, Default)]
pub(super) struct Outages {
    targets: HashMap<Arc<str>, Outage>,
}

#[derive(Debug)]
struct Outage {
    /// How often all addresses refused.
    failures: u32,
    /// When the next probe may start.
    due: Moment,
    /// The request that finds out whether it is over.
    probe: Option<Place>,
    /// Whether the probe is between two addresses: it holds no slot, but will ask for one at once.
    between: bool,
}

impl Outage {
    /// Whether another request may find out once it is due.
    fn is_open(&self) -> bool {
        self.probe.is_none() || self.between
    }
}

impl Outages {
    pub fn is_out(&self, target: &str) -> bool {
        self.targets.contains_key(target)
    }

    /// Whether this request, which asks now, gets no turn until the outage is over. The probe goes on to its next address.
    pub fn sets_aside(&mut self, target: &str, place: Place) -> bool {
        let Some(outage) = self.targets.get_mut(target) else {
            return false;
        };
        let is_probe = outage.between && outage.probe == Some(place);
        if is_probe {
            outage.between = false;
        }
        !is_probe
    }

    /// Every address refused this request. Tells whether that is news.
    pub fn failed(&mut self, target: &Arc<str>, place: Place, now: Moment) -> bool {
        match self.targets.get_mut(target) {
            None => {
                let outage = Outage { failures: 1, due: now + PROBES.after(1), probe: None, between: false };
                self.targets.insert(target.clone(), outage);
                return true;
            }
            Some(outage) if outage.probe == Some(place) => {
                outage.failures = outage.failures.saturating_add(1);
                outage.due = now + PROBES.after(outage.failures);
                outage.probe = None;
            }
            // It was dialled before the outage was known, and tells nothing new.
            Some(_) => {}
        }
        false
    }

    /// An address refused this request, which will ask again for the next one. If it is the probe, it stays so: one probe
    /// tries all addresses of its target. Should it not come back, another one may probe after the pause.
    pub fn goes_on(&mut self, target: &str, place: Place, now: Moment) {
        if let Some(outage) = self.targets.get_mut(target)
            && outage.probe == Some(place)
        {
            outage.between = true;
            outage.due = now + PROBES.after(outage.failures);
        }
    }

    /// A connection stands. Tells whether that ended an outage.
    pub fn over(&mut self, target: &str) -> bool {
        self.targets.remove(target).is_some()
    }

    /// A request is gone. If it was the probe, and told nothing, another one may probe.
    pub fn gone(&mut self, target: &str, place: Place, now: Moment) {
        if let Some(outage) = self.targets.get_mut(target)
            && outage.probe == Some(place)
            && !outage.between
        {
            outage.probe = None;
            outage.due = now;
        }
    }

    /// The targets that may be probed now.
    pub fn due(&self, now: Moment) -> Vec<Arc<str>> {
        let due = self.targets.iter().filter(|(_, outage)| outage.is_open() && outage.due <= now);
        due.map(|(target, _)| target.clone()).collect()
    }

    /// When the next one may be probed.
    pub fn next_due(&self) -> Option<Moment> {
        self.targets.values().filter(|outage| outage.is_open()).map(|outage| outage.due).min()
    }

    /// This request finds out.
    pub fn probe(&mut self, target: &str, place: Place) {
        if let Some(outage) = self.targets.get_mut(target) {
            outage.probe = Some(place);
            outage.between = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::core::Core;
    use super::super::decision::{Decision, Limits};
    use super::super::request::{AdmissionRequest, ClassId, Lane, Principal};
    use super::super::slot::SlotEvent;
    use super::*;

    #[test]
    fn probes_come_one_at_a_time_with_pauses_that_grow_to_two_seconds() {
        let mut outages = Outages::default();
        let (target, mut now): (Arc<str>, _) = ("t:443".into(), Moment::default());
        let place = |number| Place::new(Moment::default(), number);
        outages.failed(&target, place(0), now);
        outages.failed(&target, place(1), now);
        let mut pauses = Vec::new();
        for number in 2..9 {
            let due = outages.next_due().unwrap();
            assert!(outages.due(now).is_empty());
            pauses.push(due.since(now).as_millis());
            now = due;
            assert_eq!(outages.due(now), std::slice::from_ref(&target));
            outages.probe(&target, place(number));
            assert_eq!((outages.next_due(), outages.due(now).len()), (None, 0));
            outages.failed(&target, place(number), now);
            outages.gone(&target, place(number), now);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert!(outages.over(&target) && !outages.is_out(&target));
    }

    #[test]
    fn a_probe_that_vanishes_makes_room_for_another() {
        let mut outages = Outages::default();
        let (target, now): (Arc<str>, _) = ("t:443".into(), Moment::default());
        outages.failed(&target, Place::new(now, 0), now);
        outages.probe(&target, Place::new(now, 1));
        outages.gone(&target, Place::new(now, 1), now);
        assert_eq!(outages.due(now), [target]);
    }

    #[test]
    fn a_probe_that_does_not_come_back_for_its_next_address_makes_room_after_the_pause() {
        let mut outages = Outages::default();
        let (target, now): (Arc<str>, _) = ("t:443".into(), Moment::default());
        let [probe, other] = [1, 2].map(|number| Place::new(now, number));
        outages.failed(&target, Place::new(now, 0), now);
        outages.probe(&target, probe);
        outages.goes_on(&target, probe, now);
        outages.gone(&target, probe, now);
        assert!(outages.due(now).is_empty() && outages.sets_aside(&target, other));
        let due = now + PROBES.after(1);
        assert_eq!((outages.next_due(), outages.due(due)), (Some(due), vec![target.clone()]));
        outages.probe(&target, other);
        assert!(outages.sets_aside(&target, probe), "it came too late");
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
        let ask = |place, again| AdmissionRequest {
            place,
            deadline: Moment(Duration::from_secs(3600)),
            principal: principal.clone(),
            lane: Lane::Blob,
            target: target.clone(),
            reuse: None,
            again,
        };
        for _ in 0..waiters {
            let (place, _) = core.place(&(principal.client.clone(), target.clone()), now);
            core.arrive(ask(place, false), now);
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
                core.arrive(ask(place, true), now);
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
