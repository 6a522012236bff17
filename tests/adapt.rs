//! The limit that yields: slots in force follow what a registry can serve, as its own counts show.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use roadstead_test_support::real::RedisServer;
use roadstead_test_support::{Illness, PASSWORD, Sidecar, Signal, StubHarbor, USER, Wire, config, eventually, scale};

const PULLERS: usize = 60;
/// For words of the nodes that change.
const SOON: Duration = Duration::from_secs(10);

async fn start(harbor: &StubHarbor, more: &str) -> (Sidecar, SocketAddr) {
    let registry = format!(
        "[registries.harbor]\nhosts = [\"registry.test\"]\ncap = {PULLERS}\nshare = 1\n\
         [registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{}\"\n{more}\n",
        harbor.address()
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let mirror = sidecar.listener("mirror").unwrap();
    (sidecar, mirror)
}

/// Pullers that pull one image after the other until they are stopped.
struct Pullers {
    stop: Arc<AtomicBool>,
    pullers: Vec<tokio::task::JoinHandle<Vec<(Instant, String)>>>,
}

impl Pullers {
    fn start(mirror: SocketAddr) -> Pullers {
        Pullers::start_at(&[mirror])
    }

    fn start_at(mirrors: &[SocketAddr]) -> Pullers {
        let stop = Arc::new(AtomicBool::new(false));
        let puller = |puller| {
            let (stop, mirror) = (stop.clone(), mirrors[puller % mirrors.len()]);
            tokio::spawn(async move {
                let mut failed = Vec::new();
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let pulled = pull(mirror, &format!("{puller}-{number}")).await;
                    failed.extend(pulled.err().map(|why| (Instant::now(), why)));
                }
                failed
            })
        };
        Pullers { pullers: (0..PULLERS).map(puller).collect(), stop }
    }

    /// The pulls that failed, and when they did.
    async fn stop(self) -> Vec<(Instant, String)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for puller in self.pullers {
            failed.extend(puller.await.unwrap());
        }
        failed
    }

    /// None may have failed later than 5 s after they began.
    async fn stop_without_late_failures(self, began: Instant) {
        let failed: Vec<(Duration, String)> =
            self.stop().await.into_iter().map(|(at, why)| (at - began, why)).collect();
        let late: Vec<_> = failed.iter().filter(|(after, _)| *after > Duration::from_secs(5)).collect();
        let moments: Vec<&Duration> = failed.iter().map(|(after, _)| after).collect();
        println!("{} pulls failed, after {moments:?}", failed.len());
        assert!(late.is_empty(), "{} of {} failed: {late:?}", late.len(), failed.len());
    }
}

async fn pull(mirror: SocketAddr, name: &str) -> Result<(), String> {
    let mut wire = Wire::open(mirror).await.map_err(|error| error.to_string())?;
    let name = format!("X-Pull: {name}");
    let basic = format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let path = "/service/token?service=harbor-registry&scope=repository:team/app:pull";
    let token = wire.get(path, &[&name, &basic]).await.map_err(|error| error.to_string())?;
    let token = token.json()["token"].as_str().ok_or("no token")?.to_owned();
    let bearer = format!("Authorization: Bearer {token}");
    for path in ["/v2/team/app/manifests/v1", "/v2/team/app/blobs/sha256:1"] {
        let answer = wire.get(path, &[&name, &bearer]).await.map_err(|error| error.to_string())?;
        if answer.status() != 200 {
            return Err(format!("{path}: {} {}", answer.status(), answer.text()));
        }
    }
    Ok(())
}

async fn in_force(sidecar: &Sidecar) -> u64 {
    sidecar.status().await["registries"]["harbor"]["slots_in_force"].as_u64().unwrap()
}

fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers[numbers.len() / 2]
}

/// The slots in force from now on, by time: the picture in `docs/cap.md` is drawn from it.
fn record(admin: SocketAddr, began: Instant) -> Arc<Mutex<Vec<(f64, u64)>>> {
    let recording: Arc<Mutex<Vec<(f64, u64)>>> = Arc::default();
    let writing = recording.clone();
    tokio::spawn(async move {
        while let Ok(mut wire) = Wire::open(admin).await
            && let Ok(answer) = wire.get("/status", &[]).await
        {
            let in_force = answer.json()["registries"]["harbor"]["slots_in_force"].as_u64().unwrap();
            let seconds = (began.elapsed().as_secs_f64() * 100.0).round() / 100.0;
            let last = writing.lock().unwrap().last().map(|(_, slots)| *slots);
            if last != Some(in_force) {
                writing.lock().unwrap().push((seconds, in_force));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    recording
}

/// An operator wrote a cap of 60, and Harbor's database stands 18.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_that_is_far_too_high_is_found_out_and_raised_again_when_the_database_grows() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(30)).await;
    let (sidecar, mirror) = start(&harbor, "").await;
    let began = Instant::now();
    let recording = record(sidecar.admin(), began);
    let pullers = Pullers::start(mirror);
    eventually("12 to 18 slots in force", Duration::from_secs(10), || async {
        let in_force = in_force(&sidecar).await;
        if (12..=18).contains(&in_force) { Ok(()) } else { Err(in_force) }
    })
    .await;
    println!("found after {:?}", began.elapsed());
    tokio::time::sleep_until((began + Duration::from_secs(5)).into()).await;
    let (_, struck) = (harbor.most_busy(), harbor.struck().len());
    let (mut seen, mut named) = (Vec::new(), false);
    while began.elapsed() < Duration::from_secs(16) {
        seen.push(in_force(&sidecar).await);
        named |= sidecar.status().await["registries"]["harbor"]["limited_by"] == "distress";
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (most, struck) = (harbor.most_busy(), harbor.struck().len() - struck);
    println!("{seen:?}, at most {most} at the database, {struck} refused");
    // A try for more is one above the limit.
    assert!(seen.iter().all(|slots| (12..=20).contains(slots)), "{seen:?}");
    assert!((12..=18).contains(&median(seen.clone())), "{seen:?}");
    assert!(most <= 20, "{most} at the database");
    assert!(named, "requests wait, and distress is the cause");
    let status = sidecar.status().await["registries"]["harbor"].clone();
    assert_eq!((&status["slots"], &status["adapt"]["lowered_by"]), (&60.into(), &"database_error".into()), "{status}");
    let gauge = sidecar.metrics().await.value("roadstead_slots_in_force", &[("registry", "harbor")]);
    assert!((12.0..=20.0).contains(&gauge), "{gauge}");

    harbor.limit(PULLERS);
    let grown = began.elapsed();
    eventually("all slots in force", Duration::from_secs(60), || async {
        let in_force = in_force(&sidecar).await;
        if in_force == 60 { Ok(()) } else { Err(in_force) }
    })
    .await;
    let _ = harbor.most_busy();
    eventually("all slots used", Duration::from_secs(5), || async {
        let most = harbor.most_busy();
        if most > 50 { Ok(()) } else { Err(most) }
    })
    .await;
    eventually("the end of the record", Duration::from_secs(5), || async {
        let last = recording.lock().unwrap().last().copied();
        if last.is_some_and(|(_, slots)| slots == 60) { Ok(()) } else { Err(last) }
    })
    .await;
    println!("the database grows after {:?}; slots in force by seconds: {:?}", grown, recording.lock().unwrap());
    pullers.stop_without_late_failures(began).await;
}

/// Each of them: a project that is deleted, one that nobody may read any more, a robot that has expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_that_is_denied_to_everybody_leaves_all_slots_in_force() {
    let denials = [
        (None, Illness::NoSuchProject),
        (None, Illness::AmbiguousDenial),
        (Some(Illness::PoisonedToken), Illness::AmbiguousDenial),
        (Some(Illness::NamelessToken), Illness::AmbiguousDenial),
    ];
    for (token, manifest) in denials {
        let denied = Arc::new(AtomicBool::new(false));
        let is_denied = denied.clone();
        let harbor = StubHarbor::scripted(move |head, _| {
            let is_token = head.target().starts_with("/service/token");
            let illness = if is_token { token } else { Some(manifest) };
            illness.filter(|_| is_denied.load(Ordering::Relaxed))
        })
        .await;
        let (sidecar, mirror) = start(&harbor, "[registries.harbor.queue]\nrequest_timeout = \"1s\"").await;
        // The credentials are known to be good.
        pull(mirror, "first").await.unwrap();
        denied.store(true, Ordering::Relaxed);
        let pullers = Pullers::start(mirror);
        let began = Instant::now();
        while began.elapsed() < scale(Duration::from_secs(4), Duration::from_secs(600)) {
            assert_eq!(in_force(&sidecar).await, 60, "{token:?}, {manifest:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(!pullers.stop().await.is_empty(), "{token:?}, {manifest:?}: it was not denied");
    }
}

/// Requests of before the reload that see signs of overload have no say any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_turns_it_off_puts_all_slots_in_force_at_once() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(30)).await;
    let (sidecar, mirror) = start(&harbor, "[registries.harbor.adapt]\nenabled = true\n").await;
    let pullers = Pullers::start(mirror);
    eventually("fewer slots in force", Duration::from_secs(10), || async {
        let in_force = in_force(&sidecar).await;
        if in_force < 30 { Ok(()) } else { Err(in_force) }
    })
    .await;
    let text = std::fs::read_to_string(sidecar.config_path()).unwrap();
    std::fs::write(sidecar.config_path(), text.replace("enabled = true", "enabled = false")).unwrap();
    sidecar.signal(Signal::HUP);
    eventually("the reload", Duration::from_secs(10), || async {
        let adapt = sidecar.status().await["registries"]["harbor"]["adapt"].clone();
        if adapt["enabled"] == false { Ok(()) } else { Err(adapt) }
    })
    .await;
    let (reloaded, struck) = (Instant::now(), harbor.struck().len());
    while reloaded.elapsed() < Duration::from_secs(3) {
        assert_eq!(in_force(&sidecar).await, 60);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(harbor.struck().len() > struck + 10, "signs of overload came");
    drop(pullers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_can_be_turned_off_and_has_a_floor() {
    let harbor = StubHarbor::limited(2, Duration::from_millis(30)).await;
    for (more, expected) in [("enabled = false", 60), ("floor = 40", 40)] {
        let (sidecar, mirror) = start(&harbor, &format!("[registries.harbor.adapt]\n{more}\n")).await;
        let struck = harbor.struck().len();
        let pullers = Pullers::start(mirror);
        eventually("many signs of overload", Duration::from_secs(10), || async {
            let struck = harbor.struck().len() - struck;
            if struck > 300 { Ok(()) } else { Err(struck) }
        })
        .await;
        assert_eq!(in_force(&sidecar).await, expected, "{more}");
        drop(pullers);
    }
}

const NODES: usize = 20;

/// Twenty nodes that lend one cap of 60. The first has no mirror: it sees tunnels only.
struct Fleet {
    nodes: Vec<Sidecar>,
    _redis: RedisServer,
}

impl Fleet {
    async fn start(harbor: &StubHarbor) -> Fleet {
        let redis = RedisServer::start();
        let settings = |node: usize| {
            let (address, url) = (harbor.address(), redis.url());
            let mirror =
                format!("[registries.harbor.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{address}\"\n");
            config(&format!(
                "[registries.harbor]\nhosts = [\"{address}\"]\ncap = {PULLERS}\nshare = \"lease\"\n{}\
                 [lease]\nredis = \"{url}\"\nnode_id = \"n{node}\"\nnodes = {NODES}\n",
                if node == 0 { String::new() } else { mirror }
            ))
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sidecar.toml");
        std::fs::write(&file, settings(0)).unwrap();
        let mut init = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
        assert!(init.args(["lease", "init", "--config"]).arg(&file).status().unwrap().success());
        let mut nodes = Vec::new();
        for node in 0..NODES {
            nodes.push(Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &settings(node)).await);
        }
        Fleet { nodes, _redis: redis }
    }

    /// The slots in force of all nodes, added up, and those of the pool as one node hears of them.
    async fn in_force(&self) -> (u64, u64) {
        let mut all = 0;
        for node in &self.nodes {
            all += in_force(node).await;
        }
        let lease = self.nodes[0].status().await["registries"]["harbor"]["lease"].clone();
        (all, lease["pool_in_force"].as_u64().unwrap())
    }

    /// Why requests wait, at the nodes where some do.
    async fn limited_by(&self) -> Vec<String> {
        let mut causes = Vec::new();
        for node in &self.nodes {
            let harbor = node.status().await["registries"]["harbor"].clone();
            causes.extend(harbor["limited_by"].as_str().map(str::to_owned));
        }
        causes
    }

    async fn table(&self) -> String {
        let file = self.nodes[0].config_path();
        let mut status = tokio::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
        let status = status.args(["status", "--fleet", "--config"]).arg(file).output().await.unwrap();
        String::from_utf8(status.stdout).unwrap()
    }
}

/// Twenty nodes with a slot each would be more than the database stands. It takes so long for each request that a busy machine does not matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_with_a_cap_that_is_far_too_high_yields_as_one_and_rises_again_when_the_database_grows() {
    let harbor = StubHarbor::limited(18, Duration::from_millis(200)).await;
    let fleet = Fleet::start(&harbor).await;
    let mirrors: Vec<SocketAddr> = fleet.nodes.iter().filter_map(|node| node.listener("mirror")).collect();
    assert_eq!(mirrors.len(), NODES - 1);
    let began = Instant::now();
    let pullers = Pullers::start_at(&mirrors);
    let in_bounds = async || {
        let (all, pool) = fleet.in_force().await;
        if (12..=18).contains(&all) && (12..=18).contains(&pool) { Ok(()) } else { Err((all, pool)) }
    };
    eventually("12 to 18 slots in force", Duration::from_secs(10), in_bounds).await;
    println!("found after {:?}", began.elapsed());
    tokio::time::sleep_until((began + Duration::from_secs(10)).into()).await;
    let _ = harbor.most_busy();
    let mut seen = Vec::new();
    while began.elapsed() < Duration::from_secs(20) {
        seen.push(fleet.in_force().await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let most = harbor.most_busy();
    println!("{seen:?}, at most {most} at the database");
    // A try for more is one above the limit. Slots on their way from one node to another are in force at neither.
    assert!(seen.iter().all(|(all, pool)| *all <= 20 && (12..=20).contains(pool)), "{seen:?}");
    let pools = seen.iter().map(|(_, pool)| *pool).collect();
    assert!((12..=18).contains(&median(pools)), "{seen:?}");
    assert!(most <= 20, "{most} at the database");
    // The last sign is shown: on a busy machine, now and then, that of a slow answer.
    eventually("the database's error to be told", SOON, async || {
        let status = fleet.nodes[0].status().await["registries"]["harbor"].clone();
        let shown = (&status["adapt"]["enabled"], &status["adapt"]["lowered_by"], &status["lease"]["pool"]);
        if shown == (&false.into(), &"database_error".into(), &60.into()) { Ok(()) } else { Err(status) }
    })
    .await;
    eventually("requests to wait, and distress to be the cause at each node", SOON, async || {
        let limited_by = fleet.limited_by().await;
        let is_distress = !limited_by.is_empty() && limited_by.iter().all(|limit| limit == "distress");
        if is_distress { Ok(()) } else { Err(limited_by) }
    })
    .await;
    eventually("the fleet's table to tell it", SOON, async || {
        let table = fleet.table().await;
        let is_told = table.contains(" in force (lowered ") && table.contains("last sign: database error)");
        if is_told { Ok(()) } else { Err(table) }
    })
    .await;

    harbor.limit(PULLERS);
    let grown = Instant::now();
    eventually("all slots in force", Duration::from_secs(60), || async {
        let (all, pool) = fleet.in_force().await;
        if pool == 60 && all > 50 { Ok(()) } else { Err((all, pool)) }
    })
    .await;
    println!("all in force {:?} after the database has grown", grown.elapsed());
    pullers.stop_without_late_failures(began).await;
    let table = fleet.table().await;
    assert!(table.contains(" of 60 slots lent to 20 nodes\n"), "{table}");
}
