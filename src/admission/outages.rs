//! Targets that take no connections.
//!
//! When every address of a target refused, nobody else is sent against the wall: those who wait for it are set aside, and
//! one at a time probes, with pauses that grow. The first connection that stands lets all of them go on. Other targets of
//! the same registry (another port, say) are not touched.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::moment::Moment;
use super::queue::Place;

/// The pause before the first probe; it doubles with each that fails.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two probes.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The targets that are out.
#[derive(Debug, Default)]
pub(super) struct Outages {
    targets: HashMap<Arc<str>, Outage>,
}

#[derive(Debug)]
struct Outage {
    pause: Duration,
    /// When the next probe may start.
    due: Moment,
    /// The request that finds out whether it is over.
    probe: Option<Place>,
}

impl Outages {
    pub fn is_out(&self, target: &str) -> bool {
        self.targets.contains_key(target)
    }

    /// Every address refused this request. Tells whether that is news.
    pub fn failed(&mut self, target: &Arc<str>, place: Place, now: Moment) -> bool {
        match self.targets.get_mut(target) {
            None => {
                let outage = Outage { pause: FIRST_PAUSE, due: now + FIRST_PAUSE, probe: None };
                self.targets.insert(target.clone(), outage);
                return true;
            }
            Some(outage) if outage.probe == Some(place) => {
                outage.pause = LONGEST_PAUSE.min(outage.pause * 2);
                outage.due = now + outage.pause;
                outage.probe = None;
            }
            // It was dialled before the outage was known, and tells nothing new.
            Some(_) => {}
        }
        false
    }

    /// A connection stands. Tells whether that ended an outage.
    pub fn over(&mut self, target: &str) -> bool {
        self.targets.remove(target).is_some()
    }

    /// A request is gone. If it was the probe, and told nothing, another one may probe.
    pub fn gone(&mut self, target: &str, place: Place, now: Moment) {
        if let Some(outage) = self.targets.get_mut(target)
            && outage.probe == Some(place)
        {
            outage.probe = None;
            outage.due = now;
        }
    }

    /// The targets that may be probed now.
    pub fn due(&self, now: Moment) -> Vec<Arc<str>> {
        let due = self.targets.iter().filter(|(_, outage)| outage.probe.is_none() && outage.due <= now);
        due.map(|(target, _)| target.clone()).collect()
    }

    /// When the next one may be probed.
    pub fn next_due(&self) -> Option<Moment> {
        self.targets.values().filter(|outage| outage.probe.is_none()).map(|outage| outage.due).min()
    }

    /// This request finds out.
    pub fn probe(&mut self, target: &str, place: Place) {
        if let Some(outage) = self.targets.get_mut(target) {
            outage.probe = Some(place);
        }
    }
}

#[cfg(test)]
mod tests {
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
}
