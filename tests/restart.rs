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
    Peak, SocketWatch, Storm, StubRegistry, Tally, Way, Wire, config, connect_through, eventually, eventually_is,
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
    /// Those that it started itself and has not waited for.
    children: Vec<Child>,
    /// What they said of themselves, line by line.
    heard: Arc<Mutex<String>>,
}

impl Manager {
    fn new(registry: SocketAddr) -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "drain_timeout = \"20s\"\n{}",
            config(&format!("[registries.stub]\nhosts = [\"{registry}\"]\ncap = {SLOTS}\nshare = 1"))
        );
        fs::write(folder.path().join("sidecar.toml"), text).unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let heard = Arc::new(Mutex::new(String::new()));
        listen_always(notify, heard.clone());
        Manager { listener: TcpListener::bind("127.0.0.1:0").unwrap(), folder, children: Vec::new(), heard }
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead"));
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
    eventually("the signal to be heard", SOON, async || {
        if manager.log().contains("draining already") { Ok(()) } else { Err(manager.log()) }
    })
    .await;
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
    eventually("the failure in the log", SOON, async || {
        if manager.log().contains("nobody took over, this process goes on") { Ok(()) } else { Err(manager.log()) }
    })
    .await;
    let storm = Storm { clients: 20, blob: BLOB, ..Storm::new(Way::Connect(manager.address())) };
    let tally = storm.run(stub.address()).await;
    assert_eq!((tally.ok, tally.failed.len()), (20, 0), "{tally}");
    fs::write(&path, whole).unwrap();
    manager.signal(Signal::USR2);
    manager.until_accepted(2).await;
    manager.signal(Signal::TERM);
    manager.until_all_are_gone().await;
}
