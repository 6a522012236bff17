//! Every metric: names, labels and the handles that count.
//!
//! Labels come from the enums here and from the registries' names in the config, never from requests, so the number of
//! series is bounded. Gauges are set from snapshots when somebody asks; counters and histograms count as things happen.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Metric;
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    Opts, TextEncoder,
};

/// The registry label of what no registry lists.
pub const OTHER_HOSTS: &str = "other_hosts";

/// The class of every client for which no class was configured.
pub const DEFAULT_CLASS: &str = "default";

/// How a request ended. Each accepted request ends in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The registry's answer, or the tunnel, was carried to its end.
    Served,
    /// Answered by roadstead itself, because of load, policy or a malformed request.
    Refused,
    /// The registry could not be reached, or failed in the middle.
    UpstreamFailed,
    /// The client was gone before the end.
    ClientLeft,
}

impl Outcome {
    const ALL: [Outcome; 4] = [Outcome::Served, Outcome::Refused, Outcome::UpstreamFailed, Outcome::ClientLeft];

    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Served => "served",
            Outcome::Refused => "refused",
            Outcome::UpstreamFailed => "upstream_failed",
            Outcome::ClientLeft => "client_left",
        }
    }
}

/// How a wait ended. Waits of those who gave up are measured like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// With an admission.
    Admitted,
    /// With a refusal.
    Refused,
    /// The client left while it waited.
    ClientLeft,
}

impl WaitOutcome {
    const ALL: [WaitOutcome; 3] = [WaitOutcome::Admitted, WaitOutcome::Refused, WaitOutcome::ClientLeft];

    fn as_str(self) -> &'static str {
        match self {
            WaitOutcome::Admitted => "admitted",
            WaitOutcome::Refused => "refused",
            WaitOutcome::ClientLeft => "client_left",
        }
    }
}

/// Why a request was answered by roadstead itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The queue holds `queue.depth` waiters.
    QueueFull,
    /// `queue.tunnel_timeout` or `queue.request_timeout` was over.
    QueueTimeout,
    /// The process goes down, and its `drain_timeout` was over.
    Draining,
    /// `listen.max_clients` connections are open.
    TooManyClients,
    /// The destination may not be reached through here.
    DestinationDenied,
    /// `listen.allow_clients` does not list the peer.
    ClientDenied,
    /// Nothing answered at the registry's addresses, or its name was not known.
    UpstreamUnreachable,
    /// The other host did not take the connection within `connect_timeout`.
    UpstreamTimeout,
    /// The request was malformed.
    BadRequest,
    /// The head of the request did not come within `listen.head_timeout`.
    HeadTimeout,
    /// The request came from, or leads to, this very process.
    LoopDetected,
}

impl Reason {
    const ALL: [Reason; 11] = [
        Reason::QueueFull,
        Reason::QueueTimeout,
        Reason::Draining,
        Reason::TooManyClients,
        Reason::DestinationDenied,
        Reason::ClientDenied,
        Reason::UpstreamUnreachable,
        Reason::UpstreamTimeout,
        Reason::BadRequest,
        Reason::HeadTimeout,
        Reason::LoopDetected,
    ];

    /// The label value, also found in refusal bodies and in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::QueueFull => "queue_full",
            Reason::QueueTimeout => "queue_timeout",
            Reason::Draining => "draining",
            Reason::TooManyClients => "too_many_clients",
            Reason::DestinationDenied => "destination_denied",
            Reason::ClientDenied => "client_denied",
            Reason::UpstreamUnreachable => "upstream_unreachable",
            Reason::UpstreamTimeout => "upstream_timeout",
            Reason::BadRequest => "bad_request",
            Reason::HeadTimeout => "head_timeout",
            Reason::LoopDetected => "loop_detected",
        }
    }
}

/// What spoke for a connection being idle that was closed because somebody waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// A kept HTTP connection: known to be idle.
    Pooled,
    /// A tunnel that never carried a request.
    Unused,
    /// A tunnel whose last request was answered.
    Idle,
    /// A tunnel that lay still, though an answer may have been under way.
    Unsure,
    /// A tunnel whose request did not move for `reclaim.stall_timeout`.
    Stalled,
}

impl Reclaimed {
    const ALL: [Reclaimed; 5] =
        [Reclaimed::Pooled, Reclaimed::Unused, Reclaimed::Idle, Reclaimed::Unsure, Reclaimed::Stalled];

    fn as_str(self) -> &'static str {
        match self {
            Reclaimed::Pooled => "pooled",
            Reclaimed::Unused => "unused",
            Reclaimed::Idle => "idle",
            Reclaimed::Unsure => "unsure",
            Reclaimed::Stalled => "stalled",
        }
    }
}

/// Why an answer is worth asking again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A database error dressed as 401.
    DatabaseError,
    /// The same to a HEAD, whose answer has no body that would tell a real denial from it: a GET is asked for it.
    Unseen401,
    /// A denial, or a database error that was swallowed.
    Ambiguous401,
    /// A token that lacks an action that was asked for.
    PoisonedToken,
    /// 500.
    InternalError,
    /// 502.
    BadGateway,
    /// 503.
    Unavailable,
    /// 504.
    GatewayTimeout,
    /// 429, with the time when to come back.
    TooManyRequests,
    /// The connection ended before the answer did.
    Broken,
}

impl Sign {
    const ALL: [Sign; 10] = [
        Sign::DatabaseError,
        Sign::Unseen401,
        Sign::Ambiguous401,
        Sign::PoisonedToken,
        Sign::InternalError,
        Sign::BadGateway,
        Sign::Unavailable,
        Sign::GatewayTimeout,
        Sign::TooManyRequests,
        Sign::Broken,
    ];

    /// The word in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Sign::DatabaseError => "database_error",
            Sign::Unseen401 => "unseen_401",
            Sign::Ambiguous401 => "ambiguous_401",
            Sign::PoisonedToken => "poisoned_token",
            Sign::InternalError => "internal_error",
            Sign::BadGateway => "bad_gateway",
            Sign::Unavailable => "unavailable",
            Sign::GatewayTimeout => "gateway_timeout",
            Sign::TooManyRequests => "too_many_requests",
            Sign::Broken => "broken",
        }
    }
}

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the registry.
    Up,
    /// From the registry to the client.
    Down,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: prometheus::Registry,
    slots: GaugeVec,
    reserved: GaugeVec,
    open: GaugeVec,
    waiting: GaugeVec,
    oldest_wait: GaugeVec,
    clients: Gauge,
    admitted: IntCounterVec,
    refused: IntCounterVec,
    outcomes: IntCounterVec,
    reclaims: Reclaims,
    bytes: IntCounterVec,
    busy: CounterVec,
    held: CounterVec,
    wait: HistogramVec,
    connect: HistogramVec,
    requests: IntCounterVec,
    retries: IntCounterVec,
    repaired: IntCounterVec,
    member_open: GaugeVec,
    member_up: GaugeVec,
    reload: Reload,
}

/// What counts for connections that gave way.
#[derive(Debug)]
struct Reclaims {
    all: IntCounterVec,
    crossed: IntCounterVec,
    cut: IntCounterVec,
}

impl Reclaims {
    fn of(families: &Families<'_>) -> Reclaims {
        let by_evidence = |name, help| families.counters(name, help, &["registry", "evidence"]);
        Reclaims {
            all: by_evidence("roadstead_reclaimed_total", "Idle connections closed because somebody waited."),
            crossed: by_evidence(
                "roadstead_reclaims_crossed_total",
                "Reclaims whose end crossed a request of the client's, which was cut.",
            ),
            cut: by_evidence(
                "roadstead_reclaims_cut_total",
                "Reclaims after which the registry went on with an answer, which was cut.",
            ),
        }
    }
}

/// Upper bounds of the buckets in which waits are counted, in seconds.
pub const WAIT_BUCKETS: [f64; 13] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0];
const CONNECT_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All families, with no series yet but the process's own.
    ///
    /// # Panics
    /// Never: the names are constants, each registered once.
    #[must_use]
    pub fn new() -> Metrics {
        let registry = prometheus::Registry::new();
        let families = Families(&registry);
        let metrics = Metrics {
            slots: families.gauges("roadstead_slots", "Sockets that may stand at once.", &["registry"]),
            reserved: families.gauges("roadstead_reserved_slots", "Slots that are held elsewhere.", &["registry"]),
            open: families.gauges(
                "roadstead_open_connections",
                "Sockets that stand, by what they do: connecting, active, idle, closing.",
                &["registry", "state"],
            ),
            waiting: families.gauges("roadstead_waiting", "Requests in the queue.", &["registry", "class"]),
            oldest_wait: families.gauges(
                "roadstead_oldest_wait_seconds",
                "Time since the arrival of the request that waits longest.",
                &["registry"],
            ),
            clients: families.gauge("roadstead_client_connections", "Connections of clients that stand."),
            admitted: families.counters(
                "roadstead_admitted_total",
                "Admissions: to a new socket or to a kept connection.",
                &["registry", "class"],
            ),
            refused: families.counters(
                "roadstead_refused_total",
                "Answers that roadstead made up itself, by reason.",
                &["registry", "reason"],
            ),
            outcomes: families.counters(
                "roadstead_outcomes_total",
                "Finished requests and tunnels; each counts once.",
                &["registry", "outcome"],
            ),
            reclaims: Reclaims::of(&families),
            busy: families.seconds(
                "roadstead_slot_busy_seconds_total",
                "Time in which slots were dialling or carried bytes or a request, all slots together.",
            ),
            held: families
                .seconds("roadstead_slot_held_seconds_total", "Time for which slots were held, all together."),
            bytes: families.counters(
                "roadstead_relayed_bytes_total",
                "Bytes carried to (up) and from (down) the registry.",
                &["registry", "direction"],
            ),
            wait: families.histograms(
                "roadstead_wait_seconds",
                "Time in the queue, by how the wait ended.",
                &["registry", "class", "outcome"],
                &WAIT_BUCKETS,
            ),
            connect: families.histograms(
                "roadstead_connect_seconds",
                "Time that connect() took, where it succeeded.",
                &["registry"],
                &CONNECT_BUCKETS,
            ),
            requests: families.counters(
                "roadstead_requests_total",
                "Visible requests sent to the registry, by whether their connection was new (dialled) or kept (reused).",
                &["registry", "connection"],
            ),
            retries: families.counters(
                "roadstead_retries_total",
                "Requests asked again, by what was wrong with the answer.",
                &["registry", "sign"],
            ),
            repaired: families.counters(
                "roadstead_repaired_total",
                "Requests that were asked again and then answered well, by what was wrong at first.",
                &["registry", "sign"],
            ),
            member_open: families.gauges(
                "roadstead_upstream_open_connections",
                "Sockets that stand or are dialled, by URL of mirror.upstream.",
                &["registry", "upstream"],
            ),
            member_up: families.gauges(
                "roadstead_upstream_up",
                "Whether the URL of mirror.upstream takes connections: 0 while it is left out.",
                &["registry", "upstream"],
            ),
            reload: Reload::new(&families),
            registry: registry.clone(),
        };
        let started = SystemTime::now();
        families.build_info();
        families.start_time(started);
        metrics.reloaded(true, started);
        metrics
    }

    /// The config was read again at `at`, and taken (`ok`) or refused; the start counts as taken. A refused one leaves
    /// the time of the one that holds.
    pub fn reloaded(&self, ok: bool, at: SystemTime) {
        self.reload.successful.set(f64::from(u8::from(ok)));
        if ok {
            self.reload.success_time.set(since_epoch(at));
        }
    }

    /// The handles of one registry with these classes. Its series exist, at zero, from now on.
    #[must_use]
    pub fn of_registry(&self, name: &str, classes: &[String]) -> Arc<RegistryMetrics> {
        Arc::new(RegistryMetrics {
            classes: classes.iter().map(|class| self.of_class(name, class)).collect(),
            refused: Reason::ALL.map(|reason| self.refused.with_label_values(&[name, reason.as_str()])),
            outcomes: Outcome::ALL.map(|outcome| self.outcomes.with_label_values(&[name, outcome.as_str()])),
            reclaimed: Reclaimed::ALL.map(|evidence| self.reclaims.all.with_label_values(&[name, evidence.as_str()])),
            crossed: Reclaimed::ALL.map(|evidence| self.reclaims.crossed.with_label_values(&[name, evidence.as_str()])),
            cut: Reclaimed::ALL.map(|evidence| self.reclaims.cut.with_label_values(&[name, evidence.as_str()])),
            up: self.bytes.with_label_values(&[name, "up"]),
            down: self.bytes.with_label_values(&[name, "down"]),
            connect: self.connect.with_label_values(&[name]),
            requests: ["dialled", "reused"].map(|connection| self.requests.with_label_values(&[name, connection])),
            retries: Sign::ALL.map(|sign| self.retries.with_label_values(&[name, sign.as_str()])),
            repaired: Sign::ALL.map(|sign| self.repaired.with_label_values(&[name, sign.as_str()])),
        })
    }

    fn of_class(&self, name: &str, class: &str) -> ClassMetrics {
        ClassMetrics {
            admitted: self.admitted.with_label_values(&[name, class]),
            waits: WaitOutcome::ALL.map(|outcome| self.wait.with_label_values(&[name, class, outcome.as_str()])),
        }
    }

    /// The text of `/metrics`, with the gauges as they stand now.
    ///
    /// # Panics
    /// Never: writing text to memory does not fail.
    #[must_use]
    pub fn render(&self, registries: &[Gauges<'_>], clients: usize) -> String {
        for gauges in registries {
            self.set_gauges(gauges);
        }
        self.clients.set(count(clients));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory does not fail");
        String::from_utf8(text).expect("metrics are text")
    }

    /// A URL of `mirror.upstream` is gone, and its gauges with it.
    pub fn forget_member(&self, name: &str, url: &str) {
        for member in [&self.member_open, &self.member_up] {
            let _ = member.remove_label_values(&[name, url]);
        }
    }

    fn set_gauges(&self, gauges: &Gauges<'_>) {
        let name = gauges.registry;
        if let Some(slots) = gauges.slots {
            self.slots.with_label_values(&[name]).set(count(slots));
            self.reserved.with_label_values(&[name]).set(count(gauges.reserved));
        }
        let states = [
            ("connecting", gauges.connecting),
            ("active", gauges.active),
            ("idle", gauges.idle),
            ("closing", gauges.closing),
        ];
        for (state, sockets) in states {
            self.open.with_label_values(&[name, state]).set(count(sockets));
        }
        for (class, waiting) in &gauges.waiting {
            self.waiting.with_label_values(&[name, class]).set(count(*waiting));
        }
        self.oldest_wait.with_label_values(&[name]).set(gauges.oldest_wait.as_secs_f64());
        for member in &gauges.members {
            let labels = [name, &member.url];
            self.member_open.with_label_values(&labels).set(count(member.open));
            self.member_up.with_label_values(&labels).set(f64::from(u8::from(member.up)));
        }
        raise(&self.busy.with_label_values(&[name]), gauges.busy);
        raise(&self.held.with_label_values(&[name]), gauges.held);
    }
}

/// What the gauges of one registry show.
#[derive(Clone, Debug)]
pub struct Gauges<'a> {
    /// The registry's name.
    pub registry: &'a str,
    /// Slots; `None` where nothing bounds them.
    pub slots: Option<usize>,
    /// Those of them that are held elsewhere.
    pub reserved: usize,
    /// Sockets that are dialled.
    pub connecting: usize,
    /// Sockets in use.
    pub active: usize,
    /// Sockets without work.
    pub idle: usize,
    /// Sockets on their way out.
    pub closing: usize,
    /// Requests in the queue, by class.
    pub waiting: Vec<(&'a str, usize)>,
    /// The time since the arrival of the one that waits longest.
    pub oldest_wait: Duration,
    /// The URLs of `mirror.upstream`.
    pub members: Vec<MemberGauges>,
    /// The time in which slots were busy so far.
    pub busy: Duration,
    /// The time for which slots were held so far.
    pub held: Duration,
}

/// Counters never go back, not even when two readers meet.
fn raise(counter: &Counter, to: Duration) {
    counter.inc_by((to.as_secs_f64() - counter.get()).max(0.0));
}

/// What the gauges of one URL of `mirror.upstream` show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberGauges {
    /// The URL, without a path.
    pub url: String,
    /// Sockets that stand.
    pub open: usize,
    /// Whether it takes connections.
    pub up: bool,
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats; counts stay far below 2^52")]
fn count(things: usize) -> f64 {
    things as f64
}

fn since_epoch(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What is known of the last reading of the config.
#[derive(Debug)]
struct Reload {
    successful: Gauge,
    success_time: Gauge,
}

impl Reload {
    fn new(families: &Families<'_>) -> Reload {
        Reload {
            successful: families.gauge(
                "roadstead_config_last_reload_successful",
                "Whether the config was taken when it was read last: 0 after a reload that failed.",
            ),
            success_time: families.gauge(
                "roadstead_config_last_reload_success_timestamp_seconds",
                "When the config that holds was taken, in seconds since the epoch.",
            ),
        }
    }
}

/// Makes families and registers them.
struct Families<'a>(&'a prometheus::Registry);

impl Families<'_> {
    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help).expect("the name is valid"))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(Opts::new(name, help), labels).expect("names and labels are valid"))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels).expect("names and labels are valid"))
    }

    fn seconds(&self, name: &str, help: &str) -> CounterVec {
        self.register(CounterVec::new(Opts::new(name, help), &["registry"]).expect("names and labels are valid"))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(HistogramVec::new(options, labels).expect("names and labels are valid"))
    }

    fn register<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> C {
        self.0.register(Box::new(collector.clone())).expect("each name is registered once");
        collector
    }

    fn build_info(&self) {
        let info = self.gauges("roadstead_build_info", "Always 1; the version is in the label.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
    }

    fn start_time(&self, started: SystemTime) {
        let name = "process_start_time_seconds";
        self.gauge(name, "Start of the process, in seconds since the epoch.").set(since_epoch(started));
    }
}

/// What counts for one registry.
#[derive(Debug)]
pub struct RegistryMetrics {
    classes: Vec<ClassMetrics>,
    refused: [IntCounter; Reason::ALL.len()],
    outcomes: [IntCounter; Outcome::ALL.len()],
    reclaimed: [IntCounter; Reclaimed::ALL.len()],
    crossed: [IntCounter; Reclaimed::ALL.len()],
    cut: [IntCounter; Reclaimed::ALL.len()],
    up: IntCounter,
    down: IntCounter,
    connect: Histogram,
    requests: [IntCounter; 2],
    retries: [IntCounter; Sign::ALL.len()],
    repaired: [IntCounter; Sign::ALL.len()],
}

/// What happened at one registry since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoFar {
    /// Admissions.
    pub admitted: u64,
    /// Answers that roadstead made up itself.
    pub refused: u64,
    /// Waits that ended, however they did, in each of [`WAIT_BUCKETS`], and beyond the last.
    pub waits: [u64; WAIT_BUCKETS.len() + 1],
}

/// What counts for one class of one registry.
#[derive(Debug)]
struct ClassMetrics {
    admitted: IntCounter,
    waits: [Histogram; WaitOutcome::ALL.len()],
}

impl RegistryMetrics {
    /// A request ended.
    pub fn finished(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// A request was answered by roadstead itself.
    pub fn refused(&self, reason: Reason) {
        self.refused[reason as usize].inc();
    }

    /// A visible request is sent, on a connection that carried others before or on a new one.
    pub fn sent(&self, on_kept: bool) {
        self.requests[usize::from(on_kept)].inc();
    }

    /// A request is asked again.
    pub fn retried(&self, sign: Sign) {
        self.retries[sign as usize].inc();
    }

    /// A request that was asked again was answered well.
    pub fn repaired(&self, sign: Sign) {
        self.repaired[sign as usize].inc();
    }

    /// A wait in this class ended.
    pub fn waited(&self, class: usize, outcome: WaitOutcome, wait: Duration) {
        let class = &self.classes[class];
        if outcome == WaitOutcome::Admitted {
            class.admitted.inc();
        }
        class.waits[outcome as usize].observe(wait.as_secs_f64());
    }

    /// What happened so far.
    #[must_use]
    pub fn so_far(&self) -> SoFar {
        let mut so_far = SoFar {
            admitted: self.classes.iter().map(|class| class.admitted.get()).sum(),
            refused: self.refused.iter().map(IntCounter::get).sum(),
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

    /// `connect()` succeeded.
    pub fn connected(&self, took: Duration) {
        self.connect.observe(took.as_secs_f64());
    }

    /// An idle connection was closed because somebody waited.
    pub fn reclaimed(&self, evidence: Reclaimed) {
        self.reclaimed[evidence as usize].inc();
    }

    /// The end of such a connection crossed a request on its way.
    pub fn crossed(&self, evidence: Reclaimed) {
        self.crossed[evidence as usize].inc();
    }

    /// The registry went on with an answer after such a connection had been closed.
    pub fn cut(&self, evidence: Reclaimed) {
        self.cut[evidence as usize].inc();
    }

    /// Bytes were carried.
    pub fn relayed(&self, direction: Direction, bytes: usize) {
        let counter = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        counter.inc_by(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_arrays_are_indexed_by_their_enums() {
        assert!(Reason::ALL.iter().enumerate().all(|(index, reason)| *reason as usize == index));
        assert!(Outcome::ALL.iter().enumerate().all(|(index, outcome)| *outcome as usize == index));
        assert!(WaitOutcome::ALL.iter().enumerate().all(|(index, outcome)| *outcome as usize == index));
        assert!(Reclaimed::ALL.iter().enumerate().all(|(index, evidence)| *evidence as usize == index));
    }

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

    /// The values of both gauges about the last reload, as Prometheus reads them.
    fn last_reload(metrics: &Metrics) -> [f64; 2] {
        let text = metrics.render(&[], 0);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the gauge is there");
            line.trim().parse().expect("a number")
        };
        ["roadstead_config_last_reload_successful", "roadstead_config_last_reload_success_timestamp_seconds"].map(value)
    }

    #[test]
    fn a_refused_reload_shows_and_leaves_the_time_of_the_config_that_holds() {
        let metrics = Metrics::new();
        let [successful, started] = last_reload(&metrics);
        assert_eq!(successful.to_string(), "1");
        assert!(started > 1e9, "{started}");
        metrics.reloaded(false, UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!(last_reload(&metrics).map(|value| value.to_string()), ["0".to_owned(), started.to_string()]);
        metrics.reloaded(true, UNIX_EPOCH + Duration::from_millis(7500));
        assert_eq!(last_reload(&metrics).map(|value| value.to_string()), ["1", "7.5"]);
    }
}
