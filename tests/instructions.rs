//! The instructions of one decision of the admission core, of a small request and of a tunnel. A busy machine changes nothing about
//! their number.
//!
//! Those of a decision come from this very program, which runs its other test under valgrind; the others from a sidecar that runs
//! under it. A change that makes one dearer by more than the margin is to be explained, and its bound moved.

use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use roadstead::admission::core::Core;
use roadstead::admission::decision::Decision;
use roadstead::admission::{AdmissionRequest, ClassId, ClientId, Limits, Moment, Place, Principal, SlotEvent, SlotId};
use roadstead_test_support::{Sidecar, StubRegistry, Wire, config, connect_through, eventually, eventually_is};

/// Measured in the profile in which tests are built, and how much more is accepted.
const DECISION: u64 = 34_600;
const REQUEST: u64 = 152_800;
const TUNNEL: u64 = 107_700;
const MARGIN_PERCENT: u64 = 15;
/// How long a program under valgrind may take for a moment's work.
const SOON: Duration = Duration::from_secs(20);

const SLOTS: usize = 10;
/// Decisions that are counted in one run.
const DECISIONS: u32 = 2_000;

/// The past of a core before the decisions that are counted: requests that wait, clients that came and left, and requests for
/// ports that accept no connection.
#[derive(Clone, Copy)]
struct Past {
    waiters: usize,
    names: usize,
    dead: usize,
}

const PASTS: [Past; 3] = [
    Past { waiters: 2_000, names: 0, dead: 0 },
    Past { waiters: 20_000, names: 0, dead: 0 },
    Past { waiters: 20_000, names: 10_000, dead: 5_000 },
];

/// Tells this program, where it runs under valgrind, which of the pasts it has.
const PAST: &str = "ROADSTEAD_TEST_PAST";

/// The cost of one decision does not follow from what was seen before, and hardly from the length of the queue.
#[test]
fn a_decision_costs_the_same_whatever_was_seen_before() {
    let [few, many, all] = [0, 1, 2].map(instructions_after);
    println!(
        "instructions of one decision: {few} with 2,000 waiters, {many} with 20,000, {all} with 10,000 names and 5,000 dead ports beside"
    );
    assert!(2 * all < 3 * many, "{all} with names and dead ports, {many} without");
    assert!(2 * many < 3 * few, "{many} with 20,000 waiters, {few} with 2,000");
    assert_no_dearer("a decision", few, DECISION);
}

/// The whole process, its log and the kernel's answers included, but not the kernel's own work.
#[tokio::test]
async fn a_small_request_and_a_tunnel_cost_no_more_than_they_did() {
    const EACH: u32 = 200;
    let stub = StubRegistry::builder().start().await;
    let registry = stub.address().to_string();
    let settings = format!("[registries.stub]\nhosts = [\"{registry}\"]\ncap = 100\nshare = 1\n");
    let folder = tempfile::tempdir().unwrap();
    let (script, counts) = (folder.path().join("roadstead"), folder.path().join("counts"));
    let command = format!(
        "#!/bin/sh\nexec valgrind -q --tool=callgrind --callgrind-out-file={} {} \"$@\"\n",
        counts.display(),
        env!("CARGO_BIN_EXE_roadstead")
    );
    std::fs::write(&script, command).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let sidecar = Sidecar::start(script.to_str().unwrap(), &config(&settings)).await;
    let (host, url) = (format!("Host: {registry}"), format!("http://{registry}/v2/"));
    let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
    let mut counter = Counter { pid: sidecar.pid(), counts, dumps: 0 };
    let mut figures = Vec::new();
    // The first round warms up.
    for _ in 0..2 {
        counter.reset();
        for _ in 0..EACH {
            wire.get(&url, &[&host]).await.unwrap();
        }
        let request = counter.count().await / u64::from(EACH);
        counter.reset();
        for _ in 0..EACH {
            drop(connect_through(sidecar.proxy(), &registry, &[]).await.unwrap());
        }
        // One stays, for the next request.
        eventually_is("the tunnels are gone", SOON, 1, async || stub.open()).await;
        figures = vec![request, counter.count().await / u64::from(EACH)];
    }
    println!("instructions: {} of a small request, {} of a tunnel", figures[0], figures[1]);
    assert_no_dearer("a small request", figures[0], REQUEST);
    assert_no_dearer("a tunnel", figures[1], TUNNEL);
}

fn assert_no_dearer(what: &str, now: u64, then: u64) {
    assert!(now * 100 <= then * (100 + MARGIN_PERCENT), "{what} costs {now} instructions; it cost {then}");
}

/// The instructions that callgrind has counted in a process.
struct Counter {
    pid: u32,
    counts: PathBuf,
    dumps: u32,
}

impl Counter {
    fn reset(&self) {
        self.control("-z");
    }

    /// Those since the last reset.
    async fn count(&mut self) -> u64 {
        self.dumps += 1;
        self.control("-d");
        let file = format!("{}.{}", self.counts.display(), self.dumps);
        let totals = || {
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let totals = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
            totals.ok_or_else(|| format!("{} bytes", text.len()))
        };
        eventually("callgrind has written its counts", SOON, async || totals()).await
    }

    fn control(&self, order: &str) {
        let output = Command::new("callgrind_control").arg(order).arg(self.pid.to_string()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
#[ignore = "the other test runs it under valgrind"]
fn decisions_that_are_counted() {
    let past: usize = std::env::var(PAST).expect("set by the other test").parse().unwrap();
    World::after(PASTS[past]).decide_often();
}

/// The instructions of one decision, without those that make the past.
fn instructions_after(past: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*decide_often*"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "decisions_that_are_counted", "--ignored", "--test-threads=1"])
        .env(PAST, past.to_string())
        .output()
        .expect("valgrind starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    let collected = said.lines().find_map(|line| line.split_once("Collected :")).expect("a sum of instructions").1;
    collected.trim().parse::<u64>().unwrap() / u64::from(DECISIONS)
}

struct World {
    core: Core,
    now: Moment,
    held: VecDeque<SlotId>,
}

impl World {
    fn after(past: Past) -> World {
        let limits = Limits {
            slots: SLOTS,
            depth: usize::MAX,
            rate: None,
            idle_timeout: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(600),
            max_connecting: usize::MAX,
            keep_place: Duration::from_secs(30),
            weights: vec![1],
        };
        let now = Moment::default() + Duration::from_secs(1);
        let mut world = World { core: Core::new(limits, now), now, held: VecDeque::new() };
        for number in 0..past.dead {
            let target = format!("registry.test:{}", 1000 + number);
            world.arrive(&format!("client {number}"), &target);
            let slot = world.dialled().expect("a free slot");
            world.core.tell(slot, SlotEvent::Unreachable, now);
            world.core.tell(slot, SlotEvent::Released, now);
            world.arrive(&format!("client {number}"), &target);
        }
        for number in 0..SLOTS + past.waiters {
            world.arrive(&format!("client {}", number % 1000), "registry.test:443");
            let slot = world.dialled();
            world.held.extend(slot);
        }
        for number in 0..past.names {
            let place = world.arrive(&format!("name {number}"), "registry.test:443");
            world.core.leave(place, now);
        }
        assert_eq!((world.held.len(), world.core.snapshot(now).waiting), (SLOTS, past.waiters + past.dead));
        world
    }

    fn arrive(&mut self, client: &str, target: &str) -> Place {
        let (client, target): (ClientId, Arc<str>) = (client.into(), target.into());
        let (place, _) = self.core.place(&client, &target, self.now);
        let principal = Principal { class: ClassId::default(), client };
        let deadline = self.now + Duration::from_secs(50);
        let request = AdmissionRequest::new(place, deadline, principal, target);
        self.core.arrive(request, self.now);
        place
    }

    fn dialled(&mut self) -> Option<SlotId> {
        self.core.next_decision().map(|decision| match decision {
            Decision::Dial { slot, .. } => slot,
            other => panic!("{other:?}"),
        })
    }

    /// A slot comes back and goes to the next request, and another request comes.
    #[inline(never)]
    fn decide_often(mut self) {
        for number in 0..DECISIONS {
            let slot = self.held.pop_front().expect("a slot");
            self.core.tell(slot, SlotEvent::Released, self.now);
            let granted = self.dialled();
            self.held.extend(granted);
            self.arrive(&format!("client {}", number % 1000), "registry.test:443");
        }
        std::mem::forget(self);
    }
}
