//! Outages behind a gateway: its connections stand, and what stands behind it does not answer.
//!
//! Three answers of 502, 503 or 504 to different paths within two seconds, with no good one between, hold the visible
//! requests to that URL. One request at a time probes, with pauses that grow; one that fails goes behind the next. Any
//! other answer ends the outage, and all go on. A connection that merely stands says nothing here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::memory::Key;
use crate::admission::{Moment, Place};
use crate::backoff::Backoff;

/// So many bad answers make an outage,
const ENOUGH: usize = 3;
/// within so long.
const WINDOW: Duration = Duration::from_secs(2);
/// The pauses before probes.
const PROBES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// The URLs of one registry that answered badly a moment ago.
#[derive(Debug, Default)]
pub struct Gateways {
    urls: Mutex<HashMap<Arc<str>, Gateway>>,
    /// Notified when something changed for those who are held.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Gateway {
    bad: Vec<(Moment, Key)>,
    out: Option<Outage>,
}

#[derive(Debug)]
struct Outage {
    failures: u32,
    /// When the next probe may start.
    due: Moment,
    /// The request that finds out whether it is over.
    probe: Option<Place>,
    /// The one that found out last.
    last: Option<Place>,
    /// Those that are held.
    held: BTreeSet<Place>,
}

/// Whether a request may go to a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It goes.
    Free,
    /// It goes, to find out.
    Probe,
    /// It waits for a change; if it is to probe next, until this moment.
    Held(Option<Moment>),
}

impl Gateway {
    fn answered(&mut self, place: Place, path: Key, now: Moment) -> bool {
        if let Some(outage) = &mut self.out {
            // Others were sent before the outage was known, and tell nothing new.
            if outage.probe == Some(place) {
                outage.failures = outage.failures.saturating_add(1);
                outage.due = now + PROBES.after(outage.failures);
                (outage.last, outage.probe) = (outage.probe, None);
            }
            return true;
        }
        self.bad.retain(|(at, other)| *other != path && now.since(*at) < WINDOW);
        self.bad.push((now, path));
        if self.bad.len() < ENOUGH {
            return false;
        }
        let due = now + PROBES.after(1);
        self.out = Some(Outage { failures: 1, due, probe: None, last: None, held: BTreeSet::new() });
        true
    }
}

impl Outage {
    fn passage(&mut self, place: Place, now: Moment) -> Passage {
        if self.probe == Some(place) {
            return Passage::Probe;
        }
        self.held.insert(place);
        let behind_the_last = self.last.and_then(|last| self.held.range(last..).find(|held| **held != last));
        let next = behind_the_last.or(self.held.first());
        if self.probe.is_some() || next != Some(&place) {
            return Passage::Held(None);
        }
        if now < self.due {
            return Passage::Held(Some(self.due));
        }
        self.held.remove(&place);
        self.probe = Some(place);
        Passage::Probe
    }
}

impl Gateways {
    /// A request got an answer that is none of the registry's. Tells whether the URL is out.
    pub fn answered_badly(&self, url: &Arc<str>, place: Place, path: Key, now: Moment) -> bool {
        let is_out = self.urls.lock().entry(url.clone()).or_default().answered(place, path, now);
        self.changed.notify_waiters();
        is_out
    }

    /// A request got any other answer. If that ended an outage, tells which requests it held.
    pub fn answered_well(&self, url: &str) -> Option<Vec<Place>> {
        let outage = self.urls.lock().remove(url)?.out?;
        self.changed.notify_waiters();
        Some(outage.held.into_iter().collect())
    }

    /// Whether the request may go to this URL now.
    pub fn passage(&self, url: &str, place: Place, now: Moment) -> Passage {
        let mut urls = self.urls.lock();
        let outage = urls.get_mut(url).and_then(|gateway| gateway.out.as_mut());
        outage.map_or(Passage::Free, |outage| outage.passage(place, now))
    }

    /// Whether this URL is out, and the request is not the one that finds out.
    pub fn holds(&self, url: &str, place: Place) -> bool {
        let urls = self.urls.lock();
        urls.get(url).and_then(|gateway| gateway.out.as_ref()).is_some_and(|outage| outage.probe != Some(place))
    }

    /// The request is gone from this URL, or goes elsewhere: if it was to find out and told nothing, the next one does.
    pub fn gone(&self, url: &str, place: Place, now: Moment) {
        if let Some(outage) = self.urls.lock().get_mut(url).and_then(|gateway| gateway.out.as_mut()) {
            outage.held.remove(&place);
            if outage.probe == Some(place) {
                (outage.probe, outage.due) = (None, now);
            }
        }
        self.changed.notify_waiters();
    }

    /// Whether no URL answered badly a moment ago.
    pub fn is_quiet(&self) -> bool {
        self.urls.lock().is_empty()
    }

    /// Completes when something changes from now on for held requests.
    pub fn change(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Keys;
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    struct Scene {
        gateways: Gateways,
        keys: Keys,
        url: Arc<str>,
        places: Vec<Place>,
    }

    impl Scene {
        fn new(places: usize) -> Scene {
            let places = (0..places).map(|number| Place::new(Moment::default(), number as u64)).collect();
            Scene { gateways: Gateways::default(), keys: Keys::default(), url: "https://a".into(), places }
        }

        fn bad(&self, request: usize, path: &str, now: u64) -> bool {
            self.gateways.answered_badly(&self.url, self.places[request], self.keys.of(&[path.as_bytes()]), at(now))
        }

        fn passage(&self, request: usize, now: u64) -> Passage {
            self.gateways.passage(&self.url, self.places[request], at(now))
        }
    }

    #[test]
    fn three_bad_answers_to_different_paths_within_two_seconds_are_an_outage() {
        let scene = Scene::new(1);
        assert!(![0, 1, 2, 3].into_iter().any(|now| scene.bad(0, "/v2/broken", now)), "one path");
        assert!(!scene.bad(0, "/v2/b", 1_000) && !scene.bad(0, "/v2/c", 2_500), "too far apart");
        assert_eq!(scene.gateways.answered_well(&scene.url), None);
        assert!(!scene.bad(0, "/v2/d", 2_600) && !scene.bad(0, "/v2/e", 2_600), "a good one between");
        assert_eq!(scene.passage(0, 2_600), Passage::Free);
        assert!(scene.bad(0, "/v2/f", 2_600));
        assert_eq!(scene.gateways.passage("https://b", scene.places[0], at(2_600)), Passage::Free, "another URL");
    }

    /// A registry that is down for an hour sees one probe for each pause, each by the next request.
    #[test]
    fn one_request_probes_at_growing_pauses_and_one_that_fails_goes_behind_the_next() {
        let scene = Scene::new(3);
        let _ = ["/a", "/b", "/c"].map(|path| scene.bad(0, path, 0));
        let mut probes = Vec::new();
        let (mut now, hour) = (0, 3_600_000);
        while now < hour {
            let asked: Vec<Passage> = (0..3).map(|request| scene.passage(request, now)).collect();
            if let Some(request) = asked.iter().position(|passage| *passage == Passage::Probe) {
                assert_eq!(asked.iter().filter(|passage| **passage == Passage::Probe).count(), 1);
                probes.push((now, request));
                scene.bad(request, "/v2/x", now);
            }
            let due = (0..3).find_map(|request| match scene.passage(request, now) {
                Passage::Held(due) => due,
                Passage::Free | Passage::Probe => None,
            });
            now = due.map_or(hour, |due| u64::try_from(due.0.as_millis()).unwrap());
        }
        let times: Vec<u64> = probes.iter().take(7).map(|(now, _)| *now).collect();
        assert_eq!(times, [100, 300, 700, 1_500, 3_100, 5_100, 7_100]);
        assert!(probes.len() <= 1_805, "{}", probes.len());
        let order: Vec<usize> = probes.iter().take(6).map(|(_, request)| *request).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn an_answer_ends_it_and_a_probe_that_vanishes_lets_the_next_go() {
        let scene = Scene::new(2);
        let _ = ["/a", "/b", "/c"].map(|path| scene.bad(0, path, 0));
        assert_eq!(scene.passage(1, 0), Passage::Held(Some(at(100))));
        assert_eq!(scene.passage(1, 100), Passage::Probe);
        assert_eq!(scene.passage(0, 5_000), Passage::Held(None), "one at a time");
        scene.gateways.gone(&scene.url, scene.places[1], at(6_000));
        assert_eq!(scene.passage(0, 6_000), Passage::Probe);
        assert!(
            scene.gateways.holds(&scene.url, scene.places[1]) && !scene.gateways.holds(&scene.url, scene.places[0])
        );
        assert_eq!(scene.passage(1, 6_000), Passage::Held(None));
        assert_eq!(scene.gateways.answered_well(&scene.url), Some(vec![scene.places[1]]), "the one that is held");
        assert_eq!(scene.passage(1, 6_000), Passage::Free);
    }
}
