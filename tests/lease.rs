//! One cap for many nodes: real sidecars that lend from a real redis-server, and one registry that counts its connections.

use std::net::SocketAddr;
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use roadstead_test_support::real::{Certificates, RedisCluster, RedisSentinel, RedisServer, free_address};
use roadstead_test_support::{
    Destination, Sidecar, Signal, SocketWatch, Storm, StubBuilder, StubRegistry, Tally, Wire, assert_as_planned,
    config, deafen, eventually, eventually_is, service_ms,
};
use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const BINARY: &str = env!("CARGO_BIN_EXE_roadstead");
const CAP: usize = 20;
const NODES: usize = 20;
const BLOB: usize = 16 * 1024;
const SOON: Duration = Duration::from_secs(30);
/// The store keeps a lease for so long, by the times below.
const HOLD: Duration = Duration::from_millis(4120);
/// The connections of a lease are cut so long after the last answer of the store.
const LEASE: Duration = Duration::from_millis(2500);
/// The registry drops a silent peer after so long, where nodes freeze: later than a store would lend again that forgot this time.
const GIVES_UP: Duration = Duration::from_secs(5);
/// As above, with that time.
const HOLD_OF_SILENT: Duration = Duration::from_millis(8800);

/// A config of one node. Its leases end within seconds.
fn settings(registry: &StubRegistry, redis: &str, node: usize) -> String {
    let registry = registry.address();
    config(&format!(
        "[registries.stub]\nhosts = [\"{registry}\"]\ncap = {CAP}\nshare = \"lease\"\nlinger = \"300ms\"\n\
         [registries.stub.queue]\ntunnel_timeout = \"40s\"\nrequest_timeout = \"40s\"\n\
         [registries.stub.reclaim]\nidle_after = \"300ms\"\nunused_after = \"300ms\"\n\
         [lease]\nredis = \"{redis}\"\nnode_id = \"n{node}\"\nnodes = {NODES}\nrenew_every = \"300ms\"\n\
         admit_for = \"1500ms\"\nclose_after = \"1s\"\nregistry_gives_up = \"500ms\"\n"
    ))
}

/// The same config with another URL of the store.
fn with_store(settings: &str, url: &str) -> String {
    let plain = settings.lines().find(|line| line.starts_with("redis = ")).unwrap();
    settings.replace(plain, &format!("redis = \"{url}\""))
}

/// Says that nothing is open: the store lends at once.
fn init(config: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    std::fs::write(&file, config).unwrap();
    let run = Command::new(BINARY).args(["lease", "init", "--config"]).arg(&file).output().unwrap();
    let said = [run.stdout, run.stderr].concat();
    (run.status.success(), String::from_utf8(said).unwrap())
}

/// Sidecars that share one cap.
struct Fleet {
    registry: StubRegistry,
    redis: RedisServer,
    nodes: Vec<Sidecar>,
}

impl Fleet {
    async fn start(nodes: usize, registry: StubBuilder) -> Fleet {
        Fleet::start_with(nodes, registry, |settings| settings).await
    }

    async fn start_with(nodes: usize, registry: StubBuilder, change: impl Fn(String) -> String) -> Fleet {
        Fleet::start_on(RedisServer::start(), nodes, registry, change).await
    }

    async fn start_on(
        redis: RedisServer,
        nodes: usize,
        registry: StubBuilder,
        change: impl Fn(String) -> String,
    ) -> Fleet {
        let registry = registry.blob_size(BLOB).start().await;
        let settings = |node| change(settings(&registry, &redis.url(), node));
        assert_eq!(
            init(&settings(0)),
            (true, "registry stub: nothing is open, and the store lends from now on\n".to_owned())
        );
        let mut started = Vec::new();
        for node in 0..nodes {
            started.push(Sidecar::start(BINARY, &settings(node)).await);
        }
        let nodes = started;
        Fleet { registry, redis, nodes }
    }

    fn storm(&self, nodes: std::ops::Range<usize>, clients: usize) -> JoinSet<Tally> {
        let mut storms = JoinSet::new();
        for node in &self.nodes[nodes] {
            let storm = Storm { clients, blob: BLOB, ..Storm::new(Destination::AbsoluteForm(node.proxy())) };
            storms.spawn(storm.run(self.registry.address()));
        }
        storms
    }

    /// Requests through this node, each on a connection of its own; the status and the body of each answer, none where it was cut.
    fn requests(&self, node: usize, requests: usize) -> Vec<JoinHandle<Option<(u16, String)>>> {
        let (proxy, target) = (self.nodes[node].proxy(), format!("http://{}/v2/", self.registry.address()));
        let ask = |proxy, target: String| async move {
            let answer = Wire::open(proxy).await.unwrap().ask("GET", &target, &["Connection: close"]).await.ok()?;
            Some((answer.status(), answer.text()))
        };
        (0..requests).map(|_| tokio::spawn(ask(proxy, target.clone()))).collect()
    }

    /// Runs a command with the config of this node: its exit status, and what it prints.
    async fn command(&self, node: usize, words: &[&str]) -> (Option<i32>, String) {
        let file = self.nodes[node].config_path();
        let run = tokio::process::Command::new(BINARY).args(words).arg("--config").arg(file).output().await.unwrap();
        (run.status.code(), String::from_utf8([run.stdout, run.stderr].concat()).unwrap())
    }

    /// Waits for a connection of this node.
    async fn until_any_open(&self, node: usize) {
        eventually("a slot of this node", SOON, async || {
            match self.nodes[node].status().await["registries"]["stub"]["open"].as_u64() {
                Some(1..) => Ok(()),
                open => Err(open),
            }
        })
        .await;
    }

    async fn until_more_is_served(&self) {
        let before = self.registry.requests();
        eventually("requests to be served again", SOON, async || match self.registry.requests() - before {
            100.. => Ok(()),
            some => Err(format!("{some}, {:?}", self.leases().await)),
        })
        .await;
    }

    async fn until_open(&self, connections: usize) {
        eventually_is("connections at the registry", SOON, connections, async || self.registry.open()).await;
    }

    /// The leases as the nodes have them.
    async fn leases(&self) -> Vec<serde_json::Value> {
        let mut leases = Vec::new();
        for node in &self.nodes {
            leases.push(node.status().await["registries"]["stub"]["lease"].clone());
        }
        leases
    }
}

/// Clients that pull through each of these nodes again and again, until they are told to end.
struct Load {
    clients: JoinSet<Vec<Tally>>,
    is_over: Arc<AtomicBool>,
}

impl Load {
    fn start(fleet: &Fleet, clients: usize) -> Load {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut load = JoinSet::new();
        for node in &fleet.nodes {
            let storm = Storm { clients, blob: BLOB, ..Storm::new(Destination::AbsoluteForm(node.proxy())) };
            let (registry, is_over) = (fleet.registry.address(), is_over.clone());
            load.spawn(async move {
                let mut tallies = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    tallies.push(storm.run(registry).await);
                }
                tallies
            });
        }
        Load { clients: load, is_over }
    }

    /// Ends it, and tells how many pulls were served. None may have failed.
    async fn end(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        let tallies: Vec<Tally> = self.clients.join_all().await.into_iter().flatten().collect();
        let failed: Vec<&String> = tallies.iter().flat_map(|tally| &tally.failed).collect();
        assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
        tallies.iter().map(|tally| tally.ok).sum()
    }
}

/// Demand moves from one half of the nodes to the other. A static share would be one slot for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_nodes_share_one_cap_and_slots_follow_the_demand() {
    let change =
        |settings: String| settings.replace("linger = \"300ms\"", "linger = \"300ms\"\nidle_timeout = \"500ms\"");
    let registry = StubRegistry::builder().answer_delay(Duration::from_millis(20));
    let fleet = Fleet::start_with(NODES, registry, change).await;
    for nodes in [0..NODES / 2, NODES / 2..NODES, 0..1] {
        // Connections of the nodes before that lie idle would be counted as those of these.
        fleet.until_open(0).await;
        let watch = SocketWatch::start(fleet.registry.address());
        for tally in fleet.storm(nodes.clone(), 40 / nodes.len().min(4)).join_all().await {
            assert_eq!(tally.failed, Vec::<String>::new());
        }
        // Of these nodes alone: the registry's own peak is that of all before.
        let peak = watch.stop();
        assert!((CAP * 3 / 4..=CAP).contains(&peak.most), "{nodes:?}: {peak:?}");
    }
    assert!(fleet.registry.peak() <= CAP, "{} at once", fleet.registry.peak());
}

/// Slots that are held stay in use; then requests wait, and all of them are served when the store is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_the_store_lets_the_fleet_exceed_the_cap_or_fail_a_request() {
    let mut fleet = Fleet::start(NODES, StubRegistry::builder().answer_delay(Duration::from_millis(50))).await;
    let load = Load::start(&fleet, 3);
    let served = async |fleet: &Fleet| {
        let before = fleet.registry.requests();
        eventually("requests to be served again", SOON, async || match fleet.registry.requests() - before {
            200.. => Ok(()),
            some => Err(format!("{some}, {:?}", fleet.leases().await)),
        })
        .await;
    };
    served(&fleet).await;
    // Frozen for longer than leases last.
    fleet.redis.signal(Signal::STOP);
    tokio::time::sleep(HOLD).await;
    fleet.redis.signal(Signal::CONT);
    served(&fleet).await;
    // All records are gone.
    fleet.redis.flush();
    served(&fleet).await;
    // Killed, and started again with nothing.
    fleet.redis.restart();
    served(&fleet).await;
    let pulls = load.end().await;
    let peak = fleet.registry.peak();
    assert!(peak <= CAP && pulls > 0, "{peak} at once, {pulls} pulls");
}

/// The orders to all clients at this moment, and the state of the nodes.
struct Demand {
    /// The nodes whose clients pull.
    busy: Range<usize>,
    /// None while the node is dead.
    proxies: Vec<Option<SocketAddr>>,
    /// Faults of each node so far.
    faults: Vec<usize>,
    is_over: bool,
}

/// How the pulls of one client ended.
#[derive(Default)]
struct Ends {
    served: usize,
    /// A fault of the node came in between. Each was sent again.
    lost: usize,
    failed: Vec<String>,
}

/// One client of this node. A pull that is lost with the node is sent again, until it is served.
async fn pull_on_demand(mut demand: watch::Receiver<Demand>, node: usize, registry: SocketAddr) -> Ends {
    let (mut ends, mut is_owed) = (Ends::default(), false);
    loop {
        let (proxy, faults) = {
            let may_pull = |now: &Demand| now.proxies[node].is_some() && (is_owed || now.busy.contains(&node));
            let now = demand.wait_for(|now| now.is_over && !is_owed || may_pull(now)).await.unwrap();
            match now.proxies[node] {
                Some(proxy) if is_owed || !now.is_over => (proxy, now.faults[node]),
                _ => return ends,
            }
        };
        let way = Destination::AbsoluteForm(proxy);
        let tally = Storm { clients: 1, blob: BLOB, patience: 2 * SOON, ..Storm::new(way) }.run(registry).await;
        let is_lost = tally.ok == 0 && demand.borrow().faults[node] > faults;
        ends.served += tally.ok;
        if is_lost {
            ends.lost += 1;
        } else {
            ends.failed.extend(tally.failed.into_iter().map(|reason| format!("n{node}: {reason}")));
        }
        is_owed = is_lost;
    }
}

/// A fleet whose nodes are killed, started again, frozen and thawed while clients pull.
struct Trial {
    fleet: Fleet,
    demand: watch::Sender<Demand>,
    clients: JoinSet<Ends>,
    /// Their folders have the locks of the processes that follow.
    killed: Vec<Sidecar>,
    /// Requests that came to frozen nodes.
    late: Vec<JoinHandle<Option<(u16, String)>>>,
}

impl Trial {
    async fn start(clients: usize) -> Trial {
        let registry = StubRegistry::builder().answer_delay(Duration::from_millis(50)).drop_silent(GIVES_UP);
        let change = |settings: String| {
            let settings = settings.replace("gives_up = \"500ms\"", &format!("gives_up = \"{}s\"", GIVES_UP.as_secs()));
            // The registry drops no connection that a node could still give to a request.
            settings.replace("linger = \"300ms\"", "linger = \"300ms\"\nidle_timeout = \"500ms\"")
        };
        let fleet = Fleet::start_with(NODES, registry, change).await;
        let proxies = fleet.nodes.iter().map(|node| Some(node.proxy())).collect();
        let demand = watch::Sender::new(Demand { busy: 0..0, proxies, faults: vec![0; NODES], is_over: false });
        let mut pulling = JoinSet::new();
        for client in 0..NODES * clients {
            pulling.spawn(pull_on_demand(demand.subscribe(), client % NODES, fleet.registry.address()));
        }
        Trial { fleet, demand, clients: pulling, killed: Vec::new(), late: Vec::new() }
    }

    /// From now on, the clients of these nodes pull, and those of the others end.
    fn move_to(&self, busy: Range<usize>) {
        self.demand.send_modify(|demand| demand.busy = busy);
    }

    /// Waits until each of these nodes has slots, and all slots are in use.
    async fn until_lent_to(&self, nodes: Range<usize>) {
        for node in nodes {
            self.fleet.until_any_open(node).await;
        }
        self.fleet.until_open(CAP).await;
    }

    async fn kill(&mut self, node: usize) {
        self.demand.send_modify(|demand| {
            demand.proxies[node] = None;
            demand.faults[node] += 1;
        });
        self.fleet.nodes[node].signal(Signal::KILL);
        self.fleet.nodes[node].wait().await;
    }

    /// The processes of this node that have a lease at the store.
    fn processes(&self, node: usize) -> Vec<String> {
        let (fields, of_node) = (self.fleet.redis.order("HKEYS roadstead:{stub}:leases"), format!("n{node}/"));
        fields.lines().filter(|field| field.starts_with(&of_node)).map(str::to_owned).collect()
    }

    /// Another process of a node that was killed, at another port, with the lock of before. Waits until it has the only lease.
    async fn start_again(&mut self, node: usize) {
        let config = self.fleet.nodes[node].config_path();
        let folder = config.parent().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&config).unwrap();
        let before = self.processes(node);
        let next = Sidecar::start_with(BINARY, &text, &[("RUNTIME_DIRECTORY", folder)]).await;
        eventually("one process of this node", SOON, async || match self.processes(node) {
            now if now.len() == 1 && now != before => Ok(()),
            now => Err(now),
        })
        .await;
        let proxy = next.proxy();
        self.killed.push(std::mem::replace(&mut self.fleet.nodes[node], next));
        self.demand.send_modify(|demand| demand.proxies[node] = Some(proxy));
    }

    /// A request that is under way may be lost with its lease. One that comes while the node is frozen may not.
    async fn freeze(&self, node: usize) {
        self.fleet.nodes[node].signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.fleet.nodes[node].pid());
        eventually("a process that stands", SOON, async || match std::fs::read_to_string(&stat).unwrap() {
            stat if stat.contains(") T ") => Ok(()),
            stat => Err(stat),
        })
        .await;
        self.demand.send_modify(|demand| demand.faults[node] += 1);
    }

    /// Requests to this node, which are to be served in the end.
    fn ask(&mut self, node: usize) {
        self.late.extend(self.fleet.requests(node, 3));
    }

    fn thaw(&self, node: usize) {
        self.fleet.nodes[node].signal(Signal::CONT);
    }

    /// Waits until all slots are in use again, those of the nodes that are gone since this moment, too.
    async fn until_reused(&self, gone: Instant) {
        // Until then the registry counts what is frozen.
        tokio::time::sleep_until((gone + GIVES_UP).into()).await;
        self.fleet.until_open(CAP).await;
        let idle = gone.elapsed();
        println!("all slots were in use again after {idle:?}");
        // The other seconds are for a busy machine: see `the_slots_of_a_killed_node_are_used_again_when_its_lease_is_over`.
        assert!(idle < HOLD_OF_SILENT + Duration::from_secs(2), "{idle:?}");
    }

    /// Every node has its turn, and what is owed is served.
    async fn end(mut self) {
        self.move_to(0..NODES);
        for node in 0..NODES {
            self.ask(node);
        }
        served(self.late).await;
        self.demand.send_modify(|demand| demand.is_over = true);
        let ends = self.clients.join_all().await;
        let failed: Vec<&String> = ends.iter().flat_map(|ends| &ends.failed).collect();
        assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
        let sum = |of: fn(&Ends) -> usize| ends.iter().map(of).sum::<usize>();
        let (pulls, lost) = (sum(|ends| ends.served), sum(|ends| ends.lost));
        let figures =
            format!("{pulls} pulls served, {lost} lost before, {} connections at once", self.fleet.registry.peak());
        println!("{figures}");
        assert!(pulls > 0 && lost > 0 && self.fleet.registry.peak() == CAP, "{figures}");
    }
}

/// Half of the demand is at nodes that are killed, or frozen until long after their leases. The slots come to those that live, and are
/// theirs when the others come back. The second time, the store forgets everything meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_a_node_lets_the_fleet_exceed_the_cap_or_fail_a_request_that_outlives_it() {
    let past_its_lease = LEASE + Duration::from_millis(500);
    let mut trial = Trial::start(5).await;
    trial.move_to(0..8);
    trial.until_lent_to(0..6).await;
    for dead in 0..3 {
        trial.kill(dead).await;
    }
    trial.start_again(1).await;
    for frozen in 3..6 {
        trial.freeze(frozen).await;
    }
    let gone = Instant::now();
    trial.move_to(6..14);
    for frozen in [3, 4] {
        trial.ask(frozen);
    }
    tokio::time::sleep(past_its_lease).await;
    trial.thaw(3);
    trial.kill(5).await;
    trial.until_reused(gone).await;
    // The registry has dropped its connections, and its slots are taken.
    trial.thaw(4);
    for dead in [0, 2, 5] {
        trial.start_again(dead).await;
    }
    trial.move_to(8..16);
    trial.until_lent_to(8..12).await;
    for frozen in 8..11 {
        trial.freeze(frozen).await;
    }
    trial.kill(11).await;
    trial.fleet.redis.restart();
    let gone = Instant::now();
    trial.move_to(12..20);
    trial.start_again(11).await;
    for frozen in [8, 10] {
        trial.ask(frozen);
    }
    tokio::time::sleep(past_its_lease).await;
    // The store is learning, and knows nothing of the lease that it had.
    trial.thaw(8);
    trial.kill(9).await;
    trial.start_again(9).await;
    trial.until_reused(gone).await;
    trial.thaw(10);
    trial.end().await;
}

/// The records are still there after a crash, and leases that live are registered again before anything is lent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_keeps_its_records_is_killed_and_nothing_is_lost() {
    let registry = StubRegistry::builder().answer_delay(Duration::from_millis(50));
    let mut fleet = Fleet::start_on(RedisServer::start_kept(), NODES, registry, |settings| settings).await;
    let load = Load::start(&fleet, 2);
    for _ in 0..2 {
        let before = fleet.registry.requests();
        eventually("work", SOON, async || match fleet.registry.requests() - before {
            200.. => Ok(()),
            some => Err(some),
        })
        .await;
        fleet.redis.restart();
        let records = fleet.redis.order("HLEN roadstead:{stub}:leases");
        assert!(records != ":0\r\n", "the server has lost its records");
    }
    tokio::time::sleep(HOLD).await;
    assert!(load.end().await > 0);
    assert!(fleet.registry.peak() <= CAP, "{}", fleet.registry.peak());
}

/// A frozen process cuts what stands on its lease in the moment in which it goes on, before the store lends it to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_frozen_cuts_before_its_slots_are_lent_again() {
    let fleet = Fleet::start(2, StubRegistry::builder()).await;
    fleet.registry.hold();
    let lost = fleet.requests(0, CAP + 5);
    fleet.until_open(CAP).await;
    let waiting = fleet.requests(1, CAP);
    fleet.nodes[0].signal(Signal::STOP);
    // Its lease is over 2.5 s after its last request, and its connections stand all the same.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fleet.registry.open(), CAP);
    fleet.nodes[0].signal(Signal::CONT);
    fleet.until_any_open(1).await;
    fleet.until_open(CAP).await;
    assert_eq!(fleet.registry.peak(), CAP);
    fleet.registry.release();
    served(waiting).await;
    for request in lost {
        // Cut while it was answered, or served by the leases that follow.
        let _ = request.await.unwrap();
    }
    assert!(fleet.registry.peak() <= CAP, "{}", fleet.registry.peak());
}

/// A process with leases takes nothing over from one with a fixed share, whose slots the store does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_between_fixed_and_leased_shares_is_refused_by_a_process_that_takes_over() {
    let fleet = Fleet::start(1, StubRegistry::builder()).await;
    let node = &fleet.nodes[0];
    let leased = std::fs::read_to_string(node.config_path()).unwrap();
    std::fs::write(node.config_path(), leased.replace("share = \"lease\"", "share = \"1/2\"")).unwrap();
    node.signal(Signal::USR2);
    node.until_logged("the running process has a leased one").await;
    served(fleet.requests(0, 3)).await;
    std::fs::write(node.config_path(), leased).unwrap();
}

/// The answers, which are all good.
async fn served(requests: Vec<JoinHandle<Option<(u16, String)>>>) {
    for request in requests {
        assert_eq!(request.await.unwrap().map(|(status, _)| status), Some(200));
    }
}

/// The slots of a node that was killed lie idle until its lease is over at the store, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slots_of_a_killed_node_are_used_again_when_its_lease_is_over() {
    let mut fleet = Fleet::start(2, StubRegistry::builder()).await;
    fleet.registry.hold();
    let _lost = fleet.requests(0, CAP);
    fleet.until_open(CAP).await;
    fleet.nodes[0].signal(Signal::KILL);
    fleet.nodes[0].wait().await;
    let killed = Instant::now();
    // The registry hears of the end a moment later.
    fleet.until_open(0).await;
    let waiting = fleet.requests(1, CAP);
    fleet.until_open(CAP).await;
    let idle = killed.elapsed();
    // The last request of the dead node may be as old as a renewal.
    let renewal = Duration::from_millis(700);
    // The clocks of the store and of the nodes may differ by 1 % and a moment; the other second is for a busy machine, on which the
    // store's clock loses the time that requests are on their way.
    assert!(idle + renewal > HOLD && idle < HOLD + Duration::from_secs(2), "{idle:?}");
    fleet.registry.release();
    served(waiting).await;
    assert_eq!(fleet.registry.peak(), CAP);
}

/// After a kill -9 the next process of the node has its slots at once: it gets the lock, and sees that the kernel has closed all sockets.
/// A connection that another program has not accepted is none of those.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_follows_a_killed_one_takes_its_slots_over() {
    let long = |settings: String| settings.replace("gives_up = \"500ms\"", "gives_up = \"60s\"");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unaccepted = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut fleet = Fleet::start_with(1, StubRegistry::builder(), long).await;
    fleet.registry.hold();
    let _lost = fleet.requests(0, CAP);
    fleet.until_open(CAP).await;
    let folder = fleet.nodes[0].config_path().parent().unwrap().to_owned();
    let again = long(settings(&fleet.registry, &fleet.redis.url(), 0));
    let environment = [("RUNTIME_DIRECTORY", folder.to_str().unwrap())];
    // One by the same name elsewhere has another lock, and takes nothing over.
    let beside = Sidecar::start_with(BINARY, &again, &[]).await;
    fleet.nodes.push(beside);
    let waiting = fleet.requests(1, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((fleet.registry.open(), fleet.registry.peak()), (CAP, CAP));
    fleet.nodes[0].signal(Signal::KILL);
    fleet.nodes[0].wait().await;
    let killed = Instant::now();
    fleet.nodes.push(Sidecar::start_with(BINARY, &again, &environment).await);
    let more = fleet.requests(2, CAP);
    fleet.until_open(CAP).await;
    println!("the slots were in use again after {:?}", killed.elapsed());
    fleet.registry.release();
    served(waiting).await;
    served(more).await;
    assert_eq!(fleet.registry.peak(), CAP);
    drop((unaccepted, listener));
}

/// Each has leases of its own, and says that another one goes by its name; so do the commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sidecars_with_one_name_stay_within_the_cap_and_say_so() {
    let change = |settings: String| settings.replace("node_id = \"n1\"", "node_id = \"n0\"");
    let fleet = Fleet::start_with(3, StubRegistry::builder().answer_delay(Duration::from_millis(20)), change).await;
    let load = Load::start(&fleet, 15);
    eventually("two that know of each other", SOON, async || {
        let shared: Vec<_> = fleet.leases().await.iter().map(|lease| lease["shared_node_id"].clone()).collect();
        if shared == [true, true, false] { Ok(()) } else { Err(shared) }
    })
    .await;
    fleet.nodes[1].until_logged("a second sidecar with the same lease.node_id").await;
    let (_, table) = fleet.command(0, &["status", "--fleet"]).await;
    assert!(table.ends_with("several sidecars go by the name n0: give each its own lease.node_id\n"), "{table}");
    assert!(load.end().await > 0);
    assert!(fleet.registry.peak() <= CAP, "{}", fleet.registry.peak());
    // It dials the registry itself, too.
    let (_, report) = fleet.command(2, &["doctor"]).await;
    assert!(report.contains("several sidecars go by one name: n0"), "{report}");
}

/// Ends the process that took over, which is no child of the test.
struct Successor(i32);

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_raw(self.0).unwrap(), rustix::process::Signal::KILL);
    }
}

/// While a node hands over, its floor is one: the old process has it, and all that the new one has open is leased.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hands_over_has_one_floor() {
    const FLOOR: usize = 4;
    let change =
        |settings: String| settings.replace(&format!("nodes = {NODES}\n"), &format!("nodes = 2\nfloor = {FLOOR}\n"));
    let fleet = Fleet::start_with(2, StubRegistry::builder(), change).await;
    fleet.registry.hold();
    let of_the_old = fleet.requests(0, FLOOR);
    fleet.until_open(FLOOR).await;
    let old = fleet.nodes[0].pid();
    fleet.nodes[0].signal(Signal::USR2);
    let _successor = eventually("another process", SOON, async || {
        let pids: Vec<i64> = fleet.nodes[0].logs().iter().filter_map(|line| line["fields"]["pid"].as_i64()).collect();
        pids.iter().find(|pid| **pid != i64::from(old)).map(|pid| Successor(i32::try_from(*pid).unwrap())).ok_or(pids)
    })
    .await;
    let of_the_new = fleet.requests(0, CAP);
    // The pool is what both floors leave.
    fleet.until_open(CAP - FLOOR).await;
    let of_another = fleet.requests(1, CAP);
    fleet.until_open(CAP).await;
    // Several renewals, and messages of the store to give slots back.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((fleet.registry.open(), fleet.registry.peak()), (CAP, CAP));
    fleet.registry.release();
    for requests in [of_the_old, of_the_new, of_another] {
        served(requests).await;
    }
    assert_eq!(fleet.registry.peak(), CAP);
}

/// Requests wait while all nodes are paused, whatever happens to nodes and store, and go on after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_fleet_opens_no_connection_and_loses_no_request() {
    let mut fleet = Fleet::start_with(6, StubRegistry::builder().answer_delay(Duration::from_millis(30)), |settings| {
        settings
            .replace("idle_after = \"300ms\"", "idle_after = \"300ms\"\nstall_timeout = \"30s\"")
            .replace("nodes = 20", "nodes = 6\nfloor = 1")
    })
    .await;
    let load = Load::start(&fleet, 4);
    eventually("work", SOON, async || if fleet.registry.requests() > 100 { Ok(()) } else { Err(()) }).await;
    let began = Instant::now();
    let paused = fleet.command(0, &["pause", "stub", "--fleet"]).await;
    assert_eq!(paused, (Some(0), "registry stub: paused on all 6 nodes\n".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let idle = async |fleet: &Fleet| {
        for node in &fleet.nodes {
            eventually("a node without work", SOON, async || match &node.status().await["registries"]["stub"] {
                now if now["active"] == 0 && now["connecting"] == 0 => Ok(()),
                now => Err(now.clone()),
            })
            .await;
        }
    };
    idle(&fleet).await;
    let (opened, requests) = (fleet.registry.accept_log().len(), fleet.registry.requests());
    let is_still = |fleet: &Fleet| {
        let now = (fleet.registry.accept_log().len(), fleet.registry.requests());
        assert_eq!(now, (opened, requests), "connections and requests during the pause");
    };
    for node in &fleet.nodes {
        let now = node.status().await["registries"]["stub"].clone();
        assert_eq!(
            (&now["paused"], &now["limited_by"], &now["lease"]["paused"]),
            (&true.into(), &"fleet_paused".into(), &true.into())
        );
    }
    // One node alone cannot go on.
    let alone = fleet.nodes[1].order("/registries/stub/resume").await;
    assert!(alone.status() == 409 && alone.text().contains("`roadstead resume stub --fleet`"), "{}", alone.text());
    // A node that starts now is paused from its first moment, though it has a floor, and the store that it asks is just being
    // restarted. The records are lost, and nodes bring the order back.
    let order = fleet.redis.order("HGET roadstead:{stub}:leases order");
    let seventh = settings(&fleet.registry, &fleet.redis.url(), 6).replace("nodes = 20", "nodes = 6\nfloor = 1");
    fleet.nodes.push(Sidecar::start(BINARY, &seventh).await);
    let late = fleet.requests(6, 3);
    fleet.redis.restart();
    eventually_is("the order at the store", SOON, order, async || {
        fleet.redis.order("HGET roadstead:{stub}:leases order")
    })
    .await;
    tokio::time::sleep(HOLD / 2).await;
    is_still(&fleet);
    // A store that does not answer: the nodes stay paused, and the operator is told.
    fleet.redis.signal(Signal::STOP);
    let (status, said) = fleet.command(0, &["resume", "stub", "--fleet"]).await;
    let url = fleet.redis.url();
    assert!(
        status == Some(1) && said.contains(&url) && said.contains("run `roadstead resume stub` on each node"),
        "{said}"
    );
    is_still(&fleet);
    fleet.redis.signal(Signal::CONT);
    let resumed = fleet.command(0, &["resume", "stub", "--fleet"]).await;
    assert_eq!(resumed, (Some(0), "registry stub: resumed on all 7 nodes\n".to_owned()));
    served(late).await;
    assert!(load.end().await > 0);
    assert!(fleet.registry.peak() <= CAP + 1, "{}", fleet.registry.peak());
}

/// A wish, what is given back, and an order wait for no renewal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_and_slots_travel_at_once_though_renewals_are_rare() {
    let at_once = Duration::from_secs(2);
    let seldom = |settings: String| {
        settings
            .replace("renew_every = \"300ms\"", "renew_every = \"20s\"")
            .replace("admit_for = \"1500ms\"", "admit_for = \"60s\"")
            .replace("nodes = 20", "nodes = 2")
    };
    let fleet = Fleet::start_with(2, StubRegistry::builder(), seldom).await;
    fleet.registry.hold();
    let first = fleet.requests(0, CAP);
    fleet.until_open(CAP).await;
    let second = fleet.requests(1, 3);
    eventually("requests that wait", SOON, async || {
        match fleet.nodes[1].status().await["registries"]["stub"].clone() {
            now if now["waiting"] == 3 && now["lease"]["wished"] == 3 => Ok(()),
            now => Err(now),
        }
    })
    .await;
    // One connection of the other node ends.
    fleet.registry.let_through(1);
    let began = Instant::now();
    fleet.until_any_open(1).await;
    assert!(began.elapsed() < at_once, "{:?} until a slot came over", began.elapsed());
    fleet.registry.release();
    served(second).await;
    assert!(began.elapsed() < at_once, "{:?} until all were served", began.elapsed());
    served(first).await;
    for order in ["pause", "resume"] {
        let began = Instant::now();
        let done = fleet.command(0, &[order, "stub", "--fleet"]).await;
        assert_eq!(done, (Some(0), format!("registry stub: {order}d on all 2 nodes\n")));
        assert!(began.elapsed() < at_once, "{:?} until all nodes said: {order}", began.elapsed());
    }
    assert_eq!(fleet.registry.peak(), CAP);
}

/// One operator waits for a frozen node to say that it is paused, while another one resumes the fleet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_not_given_again_over_a_later_one_of_another_operator() {
    let fleet = Arc::new(Fleet::start(2, StubRegistry::builder()).await);
    let nodes = async || {
        let fields = fleet.redis.order("HKEYS roadstead:{stub}:leases");
        let nodes = fields.lines().filter(|field| field.contains('/')).count();
        if nodes == 2 { Ok(()) } else { Err(nodes) }
    };
    eventually("both nodes in the store", SOON, nodes).await;
    fleet.nodes[1].signal(Signal::STOP);
    let waiting = tokio::spawn({
        let fleet = fleet.clone();
        async move { fleet.command(0, &["pause", "stub", "--fleet"]).await }
    });
    let order = async || {
        let order = fleet.redis.order("HGET roadstead:{stub}:leases order");
        order.lines().nth(1).map_or(0, |order| order.parse::<u64>().unwrap())
    };
    eventually("a pause", SOON, async || if order().await % 2 == 1 { Ok(()) } else { Err(()) }).await;
    let (status, said) = fleet.command(0, &["resume", "stub", "--fleet"]).await;
    assert_eq!(status, Some(0), "{said}");
    let resumed = order().await;
    let (status, said) = waiting.await.unwrap();
    assert!(status == Some(1) && said.contains("another order was given since"), "{status:?} {said}");
    assert_eq!((order().await, resumed % 2), (resumed, 0));
}

/// The store has lost its records, and is told of a pause before the nodes bring back the order of before, which is older.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_after_a_loss_of_the_store_holds_against_all_that_were_given_before() {
    let fleet = Fleet::start(2, StubRegistry::builder()).await;
    for order in ["pause", "resume"] {
        let (status, said) = fleet.command(0, &[order, "stub", "--fleet"]).await;
        assert_eq!(status, Some(0), "{said}");
    }
    fleet.nodes.iter().for_each(|node| node.signal(Signal::STOP));
    fleet.redis.flush();
    let paused = fleet.command(0, &["pause", "stub", "--fleet"]).await;
    assert_eq!(paused, (Some(0), "registry stub: paused; no node is there now\n".to_owned()));
    let order = fleet.redis.order("HGET roadstead:{stub}:leases order");
    fleet.nodes.iter().for_each(|node| node.signal(Signal::CONT));
    eventually("a paused fleet", SOON, async || {
        let leases = fleet.leases().await;
        if leases.iter().all(|lease| lease["paused"] == true) { Ok(()) } else { Err(leases) }
    })
    .await;
    eventually("two nodes at the store", SOON, async || match fleet.command(0, &["status", "--fleet"]).await.1 {
        table if table.contains(" slots lent to 2 nodes, paused on all nodes\n") => Ok(()),
        table => Err(table),
    })
    .await;
    assert_eq!(fleet.redis.order("HGET roadstead:{stub}:leases order"), order);
}

/// One table shows all nodes, also those that are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_the_fleet_shows_every_node() {
    let mut fleet = Fleet::start(3, StubRegistry::builder()).await;
    fleet.registry.hold();
    let busy = fleet.requests(0, CAP + 5);
    fleet.until_open(CAP).await;
    let status = async |fleet: &Fleet| {
        let (status, told) = fleet.command(1, &["status", "--fleet", "--json"]).await;
        assert_eq!(status, Some(0), "{told}");
        serde_json::from_str::<serde_json::Value>(&told).unwrap()["registries"]["stub"].clone()
    };
    // Losing one record is worse than losing all.
    let records = fleet.redis.order("TTL roadstead:{stub}:leases");
    assert_eq!(
        (records, fleet.redis.order("TTL roadstead:{stub}:reports")),
        (":-1\r\n".to_owned(), ":-1\r\n".to_owned())
    );
    let refused = "registry stub: slots are lent now, so the store is in use: nothing was changed there";
    let (ended, said) = fleet.command(1, &["lease", "init"]).await;
    assert!(ended == Some(1) && said.contains(refused), "{ended:?} {said}");
    let row = eventually("a report", SOON, async || match &status(&fleet).await["nodes"][0] {
        row if row["open"] == CAP && row["waiting"] == 5 && row["oldest_wait_seconds"].as_f64() > Some(0.3) => {
            Ok(row.clone())
        }
        row => Err(row.clone()),
    })
    .await;
    assert_eq!((&row["node"], &row["granted"], &row["wished"]), (&"n0".into(), &CAP.into(), &CAP.into()));
    assert!(row["lease_ends_seconds"].as_f64() > Some(3.0) && row["last_seen_seconds"].as_f64() < Some(1.0), "{row}");
    let (_, table) = fleet.command(1, &["status", "--fleet"]).await;
    assert!(
        table.starts_with("registry stub: 20 of 20 slots lent to 3 nodes\n  node") && table.lines().count() == 5,
        "{table}"
    );
    fleet.nodes[2].signal(Signal::KILL);
    fleet.nodes[2].wait().await;
    eventually("a node that is gone", SOON, async || match status(&fleet).await["nodes"][2].clone() {
        row if row["last_seen_seconds"].as_f64() > Some(2.5) => Ok(()),
        row => Err(row),
    })
    .await;
    fleet.nodes[1].order("/registries/stub/pause").await;
    let (status, paused) = fleet.command(0, &["pause", "stub", "--fleet"]).await;
    let expected = "registry stub: paused on all 2 nodes\nnode n2 was last heard of ";
    assert!(status == Some(0) && paused.starts_with(expected), "{paused}");
    let (status, resumed) = fleet.command(0, &["resume", "stub", "--fleet"]).await;
    assert!(status == Some(0) && resumed.starts_with("registry stub: resumed on all 2 nodes\n"), "{resumed}");
    let table = fleet.command(0, &["status", "--fleet"]).await.1;
    assert!(table.contains("this node\n"), "the pause of one node is its own: {table}");
    fleet.registry.release();
    served(busy).await;
}

/// Nodes without a store in common have no order in common.
#[test]
fn orders_to_a_fleet_with_fixed_shares_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    let fixed = "[registries.fixed]\nhosts = [\"a.example\"]\ncap = 10\nshare = 1\n";
    let leased = "[registries.leased]\nhosts = [\"b.example\"]\ncap = 10\nshare = \"lease\"\n\
                  [lease]\nredis = \"redis://127.0.0.1:1/0\"\nnodes = 2\n";
    let run = |words: &[&str]| {
        let run = Command::new(BINARY).args(words).arg("--config").arg(&file).output().unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    std::fs::write(&file, fixed).unwrap();
    for words in [["pause", "fixed", "--fleet"].as_slice(), &["status", "--fleet"], &["lease", "init"]] {
        let (status, said) = run(words);
        assert!(status == Some(2) && said.contains("share = \"lease\""), "{words:?}: {said}");
    }
    std::fs::write(&file, [fixed, leased].concat()).unwrap();
    for (words, status, expected) in [
        (["pause", "fixed", "--fleet"].as_slice(), 2, "registries.fixed.share"),
        (&["pause", "other", "--fleet"], 2, "there is fixed, leased"),
        (&["pause", "leased", "--fleet"], 1, "lease.redis redis://127.0.0.1:1/0"),
        (&["status", "--fleet"], 1, "lease.redis redis://127.0.0.1:1/0"),
    ] {
        let (code, said) = run(words);
        assert!(code == Some(status) && said.contains(expected), "{words:?}: {code:?} {said}");
    }
}

/// Demand that moves over twenty nodes takes as long as `roadstead plan` says, by the registry and the logs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_takes_as_long_as_the_plan_says() {
    /// Of the time that the plan says, and of one message that comes late.
    const MARGIN: (f64, f64) = (0.2, 0.15);
    const PULLS: usize = 8;
    let service = Duration::from_millis(250);
    let fleet = Fleet::start(NODES, StubRegistry::builder().answer_delay(service)).await;
    let began = Instant::now();
    let mut storms = JoinSet::new();
    for (at, node) in fleet.nodes.iter().enumerate() {
        let storm = Storm { clients: PULLS, blob: BLOB, ..Storm::new(Destination::AbsoluteForm(node.proxy())) };
        let registry = fleet.registry.address();
        storms.spawn(async move {
            tokio::time::sleep_until((began + Duration::from_millis(200) * u32::try_from(at).unwrap()).into()).await;
            storm.run(registry).await
        });
    }
    for tally in storms.join_all().await {
        assert_eq!((tally.ok, tally.failed.len()), (PULLS, 0), "{tally:?}");
    }
    let took = began.elapsed().as_secs_f64();
    let mut lines = Vec::new();
    for node in &fleet.nodes {
        eventually_is("a log line for each request", SOON, 2 * PULLS, async || node.finished().len()).await;
        lines.extend(node.finished());
    }
    let mut waits: Vec<f64> = lines.iter().map(|line| line["waited_ms"].as_f64().unwrap() / 1e3).collect();
    waits.sort_by(f64::total_cmp);
    let took_each = service_ms(&lines);
    // The same times of leases.
    let file = fleet.nodes[0].config_path();
    let line = format!(
        "plan --nodes {NODES} --images {PULLS} --layers 1 --small 1 --layer-size 0B --service-time {took_each:.0}ms --within 4s --json"
    );
    let run = Command::new(BINARY).args(line.split(' ')).arg("--config").arg(file).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    let run = &report["run"];
    assert_eq!((&report["feasible"], &run["served"]), (&true.into(), &waits.len().into()), "{report}");
    assert_as_planned(run, took, &waits, |planned| MARGIN.0 * planned + MARGIN.1);
    let rounds = f64::from(u32::try_from(2 * PULLS * NODES / CAP).unwrap());
    let used = rounds * service.as_secs_f64() / took;
    println!("{used:.2} of the cap was used");
    assert!(fleet.registry.peak() <= CAP);
}

/// TLS by an authority of its own, and a user with the rights that docs/fleet.md names and a password from a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_behind_tls_and_a_password_lends() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path(), "redis.test", true);
    let secure = free_address();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fleet.md")).unwrap();
    let rights = page.split("A user (ACL) with `").nth(1).unwrap().split('`').next().unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let mut arguments = vec!["--tls-port".to_owned(), secure.port().to_string()];
    for (key, file) in [
        ("--tls-cert-file", &certificates.server),
        ("--tls-key-file", &certificates.server_key),
        ("--tls-ca-cert-file", &certificates.authority),
    ] {
        arguments.extend([key.to_owned(), path(file)]);
    }
    arguments.extend(["--tls-auth-clients", "no", "--user", "roadstead", "on", ">secret"].map(str::to_owned));
    arguments.extend(rights.split_whitespace().map(str::to_owned));
    let redis = RedisServer::start_with(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    std::fs::write(folder.path().join("password"), "secret\n").unwrap();
    let (authority, password) = (path(&certificates.authority), path(&folder.path().join("password")));
    let change = move |settings: String| {
        let plain = settings.lines().find(|line| line.starts_with("redis = ")).unwrap().to_owned();
        // Another database than the first needs SELECT.
        let url = format!("redis = \"rediss://{secure}/1\"\nuser = \"roadstead\"");
        settings.replace(&plain, &format!("{url}\npassword_file = \"{password}\"\nca_file = \"{authority}\""))
    };
    let fleet = Fleet::start_on(redis, 2, StubRegistry::builder(), change).await;
    for tally in fleet.storm(0..2, 30).join_all().await {
        assert_eq!(tally.failed, Vec::<String>::new());
    }
    let (status, said) = fleet.command(0, &["pause", "stub", "--fleet"]).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(!fleet.nodes[0].log_text().contains("secret"));
    assert!(fleet.registry.peak() <= CAP);
}

/// An answer counts only when a replica has what it grants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_no_replica_confirms_does_not_count() {
    let redis = RedisServer::start();
    let mut replica = redis.replica();
    eventually("a replica", SOON, async || match redis.order("INFO replication") {
        info if info.contains("state=online") => Ok(()),
        info => Err(info),
    })
    .await;
    let fleet = Fleet::start_on(redis, 1, StubRegistry::builder(), |settings| settings).await;
    served(fleet.requests(0, 5)).await;
    replica.signal(Signal::STOP);
    eventually("grants that do not count", SOON, async || match fleet.leases().await.remove(0) {
        lease
            if lease["until_seconds"].is_null()
                && lease["error"].as_str().is_some_and(|error| error.contains("no replica")) =>
        {
            Ok(())
        }
        lease => Err(lease),
    })
    .await;
    let waiting = fleet.requests(0, 5);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fleet.registry.requests(), 5);
    replica.signal(Signal::CONT);
    served(waiting).await;
}

/// The Sentinels name another primary when the first one is killed, and the nodes go on there after its learning time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_follow_the_sentinels_to_another_primary() {
    let redis = RedisServer::start();
    let replica = redis.replica();
    eventually("a replica, which the Sentinel finds at its first look", SOON, async || {
        match replica.order("INFO replication") {
            info if info.contains("master_link_status:up") => Ok(()),
            info => Err(info),
        }
    })
    .await;
    let sentinel = RedisSentinel::start(&redis);
    let url = sentinel.url();
    let registry = StubRegistry::builder().answer_delay(Duration::from_millis(50));
    let mut fleet = Fleet::start_on(redis, 2, registry, |settings| with_store(&settings, &url)).await;
    let load = Load::start(&fleet, 3);
    fleet.until_more_is_served().await;
    eventually("a Sentinel that knows the replica", SOON, async || match sentinel.knows() {
        all if all.contains("known-replica") => Ok(()),
        all => Err(all),
    })
    .await;
    fleet.redis.signal(Signal::KILL);
    eventually("another primary", SOON, async || match replica.order("ROLE") {
        role if role.contains("master") => Ok(()),
        role => Err(role),
    })
    .await;
    fleet.until_more_is_served().await;
    assert!(replica.order("HLEN roadstead:{stub}:leases") != ":0\r\n");
    assert!(load.end().await > 0);
    assert!(fleet.registry.peak() <= CAP, "{}", fleet.registry.peak());
}

/// In a cluster, the nodes find the server that has the records, though one server of the URL is dead, and no other has them: again when
/// that server is killed and its replica takes its place, and when the records move to another server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_the_server_of_a_cluster_that_has_the_records() {
    const KEYS: [&str; 2] = ["roadstead:{stub}:leases", "roadstead:{stub}:reports"];
    let mut cluster = RedisCluster::start().await;
    let redis = cluster.servers.swap_remove(cluster.primary_of(KEYS[0]).unwrap());
    // One server that is dead, and one that belongs to no cluster.
    let alone = RedisServer::start();
    let hosts = [free_address(), alone.address()]
        .into_iter()
        .chain(cluster.servers.iter().map(RedisServer::address))
        .map(|address| address.to_string());
    let url = format!("redis+cluster://{}", hosts.collect::<Vec<_>>().join(","));
    let registry = StubRegistry::builder().answer_delay(Duration::from_millis(50));
    let mut fleet = Fleet::start_on(redis, 2, registry, |settings| with_store(&settings, &url)).await;
    let load = Load::start(&fleet, 3);
    fleet.until_more_is_served().await;
    fleet.redis.signal(Signal::KILL);
    let next = async || cluster.primary_of(KEYS[0]).ok_or("the replica is no primary");
    let next = eventually("another primary", SOON, next).await;
    fleet.until_more_is_served().await;
    let has_lent = |place: usize| cluster.servers[place].order(&format!("HLEN {}", KEYS[0])) != ":0\r\n";
    assert!(has_lent(next));
    let is_primary = |place: &usize| cluster.servers[*place].order("ROLE").contains("master");
    let other = (0..cluster.servers.len()).filter(is_primary).find(|place| *place != next).unwrap();
    cluster.move_slot(&KEYS, next, other);
    fleet.until_more_is_served().await;
    assert_eq!(cluster.primary_of(KEYS[0]), Some(other));
    assert!(has_lent(other));
    let (exit, told) = fleet.command(0, &["status", "--fleet"]).await;
    assert!(exit == Some(0) && told.contains("n0") && told.contains("n1"), "{told}");
    assert!(load.end().await > 0);
    assert!(fleet.registry.peak() <= CAP, "{}", fleet.registry.peak());
    assert_eq!(alone.order("KEYS *"), "*0\r\n", "no node lends from it");
}

/// `doctor` asks the store, where a share is leased.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_tries_the_store() {
    let fleet = Fleet::start(0, StubRegistry::builder()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    let (url, address) = (fleet.redis.url(), fleet.redis.address());
    let config = |url: &str| settings(&fleet.registry, url, 0);
    let cases = [
        (config(&url), "fine", "answers, and runs a script"),
        (config(&format!("redis+cluster://{address}")), "problem", "belongs to no cluster"),
        (config(&url).replace("share = \"lease\"", "share = 1"), "skipped", "no store to ask"),
    ];
    for (config, finding, said) in cases {
        std::fs::write(&file, config).unwrap();
        let run = Command::new(BINARY).args(["doctor", "--json", "--config"]).arg(&file).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
        let steps = report["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["step"] == "lease").unwrap();
        assert!(step["finding"] == finding && step["said"].as_str().unwrap().contains(said), "{step}");
    }
}

/// A node that ends in order gives its slots back: nobody waits for the end of its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_drains_gives_its_slots_back() {
    let mut fleet = Fleet::start(2, StubRegistry::builder()).await;
    fleet.registry.hold();
    let draining = fleet.requests(0, CAP);
    fleet.until_open(CAP).await;
    fleet.nodes[0].terminate();
    let waiting = fleet.requests(1, CAP);
    // While the others are held, the slot of one that is done is of use to the other node.
    fleet.registry.let_through(1);
    fleet.until_any_open(1).await;
    fleet.registry.release();
    served(draining).await;
    let began = Instant::now();
    fleet.nodes[0].wait().await;
    assert!(began.elapsed() < HOLD / 2, "it waits for its lease");
    let records = fleet.redis.order("HKEYS roadstead:{stub}:leases");
    assert!(!records.contains("n0/") && records.contains("n1/"), "{records}");
    served(waiting).await;
    assert_eq!(fleet.registry.peak(), CAP);
}

/// Connections on a lease that is over are cut. The floor stays, and refusals say what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_store_goes_on_until_its_lease_ends_and_then_on_its_floor() {
    let change = |settings: String| {
        let settings = settings.replace("request_timeout = \"40s\"", "request_timeout = \"4s\"");
        settings.replace(&format!("nodes = {NODES}\n"), "nodes = 2\nfloor = 1\n")
    };
    let mut fleet = Fleet::start_with(1, StubRegistry::builder(), change).await;
    fleet.registry.hold();
    let requests = fleet.requests(0, 3);
    fleet.until_open(3).await;
    fleet.redis.signal(Signal::STOP);
    let frozen = Instant::now();
    // Inside the lease, more requests are admitted.
    let more = fleet.requests(0, 1);
    fleet.until_open(4).await;
    fleet.until_open(1).await;
    let lasted = frozen.elapsed();
    assert!((Duration::from_millis(1700)..Duration::from_millis(4500)).contains(&lasted), "{lasted:?}");
    let refused = fleet.requests(0, 1).pop().unwrap().await.unwrap().expect("an answer");
    assert_eq!(refused.0, 503);
    assert!(refused.1.contains("lease_lost") && refused.1.contains("see lease.redis"), "{}", refused.1);
    let lease = fleet.leases().await.remove(0);
    assert!(lease["unanswered"].as_u64() > Some(0) && lease["error"].is_string(), "{lease}");
    fleet.registry.release();
    let mut ends = Vec::new();
    for request in requests.into_iter().chain(more) {
        ends.push(request.await.unwrap().map(|(status, _)| status));
    }
    assert!(ends.contains(&Some(200)), "the floor: {ends:?}");
    // On the floor, one after another.
    served(fleet.requests(0, 5)).await;
    fleet.redis.signal(Signal::CONT);
    eventually("a lease", SOON, async || match fleet.leases().await.remove(0) {
        lease if lease["until_seconds"].is_number() => Ok(()),
        lease => Err(lease),
    })
    .await;
}

/// If the machine was reset, the registry still counts what it had before: the floor waits. The store, which counts leases, is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_started_a_moment_ago_does_not_use_its_floor_yet() {
    let up = || rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    let ends = up() + 15;
    let mut fleet = Fleet::start_with(1, StubRegistry::builder(), |settings| {
        let settings = settings.replace("nodes = 20", "nodes = 1\nfloor = 1");
        settings.replace("registry_gives_up = \"500ms\"", &format!("registry_gives_up = \"{ends}s\""))
    })
    .await;
    fleet.redis.signal(Signal::STOP);
    eventually("a lease that is over", SOON, async || match fleet.leases().await.remove(0) {
        lease if lease["until_seconds"].is_null() => Ok(()),
        lease => Err(lease),
    })
    .await;
    let waiting = fleet.requests(0, 1);
    // Past the time after which a node that starts knows that the fleet is not paused.
    eventually("its time", SOON, async || if up() + 3 >= ends { Ok(()) } else { Err(()) }).await;
    assert_eq!(fleet.registry.requests(), 0);
    served(waiting).await;
    assert!(up() >= ends);
}

/// The registry may count a connection whose end it has not heard of. A process that ends meanwhile does not leave, and the next one takes
/// nothing over and does not use its floor yet. Neither is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_while_a_connection_may_count_keeps_its_lease() {
    let fleet = Fleet::start(0, StubRegistry::builder()).await;
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = registry.local_addr().unwrap();
    let text = settings(&fleet.registry, &fleet.redis.url(), 0)
        .replace("gives_up = \"500ms\"", "gives_up = \"60s\"")
        .replace("nodes = 20", "nodes = 2\nfloor = 2")
        .replace(&fleet.registry.address().to_string(), &address.to_string());
    let mut zeroth = Sidecar::start(BINARY, &text).await;
    let folder = zeroth.config_path().parent().unwrap().to_owned();
    let environment = [("RUNTIME_DIRECTORY", folder.to_str().unwrap())];
    let processes = || std::fs::read_to_string(folder.join("control.lock")).unwrap_or_default().lines().count();
    let deaf_connection = async |sidecar: &Sidecar| {
        let mut client = tokio::net::TcpStream::connect(sidecar.proxy()).await.unwrap();
        let request = format!("GET http://{address}/v2/ HTTP/1.1\r\nHost: {address}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut silent = registry.accept().await.unwrap().0;
        silent.read_exact(&mut [0; 16]).await.unwrap();
        deafen(&silent);
        (client, silent)
    };
    eventually_is("the lock", SOON, 1, async || processes()).await;
    // The kernel has a socket of one that was killed, so that the next one waits with what was lent to it.
    let _connection = deaf_connection(&zeroth).await;
    zeroth.signal(Signal::KILL);
    zeroth.wait().await;
    let mut first = Sidecar::start_with(BINARY, &text, &environment).await;
    eventually_is("the lock", SOON, 2, async || processes()).await;
    let (client, _silent) = deaf_connection(&first).await;
    drop(client);
    eventually_is("nobody who may follow", SOON, 1, async || processes()).await;
    let began = Instant::now();
    first.terminate();
    first.wait().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let second = Sidecar::start_with(BINARY, &text, &environment).await;
    eventually_is("the lock", SOON, 2, async || processes()).await;
    // It would take over half a second later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fleet.redis.order("HKEYS roadstead:{stub}:leases").matches("n0/").count(), 3);
    // A socket of the first that the kernel is still closing, and the floor.
    assert_eq!(second.status().await["registries"]["stub"]["reserved"], 3);
    drop(second);
}
