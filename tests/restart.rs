//! The process is restarted, replaced and killed in the middle of storms, with its listener held as systemd holds it:
//! no pull fails, and all processes together stay within the slots.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use roadstead_test_support::{
    Destination, KEEP_TUNNELS, Peak, Response, SocketWatch, Storm, StubRegistry, Tally, Wire, config, connect_through,
    eventually, eventually_is, get_through, order,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const SLOTS: usize = 10;
const RESTARTS: usize = 20;
/// Storms that begin one after another, and the pulls of each: 300 at least.
const STORMS: usize = 10;
const PULLS: usize = 30;
const BLOB: usize = 64 * 1024;
const SOON: Duration = Duration::from_secs(30);

/// The part of systemd: it holds the socket, and starts processes on it.
struct Manager {
    listener: TcpListener,
    /// For the mirror of the registry `stub`, where there is one.
    mirror: Option<TcpListener>,
    /// `drain_timeout` of its processes.
    drain_timeout: &'static str,
    folder: TempDir,
    /// The binary that it starts.
    binary: PathBuf,
    /// Those that it started itself and has not waited for.
    children: Vec<Child>,
    /// The messages of the processes to systemd, line by line.
    heard: Arc<Mutex<String>>,
}

impl Manager {
    fn new(registry: SocketAddr) -> Manager {
        Manager::with(&format!("[registries.stub]\nhosts = [\"{registry}\"]\ncap = {SLOTS}\nshare = 1"))
    }

    /// One whose processes have these registries.
    fn with(registries: &str) -> Manager {
        let (manager, notify) = Manager::deaf(registries);
        listen_always(notify, manager.heard.clone());
        manager
    }

    /// One that does not hear what its processes say; with what it would hear them.
    fn deaf(registries: &str) -> (Manager, UnixDatagram) {
        let folder = tempfile::tempdir().unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let (listener, binary) = (TcpListener::bind("127.0.0.1:0").unwrap(), env!("CARGO_BIN_EXE_roadstead").into());
        let (mirror, drain_timeout, children, heard) = (None, "20s", Vec::new(), Arc::default());
        let manager = Manager { listener, mirror, drain_timeout, folder, binary, children, heard };
        manager.write(registries);
        (manager, notify)
    }

    /// Lets the file hold these registries.
    fn write(&self, registries: &str) {
        let text = format!("drain_timeout = \"{}\"\n{}", self.drain_timeout, config(registries));
        let (new, path) = (self.folder.path().join("new.toml"), self.folder.path().join("sidecar.toml"));
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Lets the processes run from a binary of their own, which can be replaced.
    fn own_binary(&mut self) {
        self.binary = self.folder.path().join("roadstead");
        fs::copy(env!("CARGO_BIN_EXE_roadstead"), &self.binary).unwrap();
    }

    /// As an upgrade does: a new file under the same name.
    fn replace_binary(&self) {
        let new = self.folder.path().join("new");
        fs::copy(env!("CARGO_BIN_EXE_roadstead"), &new).unwrap();
        fs::rename(new, &self.binary).unwrap();
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The processes that have accepted so far, in order.
    fn pids(&self) -> Vec<Pid> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let listening = lines.filter(|line| line["fields"]["message"] == "listening");
        let pids = listening.filter_map(|line| i32::try_from(line["fields"]["pid"].as_i64()?).ok());
        pids.filter_map(Pid::from_raw).collect()
    }

    /// Starts a process on the socket, and waits until it accepts.
    async fn start(&mut self) {
        let before = self.pids().len();
        let log: File = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(self.folder.path().join("sidecar.toml"));
        // The config says port 0, so the address does not tell which listener it is.
        let (count, names) = if self.mirror.is_some() { ("2", "proxy:mirror-stub") } else { ("1", "proxy") };
        command
            .env_remove("RUST_LOG")
            .env("RUNTIME_DIRECTORY", self.folder.path())
            .env("LISTEN_FDS", count)
            .env("LISTEN_FDNAMES", names);
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify")).env("WATCHDOG_USEC", "400000");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let sockets = [&self.listener].into_iter().chain(&self.mirror);
        let sockets = sockets.map(|socket| OwnedFd::from(socket.try_clone().unwrap()));
        let mappings = sockets.zip(3..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).unwrap();
        self.children.push(command.spawn().unwrap());
        self.until_accepted(before + 1).await;
    }

    async fn until_accepted(&self, processes: usize) {
        eventually("a process to accept", SOON, async || match self.pids().len() {
            pids if pids >= processes => Ok(()),
            _ => Err(self.log()),
        })
        .await;
    }

    /// Waits until a process has said this.
    async fn until_told(&self, word: &str) {
        eventually(word, SOON, async || {
            let heard = self.heard.lock().unwrap().clone();
            if heard.lines().any(|line| line == word) { Ok(()) } else { Err(heard) }
        })
        .await;
    }

    /// Waits until a process has logged this.
    async fn until_logged(&self, words: &str) {
        eventually(words, SOON, async || if self.log().contains(words) { Ok(()) } else { Err(self.log()) }).await;
    }

    /// The admin address of the newest process.
    fn admin(&self) -> SocketAddr {
        let log = self.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let listening = lines.rfind(|line| line["fields"]["listener"] == "admin").expect("one was started");
        listening["fields"]["address"].as_str().unwrap().parse().unwrap()
    }

    /// One request to the admin address of the newest process.
    async fn ask_admin(&self, method: &str, path: &str) -> Response {
        let mut wire = Wire::open(self.admin()).await.unwrap();
        wire.ask(method, path, &["Connection: close"]).await.unwrap()
    }

    /// An order on the control socket, where the newest process listens.
    async fn order(&self, path: &str) -> Response {
        order(&self.folder.path().join("control.sock"), path).await.unwrap()
    }

    async fn registry(&self, name: &str) -> serde_json::Value {
        self.ask_admin("GET", "/status").await.json()["registries"][name].clone()
    }

    fn newest(&self) -> Pid {
        *self.pids().last().expect("one was started")
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.newest(), signal).expect("the newest process lives");
    }

    /// Waits until every process that ever accepted is gone. Those that others started are nobody's children here.
    async fn until_all_are_gone(&mut self) {
        eventually("all processes to end", SOON * 2, async || {
            self.children.retain_mut(|child| child.try_wait().unwrap().is_none());
            let alive =
                self.pids().into_iter().filter(|pid| test_kill_process(*pid).is_ok() && !is_zombie(*pid)).count();
            if alive == 0 { Ok(()) } else { Err(format!("{alive} alive")) }
        })
        .await;
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill_process(pid, Signal::KILL);
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("\"finished\"")).collect();
            eprintln!("the processes' last lines:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// As systemd does: who says something never waits.
fn listen_always(notify: UnixDatagram, heard: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = notify.recv(&mut buffer) {
            let words = String::from_utf8_lossy(&buffer[..length]);
            heard.lock().unwrap().extend([&*words, "\n"]);
        }
    });
}

/// One that has ended and was not waited for by whoever took it over. It has its sockets until the last of its threads is gone,
/// and the first one may end before others.
fn is_zombie(pid: Pid) -> bool {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let stat = fs::read_to_string(format!("{proc}/stat")).unwrap_or_default();
    let is_alone = fs::read_dir(format!("{proc}/task")).is_ok_and(|threads| threads.count() == 1);
    is_alone && stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Storms that follow one another as long as something is done to the processes.
struct Storms {
    is_enough: Arc<AtomicBool>,
    running: JoinHandle<Vec<JoinHandle<Tally>>>,
}

impl Storms {
    fn begin(proxy: SocketAddr, registry: SocketAddr) -> Storms {
        let is_enough = Arc::new(AtomicBool::new(false));
        let enough = is_enough.clone();
        let running = tokio::spawn(async move {
            let mut running = Vec::new();
            while running.len() < STORMS || !enough.load(Ordering::Relaxed) {
                let storm = Storm { clients: PULLS, blob: BLOB, ..Storm::new(Destination::Connect(proxy)) };
                running.push(tokio::spawn(storm.run(registry)));
                // Time for the registry to serve some pulls.
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
            running
        });
        Storms { is_enough, running }
    }

    /// Lets the storms end.
    async fn end(self) -> Vec<Tally> {
        assert!(!self.running.is_finished(), "the last storms have begun before the last restart");
        self.is_enough.store(true, Ordering::Relaxed);
        let mut tallies = Vec::new();
        for storm in self.running.await.unwrap() {
            tallies.push(storm.await.unwrap());
        }
        tallies
    }
}

async fn registry() -> StubRegistry {
    StubRegistry::builder().cap(SLOTS).answer_delay(Duration::from_millis(100)).blob_size(BLOB).start().await
}

fn assert_nobody_noticed(what: &str, tallies: &[Tally], stub: &StubRegistry, kernel: Peak, took: Duration) {
    let ok: usize = tallies.iter().map(|tally| tally.ok).sum();
    let failed: Vec<&String> = tallies.iter().flat_map(|tally| &tally.failed).collect();
    println!(
        "{what}: {ok} pulls in {took:.1?}, {} failed; peak {} by the registry, {} by the kernel",
        failed.len(),
        stub.peak(),
        kernel.most
    );
    assert!(tallies.len() >= STORMS);
    assert_eq!((ok, failed), (tallies.len() * PULLS, Vec::new()));
    assert!(stub.peak() <= SLOTS, "{} connections by the registry's count", stub.peak());
    assert!(kernel.most <= SLOTS, "{kernel:?}");
}

/// `systemctl restart`, as often as the storm lasts: the old process drains, connections wait in the socket's backlog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_in_a_storm_cost_no_pull() {
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    let watch = SocketWatch::start(stub.address());
    manager.start().await;
    let began = Instant::now();
    let storms = Storms::begin(manager.address(), stub.address());
    for _ in 0..RESTARTS {
        tokio::time::sleep(Duration::from_millis(100)).await;
        manager.signal(Signal::TERM);
        manager.until_all_are_gone().await;
        manager.start().await;
    }
    let tallies = storms.end().await;
    assert_eq!(manager.pids().len(), RESTARTS + 1);
    assert_nobody_noticed("restarts", &tallies, &stub, watch.stop(), began.elapsed());
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// `systemctl reload` into a new binary, as `ExecReload` does it: each process takes over from the one before, which serves
/// those who came to it and hands its slots on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_overs_in_a_storm_cost_no_pull() {
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    manager.own_binary();
    let watch = SocketWatch::start(stub.address());
    manager.start().await;
    let began = Instant::now();
    let storms = Storms::begin(manager.address(), stub.address());
    for done in 0..RESTARTS {
        tokio::time::sleep(Duration::from_millis(200)).await;
        manager.replace_binary();
        manager.signal(Signal::HUP);
        manager.until_accepted(done + 2).await;
    }
    let tallies = storms.end().await;
    assert_nobody_noticed("hand-overs", &tallies, &stub, watch.stop(), began.elapsed());
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// Killed on the spot and started again, at a registry that takes its time to see the end of a connection: the next
/// process counts what the kernel still holds of the one before, at whatever port where `hosts` names none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_does_not_make_the_next_one_exceed_the_slots() {
    for with_port in [true, false] {
        let stub = late_registry(Ipv4Addr::new(127, 0, 41, 1), Duration::from_millis(1500)).await;
        let authority = stub.address().to_string();
        let host = if with_port { authority.clone() } else { stub.address().ip().to_string() };
        let mut manager = Manager::with(&format!("[registries.stub]\nhosts = [\"{host}\"]\ncap = {SLOTS}\nshare = 1"));
        let watch = SocketWatch::start(stub.address());
        manager.start().await;
        for round in 0..3 {
            let mut tunnels = Vec::new();
            for _ in 0..SLOTS {
                tunnels.push(connect_through(manager.address(), &authority, &[]).await.expect("a tunnel, in its turn"));
            }
            eventually_is(&format!("all slots to be taken, round {round}"), SOON, SLOTS, async || stub.open()).await;
            manager.signal(Signal::KILL);
            manager.until_all_are_gone().await;
            manager.start().await;
        }
        let kernel = watch.stop();
        assert_eq!((stub.peak(), kernel.most), (SLOTS, SLOTS), "by the registry's count, and by the kernel's");
        manager.signal(Signal::TERM);
        manager.until_all_are_gone().await;
    }
}

/// One that sees the end of a connection late.
async fn late_registry(ip: Ipv4Addr, late: Duration) -> StubRegistry {
    StubRegistry::raw_at(ip, move |connection| async move {
        let mut wire = Wire::new(connection);
        while wire.receive().await.is_ok_and(|bytes| !bytes.is_empty()) {}
        tokio::time::sleep(late).await;
    })
    .await
}

/// A client whose request is under way through a tunnel; the registry holds its answer back.
async fn asking(manager: &Manager, stub: &StubRegistry) -> JoinHandle<Option<u16>> {
    let before = stub.requests();
    let mut tunnel = connect_through(manager.address(), &stub.address().to_string(), &[]).await.unwrap();
    let asked = tokio::spawn(async move { tunnel.get("/v2/", &[]).await.ok().map(|answer| answer.status()) });
    eventually_is("the request to come", SOON, before + 1, async || stub.requests()).await;
    asked
}

/// While another process listens, what is under way in the old one is not cut after `drain_timeout`, and those who wait there
/// are not refused as draining. It counts when the service is to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_lasts_longer_than_drain_timeout_for_those_who_need_it() {
    let stub = StubRegistry::builder().start().await;
    stub.hold();
    let one = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n{KEEP_TUNNELS}", stub.address());
    let mut manager = Manager::with(&one);
    manager.drain_timeout = "300ms";
    manager.write(&one);
    manager.start().await;
    let mut processes = 1;
    for somebody_waits in [false, true] {
        let old = manager.newest();
        let asked = asking(&manager, &stub).await;
        let (address, authority) = (manager.address(), stub.address().to_string());
        let waiter = somebody_waits
            .then(|| tokio::spawn(async move { connect_through(address, &authority, &[]).await.map(|_| ()) }));
        if somebody_waits {
            eventually_is("one to wait", SOON, 1.into(), async || manager.registry("stub").await["waiting"].clone())
                .await;
        }
        manager.signal(Signal::USR2);
        processes += 1;
        manager.until_accepted(processes).await;
        // Five times as long as it would take to be cut.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!asked.is_finished() && waiter.as_ref().is_none_or(|waiter| !waiter.is_finished()));
        stub.let_through(1);
        assert_eq!(asked.await.unwrap(), Some(200));
        if let Some(waiter) = waiter {
            assert!(waiter.await.unwrap().is_ok(), "in its turn");
        }
        eventually("the old process to end", SOON, async || match test_kill_process(old) {
            Ok(()) if !is_zombie(old) => Err(manager.log()),
            _ => Ok(()),
        })
        .await;
    }
    let (asked, old) = (asking(&manager, &stub).await, manager.newest());
    manager.signal(Signal::USR2);
    manager.until_accepted(processes + 1).await;
    manager.signal(Signal::TERM);
    kill_process(old, Signal::TERM).unwrap();
    manager.until_all_are_gone().await;
    assert_eq!(asked.await.unwrap(), None, "cut");
}

/// The process that took over dies: the old one serves those it has, as for any end, and the service manager starts another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_successor_dies_serves_its_clients_and_ends() {
    let stub = StubRegistry::builder().start().await;
    stub.hold();
    let mut manager = Manager::new(stub.address());
    manager.start().await;
    let asked = asking(&manager, &stub).await;
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    manager.signal(Signal::KILL);
    manager.until_logged("the process that took over has ended").await;
    stub.release();
    assert_eq!(asked.await.unwrap(), Some(200));
    manager.until_all_are_gone().await;
}

/// Twenty wait in the old process, and each keeps its slot for a while: one of a class of eight times the weight, who comes
/// to the new process meanwhile, is served before its impatient deadline, and nobody is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heavy_class_is_served_by_the_new_process_though_many_wait_in_the_old_one() {
    let stub = registry().await;
    let classes = "[classes.heavy]\nusers = [\"heavy\"]\nweight = 8\ntunnel_timeout = \"3s\"\n";
    let mut manager = Manager::with(&format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = 2\nshare = 1\n{KEEP_TUNNELS}{classes}",
        stub.address()
    ));
    manager.start().await;
    let (address, authority) = (manager.address(), stub.address().to_string());
    let (began, mut waiting) = (Instant::now(), Vec::new());
    for _ in 0..22 {
        let authority = authority.clone();
        waiting.push(tokio::spawn(async move {
            let tunnel = connect_through(address, &authority, &[]).await.expect("in its turn");
            tokio::time::sleep(Duration::from_millis(600)).await;
            drop(tunnel);
        }));
    }
    eventually_is("twenty to wait", SOON, 20.into(), async || manager.registry("stub").await["waiting"].clone()).await;
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    // `heavy:x` in base64.
    let heavy = connect_through(address, &authority, &["Proxy-Authorization: Basic aGVhdnk6eA=="]).await;
    assert!(heavy.is_ok(), "after {:?}", began.elapsed());
    let left = manager.registry("stub").await["waiting"].as_u64().unwrap();
    assert!(left > 5, "only {left} still wait: it was not served before them");
    drop(heavy);
    for waiting in waiting {
        waiting.await.unwrap();
    }
    assert_eq!(stub.peak(), 2);
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// Each process has a bucket of its own: one that takes over begins with an empty one, or each hand-over would let a burst
/// through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_makes_no_burst() {
    let stub = registry().await;
    let rate = "rate_per_second = 1\nburst = 5";
    let mut manager = Manager::with(&format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = {SLOTS}\nshare = 1\n{rate}",
        stub.address()
    ));
    manager.start().await;
    let (address, authority) = (manager.address(), stub.address().to_string());
    let began = Instant::now();
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    let newcomers = (0..3).map(|_| {
        let authority = authority.clone();
        tokio::spawn(async move { connect_through(address, &authority, &[]).await.unwrap() })
    });
    for newcomer in newcomers.collect::<Vec<_>>() {
        newcomer.await.unwrap();
    }
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// The mirror's listener, held by systemd like the proxy's: a hand-over and a restart let nobody find it closed, or a puller
/// would go to the registry by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirrors_listener_outlives_the_process() {
    let stub = registry().await;
    let mut manager = Manager::with(&format!(
        "[registries.stub]\nhosts = [\"{0}\"]\ncap = {SLOTS}\nshare = 1\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{0}\"\n",
        stub.address()
    ));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = listener.local_addr().unwrap();
    manager.mirror = Some(listener);
    let ask = async move || {
        let asked = async {
            let mut wire = Wire::open(mirror).await.unwrap();
            wire.get("/v2/", &["Host: 127.0.0.1", "Connection: close"]).await.unwrap().status()
        };
        tokio::time::timeout(SOON, asked).await.expect("somebody accepts")
    };
    manager.start().await;
    assert_eq!(ask().await, 200);
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    assert_eq!(ask().await, 200);
    eventually_is("the new process to have served it", SOON, "1".to_owned(), async || {
        let metrics = manager.ask_admin("GET", "/metrics").await.text();
        let admitted = metrics
            .lines()
            .find_map(|line| line.strip_prefix("roadstead_outcomes_total{outcome=\"served\",registry=\"stub\"} "));
        admitted.unwrap_or_default().to_owned()
    })
    .await;
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
    let waits = tokio::spawn(async move { ask().await });
    manager.start().await;
    assert_eq!(waits.await.unwrap(), 200);
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// A service manager that stops a service signals all of its processes, also one that has handed over: who came to it is
/// served all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_has_handed_over_serves_its_clients_though_it_is_told_to_stop() {
    let stub = registry().await;
    stub.hold();
    let mut manager = Manager::new(stub.address());
    manager.start().await;
    let old = manager.newest();
    let authority = stub.address().to_string();
    let mut tunnel = connect_through(manager.address(), &authority, &[]).await.unwrap();
    let asked = tokio::spawn(async move { tunnel.get("/v2/", &[]).await.map(|answer| answer.status()) });
    eventually_is("the request to come", SOON, 1, async || stub.requests()).await;
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    kill_process(old, Signal::TERM).unwrap();
    manager.until_logged("draining already").await;
    stub.release();
    assert_eq!(asked.await.unwrap().unwrap(), 200);
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// systemd hears when all is ready, that the process lives, who takes over, and when it stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_is_told_what_it_has_to_know() {
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    manager.start().await;
    manager.until_told("READY=1").await;
    manager.until_told("WATCHDOG=1").await;
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    manager.until_told(&format!("MAINPID={}", manager.newest().as_raw_nonzero())).await;
    let heard = manager.heard.lock().unwrap().clone();
    let (_, replaced) = heard.split_once("MAINPID=").unwrap();
    // The time that it may be silent counts from here for the one that takes over.
    assert_eq!(replaced.lines().take(3).skip(1).collect::<Vec<_>>(), ["READY=1", "WATCHDOG=1"]);
    manager.signal(Signal::TERM);
    manager.until_told("STOPPING=1").await;
    manager.until_all_are_gone().await;
}

/// A process that does not come up takes nothing over: the old one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_that_fails_changes_nothing() {
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    manager.start().await;
    let path = manager.folder.path().join("sidecar.toml");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, "nonsense = 1\n").unwrap();
    manager.signal(Signal::USR2);
    manager.until_logged("no process took over, this one continues").await;
    let storm = Storm { clients: 20, blob: BLOB, ..Storm::new(Destination::Connect(manager.address())) };
    let tally = storm.run(stub.address()).await;
    assert_eq!((tally.ok, tally.failed.len()), (20, 0), "{tally}");
    fs::write(&path, whole).unwrap();
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// Killed in the middle of a hand-over, with all slots taken: the one that took over counts what the kernel still holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_while_it_hands_over_does_not_make_the_next_one_exceed_the_slots() {
    let stub = late_registry(Ipv4Addr::new(127, 0, 41, 2), Duration::from_millis(700)).await;
    let registry = stub.address();
    let mut manager = Manager::with(&format!(
        "[registries.stub]\nhosts = [\"{registry}\"]\ncap = {SLOTS}\nshare = 1\n{KEEP_TUNNELS}"
    ));
    let watch = SocketWatch::start(registry);
    manager.start().await;
    for round in 0..4 {
        let (address, authority) = (manager.address(), registry.to_string());
        let mut tunnels = Vec::new();
        for _ in 0..SLOTS {
            let mut tunnel = connect_through(address, &authority, &[]).await.expect("a tunnel, in its turn");
            // In use, so that no drain takes it back.
            tunnel.send(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            tunnels.push(tunnel);
        }
        eventually_is(&format!("all slots to be taken, round {round}"), SOON, SLOTS, async || stub.open()).await;
        let old = manager.newest();
        manager.signal(Signal::USR2);
        manager.until_accepted(round + 2).await;
        let waiting = tokio::spawn(async move { connect_through(address, &authority, &[]).await.is_ok() });
        eventually_is("one to wait", SOON, 1.into(), async || manager.registry("stub").await["waiting"].clone()).await;
        kill_process(old, Signal::KILL).unwrap();
        assert!(waiting.await.unwrap(), "in its turn");
        drop(tunnels);
    }
    let kernel = watch.stop();
    assert_eq!((stub.peak(), kernel.most), (SLOTS, SLOTS), "by the registry's count, and by the kernel's");
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// The config changes with the hand-over: what the old process holds counts by where it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_of_another_name_counts_what_the_old_process_holds_there() {
    let stub = registry().await;
    let named = |name: &str, stub: &StubRegistry| {
        let keep_tunnels = KEEP_TUNNELS.replace("registries.stub", &format!("registries.{name}"));
        format!("[registries.{name}]\nhosts = [\"{}\"]\ncap = 2\nshare = 1\n{keep_tunnels}", stub.address())
    };
    let mut manager = Manager::with(&named("stub", &stub));
    manager.start().await;
    let (address, authority) = (manager.address(), stub.address().to_string());
    let connect = || {
        let authority = authority.clone();
        tokio::spawn(async move { connect_through(address, &authority, &[]).await.unwrap() })
    };
    // A connection stands for the kernel before the stub has accepted it.
    let both_stand = || eventually_is("both to stand", SOON, (2, 2), async || (stub.open(), stub.peak()));
    let mut tunnels = Vec::new();
    for _ in 0..2 {
        tunnels.push(connect().await.unwrap());
    }
    for (processes, name) in [(2, "renamed"), (3, "stub")] {
        manager.write(&named(name, &stub));
        manager.signal(Signal::USR2);
        manager.until_accepted(processes).await;
        let mut newcomers = Vec::new();
        for number in 1..=2 {
            newcomers.push(connect());
            let waiting = async || manager.registry(name).await["waiting"].clone();
            eventually_is("it to wait", SOON, number.into(), waiting).await;
        }
        for newcomer in newcomers {
            both_stand().await;
            drop(tunnels.remove(0));
            tunnels.push(newcomer.await.unwrap());
        }
    }
    both_stand().await;
    drop(tunnels);
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// How often the threads of a process went to sleep so far.
fn wake_ups(pid: Pid) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    let of = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        switches.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    };
    threads.map(|thread| of(thread.unwrap())).sum()
}

/// The old process still serves a long tunnel to one registry: the only slot of another one is the new process's at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_lasts_holds_no_slot_of_another_registry() {
    let (busy, stub) = (registry().await, registry().await);
    let one = |name: &str, address| format!("[registries.{name}]\nhosts = [\"{address}\"]\ncap = 1\nshare = 1\n");
    let mut manager = Manager::with(&(one("busy", busy.address()) + &one("stub", stub.address())));
    manager.start().await;
    busy.hold();
    let mut tunnel = connect_through(manager.address(), &busy.address().to_string(), &[]).await.unwrap();
    let asked = tokio::spawn(async move { tunnel.get("/v2/", &[]).await.map(|answer| answer.status()) });
    eventually_is("the request to come", SOON, 1, async || busy.requests()).await;
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    let url = format!("http://{}/v2/", stub.address());
    assert_eq!(get_through(manager.address(), &url, &[]).await.status(), 200);
    // Nothing polls meanwhile: the end of a tunnel wakes the process that waits for its slot.
    let before: Vec<u64> = manager.pids().into_iter().map(wake_ups).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (pid, before) in manager.pids().into_iter().zip(before) {
        let woken = wake_ups(pid) - before;
        assert!(woken < 100, "process {pid:?} woke up {woken} times in two seconds");
    }
    assert!(!asked.is_finished(), "the old process is still there");
    busy.release();
    assert_eq!(asked.await.unwrap().unwrap(), 200);
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// A pause goes over to the new process, and who still waits in the old one goes on when the new one is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_goes_over_and_its_end_comes_back() {
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    manager.start().await;
    let mut page = Wire::open(manager.admin()).await.unwrap();
    assert_eq!(page.get("/status", &[]).await.unwrap().status(), 200);
    assert_eq!(manager.order("/registries/stub/pause").await.status(), 200);
    let (address, url) = (manager.address(), format!("http://{}/v2/", stub.address()));
    let ask = || {
        tokio::spawn({
            let url = url.clone();
            async move { get_through(address, &url, &[]).await.status() }
        })
    };
    let waits_in_the_old_one = ask();
    eventually_is("one to wait", SOON, 1.into(), async || manager.registry("stub").await["waiting"].clone()).await;
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    assert_eq!(manager.registry("stub").await["paused"], true);
    assert!(page.get("/status", &[]).await.is_err(), "who looked at the old process is to look at the new one");
    let waits_in_the_new_one = ask();
    let waiting = async || manager.registry("stub").await["waiting"].clone();
    eventually_is("one to wait, and one for that in the old process", SOON, 2.into(), waiting).await;
    assert_eq!(stub.requests(), 0);
    assert_eq!(manager.order("/registries/stub/resume").await.status(), 200);
    assert_eq!((waits_in_the_old_one.await.unwrap(), waits_in_the_new_one.await.unwrap()), (200, 200));
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// systemd hangs: the process serves and obeys all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_systemd_that_does_not_listen_holds_nothing_up() {
    let stub = registry().await;
    let (mut manager, notify) =
        Manager::deaf(&format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1", stub.address()));
    let chatter = UnixDatagram::unbound().unwrap();
    chatter.connect(manager.folder.path().join("notify")).unwrap();
    chatter.set_nonblocking(true).unwrap();
    while chatter.send(b"STATUS=full\n").is_ok() {}
    manager.start().await;
    let url = format!("http://{}/v2/", stub.address());
    assert_eq!(get_through(manager.address(), &url, &[]).await.status(), 200);
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
    drop(notify);
}

/// The watchdog of a process speaks more often than the file is looked at: the one does not keep the other waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_file_is_noticed_beside_an_impatient_watchdog() {
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    manager.start().await;
    let path = manager.folder.path().join("sidecar.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&format!("cap = {SLOTS}"), "cap = 3")).unwrap();
    eventually_is("the change", SOON, 3.into(), async || manager.registry("stub").await["slots"].clone()).await;
    manager.until_told("WATCHDOG=1").await;
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// The new binary hangs before it is ready: the old process says meanwhile that it lives, and ends when it is told to.
/// So does the one that hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_hangs_holds_nothing_up() {
    use std::os::unix::fs::PermissionsExt;
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    manager.own_binary();
    manager.start().await;
    let (script, pid) = (manager.folder.path().join("hangs"), manager.folder.path().join("pid"));
    fs::write(&script, format!("#!/bin/sh\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 600\n", pid.display()))
        .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(&script, &manager.binary).unwrap();
    manager.signal(Signal::HUP);
    let hangs = eventually("the new binary to run", SOON, async || fs::read_to_string(&pid)).await;
    let hangs = Pid::from_raw(hangs.trim().parse().unwrap()).unwrap();
    let words = || manager.heard.lock().unwrap().matches("WATCHDOG=1").count();
    let before = words();
    eventually("further words", SOON, async || if words() > before + 2 { Ok(()) } else { Err(words()) }).await;
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
    assert!(test_kill_process(hangs).is_err(), "whoever was about to take over is gone, too");
}

/// The new binary does not run: what was asked for with the same signal, to read the config again, is done all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_into_a_binary_that_does_not_run_reads_the_config_again() {
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    manager.own_binary();
    manager.start().await;
    let broken = manager.folder.path().join("broken");
    fs::write(&broken, "no binary").unwrap();
    fs::rename(&broken, &manager.binary).unwrap();
    manager.signal(Signal::HUP);
    manager.until_logged("no process took over, this one continues").await;
    manager.until_logged("the config was read again").await;
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}
