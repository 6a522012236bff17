//! Metrics: the counters and histograms of each registry, and the text of `/metrics`.
//!
//! A metric is declared once, where its handle or its value is made. Labels come from closed sets and from the names in
//! the config, never from requests, so the number of series is bounded. Counters and histograms count as things happen
//! and last as long as the process; gauges are made anew for each scrape, from the picture of that moment.

mod families;
mod labels;

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Metric;
use prometheus::{Encoder, Histogram, IntCounter, TextEncoder};

use self::families::Counters;
pub use self::families::{Families, number};
pub use self::labels::{
    CodeClass, Connection, Direction, Grade, Kind, Label, Outcome, Reason, Reclaimed, Sign, WaitOutcome,
};

/// The registry label of hosts that no registry lists.
pub const OTHER_HOSTS: &str = "other_hosts";

/// Upper bounds of the buckets in which waits are counted, in seconds.
pub const WAIT_BUCKETS: [f64; 13] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0];
const CONNECT_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The counters of the whole process.
#[derive(Debug, Default)]
pub struct Metrics {
    counted: Families,
}

impl Metrics {
    pub fn new() -> Metrics {
        Metrics::default()
    }

    /// The handles of one registry with these classes. Its series exist, at zero, from now on; handles of the same name
    /// count in the same series.
    pub fn of_registry(&self, name: &str, classes: &[String]) -> Arc<RegistryMetrics> {
        Arc::new(RegistryMetrics::new(&self.counted, name, classes))
    }

    /// The text of `/metrics`, with these gauges.
    pub fn render(&self, gauges: &Families) -> String {
        let families = [self.counted.gather(), gauges.gather()].concat();
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).expect("writing to memory does not fail");
        String::from_utf8(text).expect("metrics are text")
    }
}

/// The counters and histograms of one registry.
#[derive(Debug)]
pub struct RegistryMetrics {
    classes: Vec<ClassMetrics>,
    events: Events,
    bytes: Counters<Direction>,
    connect: Histogram,
    resumed: IntCounter,
}

#[derive(Debug)]
struct ClassMetrics {
    admitted: IntCounter,
    /// By [`WaitOutcome`].
    waits: Vec<Histogram>,
}

/// The events at one registry since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoFar {
    pub admitted: u64,
    /// Answers that roadstead made itself.
    pub refused: u64,
    /// Waits that ended, however they did, in each of [`WAIT_BUCKETS`], and beyond the last.
    pub waits: [u64; WAIT_BUCKETS.len() + 1],
}

/// Defines events that are counted by the value of one label: the method that counts one, the label's name, the metric and
/// the sentence that explains it.
macro_rules! events {
    ($($event:ident($kind:ty, $label:literal) = $metric:literal, $help:literal;)+) => {
        #[derive(Debug)]
        struct Events {
            $($event: Counters<$kind>,)+
        }

        impl Events {
            fn new(families: &Families, registry: &str) -> Events {
                Events { $($event: Counters::new(families, ($metric, $help), registry, $label),)+ }
            }
        }

        impl RegistryMetrics {
            $(
                #[doc = $help]
                pub fn $event(&self, value: $kind) {
                    self.events.$event.at(value).inc();
                }
            )+
        }
    };
}

events! {
    refused(Reason, "reason") = "roadstead_refused_total", "Answers that roadstead made itself, by reason.";
    responded(CodeClass, "code_class") = "roadstead_responses_total",
        "Answers to clients by the class of their status, roadstead's own and those to CONNECT included.";
    finished(Outcome, "outcome") = "roadstead_outcomes_total", "Finished requests and tunnels; each counts once.";
    reclaimed(Reclaimed, "evidence") = "roadstead_reclaimed_total",
        "Idle connections that were closed because a request waited.";
    crossed(Reclaimed, "evidence") = "roadstead_reclaims_crossed_total",
        "Reclaims that crossed a request of the client, which was cut.";
    cut(Reclaimed, "evidence") = "roadstead_reclaims_cut_total",
        "Reclaims after which the registry sent more of an answer, which was cut.";
    requested(Connection, "connection") = "roadstead_requests_total",
        "Visible requests sent to the registry, on a new connection (dialled) or on a pooled one (reused).";
    retried(Sign, "sign") = "roadstead_retries_total",
        "Requests that were sent again, by what was wrong with the answer.";
    repaired(Sign, "sign") = "roadstead_repaired_total",
        "Requests that were sent again and then answered well, by what was wrong at first.";
}

impl RegistryMetrics {
    fn new(families: &Families, name: &str, classes: &[String]) -> RegistryMetrics {
        RegistryMetrics {
            classes: classes.iter().map(|class| ClassMetrics::new(families, name, class)).collect(),
            events: Events::new(families, name),
            bytes: Counters::new(
                families,
                ("roadstead_relayed_bytes_total", "Bytes relayed to (up) and from (down) the registry."),
                name,
                "direction",
            ),
            connect: families.histogram(
                ("roadstead_connect_seconds", "Time that connect() took, where it succeeded."),
                &CONNECT_BUCKETS,
                &[("registry", name)],
            ),
            resumed: families.counter(
                ("roadstead_resumed_total", "Blobs whose transfer broke off and was resumed."),
                &[("registry", name)],
            ),
        }
    }

    /// A visible request is sent, on a connection that carried others before or on a new one.
    pub fn sent(&self, on_kept: bool) {
        self.requested(if on_kept { Connection::Reused } else { Connection::Dialled });
    }

    /// A blob whose transfer broke off is resumed.
    pub fn resumed(&self) {
        self.resumed.inc();
    }

    pub fn waited(&self, class: usize, outcome: WaitOutcome, wait: Duration) {
        let class = &self.classes[class];
        if outcome == WaitOutcome::Admitted {
            class.admitted.inc();
        }
        class.waits[outcome.index()].observe(wait.as_secs_f64());
    }

    pub fn connected(&self, took: Duration) {
        self.connect.observe(took.as_secs_f64());
    }

    pub fn relayed(&self, direction: Direction, bytes: usize) {
        self.bytes.at(direction).inc_by(bytes as u64);
    }

    pub fn so_far(&self) -> SoFar {
        let mut so_far = SoFar {
            admitted: self.classes.iter().map(|class| class.admitted.get()).sum(),
            refused: self.events.refused.sum(),
            ..SoFar::default()
        };
        for histogram in self.classes.iter().flat_map(|class| &class.waits) {
            let metric = histogram.metric();
            let counted = metric.get_histogram();
            let up_to = counted.get_bucket().iter().map(prometheus::proto::Bucket::cumulative_count);
            let mut below = 0;
            for (wait, up_to) in so_far.waits.iter_mut().zip(up_to.chain([counted.get_sample_count()])) {
                *wait += up_to.saturating_sub(below);
                below = up_to;
            }
        }
        so_far
    }
}

impl ClassMetrics {
    fn new(families: &Families, registry: &str, class: &str) -> ClassMetrics {
        let labels = [("registry", registry), ("class", class)];
        let waits = WaitOutcome::WORDS.iter().map(|outcome| {
            let declaration = ("roadstead_wait_seconds", "Time in the queue, by how the wait ended.");
            families.histogram(declaration, &WAIT_BUCKETS, &[labels[0], labels[1], ("outcome", outcome)])
        });
        ClassMetrics {
            admitted: families.counter(
                ("roadstead_admitted_total", "Admissions, to a new socket or to a pooled connection."),
                &labels,
            ),
            waits: waits.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_so_far_is_summed_over_classes_and_outcomes() {
        let metrics = Metrics::new().of_registry("stub", &["default".to_owned(), "interactive".to_owned()]);
        metrics.waited(0, WaitOutcome::Admitted, Duration::from_millis(3));
        metrics.waited(1, WaitOutcome::ClientLeft, Duration::from_millis(4));
        metrics.waited(1, WaitOutcome::Refused, Duration::from_secs(200));
        metrics.refused(Reason::QueueTimeout);
        let so_far = metrics.so_far();
        assert_eq!((so_far.admitted, so_far.refused), (1, 1));
        let mut waits = [0; WAIT_BUCKETS.len() + 1];
        (waits[1], waits[13]) = (2, 1);
        assert_eq!(so_far.waits, waits);
    }

    /// Handles that are made anew at a reload go on where those before stopped; gauges are those of the scrape alone.
    #[test]
    fn counters_outlive_their_handles_and_gauges_do_not() {
        let metrics = Metrics::new();
        for _ in 0..2 {
            metrics.of_registry("stub", &["default".to_owned()]).refused(Reason::QueueFull);
        }
        let scrape = Families::default();
        scrape.gauge(("roadstead_slots", "Slots."), &[("registry", "stub")], 3.0);
        let text = metrics.render(&scrape);
        assert!(text.contains("roadstead_refused_total{reason=\"queue_full\",registry=\"stub\"} 2"), "{text}");
        assert!(text.contains("roadstead_slots{registry=\"stub\"} 3"), "{text}");
        assert!(!metrics.render(&Families::default()).contains("roadstead_slots"));
    }
}
