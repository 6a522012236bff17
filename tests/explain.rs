//! Why somebody waits: `/queue`, `/status` and the refusal say who holds the slots, what they do, and what binds.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use roadstead_test_support::http::request;
use roadstead_test_support::real::find_program;
use roadstead_test_support::{
    KEEP_TUNNELS, Response, Sidecar, StubRegistry, Wire, config, connect_through, eventually, eventually_is,
    get_through,
};
use serde_json::{Value, json};

/// Long enough for the slowest machine; nothing waits for it unless it fails.
const SOON: Duration = Duration::from_secs(10);
/// `kubelet:hunter2`, `dfdaemon:x`.
const KUBELET: &str = "Proxy-Authorization: Basic a3ViZWxldDpodW50ZXIy";
const DFDAEMON: &str = "Proxy-Authorization: Basic ZGZkYWVtb246eA==";

/// A sidecar with `slots` for one registry; `more` goes into the registry's table, and may go on with other tables.
async fn sidecar_for(stub: &StubRegistry, slots: usize, more: &str) -> Sidecar {
    let host = stub.address();
    let registry = format!(
        "[registries.stub]\nhosts = [\"{host}\"]\ncap = {slots}\nshare = 1\n{more}\n{KEEP_TUNNELS}\n\
         [classes.interactive]\nusers = [\"kubelet\"]\nweight = 8\n"
    );
    Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await
}

fn url(stub: &StubRegistry) -> String {
    format!("http://{}/v2/", stub.address())
}

async fn tunnel(sidecar: &Sidecar, stub: &StubRegistry, credentials: &str) -> Wire {
    connect_through(sidecar.proxy(), &stub.address().to_string(), &[credentials]).await.expect("a tunnel")
}

/// A client that has asked, and was not answered yet.
async fn asking(sidecar: &Sidecar, method: &str, target: &str, credentials: &str) -> Wire {
    let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
    wire.send(request(method, target, &[credentials]).as_bytes()).await.unwrap();
    wire
}

async fn queue(sidecar: &Sidecar) -> Value {
    sidecar.ask_admin("GET", "/queue").await.json()["registries"]["stub"].take()
}

fn detail(answer: &Response) -> Value {
    answer.json()["errors"][0]["detail"].clone()
}

/// Each holder with its kind, and what its connection has carried: a tunnel, a request, and a connection that is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_tells_kind_and_bytes_of_each_holder() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub, 3, "").await;
    assert_eq!(get_through(sidecar.proxy(), &url(&stub), &[DFDAEMON]).await.status(), 200);
    sidecar.until("stub", "idle", 1).await;
    let kept = queue(&sidecar).await["holders"][0].clone();
    assert_eq!((&kept["kind"], &kept["client"], &kept["state"]), (&json!("kept"), &json!(null), &json!("idle")));
    assert_eq!(kept["bytes_up"], stub.seen_requests()[0].len());
    assert!(kept["bytes_down"].as_u64().unwrap() > 20, "{kept}");

    let mut wire = tunnel(&sidecar, &stub, KUBELET).await;
    let unused = queue(&sidecar).await["holders"][1].clone();
    assert_eq!((&unused["kind"], &unused["last_bytes_seconds"]), (&json!("tunnel"), &json!(null)), "{unused}");
    let answer = wire.get("/v2/", &[]).await.unwrap();
    let used = queue(&sidecar).await["holders"][1].clone();
    assert_eq!((&used["client"], &used["class"]), (&json!("kubelet"), &json!("interactive")));
    assert_eq!(used["bytes_up"], stub.seen_requests()[1].len());
    assert_eq!(used["bytes_down"], answer.head.raw().len() + answer.body.len(), "{used}");

    stub.hold();
    let mut held = asking(&sidecar, "GET", &url(&stub), DFDAEMON).await;
    let active = async || {
        let request = queue(&sidecar).await["holders"][0].clone();
        (request["kind"].clone(), request["client"].clone(), request["state"].clone())
    };
    eventually_is("the kept one to serve", SOON, (json!("request"), json!("dfdaemon"), json!("active")), active).await;
    stub.release();
    assert_eq!(held.read_answer().await.unwrap().status(), 200);
}

/// The time since the last byte grows while nothing moves, and begins anew with the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_since_the_last_byte_grows_until_the_next() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub, 1, "").await;
    let mut wire = tunnel(&sidecar, &stub, KUBELET).await;
    let silence = async || queue(&sidecar).await["holders"][0]["last_bytes_seconds"].as_f64();
    wire.get("/v2/", &[]).await.unwrap();
    let long = eventually("half a second of silence", SOON, async || match silence().await {
        Some(seconds) if seconds >= 0.5 => Ok(seconds),
        seconds => Err(seconds),
    })
    .await;
    wire.get("/v2/", &[]).await.unwrap();
    let short = silence().await.expect("bytes have passed");
    assert!(short < long, "{short} after {long}");
    let age = queue(&sidecar).await["holders"][0]["age_seconds"].as_f64().unwrap();
    assert!(age >= long, "its age goes on: {age}");
}

/// A waiting request is told with its repository and its turn: in `/queue`, by `roadstead queue` and in words by `roadstead why`.
/// Its line in the log has method, status, repository and times; credentials and queries are nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_request_is_told_with_its_repository_and_its_turn() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub, 1, "").await;
    stub.hold();
    let ask = async |user: &str, path: &str| {
        let mut wire = Wire::open(sidecar.proxy()).await.unwrap();
        let url = format!("http://{}{path}", stub.address());
        let credentials = BASE64_STANDARD.encode(format!("{user}:a-secret"));
        let headers =
            [format!("Proxy-Authorization: Basic {credentials}"), "Authorization: Bearer a-secret".to_owned()];
        wire.send(request("GET", &url, &[&headers[0], &headers[1]]).as_bytes()).await.unwrap();
        wire
    };
    let digest = format!("sha256:{}", "0".repeat(64));
    let mut wires = vec![ask("holder", "/v2/library/busy/manifests/1").await];
    sidecar.until("stub", "active", 1).await;
    for waiting in 1..=3 {
        wires.push(ask("dfdaemon", &format!("/v2/library/redis/blobs/{digest}?sig=a-secret")).await);
        sidecar.until("stub", "waiting", waiting).await;
    }
    wires.push(ask("kubelet", "/v2/library/nginx/manifests/1.25").await);
    sidecar.until("stub", "waiting", 4).await;

    let queue = sidecar.ask_admin("GET", "/queue").await;
    assert!(!queue.text().contains("a-secret"), "{}", queue.text());
    let waiting = queue.json()["registries"]["stub"]["waiting"].take();
    let nginx = &waiting[3];
    assert_eq!((&nginx["repository"], &nginx["reference"]), (&json!("library/nginx"), &json!("1.25")));
    assert_eq!((&nginx["position"], &nginx["client"]), (&json!(4), &json!("kubelet")));
    assert!(nginx["turn"].as_u64() < Some(4), "one turn each: {waiting}");
    assert_eq!((&waiting[0]["repository"], &waiting[0]["reference"]), (&json!("library/redis"), &json!(digest)));
    let roadstead = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
        let output = command.args(arguments).args(["--admin", &sidecar.admin().to_string()]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table = roadstead(&["queue", "stub"]);
    assert!(table.contains("4 requests wait, 1 of 1 slots open: no slot is free"), "{table}");
    assert!(table.lines().any(|line| line.contains("kubelet") && line.contains("library/nginx:1.25")), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    let why = roadstead(&["why", "harbor.example.com/library/nginx:1.25"]);
    assert!(why.contains("1 request waits for") && why.contains(&format!("turn {} of 4", nginx["turn"])), "{why}");
    assert!(why.contains("of dfdaemon") || nginx["turn"] == 1, "{why}");
    let nothing = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead")).args(["why", ""]).output().unwrap();
    assert_eq!(nothing.status.code(), Some(2), "no image was named: {nothing:?}");

    stub.release();
    for wire in &mut wires {
        wire.read_answer().await.unwrap();
    }
    drop(wires);
    let line = eventually("the line of nginx", SOON, async || {
        let lines = sidecar.finished();
        lines.iter().find(|line| line["repository"] == "library/nginx").cloned().ok_or(lines)
    })
    .await;
    assert_eq!(line["method"], "GET");
    assert!(line["status"].as_u64() >= Some(200), "{line}");
    assert!(line["took_ms"].as_f64() >= line["waited_ms"].as_f64(), "{line}");
    assert!(line["waited_ms"].as_f64() > Some(0.0), "{line}");
    assert!(!sidecar.log_text().contains("a-secret"));
    let metrics = sidecar.ask_admin("GET", "/metrics").await.text();
    let answered =
        metrics.lines().filter(|line| line.starts_with("roadstead_responses_total{") && line.contains("stub"));
    let answered: f64 = answered.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    assert!(answered >= 1.0, "{metrics}");
}

/// Each waiter of this machine is told with the process behind it: a tunnel of this one, and requests of a program that it started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_behind_each_waiter_is_told() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub, 1, "").await;
    let holder = tunnel(&sidecar, &stub, KUBELET).await;
    let waiter = asking(&sidecar, "CONNECT", &stub.address().to_string(), KUBELET).await;
    sidecar.until("stub", "waiting", 1).await;
    let mut curl = tokio::process::Command::new(find_program("curl"));
    curl.args(["--silent", "--proxy", &format!("http://{}", sidecar.proxy()), &url(&stub)]).kill_on_drop(true);
    let curl = curl.stdout(std::process::Stdio::null()).spawn().unwrap();
    sidecar.until("stub", "waiting", 2).await;
    let waiting = queue(&sidecar).await["waiting"].take();
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(waiting[0]["process"], json!({"pid": std::process::id(), "command": comm.trim()}), "{waiting}");
    assert_eq!(waiting[1]["process"], json!({"pid": curl.id(), "command": "curl"}), "{waiting}");
    assert_eq!(queue(&sidecar).await["waiting"][1]["process"], waiting[1]["process"], "asked once more");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"));
    let table = command.args(["queue", "stub", "--admin", &sidecar.admin().to_string()]).output().unwrap().stdout;
    let table = String::from_utf8(table).unwrap();
    assert!(table.lines().any(|line| line.contains(" curl ") && line.contains("uid:")), "{table}");
    drop((holder, waiter, curl));
    // One that is gone is in no list.
    eventually_is("an empty queue", SOON, json!([]), async || queue(&sidecar).await["waiting"].take()).await;
}

/// `/queue` shows waiting requests with kind and lane; while paused, the expected wait is unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_tells_kind_and_lane_of_each_waiter() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub, 1, "").await;
    let holder = tunnel(&sidecar, &stub, KUBELET).await;
    let targets =
        [("CONNECT", stub.address().to_string()), ("GET", url(&stub)), ("GET", format!("{}a/blobs/b", url(&stub)))];
    let mut waiters = Vec::new();
    for (number, (method, target)) in (1..).zip(&targets) {
        waiters.push(asking(&sidecar, method, target, DFDAEMON).await);
        sidecar.until("stub", "waiting", number).await;
    }
    let shown = queue(&sidecar).await;
    let told: Vec<_> = shown["waiting"].as_array().unwrap().iter().map(|one| (&one["kind"], &one["lane"])).collect();
    let (tunnel, request, small, blob) = (json!("tunnel"), json!("request"), json!("small"), json!("blob"));
    assert_eq!(told, [(&tunnel, &blob), (&request, &small), (&request, &blob)]);
    assert!(shown["waiting"][2]["expected_wait_seconds"].as_f64().unwrap() >= 1.0, "{shown}");
    assert_eq!(shown["limited_by"], "slots");
    assert_eq!(sidecar.order("/registries/stub/pause").await.status(), 200);
    assert_eq!(queue(&sidecar).await["waiting"][2]["expected_wait_seconds"], json!(null));
    drop((holder, waiters));
}

/// A refusal names the clients that hold the slots and what they do, and nothing secret of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_who_holds_the_slots() {
    let stub = StubRegistry::builder().start().await;
    let queue = "[registries.stub.queue]\ndepth = 2\ntunnel_timeout = \"300ms\"\nrequest_timeout = \"60s\"";
    let sidecar = sidecar_for(&stub, 12, queue).await;
    let mut holders = vec![tunnel(&sidecar, &stub, KUBELET).await];
    holders[0].get(&format!("/v2/?signature={}", "hunter2"), &[]).await.unwrap();
    for _ in 0..11 {
        holders.push(tunnel(&sidecar, &stub, DFDAEMON).await);
    }
    let _first = asking(&sidecar, "GET", &url(&stub), DFDAEMON).await;
    sidecar.until("stub", "waiting", 1).await;
    let authority = stub.address().to_string();
    let late = connect_through(sidecar.proxy(), &authority, &[KUBELET]).await.expect_err("its time is over");
    let told = detail(&late);
    assert_eq!((&told["reason"], &told["limited_by"]), (&json!("queue_timeout"), &json!("slots")), "{told}");
    assert_eq!((&told["position"], &told["waiting"], &told["slots"]), (&json!(2), &json!(1), &json!(12)), "{told}");
    assert!(told["expected_wait_seconds"].as_f64().unwrap() >= 1.0, "{told}");
    assert!(late.reason().ends_with("(tunnel_timeout = 300ms): all 12 slots are taken"), "{}", late.reason());
    let named = told["holders"].as_array().unwrap();
    assert_eq!(named.len(), 10, "the oldest of them: {told}");
    let first = &named[0];
    assert_eq!(
        (&first["client"], &first["kind"], &first["state"]),
        (&json!("kubelet"), &json!("tunnel"), &json!("active"))
    );
    assert!(first["age_seconds"].as_f64().unwrap() >= first["last_bytes_seconds"].as_f64().unwrap(), "{first}");
    assert_eq!((&named[9]["client"], &named[9]["last_bytes_seconds"]), (&json!("dfdaemon"), &json!(null)));
    assert!(!late.text().contains("hunter2") && !late.text().contains("signature"), "{}", late.text());

    let _second = asking(&sidecar, "GET", &url(&stub), DFDAEMON).await;
    sidecar.until("stub", "waiting", 2).await;
    let full = get_through(sidecar.proxy(), &url(&stub), &[DFDAEMON]).await;
    let told = detail(&full);
    assert_eq!(
        (&told["reason"], &told["limited_by"], &told["position"]),
        (&json!("queue_full"), &json!("slots"), &json!(3))
    );
    assert!(full.reason().ends_with("(queue.depth = 2): all 12 slots are taken"), "{}", full.reason());
}

/// A refusal names the limit that bound, whichever it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_what_bound() {
    let patience = "[registries.stub.queue]\ntunnel_timeout = \"300ms\"";
    let refused = async |sidecar: &Sidecar, stub: &StubRegistry| {
        connect_through(sidecar.proxy(), &stub.address().to_string(), &[]).await.expect_err("a refusal")
    };

    let stub = StubRegistry::builder().start().await;
    let paused = sidecar_for(&stub, 1, patience).await;
    assert_eq!(paused.order("/registries/stub/pause").await.status(), 200);
    let answer = refused(&paused, &stub).await;
    assert_eq!(
        (&detail(&answer)["limited_by"], &detail(&answer)["expected_wait_seconds"]),
        (&json!("paused"), &json!(null))
    );
    assert!(answer.reason().ends_with(": it is paused"), "{}", answer.reason());

    let rated = sidecar_for(&stub, 5, &format!("rate_per_second = 0.01\nburst = 1\n{patience}")).await;
    let _first = tunnel(&rated, &stub, KUBELET).await;
    let answer = refused(&rated, &stub).await;
    assert_eq!(detail(&answer)["limited_by"], "rate_per_second");
    assert!(answer.reason().contains("rate_per_second"), "{}", answer.reason());

    let narrow = sidecar_for(&stub, 5, &format!("max_connecting = 1\nconnect_timeout = \"20s\"\n{patience}")).await;
    stub.listen_without_accepting().await;
    let backlog = fill(&stub).await;
    let dialling = asking(&narrow, "CONNECT", &stub.address().to_string(), KUBELET).await;
    narrow.until("stub", "connecting", 1).await;
    let answer = refused(&narrow, &stub).await;
    assert_eq!(detail(&answer)["limited_by"], "max_connecting");
    assert!(answer.reason().contains("max_connecting"), "{}", answer.reason());
    assert_eq!(detail(&answer)["holders"][0]["state"], "connecting");
    drop((backlog, dialling));

    stub.refuse().await;
    assert_eq!(paused.order("/registries/stub/resume").await.status(), 200);
    for _ in 0..2 {
        // The first dials itself; the second waits while the registry is known to be out.
        let answer = refused(&paused, &stub).await;
        assert_eq!(
            (answer.status(), &detail(&answer)["limited_by"]),
            (502, &json!("unreachable")),
            "{}",
            answer.text()
        );
        assert_eq!(
            (&detail(&answer)["slots"], &detail(&answer)["reason"]),
            (&json!(1), &json!("upstream_unreachable"))
        );
    }
}

/// Connections that the kernel accepts for a registry that does not; the next one is left without an answer.
async fn fill(stub: &StubRegistry) -> Vec<tokio::net::TcpStream> {
    let mut backlog = Vec::new();
    let a_while = Duration::from_millis(200);
    while let Ok(stream) = tokio::time::timeout(a_while, tokio::net::TcpStream::connect(stub.address())).await {
        backlog.push(stream.unwrap());
        assert!(backlog.len() < 100, "the backlog does not fill");
    }
    backlog
}

/// `/status` counts each class's and each client's requests, those with the most first, and at most a hundred clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_counts_by_class_and_by_client() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub, 3, "").await;
    let picture = async || sidecar.status().await["registries"]["stub"].take();
    let empty = picture().await;
    assert_eq!((&empty["clients"], &empty["clients_left_out"]), (&json!([]), &json!(0)));
    let _holders = [
        tunnel(&sidecar, &stub, DFDAEMON).await,
        tunnel(&sidecar, &stub, DFDAEMON).await,
        tunnel(&sidecar, &stub, KUBELET).await,
    ];
    let mut waiting = vec![asking(&sidecar, "GET", &url(&stub), KUBELET).await];
    for number in 0..110 {
        let name = format!("Proxy-Authorization: Basic {}", in_base64(&format!("client-{number:04}:x")));
        waiting.push(asking(&sidecar, "GET", &url(&stub), &name).await);
    }
    sidecar.until("stub", "waiting", 111).await;
    let full = picture().await;
    assert_eq!(full["classes"]["interactive"], json!({"waiting": 1, "holding": 1}));
    assert_eq!(full["classes"]["default"], json!({"waiting": 110, "holding": 2}));
    let clients = full["clients"].as_array().unwrap();
    let of = |client: &str, class: &str, waiting: usize, holding: usize| json!({"client": client, "class": class, "waiting": waiting, "holding": holding});
    assert_eq!(clients[0], of("dfdaemon", "default", 0, 2));
    assert_eq!(clients[1], of("kubelet", "interactive", 1, 1));
    assert_eq!(clients[2], of("client-0000", "default", 1, 0));
    assert_eq!((clients.len(), &full["clients_left_out"]), (100, &json!(12)));
}

/// Base64 of a text whose length is a multiple of three.
fn in_base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let padded: Vec<u8> = text.bytes().chain(std::iter::repeat_n(b'x', (3 - text.len() % 3) % 3)).collect();
    let groups = padded.chunks(3).map(|bytes| bytes.iter().fold(0, |word, byte| word << 8 | usize::from(*byte)));
    groups.flat_map(|word| [18, 12, 6, 0].map(|shift| char::from(DIGITS[word >> shift & 63]))).collect()
}

/// A peer that vanished without a word is asked for: on the client's connection and on the registry's, the kernel's
/// timer runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_connections_of_a_tunnel_are_watched_by_keep_alive() {
    let stub = StubRegistry::builder().start().await;
    let sidecar = sidecar_for(&stub, 1, "").await;
    let wire = tunnel(&sidecar, &stub, KUBELET).await;
    let client = wire.stream().local_addr().unwrap();
    for peer in [client, stub.address()] {
        // The sidecar's own end: its peer is the client, or the registry.
        let arguments = ["-tnoH", "state", "established", "dst", &peer.to_string()];
        let listed = std::process::Command::new(find_program("ss")).args(arguments).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(listed.lines().count(), 1, "{listed}");
        let timer = listed.split_once("timer:(keepalive,").unwrap_or_else(|| panic!("no timer: {listed}")).1;
        let seconds: u32 = timer.split_once("sec").expect("seconds").0.parse().expect("seconds");
        assert!((20..=30).contains(&seconds), "{listed}");
    }
}
