//! The config changes while the sidecar runs: whole, or not at all.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::Duration;

use roadstead_test_support::real::{Nginx, TlsVersion};
use roadstead_test_support::{
    KEEP_TUNNELS, Outcomes, Sidecar, Signal, StubRegistry, Wire, config, connect_through, eventually, eventually_is,
    get_through,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::time::timeout;

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
    assert!(problem.contains("listen.proxy: 127.0.0.1:0 -> 127.0.0.1:1: needs a restart"), "{problem}");
}

/// The problem of the file, from `/status` and from the metric: both report it, or neither.
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
    assert_eq!(sidecar.log_text().matches("the config was refused").count(), 2, "{}", sidecar.log_text());
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
    let addresses = [stub.address(), nodes[0].address(), nodes[1].address()];
    let hosts = addresses.map(|address| format!("\"{address}\"")).join(", ");
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

/// Connections toward a host count at the registry that had it when they were opened. So a reload that removes, renames or
/// moves a registry or a host is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_moves_is_refused_aloud_and_with_it_all_the_rest() {
    let (stub, other) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    let both = |cap| registry("stub", &[&stub], cap) + &registry("other", &[&other], 2);
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&both(2))).await;
    let (one, two) = (stub.address(), other.address());
    for (registries, words) in [
        (registry("stub", &[&stub], 5), format!("registries.other.hosts: {two} -> nothing: needs a restart")),
        (
            both(5).replace("registries.other", "registries.renamed"),
            format!("registries.other.hosts: {two} -> nothing: needs a restart"),
        ),
        (
            registry("stub", &[&other], 5) + &registry("other", &[&stub], 2),
            format!("registries.other.hosts: {two} -> {one}; registries.stub.hosts: {one} -> {two}: needs a restart"),
        ),
    ] {
        reload(&sidecar, &config(&registries)).await;
        until_problem(&sidecar, &words).await;
        assert_eq!(sidecar.count("stub", "slots").await, 2, "nothing of it holds");
    }
    reload(&sidecar, &config(&both(5))).await;
    until_no_problem(&sidecar).await;
    assert_eq!(sidecar.count("stub", "slots").await, 5);
}

/// Hosts that no registry has may be claimed: by a new registry, and as a further host of an existing one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_and_hosts_are_added() {
    let (stub, sidecar) = stage(1).await;
    let (other, third) = (StubRegistry::builder().start().await, StubRegistry::builder().start().await);
    let tunnel = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.unwrap();
    reload(&sidecar, &config(&(registry("stub", &[&stub, &third], 1) + &registry("other", &[&other], 4)))).await;
    let status = sidecar.status().await;
    assert_eq!(
        (&status["config"]["problem"], &status["registries"]["other"]["slots"]),
        (&serde_json::Value::Null, &4.into())
    );
    let ask = |stub: &StubRegistry| {
        let (proxy, url) = (sidecar.proxy(), format!("http://{}/v2/", stub.address()));
        tokio::spawn(async move { get_through(proxy, &url, &[]).await.status() })
    };
    assert_eq!(ask(&other).await.unwrap(), 200);
    let waiter = ask(&third);
    sidecar.until("stub", "waiting", 1).await;
    drop(tunnel);
    assert_eq!(waiter.await.unwrap(), 200, "the further host takes the same slot");
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

/// A file on a mount that hangs: here a pipe that nobody writes to. Requests are served meanwhile, and a signal ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_read_to_its_end_holds_no_request() {
    let (stub, mut sidecar) = stage(2).await;
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("ca.pem");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _held = File::options().read(true).write(true).open(&pipe).unwrap();
    let tls = format!("[registries.stub.tls]\nca_file = {pipe:?}\n");
    fs::write(sidecar.config_path(), text(&stub, 2, &tls)).unwrap();
    sidecar.signal(Signal::HUP);
    let open_files = format!("/proc/{}/fd", sidecar.pid());
    eventually("the pipe to be read", SOON, async || {
        let open: Vec<_> = fs::read_dir(&open_files).unwrap().flat_map(|file| fs::read_link(file?.path())).collect();
        if open.contains(&pipe) { Ok(()) } else { Err(open) }
    })
    .await;
    let url = format!("http://{}/v2/", stub.address());
    let served = timeout(SOON, get_through(sidecar.proxy(), &url, &[])).await;
    assert_eq!(served.expect("requests are served").status(), 200);
    sidecar.signal(Signal::TERM);
    assert!(timeout(SOON, sidecar.wait()).await.unwrap().success());
}
