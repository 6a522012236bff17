//! The main promise, as a whole fleet sees it: a storm of pulls that a capped registry cannot take directly goes
//! through the sidecar without one failure, and the registry never has more connections than the slots.
//!
//! The judges are the registry's own count and the kernel's list of sockets, never the sidecar's numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roadstead_test_support::{
    Cuts, Destination, Peak, Sidecar, SocketWatch, Storm, StubRegistry, Tally, config, eventually, eventually_is,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

const CAP: usize = 10;
const BLOB: usize = 1024 * 1024;
const SMALL_BLOB: usize = 64 * 1024;
/// How long a restart of a registry takes.
const OUTAGE: Duration = Duration::from_secs(20);
/// Slow enough that an outage can begin in the middle of a storm.
const ANSWER: Duration = Duration::from_millis(10);
const MAX_CONNECTING: usize = 3;
/// Long enough for the slowest machine; nothing here waits for it unless it fails.
const SOON: Duration = Duration::from_secs(20);

/// One storm at a time: they are there to press on the sidecar, not on each other.
static STORM: Mutex<()> = Mutex::const_new(());

/// A registry that works a little for each answer and refuses above its cap, as Harbor does.
async fn harbor() -> StubRegistry {
    let stub = StubRegistry::builder().cap(CAP).answer_delay(Duration::from_millis(2)).blob_size(BLOB);
    stub.start().await
}

/// A sidecar for it whose queue never gives up before the test does.
async fn sidecar_for(stub: &StubRegistry) -> Sidecar {
    let registry = format!(
        r#"
        [registries.stub]
        hosts = ["{}"]
        cap = {CAP}
        share = 1
        idle_timeout = "1s"

        [registries.stub.queue]
        depth = 10000
        tunnel_timeout = "100s"
        request_timeout = "100s"
        "#,
        stub.address()
    );
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

/// A sidecar with the default patience, and few dials at once.
async fn patient_sidecar(stub: &StubRegistry) -> Sidecar {
    let registry = format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = {CAP}\nshare = 1\nmax_connecting = {MAX_CONNECTING}\n",
        stub.address()
    );
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

/// A storm of 300 pulls in whose middle the registry refuses new connections for 20 s. Then it listens again, but is
/// slow to accept: whoever dials stands in a row, and the kernel can count the row. Without
/// `hold_the_row` it accepts at once.
async fn outage_costs_no_pull(way: impl Fn(&Sidecar) -> Destination, stub: StubRegistry, hold_the_row: bool) {
    const PULLS: usize = 300;
    let _alone = STORM.lock().await;
    let sidecar = patient_sidecar(&stub).await;
    let storm = Storm { clients: PULLS, blob: SMALL_BLOB, ..Storm::new(way(&sidecar)) };
    let sockets = SocketWatch::start(stub.address());
    let dials = SocketWatch::of_dials(stub.address());
    let (ended, address) = (Arc::new(AtomicUsize::new(0)), stub.address());
    let count = ended.clone();
    let running = tokio::spawn(storm.run_with(address, move |progress| {
        count.fetch_max(progress.ended, Ordering::Relaxed);
    }));
    eventually("the middle of the storm", SOON, async || match ended.load(Ordering::Relaxed) {
        pulls if pulls >= PULLS / 10 => Ok(()),
        pulls => Err(pulls),
    })
    .await;
    // All slots are taken and nobody dials: a listener that closes would reset a connection that it has not accepted.
    stub.hold();
    let settled = [("open", json!(CAP)), ("connecting", json!(0))];
    eventually_is("every slot to wait for an answer", SOON, (settled, CAP), async || {
        let status = sidecar.status().await;
        (["open", "connecting"].map(|count| (count, status["registries"]["stub"][count].clone())), stub.open())
    })
    .await;
    stub.refuse().await;
    stub.release();
    let accepted = stub.accept_log().len();
    tokio::time::sleep(OUTAGE).await;
    let during = stub.accept_log().len() - accepted;
    let before = ended.load(Ordering::Relaxed);
    if hold_the_row {
        stub.listen_without_accepting().await;
        // The row is full when no more may dial; what was not held back by then would be in it a moment later.
        eventually("the row to be full", SOON, async || match sidecar.count("stub", "connecting").await {
            dialling if dialling >= MAX_CONNECTING as u64 => Ok(()),
            dialling => Err(dialling),
        })
        .await;
        let enough = dials.samples() + 300;
        eventually("a look at the row", SOON, async || if dials.samples() >= enough { Ok(()) } else { Err(()) }).await;
    }
    stub.accept_again().await;
    let tally = running.await.expect("the storm runs to its end");
    let (row, kernel) = (dials.stop(), sockets.stop());
    println!(
        "{tally}; {before} before the end of the outage; at most {} dials at once ({} samples), {} sockets",
        row.most, row.samples, kernel.most
    );
    assert_eq!((tally.ok, tally.failed.len()), (PULLS, 0), "{tally}");
    assert_eq!(during, 0, "nobody is accepted during an outage");
    assert!(before < PULLS / 2, "{before} pulls had ended: the outage came too late to matter");
    assert!(row.most <= MAX_CONNECTING, "{} dials at once", row.most);
    if hold_the_row {
        assert_eq!(row.most, MAX_CONNECTING, "the row was looked at while it was full");
    }
    assert_cap_held(&stub, kernel);
}

/// Through tunnels, each with a connection of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_20_s_costs_no_tunnel_of_a_storm() {
    let stub = StubRegistry::builder().cap(CAP).answer_delay(ANSWER).blob_size(SMALL_BLOB).start().await;
    outage_costs_no_pull(|sidecar| Destination::Connect(sidecar.proxy()), stub, true).await;
}

/// In absolute-form, at a registry that closes each connection after its answer: a connection that is kept would carry
/// the storm through the outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_20_s_costs_no_visible_request_of_a_storm() {
    let stub = StubRegistry::builder().cap(CAP).answer_delay(ANSWER).close_each(true).blob_size(SMALL_BLOB);
    outage_costs_no_pull(|sidecar| Destination::AbsoluteForm(sidecar.proxy()), stub.start().await, false).await;
}

/// Runs a storm under the kernel's eye.
async fn watched(storm: Storm, stub: &StubRegistry) -> (Tally, Peak) {
    let watch = SocketWatch::start(stub.address());
    let tally = storm.run(stub.address()).await;
    let peak = watch.stop();
    println!("{tally}; peak {} by the stub, {} by the kernel ({} samples)", stub.peak(), peak.most, peak.samples);
    (tally, peak)
}

fn assert_cap_held(stub: &StubRegistry, kernel: Peak) {
    assert!(stub.peak() <= CAP, "the registry counted {} connections", stub.peak());
    assert!(kernel.most <= CAP, "the kernel listed {} sockets", kernel.most);
    assert!(kernel.most > 0, "the kernel's list was looked at while there was nothing to see");
}

async fn storm_is_served(way: impl Fn(&Sidecar) -> Destination) {
    let _alone = STORM.lock().await;
    let stub = harbor().await;
    let sidecar = sidecar_for(&stub).await;
    let (tally, kernel) = watched(Storm::new(way(&sidecar)), &stub).await;
    assert_eq!((tally.ok, tally.failed.len()), (500, 0), "{tally}");
    assert_cap_held(&stub, kernel);
}

/// 500 pulls of a manifest and 1 MiB each in absolute-form: none fails, and the cap holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_in_absolute_form_is_served_whole_within_the_cap() {
    storm_is_served(|sidecar| Destination::AbsoluteForm(sidecar.proxy())).await;
}

/// The same through one tunnel per client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_tunnels_is_served_whole_within_the_cap() {
    storm_is_served(|sidecar| Destination::Connect(sidecar.proxy())).await;
}

/// The same load without the sidecar: the registry refuses more than a third of it. Else the two tests above would
/// prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_storm_fails_in_large_part_without_the_sidecar() {
    let _alone = STORM.lock().await;
    let stub = harbor().await;
    let tally = Storm::new(Destination::Direct).run(stub.address()).await;
    println!("{tally}");
    assert!(tally.failed.len() > 500 / 3, "{tally}");
    assert!(stub.peak() > CAP);
}

async fn storm_with_cuts_leaves_nothing(way: impl Fn(&Sidecar) -> Destination, seed: u64, most_requests: usize) {
    let _alone = STORM.lock().await;
    let stub = harbor().await;
    let sidecar = sidecar_for(&stub).await;
    let storm = Storm { cut: Some(Cuts { seed }), ..Storm::new(way(&sidecar)) };
    let (tally, kernel) = watched(storm, &stub).await;
    assert_eq!(tally.failed.len(), 0, "{tally}");
    assert!(tally.cut > 100, "{tally}");
    assert_cap_held(&stub, kernel);
    assert_nothing_is_left(&sidecar, &stub).await;
    assert_one_outcome_each(&sidecar, tally.completed, most_requests).await;
    assert!(stub.peak() <= CAP, "the registry counted {} connections after the storm", stub.peak());
}

/// No slot, no waiter and no connection outlives the storm.
async fn assert_nothing_is_left(sidecar: &Sidecar, stub: &StubRegistry) {
    let counts = ["open", "waiting", "connecting", "active", "idle", "closing"];
    let nothing = counts.map(|count| (count, json!(0)));
    eventually_is("all slots to be free and nobody to wait", SOON, nothing, async || {
        let mut status = sidecar.status().await;
        counts.map(|count| (count, status["registries"]["stub"][count].take()))
    })
    .await;
    eventually_is("the registry to be left alone", SOON, 0, async || stub.open()).await;
}

/// Every request is in one outcome counter and in one log line, and in no second one; none was refused.
async fn assert_one_outcome_each(sidecar: &Sidecar, completed: usize, most: usize) {
    let outcomes = ["served", "refused", "upstream_failed", "client_left"];
    let counted = eventually("metrics and log to agree", SOON, async || {
        let metrics = sidecar.metrics().await;
        let count = |outcome| {
            let labels = [("registry", "stub"), ("outcome", outcome)];
            usize::try_from(metrics.count("roadstead_outcomes_total", &labels)).expect("a small number")
        };
        let (counted, logged) = (outcomes.map(count), outcomes.map(|outcome| logged(sidecar, outcome)));
        if counted == logged { Ok(counted) } else { Err((counted, logged)) }
    })
    .await;
    let all: usize = counted.iter().sum();
    assert_eq!(all, sidecar.finished().len(), "a log line without a known outcome");
    assert!(
        (completed..=most).contains(&all),
        "{outcomes:?} = {counted:?}, completed {completed}, sent at most {most}"
    );
    assert_eq!(counted[1], 0, "refused");
}

fn logged(sidecar: &Sidecar, outcome: &str) -> usize {
    let is = |fields: &&Value| fields["registry"] == "stub" && fields["outcome"] == outcome;
    sidecar.finished().iter().filter(is).count()
}

/// A third of 500 clients cuts its connection, queued, at once or mid-body, in order or by reset: the others are served,
/// the cap holds, nothing leaks, and every exchange has one outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_cut_in_absolute_form_take_nothing_with_them() {
    storm_with_cuts_leaves_nothing(|sidecar| Destination::AbsoluteForm(sidecar.proxy()), 1, 1000).await;
}

/// The same through tunnels: every tunnel has one outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_cut_their_tunnels_take_nothing_with_them() {
    storm_with_cuts_leaves_nothing(|sidecar| Destination::Connect(sidecar.proxy()), 2, 500).await;
}
