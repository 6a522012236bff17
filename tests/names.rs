//! The name in the proxy URL: that real clients send it, that it decides about the class, and that it goes no further.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::Duration;

use roadstead_test_support::real::find_program;
use roadstead_test_support::{
    KEEP_TUNNELS, Sidecar, StubRegistry, Wire, config, connect_through, eventually_is, get_through,
};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinHandle;

/// A registry whose only slot is taken, so that whoever comes is seen waiting.
struct Stage {
    stub: StubRegistry,
    sidecar: Sidecar,
    holder: Wire,
}

impl Stage {
    async fn set() -> Stage {
        let stub = StubRegistry::builder().start().await;
        let registry = format!(
            "[registries.stub]\nhosts = [\"{}\"]\ncap = 1\nshare = 1\n{KEEP_TUNNELS}\n\
             [classes.interactive]\nusers = [\"kubelet\"]\nweight = 8\n",
            stub.address()
        );
        let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
        let holder = connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect("a tunnel");
        Stage { stub, sidecar, holder }
    }

    /// The waiting request, as soon as there is one, and the metrics of its class.
    async fn waiting(&self) -> Value {
        self.sidecar.until("stub", "waiting", 1).await;
        let shown = self.sidecar.ask_admin("GET", "/queue").await.json()["registries"]["stub"]["waiting"][0].take();
        let class = shown["class"].as_str().expect("a class");
        let labels = [("registry", "stub"), ("class", class)];
        let counted = self.sidecar.metrics().await.sum("roadstead_waiting", &labels);
        assert_eq!(counted.to_string(), "1", "{shown}");
        shown
    }

    /// Lets the one who waits be served, and hands out what the registry was sent.
    async fn served<T>(self, client: JoinHandle<T>) -> (T, Vec<String>) {
        drop(self.holder);
        let ended = tokio::time::timeout(Duration::from_secs(20), client).await.expect("an end");
        (ended.expect("no panic"), self.stub.seen_requests())
    }
}

fn assert_is_kubelet(waiting: &Value, kind: &str) {
    let wanted = (json!("kubelet"), json!("interactive"), json!(kind));
    assert_eq!((waiting["client"].clone(), waiting["class"].clone(), waiting["kind"].clone()), wanted);
}

fn assert_no_credentials(requests: &[String]) {
    assert_eq!(requests.len(), 1, "{requests:?}");
    let head = requests[0].to_ascii_lowercase();
    assert!(!head.contains("proxy-authorization") && !head.contains("kubelet"), "{head}");
    // `kubelet` in base64, and the way curl and reqwest would write it with any password.
    assert!(!requests[0].contains("a3ViZWxld"), "{head}");
}

/// Runs curl through the sidecar; hands out whether it ended well, and what it said.
fn curl(proxy: &[String], url: String, tunnel: bool) -> JoinHandle<(bool, String)> {
    curl_of(None, proxy, url, tunnel)
}

/// The same, run by another user.
fn curl_of(user: Option<u32>, proxy: &[String], url: String, tunnel: bool) -> JoinHandle<(bool, String)> {
    let mut command = Command::new(find_program("curl"));
    if let Some(user) = user {
        command.uid(user);
    }
    command.env_clear().args(["--disable", "--silent", "--show-error", "--verbose", "--max-time", "20"]).args(proxy);
    if tunnel {
        command.arg("--proxytunnel");
    }
    command.arg(url).stdin(Stdio::null()).kill_on_drop(true);
    tokio::spawn(async move {
        let output = command.output().await.expect("curl can be started");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    })
}

/// The ways of telling curl a name: with any password, with an empty one, with none.
fn curl_ways(proxy: SocketAddr) -> Vec<Vec<String>> {
    let ways = [
        vec!["--proxy".to_owned(), format!("http://kubelet:any@{proxy}")],
        vec!["--proxy".to_owned(), format!("http://kubelet:@{proxy}")],
        vec!["--proxy".to_owned(), format!("http://kubelet@{proxy}")],
        vec!["--proxy".to_owned(), format!("http://{proxy}"), "--proxy-user".to_owned(), "kubelet:other".to_owned()],
        vec!["--proxy".to_owned(), format!("http://{proxy}"), "--proxy-user".to_owned(), "kubelet:".to_owned()],
    ];
    ways.into()
}

/// curl sends the name, with a password or without, in absolute-form and for a tunnel; the registry sees nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curls_name_reaches_the_queue_and_no_registry() {
    for tunnel in [false, true] {
        for way in 0..curl_ways(([127, 0, 0, 1], 1).into()).len() {
            let stage = Stage::set().await;
            let arguments = curl_ways(stage.sidecar.proxy()).swap_remove(way);
            let url = format!("http://{}/v2/", stage.stub.address());
            let running = curl(&arguments, url, tunnel);
            assert_is_kubelet(&stage.waiting().await, if tunnel { "tunnel" } else { "request" });
            let ((ended_well, said), requests) = stage.served(running).await;
            assert!(ended_well, "{arguments:?}: {said}");
            assert_no_credentials(&requests);
        }
    }
}

/// Without a name, a client on loopback is the user that runs it: neither the sidecar's own, nor one who has a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_name_is_the_user_that_runs_it() {
    let own = std::fs::metadata("/proc/self").expect("this process").uid();
    // Only root can be somebody else.
    let users = if own == 0 { vec![own, 65_534] } else { vec![own] };
    for (user, tunnel) in users.into_iter().flat_map(|user| [(user, false), (user, true)]) {
        let stage = Stage::set().await;
        let (proxy, url) = (stage.sidecar.proxy(), format!("http://{}/v2/", stage.stub.address()));
        let nameless = ["--proxy".to_owned(), format!("http://{proxy}")];
        let running = curl_of((user != own).then_some(user), &nameless, url.clone(), tunnel);
        let waiting = stage.waiting().await;
        assert_eq!((&waiting["client"], &waiting["class"]), (&json!(format!("uid:{user}")), &json!("default")));

        let named = curl(&curl_ways(proxy)[0], url, tunnel);
        stage.sidecar.until("stub", "waiting", 2).await;
        let clients = stage.sidecar.status().await["registries"]["stub"]["clients"].take();
        let waiting = |name: &str| -> Vec<Value> {
            let all = clients.as_array().expect("clients").iter();
            all.filter(|client| client["client"] == name).map(|client| client["waiting"].clone()).collect()
        };
        assert_eq!(waiting(&format!("uid:{user}")), [json!(1)], "{clients}");
        assert_eq!(waiting("kubelet"), [json!(1)], "{clients}");
        let ((ended_well, said), _) = stage.served(running).await;
        assert!(ended_well, "{said}");
        assert!(named.await.expect("no panic").0);
    }
}

/// A reqwest client that uses this proxy.
fn reqwest_through(proxy: reqwest::Proxy) -> reqwest::Client {
    reqwest::Client::builder().proxy(proxy).timeout(Duration::from_secs(20)).build().expect("a client")
}

/// The name that the sidecar sees of a reqwest client that asks for `scheme`; `http` requests are seen through.
async fn reqwest_waits(proxy: impl Fn(SocketAddr) -> reqwest::Proxy, scheme: &str) -> Value {
    let stage = Stage::set().await;
    let client = reqwest_through(proxy(stage.sidecar.proxy()));
    let url = format!("{scheme}://{}/v2/", stage.stub.address());
    let running = tokio::spawn(async move { client.get(url).send().await.map(|answer| answer.status().as_u16()) });
    let waiting = stage.waiting().await;
    if scheme == "http" {
        let (answer, requests) = stage.served(running).await;
        assert_eq!(answer.expect("an answer"), 200);
        assert_no_credentials(&requests);
    } else {
        // The stub speaks no TLS: the CONNECT is all that is looked at.
        running.abort();
    }
    waiting
}

/// reqwest 0.12, which Dragonfly's dfdaemon is made with, sends the name of the proxy URL for both kinds of requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reqwests_name_reaches_the_queue_and_no_registry() {
    for (scheme, kind) in [("http", "request"), ("https", "tunnel")] {
        let by_url = |proxy| reqwest::Proxy::all(format!("http://kubelet:x@{proxy}")).unwrap();
        assert_is_kubelet(&reqwest_waits(by_url, scheme).await, kind);
        let apart = |proxy| reqwest::Proxy::all(format!("http://{proxy}")).unwrap().basic_auth("kubelet", "any");
        assert_is_kubelet(&reqwest_waits(apart, scheme).await, kind);
    }
}

/// Without a password, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reqwest_keeps_a_name_without_a_password() {
    for (scheme, kind) in [("http", "request"), ("https", "tunnel")] {
        let by_url = |proxy| reqwest::Proxy::all(format!("http://kubelet@{proxy}")).unwrap();
        assert_is_kubelet(&reqwest_waits(by_url, scheme).await, kind);
    }
}

/// Where `max_clients` stand, the greediest client's longest idle connection closes for another client: one that is silent as well
/// as one that was answered. A connection with a request under way stays, and a client makes no room for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_of_the_greediest_client_closes_for_another_client() {
    let own = std::fs::metadata("/proc/self").expect("this process").uid();
    if own != 0 {
        return; // Only root can be somebody else.
    }
    let stub = StubRegistry::builder().start().await;
    let url = format!("http://{}/v2/", stub.address());
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 9\nshare = 1\n", stub.address());
    let file = config(&registry).replacen("[listen]\n", "[listen]\nmax_clients = 4\n", 1);
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &file).await;
    let mut greedy = Vec::new();
    for number in 1..=4 {
        greedy.push(Wire::open(sidecar.proxy()).await.unwrap());
        // In this order.
        let clients = async || sidecar.status().await["clients"].as_u64();
        eventually_is("one more client", Duration::from_secs(5), Some(number), clients).await;
    }
    // The first two were answered after the others came, so these are idle for longer.
    for wire in &mut greedy[..2] {
        assert_eq!(wire.get(&url, &[]).await.unwrap().status(), 200);
    }
    assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 503, "not for itself");
    stub.hold();
    let busy = format!("GET {url} HTTP/1.1\r\nHost: {}\r\n\r\n", stub.address());
    greedy[1].send(busy.as_bytes()).await.unwrap();
    eventually_is("the request to be there", Duration::from_secs(5), 3, async || stub.requests()).await;
    let nameless = ["--proxy".to_owned(), format!("http://{}", sidecar.proxy())];
    let other = |url: &str| curl_of(Some(65_534), &nameless, url.to_owned(), false);
    let mut waiting = Vec::new();
    for (number, closed) in [2, 3, 0].into_iter().enumerate() {
        waiting.push(other(&url));
        if number < 2 {
            assert_eq!(greedy[closed].receive().await.unwrap(), "", "{closed} is closed in order");
            eventually_is("the newcomer's request", Duration::from_secs(5), 4 + number, async || stub.requests()).await;
        }
    }
    // Two and two: the third of the other client has as many as the greediest.
    let (_, said) = waiting.pop().unwrap().await.unwrap();
    assert!(said.contains("503"), "{said}");
    stub.release();
    for one in waiting {
        let (ended_well, said) = one.await.unwrap();
        assert!(ended_well && said.contains(" 200 "), "{said}");
    }
    assert_eq!(greedy[1].read_answer().await.unwrap().status(), 200, "what is under way is not cut");
    assert_eq!(greedy[0].get(&url, &[]).await.unwrap().status(), 200, "nor what is not in excess");
}

/// A waiting tunnel keeps no credentials, however long they were: it costs what one without a name costs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_tunnel_keeps_no_credentials() {
    const WAITERS: u64 = 500;
    const CREDENTIALS: usize = 32 * 1024;
    let stage = Stage::set().await;
    let authority = stage.stub.address();
    let head = format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Basic {}\r\n\r\n",
        "QUJD".repeat(CREDENTIALS / 4)
    );
    let before = stage.sidecar.rss_kib();
    let mut waiters = Vec::new();
    for _ in 0..WAITERS {
        let mut wire = Wire::open(stage.sidecar.proxy()).await.unwrap();
        wire.send(head.as_bytes()).await.unwrap();
        waiters.push(wire);
    }
    stage.sidecar.until("stub", "waiting", WAITERS).await;
    let each = (stage.sidecar.rss_kib() - before) * 1024 / WAITERS;
    println!("{each} bytes for each waiting tunnel");
    assert!(each < CREDENTIALS as u64, "{each} bytes for each");
}
