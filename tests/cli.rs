//! The command line: exit statuses, what is printed where, and what is never printed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use roadstead_test_support::{Sidecar, StubRegistry, Wire, config, connect_through, eventually_is, get_through};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// A run that takes longer hangs.
const SOON: Duration = Duration::from_secs(20);

/// How a run of the binary ended.
struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the binary to its end, in a folder of its own without any `sidecar.toml`.
async fn roadstead(arguments: &[&str]) -> Run {
    let folder = TempDir::new().unwrap();
    roadstead_in(folder.path(), arguments).await
}

async fn roadstead_in(folder: &Path, arguments: &[&str]) -> Run {
    let run = Command::new(env!("CARGO_BIN_EXE_roadstead"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SOON, run).await.expect("an end").expect("the binary can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Run { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// Writes a config, and hands out the folder that holds it, and its path.
fn file(text: &str) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("test.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    (folder, path)
}

const GOOD: &str = r#"
[registries.harbor]
hosts = ["harbor.example.com"]
cap = 200
share = "1/20"

[registries.mirror]
hosts = ["*.example.org", "mirror:5000"]
cap = 7
share = 1
"#;

/// `--help` names every command and the exit statuses; `--version` the version.
#[tokio::test]
async fn help_and_version_go_to_standard_output() {
    let help = roadstead(&["--help"]).await;
    assert_eq!((help.status, help.stderr.as_str()), (Some(0), ""));
    for word in ["run", "check", "status", "--config", "sidecar.toml", "Exit status", "HTTP_PROXY"] {
        assert!(help.stdout.contains(word), "no {word}:\n{}", help.stdout);
    }
    let version = roadstead(&["--version"]).await;
    assert_eq!(version.status, Some(0));
    assert_eq!(version.stdout.trim(), concat!("roadstead ", env!("ROADSTEAD_VERSION")));
    let bare = concat!("roadstead ", env!("CARGO_PKG_VERSION"));
    let commit = version.stdout.trim().strip_prefix(bare).unwrap();
    assert_eq!(commit.is_empty(), !Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists(), "{commit}");
}

/// Completions for each shell name every command; so does the manual page.
#[tokio::test]
async fn completions_and_the_manual_page_name_every_command() {
    const COMMANDS: [&str; 7] = ["run", "check", "status", "pause", "resume", "completions", "man"];
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = roadstead(&["completions", shell]).await;
        assert_eq!((script.status, script.stderr.as_str()), (Some(0), ""), "{shell}");
        for word in COMMANDS.iter().chain(&["watch", "admin"]) {
            assert!(script.stdout.contains(word), "no {word} for {shell}");
        }
    }
    assert_eq!(roadstead(&["completions", "no-such-shell"]).await.status, Some(2));
    let page = roadstead(&["man"]).await;
    assert_eq!((page.status, page.stderr.as_str()), (Some(0), ""));
    assert!(page.stdout.contains(".TH roadstead 1"), "{}", page.stdout);
    for command in COMMANDS {
        let heading = format!("\n.SS \"{command}");
        assert!(page.stdout.contains(&heading), "no {command}:\n{}", page.stdout);
    }
    for word in ["\\-\\-watch", "\\-\\-config", "Exit status", "\\fIREGISTRY\\fR"] {
        assert!(page.stdout.contains(word), "no {word}:\n{}", page.stdout);
    }
}

/// `status` shows a table without colours where it is piped; `--json` is `/status` itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_the_live_picture() {
    let stub = StubRegistry::builder().start().await;
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 3\nshare = 1", stub.address());
    let mut sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let url = format!("http://{}/v2/", stub.address());
    assert_eq!(get_through(sidecar.proxy(), &url, &[]).await.status(), 200);
    sidecar.until("stub", "idle", 1).await;
    let admin = sidecar.admin().to_string();
    for named in [admin.clone(), format!("http://{admin}/")] {
        let run = roadstead(&["status", "--admin", &named]).await;
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
        assert!(run.stdout.contains("stub  open\n  slots    [-..] 1 of 3\n"), "{}", run.stdout);
        assert!(!run.stdout.contains('\x1b'), "{:?}", run.stdout);
    }
    let run = roadstead(&["status", "--admin", &admin, "--json"]).await;
    assert_eq!(run.status, Some(0));
    let status: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(status["registries"], sidecar.status().await["registries"]);

    sidecar.terminate();
    assert!(sidecar.wait().await.success());
    let away = roadstead(&["status", "--admin", &admin]).await;
    assert_eq!((away.status, away.stdout.as_str()), (Some(1), ""));
    assert!(away.stderr.contains(&admin), "{}", away.stderr);
    let nowhere = roadstead(&["status"]).await;
    assert_eq!(nowhere.status, Some(2), "no config, no --admin");
    assert!(nowhere.stderr.contains("--admin URL"), "{}", nowhere.stderr);
}

/// `status --watch` shows one picture after the other, also across a sidecar that goes away, and ends well on Ctrl-C.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_watches_until_interrupted() {
    let registry = "[registries.stub]\nhosts = [\"harbor.example.com\"]\ncap = 3\nshare = 1";
    let mut sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(registry)).await;
    let mut watch = Command::new(env!("CARGO_BIN_EXE_roadstead"))
        .args(["status", "--watch", "--admin", &sidecar.admin().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut until = async |start: &str, times: usize| {
        let mut found = 0;
        while found < times {
            let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("a line").unwrap().expect("no end");
            found += usize::from(line.starts_with(start));
        }
    };
    until("stub  open", 2).await;
    sidecar.terminate();
    assert!(sidecar.wait().await.success());
    until(&sidecar.admin().to_string(), 1).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(watch.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = tokio::time::timeout(SOON, watch.wait()).await.expect("an end").unwrap();
    assert_eq!(ended.code(), Some(0));
}

/// `check` prints the slots of every registry, and how they come about.
#[tokio::test]
async fn check_prints_the_slots_of_each_registry() {
    let (_folder, path) = file(GOOD);
    for arguments in [["check", "--config", &path], ["--config", &path, "check"]] {
        let run = roadstead(&arguments).await;
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
        let lines: Vec<&str> = run.stdout.lines().collect();
        assert_eq!(
            lines,
            ["registry harbor: 10 slots (cap 200 x share 1/20)", "registry mirror: 7 slots (cap 7 x share 1)"]
        );
    }
}

/// What is allowed but hardly meant is a warning beside the slots, and no failure.
#[tokio::test]
async fn check_warns_of_a_wait_that_outlasts_the_clients() {
    let (_folder, path) = file(&format!("{GOOD}\n[registries.mirror.queue]\ntunnel_timeout = \"55s\"\n"));
    let run = roadstead(&["check", "--config", &path]).await;
    assert_eq!(run.status, Some(0));
    assert_eq!(run.stdout.lines().count(), 2);
    assert!(run.stderr.contains("registries.mirror.queue.tunnel_timeout"), "{}", run.stderr);
    assert!(run.stderr.contains("warning"), "{}", run.stderr);
}

/// A bad config is told whole: each problem on a line with file, line, key and reason; nothing is printed as if it held.
#[tokio::test]
async fn check_tells_every_problem_at_once() {
    let text = r#"drain_timout = "30s"

[registries.harbor]
hosts = ["harbor.example.com"]
cap = 10
share = "1/20"

[registries.other]
hosts = ["harbor.example.com"]
cap = 0
share = 1

[lease]
redis = "redis://127.0.0.1:6379/0"
"#;
    let (_folder, path) = file(text);
    for command in ["check", "run"] {
        let run = roadstead(&[command, "--config", &path]).await;
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{}", run.stderr);
        let problems = [
            (1, "drain_timout", ""),
            (6, "registries.harbor.share", "less than one slot"),
            (9, "registries.other.hosts", "claimed by"),
            (10, "registries.other.cap", ""),
            (13, "lease", ""),
        ];
        for (line, key, reason) in problems {
            let start = format!("{path}:{line}: {key}");
            let told = run.stderr.lines().any(|told| told.contains(&start) && told.contains(reason));
            assert!(told, "{start} {reason}:\n{}", run.stderr);
        }
        assert!(run.stderr.contains("10 x share 1/20 = 0.5"), "the sum:\n{}", run.stderr);
    }
}

/// A file that is not there is named; the default is `sidecar.toml` in the working directory.
#[tokio::test]
async fn a_missing_file_is_named() {
    for (arguments, name) in [(vec!["--config", "/no/such/file.toml"], "/no/such/file.toml"), (vec![], "sidecar.toml")]
    {
        for command in ["check", "run"] {
            let run = roadstead(&[&arguments[..], &[command]].concat()).await;
            assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""));
            assert!(run.stderr.contains(name), "{}", run.stderr);
        }
    }
}

/// Wrong usage is status 2, and says what is wrong.
#[tokio::test]
async fn wrong_usage_is_status_2() {
    for arguments in [&["--no-such-flag"][..], &["no-such-command"], &["--config"], &["check", "more"]] {
        let run = roadstead(arguments).await;
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(run.stderr.contains(arguments[arguments.len() - 1]), "{}", run.stderr);
    }
}

/// The config that is shipped holds, and gives the slots that its comments promise.
#[tokio::test]
async fn the_shipped_config_holds() {
    let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let run = roadstead_in(&shipped, &["check"]).await;
    assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
    assert_eq!(run.stdout, "registry harbor: 10 slots (cap 200 x share 1/20)\n");
}

/// A port that is taken: status 2, the setting and the address are named, and no other port stays bound.
#[tokio::test]
async fn a_busy_port_is_named_and_nothing_is_half_started() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap();
    // Free a moment ago; nobody else is given it so soon.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (key, other) in [("proxy", "admin"), ("admin", "proxy"), ("metrics", "admin")] {
        let third = if key == "metrics" { "proxy = \"127.0.0.1:0\"" } else { "" };
        let (_folder, path) = file(&format!("[listen]\n{key} = \"{busy}\"\n{other} = \"{free}\"\n{third}\n{GOOD}"));
        let run = roadstead(&["--config", &path]).await;
        assert_eq!(run.status, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains(&format!("listen.{key}")), "{}", run.stderr);
        assert!(run.stderr.contains(&busy.to_string()), "{}", run.stderr);
        assert!(!run.stderr.contains("listening"), "{}", run.stderr);
        TcpListener::bind(free).expect("the other port is free again");
    }
}

/// Secrets that clients send, wherever they put them, are in no line of the log, at the finest level: not those of the
/// proxy's URL, not those for the registry, not those in a target, and not in a request that is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_never_logged() {
    const SECRET: &str = "hunter2";
    /// `kubelet:hunter2` in base64.
    const BASIC: &str = "a3ViZWxldDpodW50ZXIy";
    let stub = StubRegistry::builder().start().await;
    let address = stub.address().to_string();
    let registry = format!(
        "level = \"trace\"\n[registries.stub]\nhosts = [\"{address}\"]\ncap = 2\nshare = 1\n\
         [registries.stub.mirror]\nlisten = \"127.0.0.1:0\"\nupstream = \"http://{address}\""
    );
    let mut sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registry)).await;
    let (proxy, own) = (sidecar.proxy(), format!("Proxy-Authorization: Basic {BASIC}"));
    let bearer = format!("Authorization: Bearer {SECRET}");
    let cookie = format!("Cookie: session={SECRET}");
    let headers = [own.as_str(), &bearer, &cookie];

    let signed = format!("http://{address}/v2/a/manifests/b?signature={SECRET}");
    assert_eq!(get_through(proxy, &signed, &headers).await.status(), 200);
    let mut tunnel = connect_through(proxy, &address, &headers).await.unwrap();
    assert_eq!(tunnel.get("/v2/", &[&bearer]).await.unwrap().status(), 200);
    drop(tunnel);
    let mut mirrored = Wire::open(sidecar.listener("mirror").unwrap()).await.unwrap();
    let signed = format!("/v2/a/blobs/b?signature={SECRET}");
    assert_eq!(mirrored.get(&signed, &[&bearer, &cookie]).await.unwrap().status(), 200);
    let refused = [
        ("GET", format!("http://user:{SECRET}@{address}/v2/")),
        ("GET", format!("http://user:{SECRET}@{address}/v2/?token={SECRET}")),
        ("GET", format!("https://169.254.169.254/v2/?token={SECRET}")),
        ("GET", format!("ftp://{address}/v2/?token={SECRET}")),
        ("GET", format!("http://169.254.169.254/?token={SECRET}")),
        ("GET", format!("/v2/?token={SECRET}")),
        ("CONNECT", format!("user:{SECRET}@{address}")),
        ("CONNECT", format!("{address}/?token={SECRET}")),
        ("CONNECT", format!("http://user:{SECRET}@{address}/?token={SECRET}")),
        ("CONNECT", "169.254.169.254:80".to_owned()),
    ];
    for (method, target) in &refused {
        let mut client = Wire::open(proxy).await.unwrap();
        let answer = client.ask(method, target, &headers).await.unwrap();
        assert!((400..500).contains(&answer.status()), "{method} {target}: {}", answer.status());
        assert!(!answer.head.raw().contains(SECRET) && !answer.text().contains(SECRET), "{method} {target}");
    }
    let mut garbage = Wire::open(proxy).await.unwrap();
    garbage.send(format!("Authorization: {SECRET}\r\n\r\n").as_bytes()).await.unwrap();
    assert_eq!(garbage.read_answer().await.unwrap().status(), 400);
    eventually_is("all to be recorded", SOON, refused.len() + 4, async || sidecar.finished().len()).await;
    sidecar.terminate();
    assert!(sidecar.wait().await.success());

    let log = sidecar.log_text();
    assert!(log.contains("kubelet"), "the client's name is no secret");
    for secret in [SECRET, BASIC] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(secret)).collect();
        assert_eq!(lines, [""; 0], "secrets in the log");
    }
}
