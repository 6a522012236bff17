//! Shadow mode (`mode = "observe"`): nothing is held and nothing is refused, and the core decides on the side what would have
//! waited, and for how long, if slots and rate held.
//!
//! The gate of such a registry has no bounds, and an [`Observer`] is its witness. It only notes what it
//! sees; a task decides afterwards, in slices of time that delay nobody. [`shadow`] does that without clock and I/O.

mod shadow;
mod waits;
pub mod words;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use self::shadow::Shadow;
use crate::admission::{Counts, Gate, Limits, Moment, Occurrence, Snapshot, Witness, shown_seconds};
use crate::distress::Cause;
use crate::metrics::{Families, RegistryMetrics, number};

/// The task works for so long without a pause,
const SLICE: Duration = Duration::from_micros(200);
/// and lets events gather for so long.
const PAUSE: Duration = Duration::from_millis(10);
/// Events that wait for the task, at most. Beyond it they are dropped, and the side begins anew.
const MAX_EVENTS: usize = 1 << 16;

/// The gate of a registry by these limits, the same as before if there was one. If it is observed, nothing bounds it, and the
/// observer decides by the limits.
pub fn gate_of<P: Send + 'static>(
    before: Option<(&Gate<P>, Option<Arc<Observer>>)>,
    limits: Limits,
    is_observed: bool,
    metrics: &Arc<RegistryMetrics>,
) -> (Gate<P>, Option<Arc<Observer>>) {
    let bounds = if is_observed { unbounded(&limits) } else { limits.clone() };
    let (gate, observer) = if let Some((gate, observer)) = before {
        gate.change(bounds, metrics.clone());
        (gate.clone(), observer)
    } else {
        (Gate::new(bounds, metrics.clone()), None)
    };
    let observer = is_observed.then(|| Observer::of(observer, limits, &gate));
    let witness = observer.clone().map(|observer| observer as _);
    gate.happen(|core, _| core.watch(witness));
    (gate, observer)
}

fn unbounded(enforced: &Limits) -> Limits {
    let none = usize::MAX;
    Limits { slots: none, depth: none, max_connecting: none, ..enforced.clone() }
}

/// The observation of one registry.
#[derive(Debug)]
pub struct Observer {
    epoch: Instant,
    began: Mutex<Instant>,
    feed: Mutex<Feed>,
    side: Mutex<Side>,
    signs: Mutex<BTreeMap<&'static str, u64>>,
    news: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Feed {
    events: Vec<(Moment, Occurrence)>,
    has_gap: bool,
    gaps: u64,
    peak_open: usize,
    peak_busy: usize,
}

#[derive(Debug)]
struct Side {
    shadow: Shadow,
    backlog: VecDeque<(Moment, Occurrence)>,
}

/// Whether the cap of a registry holds, and its slots.
#[derive(Debug, Serialize)]
pub struct SlotsPicture {
    mode: &'static str,
    /// Those that hold, or would hold.
    slots: usize,
    #[serde(flatten)]
    held: Option<HeldSlots>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observe: Option<Observed>,
}

/// More about slots that hold.
#[derive(Clone, Copy, Debug, Serialize)]
struct HeldSlots {
    /// Those that may be open now: fewer where the registry is in distress.
    slots_in_force: usize,
    /// Those that another process or an earlier config still holds.
    reserved: usize,
}

/// The figures since the observation began.
#[derive(Debug, Serialize)]
struct Observed {
    seconds: f64,
    /// Those that would hold.
    slots: usize,
    peak_open: usize,
    /// Without idle ones, which are reclaimed where a request waits.
    peak_busy: usize,
    requests: u64,
    waiting: usize,
    peak_waiting: usize,
    waited: u64,
    refused: u64,
    wait_p50_seconds: Option<f64>,
    wait_p99_seconds: Option<f64>,
    wait_max_seconds: f64,
    #[serde(skip)]
    wait_sum: Duration,
    signs: BTreeMap<&'static str, u64>,
    gaps: u64,
}

impl Observer {
    /// Observes this gate, by the limits that would hold there; goes on with the observation before, if there was one. Other
    /// limits begin it anew.
    fn of<P: Send + 'static>(before: Option<Arc<Observer>>, limits: Limits, gate: &Gate<P>) -> Arc<Observer> {
        if let Some(before) = before {
            before.change(limits);
            return before;
        }
        let (epoch, now, news) = (gate.epoch(), gate.now(), Arc::new(Notify::new()));
        let observation = Arc::new(Observer {
            epoch,
            began: Mutex::new(Instant::now()),
            feed: Mutex::default(),
            side: Mutex::new(Side { shadow: Shadow::new(limits, now), backlog: VecDeque::new() }),
            signs: Mutex::default(),
            news: news.clone(),
        });
        tokio::spawn(decide(Arc::downgrade(&observation), epoch, news));
        observation
    }

    fn change(&self, limits: Limits) {
        let mut side = self.side.lock();
        if *side.shadow.limits() == limits {
            return;
        }
        side.shadow.change(limits);
        let mut feed = self.feed.lock();
        (feed.gaps, feed.peak_open, feed.peak_busy) = (0, 0, 0);
        self.signs.lock().clear();
        *self.began.lock() = Instant::now();
    }

    /// A sign of overload came, believed or not.
    pub fn sign(&self, cause: Cause) {
        *self.signs.lock().entry(cause.as_str()).or_default() += 1;
    }

    /// Decides for one slice of time; tells when more is due, if nothing is seen before: now where it did not end.
    fn decide(&self) -> Option<Moment> {
        let mut side = self.side.lock();
        let Side { shadow, backlog } = &mut *side;
        let (now, is_behind) = {
            let mut feed = self.feed.lock();
            let now = Moment(self.epoch.elapsed());
            if std::mem::take(&mut feed.has_gap) {
                backlog.clear();
                shadow.forget(now);
            }
            if backlog.is_empty() {
                *backlog = std::mem::take(&mut feed.events).into();
            }
            // Time does not pass the events that are left for the next slice.
            feed.events.first().map_or((now, false), |(at, _)| (*at, true))
        };
        let until = Instant::now() + SLICE;
        let in_time = || Instant::now() < until;
        while let Some((at, _)) = backlog.front() {
            if !in_time() || !shadow.advance(*at, in_time) {
                return Some(now);
            }
            backlog.pop_front().into_iter().for_each(|(_, seen)| shadow.saw(seen));
        }
        if shadow.advance(now, in_time) && !is_behind { shadow.next_due() } else { Some(now) }
    }

    /// The figures so far.
    fn shown(&self) -> Observed {
        let side = self.side.lock();
        let (figures, waits) = (&side.shadow.figures, &side.shadow.figures.waits);
        let feed = self.feed.lock();
        let quantile = |part| waits.quantile(part).map(|seconds| shown_seconds(Duration::from_secs_f64(seconds)));
        Observed {
            seconds: shown_seconds(self.began.lock().elapsed()),
            slots: side.shadow.limits().slots,
            peak_open: feed.peak_open,
            peak_busy: feed.peak_busy,
            requests: figures.requests,
            waiting: figures.waiting,
            peak_waiting: figures.peak_waiting,
            waited: figures.waited,
            refused: figures.refused,
            wait_p50_seconds: quantile(0.5),
            wait_p99_seconds: quantile(0.99),
            wait_max_seconds: shown_seconds(waits.longest),
            wait_sum: waits.sum,
            signs: self.signs.lock().clone(),
            gaps: feed.gaps,
        }
    }
}

impl SlotsPicture {
    /// `None` where nothing bounds the gate and nothing is observed.
    pub fn of(gate: &Snapshot, observer: Option<&Observer>) -> Option<SlotsPicture> {
        let Snapshot { slots, slots_in_force, reserved, .. } = *gate;
        if let Some(observed) = observer.map(Observer::shown) {
            return Some(SlotsPicture { mode: "observe", slots: observed.slots, held: None, observe: Some(observed) });
        }
        let held = Some(HeldSlots { slots_in_force, reserved });
        (slots != usize::MAX).then_some(SlotsPicture { mode: "enforce", slots, held, observe: None })
    }

    /// Adds the metrics of a registry.
    pub fn scrape(&self, scrape: &Families, registry: &str) {
        let mode = ("roadstead_mode", "Always 1; the label says whether the cap holds: enforce or observe.");
        scrape.gauge(mode, &[("registry", registry), ("mode", self.mode)], 1.0);
        self.observe.iter().for_each(|observed| observed.scrape(scrape, registry));
        let Some(HeldSlots { slots_in_force, reserved }) = self.held else { return };
        let gauge = |name, help, slots| scrape.gauge((name, help), &[("registry", registry)], number(slots));
        gauge("roadstead_slots", "Sockets that may be open at once. Not there in mode observe.", self.slots);
        let help = "Slots that may be open now: fewer than all where the registry showed distress.";
        gauge("roadstead_slots_in_force", help, slots_in_force);
        let help = "Slots that stay unused because another process still holds them.";
        gauge("roadstead_reserved_slots", help, reserved);
    }
}

impl Observed {
    /// Adds the metrics of a registry.
    #[expect(clippy::cast_precision_loss, reason = "counters are floats; counts stay far below 2^52")]
    fn scrape(&self, scrape: &Families, registry: &str) {
        let labels = [("registry", registry)];
        let slots = "The slots that would hold in mode enforce.";
        scrape.gauge(("roadstead_observe_slots", slots), &labels, number(self.slots));
        let peak = "The most connections at once since the observation began, without idle ones.";
        scrape.gauge(("roadstead_observe_peak_busy", peak), &labels, number(self.peak_busy));
        let waiting = "Requests that would wait now in mode enforce.";
        scrape.gauge(("roadstead_observe_waiting", waiting), &labels, number(self.waiting));
        let count = |name, help, value: u64| scrape.count((name, help), &labels, value as f64);
        count("roadstead_observe_requests_total", "Requests and tunnels that were observed.", self.requests);
        count("roadstead_observe_waited_total", "Those of them that would have waited in mode enforce.", self.waited);
        count("roadstead_observe_refused_total", "Those of them that would have been refused.", self.refused);
        let sum = "How long they would have waited, all together.";
        scrape.count(("roadstead_observe_wait_seconds_total", sum), &labels, self.wait_sum.as_secs_f64());
    }
}

impl Witness for Observer {
    fn saw(&self, seen: Occurrence, open: Counts) {
        let mut feed = self.feed.lock();
        feed.peak_open = feed.peak_open.max(open.open());
        feed.peak_busy = feed.peak_busy.max(open.connecting + open.active);
        if feed.events.len() >= MAX_EVENTS {
            feed.events.clear();
            feed.has_gap = true;
            feed.gaps += 1;
        }
        feed.events.push((Moment(self.epoch.elapsed()), seen));
        drop(feed);
        self.news.notify_one();
    }
}

/// Decides on the side until the observation is gone.
async fn decide(observation: Weak<Observer>, epoch: Instant, news: Arc<Notify>) {
    loop {
        let Some(this) = observation.upgrade() else { return };
        let (due, now) = (this.decide().map(|due| epoch + due.0), Instant::now());
        drop(this);
        if due.is_some_and(|due| due <= now) {
            yield_now().await;
            continue;
        }
        sleep(PAUSE).await;
        tokio::select! {
            () = news.notified() => {}
            () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.news.notify_one();
    }
}
