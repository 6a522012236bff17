//! The process is restarted, replaced and killed in the middle of storms, with its listener held as systemd holds it:
//! no pull fails, and all processes together stay within the slots.

use std::fs::{self, File, OpenOptions};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use roadstead_test_support::{
    KEEP_TUNNELS, Peak, Response, SocketWatch, Storm, StubRegistry, Tally, Way, Wire, config, connect_through,
    eventually, eventually_is, get_through,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

const SLOTS: usize = 10;
const RESTARTS: usize = 20;
/// Storms that begin one after another, and the pulls of each: 300 in all.
const STORMS: usize = 10;
const PULLS: usize = 30;
const BLOB: usize = 64 * 1024;
const SOON: Duration = Duration::from_secs(30);

/// What systemd is for the sidecar: it holds the socket, and starts processes on it.
struct Manager {
    listener: TcpListener,
    folder: TempDir,
    /// What it starts.
    binary: PathBuf,
    /// Those that it started itself and has not waited for.
    children: Vec<Child>,
    /// What they said of themselves, line by line.
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
        let text = format!("drain_timeout = \"20s\"\n{}", config(registries));
        fs::write(folder.path().join("sidecar.toml"), text).unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let (listener, binary) = (TcpListener::bind("127.0.0.1:0").unwrap(), env!("CARGO_BIN_EXE_roadstead").into());
        (Manager { listener, folder, binary, children: Vec::new(), heard: Arc::default() }, notify)
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
        command.env_remove("RUST_LOG").env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "proxy");
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify")).env("WATCHDOG_USEC", "400000");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let socket: OwnedFd = self.listener.try_clone().unwrap().into();
        command.fd_mappings(vec![FdMapping { parent_fd: socket, child_fd: 3 }]).unwrap();
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

/// One that has ended and was not waited for by whoever took it over.
fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Storms that follow one another while something is done to the processes.
async fn storms(proxy: SocketAddr, registry: SocketAddr) -> Vec<Tally> {
    let running = (0..STORMS).map(|number| {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(400) * u32::try_from(number).unwrap()).await;
            let storm = Storm { clients: PULLS, blob: BLOB, ..Storm::new(Way::Connect(proxy)) };
            storm.run(registry).await
        })
    });
    let mut tallies = Vec::new();
    for storm in running.collect::<Vec<_>>() {
        tallies.push(storm.await.unwrap());
    }
    tallies
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
    assert_eq!((ok, failed), (STORMS * PULLS, Vec::new()));
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
    let running = tokio::spawn(storms(manager.address(), stub.address()));
    for _ in 0..RESTARTS {
        tokio::time::sleep(Duration::from_millis(100)).await;
        manager.signal(Signal::TERM);
        manager.until_all_are_gone().await;
        manager.start().await;
    }
    let tallies = running.await.unwrap();
    assert_eq!(manager.pids().len(), RESTARTS + 1);
    assert_nobody_noticed("restarts", &tallies, &stub, watch.stop(), began.elapsed());
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// `systemctl reload` into a new binary: each process takes over from the one before, which serves those who came to it
/// and hands its slots on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_overs_in_a_storm_cost_no_pull() {
    let stub = registry().await;
    let mut manager = Manager::new(stub.address());
    let watch = SocketWatch::start(stub.address());
    manager.start().await;
    let began = Instant::now();
    let running = tokio::spawn(storms(manager.address(), stub.address()));
    for done in 0..RESTARTS {
        tokio::time::sleep(Duration::from_millis(200)).await;
        manager.signal(Signal::USR2);
        manager.until_accepted(done + 2).await;
    }
    let tallies = running.await.unwrap();
    assert_nobody_noticed("hand-overs", &tallies, &stub, watch.stop(), began.elapsed());
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}

/// Killed on the spot and started again, at a registry that takes its time to see the end of a connection: the next
/// process counts what the kernel still holds of the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_does_not_make_the_next_one_exceed_the_slots() {
    const LATE: Duration = Duration::from_millis(1500);
    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        while wire.receive().await.is_ok_and(|bytes| !bytes.is_empty()) {}
        tokio::time::sleep(LATE).await;
    })
    .await;
    let mut manager = Manager::new(stub.address());
    let watch = SocketWatch::start(stub.address());
    manager.start().await;
    let authority = stub.address().to_string();
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
    manager.until_logged("nobody took over, this process goes on").await;
    let storm = Storm { clients: 20, blob: BLOB, ..Storm::new(Way::Connect(manager.address())) };
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
    const LATE: Duration = Duration::from_millis(700);
    let stub = StubRegistry::raw(|connection| async move {
        let mut wire = Wire::new(connection);
        while wire.receive().await.is_ok_and(|bytes| !bytes.is_empty()) {}
        tokio::time::sleep(LATE).await;
    })
    .await;
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
    assert_eq!(manager.ask_admin("POST", "/registries/stub/pause").await.status(), 200);
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
    eventually_is("one to wait", SOON, 1.into(), async || manager.registry("stub").await["waiting"].clone()).await;
    assert_eq!(stub.requests(), 0);
    assert_eq!(manager.ask_admin("POST", "/registries/stub/resume").await.status(), 200);
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
    manager.binary = manager.folder.path().join("roadstead");
    fs::copy(env!("CARGO_BIN_EXE_roadstead"), &manager.binary).unwrap();
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
    manager.binary = manager.folder.path().join("roadstead");
    fs::copy(env!("CARGO_BIN_EXE_roadstead"), &manager.binary).unwrap();
    manager.start().await;
    let broken = manager.folder.path().join("broken");
    fs::write(&broken, "no binary").unwrap();
    fs::rename(&broken, &manager.binary).unwrap();
    manager.signal(Signal::HUP);
    manager.until_logged("nobody took over, this process goes on").await;
    manager.until_logged("the config was read again").await;
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}
