//! The config changes while the sidecar runs: whole, or not at all.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use roadstead_test_support::real::{Nginx, TlsVersion};
use roadstead_test_support::{
    KEEP_TUNNELS, Outcomes, Sidecar, Signal, StubRegistry, Wire, config, connect_through, eventually, eventually_is,
    get_through,
};

const SOON: Duration = Duration::from_secs(10);

fn text(stub: &StubRegistry, cap: usize, more: &str) -> String {
    config(&format!(
        "[registries.stub]\nhosts = [\"{}\"]\ncap = {cap}\nshare = 1\n{KEEP_TUNNELS}{more}",
        stub.address()
    ))
}

async fn stage(cap: usize) -> (StubRegistry, Sidecar) {
    let stub = StubRegistry::builder().start().await;
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text(&stub, cap, "")).await;
    (stub, sidecar)
}

/// Writes the file and tells the sidecar; waits until it has looked at it.
async fn reload(sidecar: &Sidecar, text: &str) {
    let looks = || sidecar.log_text().matches("SIGHUP").count();
    let before = looks();
    fs::write(sidecar.config_path(), text).unwrap();
    sidecar.signal(Signal::HUP);
    eventually("the config to be read", SOON, async || if looks() > before { Ok(()) } else { Err(sidecar.log_text()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_valid_file_holds_at_once_and_its_changes_are_told() {
    let (stub, sidecar) = stage(2).await;
    reload(&sidecar, &text(&stub, 5, "[classes.bulk]\nusers = [\"ci\"]\nweight = 3\n")).await;
    let status = sidecar.status().await;
    assert_eq!(status["registries"]["stub"]["slots"], 5);
    assert_eq!(status["config"]["reloads"], 1);
    let changes: Vec<&str> =
        status["config"]["changes"].as_array().unwrap().iter().filter_map(|change| change.as_str()).collect();
    assert!(changes.contains(&"registries.stub.cap: 2 -> 5"), "{changes:?}");
    // A client of the new class is counted there.
    let url = format!("http://{}/v2/", stub.address());
    // `ci:x` in base64.
    assert_eq!(get_through(sidecar.proxy(), &url, &["Proxy-Authorization: Basic Y2k6eA=="]).await.status(), 200);
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.count("roadstead_admitted_total", &[("registry", "stub"), ("class", "bulk")]), 1);
    assert_eq!(metrics.count("roadstead_config_last_reload_successful", &[]), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_changes_nothing_and_is_visible() {
    let (stub, sidecar) = stage(2).await;
    reload(&sidecar, &text(&stub, 9, "[registries.stub.queue]\ndepht = 1\n")).await;
    let status = sidecar.status().await;
    assert_eq!(status["registries"]["stub"]["slots"], 2);
    let problem = status["config"]["problem"].as_str().unwrap();
    assert!(problem.contains("depht: unknown key, did you mean `depth`?"), "{problem}");
    assert_eq!(sidecar.metrics().await.count("roadstead_config_last_reload_successful", &[]), 0);
    reload(&sidecar, &text(&stub, 3, "")).await;
    let status = sidecar.status().await;
    assert_eq!(
        (&status["registries"]["stub"]["slots"], &status["config"]["problem"]),
        (&3.into(), &serde_json::Value::Null)
    );
    assert_eq!(sidecar.metrics().await.count("roadstead_config_last_reload_successful", &[]), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_a_restart_is_refused_aloud_and_with_it_all_the_rest() {
    let (stub, sidecar) = stage(2).await;
    let moved = text(&stub, 9, "").replace("proxy = \"127.0.0.1:0\"", "proxy = \"127.0.0.1:1\"");
    reload(&sidecar, &moved).await;
    let status = sidecar.status().await;
    assert_eq!(status["registries"]["stub"]["slots"], 2);
    let problem = status["config"]["problem"].as_str().unwrap();
    assert!(problem.contains("listen.proxy: 127.0.0.1:0 -> 127.0.0.1:1: takes a restart"), "{problem}");
}

/// What is wrong with the file, as `/status` and the metric tell: told by both, or by neither.
async fn problem(sidecar: &Sidecar) -> Option<String> {
    let told = sidecar.status().await["config"]["problem"].as_str().map(str::to_owned);
    let good = sidecar.metrics().await.count("roadstead_config_last_reload_successful", &[]);
    (told.is_none() == (good == 1)).then_some(told).flatten()
}

async fn until_problem(sidecar: &Sidecar, words: &str) {
    eventually("the problem to be told", SOON, async || match problem(sidecar).await {
        Some(told) if told.contains(words) => Ok(()),
        other => Err(other),
    })
    .await;
}

async fn until_no_problem(sidecar: &Sidecar) {
    eventually("the problem to be gone", SOON, async || match sidecar.status().await["config"]["problem"].take() {
        serde_json::Value::Null => Ok(()),
        told => Err(told),
    })
    .await;
    assert_eq!(sidecar.metrics().await.count("roadstead_config_last_reload_successful", &[]), 1);
}

/// No signal tells of a file that was taken away, or became no text: it is noticed, told once, and over when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_read_is_visible_without_a_signal() {
    let (stub, sidecar) = stage(2).await;
    let path = sidecar.config_path();
    fs::remove_file(&path).unwrap();
    until_problem(&sidecar, "No such file").await;
    fs::write(&path, text(&stub, 2, "")).unwrap();
    until_no_problem(&sidecar).await;
    fs::write(&path, b"cap = \xff\xfe").unwrap();
    until_problem(&sidecar, "UTF-8").await;
    fs::write(&path, text(&stub, 3, "")).unwrap();
    sidecar.until("stub", "slots", 3).await;
    until_no_problem(&sidecar).await;
    assert_eq!(sidecar.log_text().matches("was not taken").count(), 2, "{}", sidecar.log_text());
}

/// A config that came before its certificates is taken when they are there; certificates that are changed are used. Nobody
/// sends a signal into a container.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_files_that_come_late_or_change_are_taken_without_a_signal() {
    let stub = StubRegistry::builder().start().await;
    let nodes = [(); 2].map(|()| Nginx::tls(stub.address(), "registry.test", TlsVersion::V1_3));
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text(&stub, 2, "")).await;
    let authority = sidecar.config_path().with_file_name("ca.pem");
    let with_tls = format!("[registries.stub.tls]\nca_file = \"{}\"\n", authority.display());
    fs::write(sidecar.config_path(), text(&stub, 3, &with_tls)).unwrap();
    until_problem(&sidecar, "tls.ca_file").await;
    assert_eq!(sidecar.count("stub", "slots").await, 2);
    fs::copy(nodes[0].authority(), &authority).unwrap();
    sidecar.until("stub", "slots", 3).await;
    until_no_problem(&sidecar).await;

    let asks = async |node: &Nginx| {
        let url = format!("https://{}/v2/", node.address());
        get_through(sidecar.proxy(), &url, &[]).await.status()
    };
    let hosts = nodes.each_ref().map(|node| format!("\"{}\"", node.address())).join(", ");
    let of_both = text(&stub, 3, &with_tls).replace(&format!("\"{}\"", stub.address()), &hosts);
    reload(&sidecar, &of_both).await;
    assert_eq!((asks(&nodes[0]).await, asks(&nodes[1]).await), (200, 502), "an authority each");
    // As a new authority is brought in: the old one beside it for a while.
    let both = nodes.each_ref().map(|node| fs::read_to_string(node.authority()).unwrap()).concat();
    fs::write(&authority, both).unwrap();
    eventually_is("the new authority to be trusted", SOON, (200, 200), async || {
        (asks(&nodes[0]).await, asks(&nodes[1]).await)
    })
    .await;
    fs::write(&authority, "no certificate").unwrap();
    until_problem(&sidecar, "tls.ca_file").await;
    assert_eq!(asks(&nodes[1]).await, 200, "what was read before goes on");
}

/// As Kubernetes swaps a `ConfigMap`: the file is a link into a folder that is a link itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_map_that_is_swapped_is_noticed_without_a_signal() {
    let (stub, sidecar) = stage(2).await;
    let path = sidecar.config_path();
    let folder = path.parent().unwrap();
    for (number, cap) in [(1, 4), (2, 6)] {
        let data = folder.join(format!("data-{number}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("sidecar.toml"), text(&stub, cap, "")).unwrap();
        symlink(&data, folder.join("data-new")).unwrap();
        fs::rename(folder.join("data-new"), folder.join("data")).unwrap();
        if number == 1 {
            fs::remove_file(&path).unwrap();
            symlink(folder.join("data/sidecar.toml"), &path).unwrap();
        }
        sidecar.until("stub", "slots", cap as u64).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shrinking_cuts_nobody_and_admits_nobody_until_below() {
    let (stub, sidecar) = stage(3).await;
    let authority = stub.address().to_string();
    let mut tunnels = Vec::new();
    for _ in 0..3 {
        tunnels.push(connect_through(sidecar.proxy(), &authority, &[]).await.unwrap());
    }
    reload(&sidecar, &text(&stub, 1, "")).await;
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.get("/v2/", &[]).await.unwrap().status(), 200, "it lives on");
    }
    let (proxy, wanted) = (sidecar.proxy(), authority.clone());
    let waiter = tokio::spawn(async move { connect_through(proxy, &wanted, &[]).await.is_ok() });
    sidecar.until("stub", "waiting", 1).await;
    drop(tunnels.pop());
    drop(tunnels.pop());
    sidecar.until("stub", "open", 1).await;
    assert_eq!(sidecar.count("stub", "waiting").await, 1, "one slot, and it is taken");
    drop(tunnels.pop());
    assert!(waiter.await.unwrap());
}

/// A registry that is not in the file any more: who holds a connection goes on, who comes is no client of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_come_and_go() {
    let (stub, sidecar) = stage(1).await;
    let other = StubRegistry::builder().start().await;
    let mut tunnel = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap();
    let renamed = text(&other, 4, "").replace("registries.stub", "registries.other");
    reload(&sidecar, &renamed).await;
    let status = sidecar.status().await;
    assert_eq!(
        (&status["registries"]["stub"], &status["registries"]["other"]["slots"]),
        (&serde_json::Value::Null, &4.into())
    );
    let metrics = sidecar.ask_admin("GET", "/metrics").await.text();
    let has = |name: &str| metrics.contains(&format!("roadstead_slots{{registry=\"{name}\"}}"));
    assert_eq!((has("stub"), has("other")), (false, true), "{metrics}");
    assert_eq!(tunnel.get("/v2/", &[]).await.unwrap().status(), 200);
    let url = format!("http://{}/v2/", other.address());
    assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_of_the_log_changes() {
    let (stub, sidecar) = stage(1).await;
    let url = format!("http://{}/v2/", stub.address());
    let with_level = |level| text(&stub, 1, "").replace("\"json\"", &format!("\"json\"\nlevel = \"{level}\""));
    reload(&sidecar, &with_level("error")).await;
    assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 200);
    sidecar.until_outcomes("stub", Outcomes { served: 1, ..Outcomes::default() }).await;
    fs::write(sidecar.config_path(), with_level("info")).unwrap();
    eventually_is("the file to be read", SOON, 2, async || {
        sidecar.status().await["config"]["reloads"].as_u64().unwrap()
    })
    .await;
    assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 200);
    eventually_is("the second request alone", SOON, 1, async || sidecar.finished().len()).await;
    sidecar.until_outcomes("stub", Outcomes { served: 2, ..Outcomes::default() }).await;
}

fn registry(name: &str, hosts: &[&StubRegistry], cap: usize) -> String {
    let hosts: Vec<String> = hosts.iter().map(|stub| format!("\"{}\"", stub.address())).collect();
    let keep_tunnels = KEEP_TUNNELS.replace("registries.stub", &format!("registries.{name}"));
    format!("[registries.{name}]\nhosts = [{}]\ncap = {cap}\nshare = 1\n{keep_tunnels}", hosts.join(", "))
}

/// Two tunnels stand, and the host becomes this registry's: both take its slots until they end, whoever granted them.
async fn assert_that_they_count(sidecar: &Sidecar, stub: &StubRegistry, tunnels: Vec<Wire>, name: &str) -> Vec<Wire> {
    let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
    let newcomer = |_| {
        let authority = authority.clone();
        tokio::spawn(async move { connect_through(proxy, &authority, &[]).await.unwrap() })
    };
    let mut newcomers = Vec::new();
    for number in 1..=2 {
        newcomers.push(newcomer(number));
        sidecar.until(name, "waiting", number).await;
    }
    // A connection stands for the kernel before the stub has accepted it.
    let both_stand = || eventually_is(name, SOON, (2, 2), async || (stub.open(), stub.peak()));
    let mut served = Vec::new();
    for (tunnel, newcomer) in tunnels.into_iter().zip(newcomers) {
        both_stand().await;
        drop(tunnel);
        served.push(newcomer.await.unwrap());
    }
    both_stand().await;
    assert_eq!(sidecar.count(name, "open").await, 2);
    served
}

/// A registry that is taken out of the file by mistake and put back, or only renamed; a host that goes from one registry
/// to another, whose name is new, or was the first one's: the connections that stand take slots where the host is now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_takes_along_what_stands_there_to_whatever_registry_it_goes() {
    let (stub, sidecar) = stage(2).await;
    let (other, authority) = (StubRegistry::builder().start().await, stub.address().to_string());
    let mut tunnels = Vec::new();
    for _ in 0..2 {
        tunnels.push(connect_through(sidecar.proxy(), &authority, &[]).await.unwrap());
    }
    reload(&sidecar, &config(&registry("other", &[&other], 2))).await;
    for (name, registries) in [
        ("stub", registry("stub", &[&stub], 2)),
        ("renamed", registry("renamed", &[&stub], 2)),
        ("wide", registry("wide", &[&stub, &other], 2)),
        ("narrow", registry("wide", &[&other], 2) + &registry("narrow", &[&stub], 2)),
        ("old", registry("narrow", &[&other], 2) + &registry("old", &[&stub], 2)),
    ] {
        reload(&sidecar, &config(&registries)).await;
        tunnels = assert_that_they_count(&sidecar, &stub, tunnels, name).await;
    }
    // What goes elsewhere has its own slots all the same.
    let url = format!("http://{}/v2/", other.address());
    assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 200);
}

/// What lies idle where the host was does not keep those waiting who come where it is now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_tunnels_give_way_to_who_waits_at_the_registry_that_took_their_host() {
    let (stub, other) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    let pauses = "[registries.old.reclaim]\nunused_after = \"500ms\"\nidle_after = \"500ms\"\n";
    let text = |registries: &[(&str, &StubRegistry)]| {
        let of = |(name, stub): &(&str, &StubRegistry)| {
            format!("[registries.{name}]\nhosts = [\"{}\"]\ncap = 2\nshare = 1\n", stub.address())
        };
        config(&(registries.iter().map(of).collect::<String>() + pauses))
    };
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text(&[("old", &stub)])).await;
    let authority = stub.address().to_string();
    let mut parked = Vec::new();
    for _ in 0..2 {
        parked.push(connect_through(sidecar.proxy(), &authority, &[]).await.unwrap());
    }
    reload(&sidecar, &text(&[("old", &other), ("new", &stub)])).await;
    for _ in 0..2 {
        let coming = connect_through(sidecar.proxy(), &authority, &[]);
        let mut tunnel = tokio::time::timeout(SOON, coming).await.expect("soon").unwrap();
        assert_eq!(tunnel.get("/v2/", &["Host: stub"]).await.unwrap().status(), 200);
        drop(tunnel);
    }
    assert_eq!(stub.peak(), 2);
}

/// Who waited for a registry that is renamed goes on waiting, is served in its turn, and takes no slot twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_at_a_registry_that_is_renamed_is_served() {
    let (stub, sidecar) = stage(1).await;
    let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
    let tunnel = connect_through(proxy, &authority, &[]).await.unwrap();
    let wait = || {
        let authority = authority.clone();
        tokio::spawn(async move { connect_through(proxy, &authority, &[]).await.unwrap() })
    };
    let before = wait();
    sidecar.until("stub", "waiting", 1).await;
    reload(&sidecar, &config(&registry("renamed", &[&stub], 1))).await;
    let after = wait();
    sidecar.until("renamed", "waiting", 1).await;
    drop(tunnel);
    let before = before.await.unwrap();
    assert_eq!(sidecar.count("renamed", "waiting").await, 1, "first come, first served");
    drop(before);
    drop(after.await.unwrap());
    assert_eq!(stub.peak(), 1);
}

/// At the end those are refused, too, who wait at a registry that is gone from the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_at_a_registry_that_is_gone_is_told_when_the_process_ends() {
    let (stub, other) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    let text = |registries: String| format!("drain_timeout = \"500ms\"\n{}", config(&registries));
    let mut sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text(registry("stub", &[&stub], 1))).await;
    let (proxy, authority) = (sidecar.proxy(), stub.address().to_string());
    let _tunnel = connect_through(proxy, &authority, &[]).await.unwrap();
    let waiter = tokio::spawn(async move { connect_through(proxy, &authority, &[]).await.unwrap_err() });
    sidecar.until("stub", "waiting", 1).await;
    reload(&sidecar, &text(registry("other", &[&other], 1))).await;
    sidecar.terminate();
    let refused = waiter.await.unwrap();
    assert_eq!((refused.status(), &refused.json()["errors"][0]["detail"]["reason"]), (503, &"draining".into()));
    assert_eq!(sidecar.wait().await.code(), Some(0));
}

/// A node that is out is replaced by another one: the slots of that are there at once, and nothing tells of the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_replaced_is_forgotten() {
    let (stub, fresh) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    let dead = StubRegistry::builder().start().await;
    dead.refuse().await;
    let nodes = |first: &StubRegistry| {
        let mirror = format!(
            "[registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\ncap_per_upstream = true\n\
             upstream = [\"http://{}\", \"http://{}\"]\n",
            first.address(),
            stub.address()
        );
        text(&stub, 3, &mirror)
    };
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &nodes(&dead)).await;
    let mirror = sidecar.listener("mirror").unwrap();
    eventually_is("the dead node to be left out", SOON, 3, async || {
        let mut wire = Wire::open(mirror).await.unwrap();
        assert_eq!(wire.get("/v2/", &["Host: 127.0.0.1", "Connection: close"]).await.unwrap().status(), 200);
        sidecar.count("stub", "slots").await
    })
    .await;
    let of_dead = format!("upstream=\"http://{}\"", dead.address());
    assert!(sidecar.ask_admin("GET", "/metrics").await.text().contains(&of_dead));
    reload(&sidecar, &nodes(&fresh)).await;
    assert_eq!(sidecar.count("stub", "slots").await, 6);
    let metrics = sidecar.ask_admin("GET", "/metrics").await.text();
    assert!(!metrics.contains(&of_dead), "{metrics}");
}
