//! The command line: exit statuses, what is printed where, and what is never printed.

use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use roadstead_test_support::{
    Sidecar, StubRegistry, Wire, config, connect_through, eventually_is, get_through, on_terminal,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

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

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).unwrap())).expect("it was not waited for");
    kill_process(pid, signal).unwrap();
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
    const COMMANDS: [&str; 13] = [
        "run",
        "check",
        "calibrate",
        "status",
        "queue",
        "why",
        "pause",
        "resume",
        "reload",
        "plan",
        "debug",
        "completions",
        "man",
    ];
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
    assert_eq!(away.stderr.matches(&admin).count(), 1, "{}", away.stderr);
    let nowhere = roadstead(&["status", "--config", "absent.toml"]).await;
    assert_eq!(nowhere.status, Some(2), "a config that is named must be there");
    assert!(nowhere.stderr.contains("--admin URL"), "{}", nowhere.stderr);
}

/// A wrong name is reported before any sidecar is asked.
#[tokio::test]
async fn a_wrong_address_or_name_is_wrong_usage() {
    for (admin, told) in [
        ("https://127.0.0.1:4129", "plain HTTP"),
        ("127.0.0.1", "port is missing"),
        ("http://127.0.0.1:4129/status", "no path"),
    ] {
        let run = roadstead(&["status", "--admin", admin]).await;
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{admin}");
        assert!(run.stderr.contains(told) && run.stderr.contains(admin), "{}", run.stderr);
    }
    for name in ["a b", "", "../../status", "harbor/pause HTTP/1.1"] {
        let run = roadstead(&["pause", name, "--admin", "127.0.0.1:1"]).await;
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{name}");
        assert!(run.stderr.contains("no registry's name"), "{}", run.stderr);
    }
}

/// On a node where the config stands elsewhere, or nowhere, the usual address is asked.
#[tokio::test]
async fn status_needs_no_config() {
    let run = roadstead(&["status"]).await;
    // The tester may have a sidecar of their own there.
    assert!(run.status == Some(0) || run.stderr.contains("127.0.0.1:4129: "), "{}", run.stderr);
}

/// Output that cannot be written is a failure that is told, and a reader that has seen enough is none; neither is a panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_and_a_closed_pipe_are_no_reason_to_panic() {
    let registry = "[registries.stub]\nhosts = [\"harbor.example.com\"]\ncap = 3\nshare = 1";
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(registry)).await;
    let (admin, file) = (sidecar.admin().to_string(), sidecar.config_path().display().to_string());
    let with_control = format!("{file}.control");
    let control = format!("[listen]\ncontrol = \"{}\"\n", sidecar.control().display());
    std::fs::write(&with_control, control + registry).unwrap();
    let commands: [&[&str]; 7] = [
        &["check", "--config", &file],
        &["status", "--admin", &admin],
        &["status", "--json", "--admin", &admin],
        &["status", "--watch", "--admin", &admin],
        &["pause", "stub", "--config", &with_control],
        &["completions", "bash"],
        &["man"],
    ];
    for command in commands {
        for (pipe, status, told) in [("> /dev/full", "1", "standard output: No space left"), ("| true", "0", "")] {
            // The reader has gone before a word is printed.
            let script = format!("set -o pipefail; {{ sleep 0.1; \"$0\" \"$@\"; echo \"ended with $?\" >&2; }} {pipe}");
            let run = Command::new("bash")
                .args(["-c", &script, env!("CARGO_BIN_EXE_roadstead")])
                .args(command)
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output();
            let run = tokio::time::timeout(SOON, run).await.expect("an end").unwrap();
            let said = String::from_utf8_lossy(&run.stderr).into_owned();
            assert!(said.contains(told) && !said.contains("panicked"), "{command:?} {pipe}: {said}");
            assert!(said.trim().ends_with(&format!("ended with {status}")), "{command:?} {pipe}: {said}");
        }
    }
}

/// The output of `roadstead` with these arguments on a terminal of so many rows and columns.
async fn on_a_terminal(size: (usize, usize), env: &[(&str, &str)], arguments: &[&str]) -> String {
    let mut run = on_terminal(size, ("roadstead", 3), env!("CARGO_BIN_EXE_roadstead"));
    let run = run.args(arguments).envs(env.iter().copied()).output();
    let run = tokio::time::timeout(SOON, run).await.expect("an end").unwrap();
    assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stdout));
    String::from_utf8(run.stdout).unwrap().replace("\r\n", "\n")
}

/// In a terminal the table is coloured, unless that is not wanted or not understood; `--watch` keeps to the window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_gets_colours_and_no_more_than_it_can_show() {
    let registries = (0..9)
        .map(|number| format!("[registries.r{number}]\nhosts = [\"h{number}.example.com\"]\ncap = 9\nshare = 1\n"));
    let registries = registries.collect::<Vec<_>>().concat();
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&registries)).await;
    let admin = sidecar.admin().to_string();
    let status = ["status", "--admin", &admin];
    let watch = ["status", "--watch", "--admin", &admin];
    let size = (24, 60);

    let coloured = on_a_terminal(size, &[], &status).await;
    assert!(coloured.contains("\x1b[32mopen\x1b[0m"), "{coloured:?}");
    assert!(!coloured.contains("\x1b[2J") && coloured.contains("r8"), "all of it, for the scrollback: {coloured:?}");
    for env in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_a_terminal(size, &[env], &status).await;
        assert!(!plain.contains('\x1b') && plain.contains("r8"), "{env:?}: {plain:?}");
    }

    for (env, coloured) in [(("NO_COLOR", ""), true), (("NO_COLOR", "1"), false)] {
        let watched = on_a_terminal(size, &[env], &watch).await;
        let pictures: Vec<&str> = watched.split("\x1b[H\x1b[2J").filter(|picture| !picture.is_empty()).collect();
        assert!(pictures.len() >= 3, "{watched:?}");
        for picture in pictures {
            assert!(picture.lines().count() < size.0, "{picture}");
            assert!(picture.contains("more registries"), "{picture}");
            let mut bare = picture.to_owned();
            for code in [0, 1, 2, 31, 32, 33, 34, 35] {
                bare = bare.replace(&format!("\x1b[{code}m"), "");
            }
            assert!(bare.lines().all(|line| line.chars().count() <= size.1), "{bare}");
            assert_eq!(picture.contains('\x1b'), coloured, "{env:?}");
        }
    }
    let dumb = on_a_terminal(size, &[("TERM", "dumb")], &watch).await;
    assert!(!dumb.contains('\x1b'), "{dumb:?}");
}

/// `--watch --json` is for programs: each line is an object, whatever stands on the other side; what fails is told apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watched_json_is_an_object_a_line() {
    let registry = "[registries.stub]\nhosts = [\"harbor.example.com\"]\ncap = 3\nshare = 1";
    let mut sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(registry)).await;
    let mut watch = Command::new(env!("CARGO_BIN_EXE_roadstead"))
        .args(["status", "--watch", "--json", "--admin", &sidecar.admin().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("a line").unwrap().expect("no end");
        let status: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(status["registries"]["stub"]["slots"], 3);
    }
    let mut said = BufReader::new(watch.stderr.take().unwrap()).lines();
    sidecar.terminate();
    assert!(sidecar.wait().await.success());
    let line = tokio::time::timeout(SOON, said.next_line()).await.expect("a line").unwrap().expect("no end");
    assert!(line.contains(&sidecar.admin().to_string()), "{line}");
    while let Ok(Ok(Some(line))) = tokio::time::timeout(Duration::from_millis(1500), lines.next_line()).await {
        assert!(line.starts_with('{'), "{line}");
    }
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
    signal(&watch, Signal::INT);
    let ended = tokio::time::timeout(SOON, watch.wait()).await.expect("an end").unwrap();
    assert_eq!(ended.code(), Some(0));
}

/// Nobody reads the log any more, as behind a disk that is full: the pipe holds 64 KiB, and every request is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stops_no_request() {
    const REQUESTS: usize = 600;
    let stub = StubRegistry::builder().blob_size(64).start().await;
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 3\nshare = 1", stub.address());
    let (_folder, path) = file(&config(&registry));
    let mut sidecar = Command::new(env!("CARGO_BIN_EXE_roadstead"))
        .args(["--config", &path])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(sidecar.stderr.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("a line").unwrap()?;
        Some(serde_json::from_str::<serde_json::Value>(&line).unwrap()["fields"].take())
    };
    let proxy = loop {
        let fields = next().await.expect("it starts");
        if fields["listener"] == "proxy" {
            break fields["address"].as_str().unwrap().parse().unwrap();
        }
    };
    let url = format!("http://{}/v2/", stub.address());
    for number in 0..REQUESTS {
        let answer = tokio::time::timeout(SOON, get_through(proxy, &url, &[])).await;
        assert_eq!(answer.unwrap_or_else(|_| panic!("request {number} hangs")).head.status(), 200);
    }
    signal(&sidecar, Signal::TERM);
    let mut finished = 0;
    while let Some(fields) = next().await {
        finished += usize::from(fields["message"] == "finished");
    }
    assert_eq!(finished, REQUESTS, "lines are lost");
    assert_eq!(tokio::time::timeout(SOON, sidecar.wait()).await.expect("an end").unwrap().code(), Some(0));
}

/// `check` prints the slots of every registry, how they come about, and where each value came from.
#[tokio::test]
async fn check_prints_the_slots_of_each_registry() {
    let (_folder, path) = file(GOOD);
    let line_of = |start: &str| GOOD.lines().position(|line| line.starts_with(start)).unwrap() + 1;
    for arguments in [["check", "--config", &path], ["--config", &path, "check"]] {
        let run = roadstead(&arguments).await;
        // The values that are set, each with its place, behind the slots.
        let set: Vec<&str> = run.stdout.lines().skip(2).collect();
        assert!(set.contains(&&*format!("registries.mirror.cap = 7, from {path}:{}", line_of("cap = 7"))), "{set:?}");
        assert!(set.iter().all(|line| line.contains(&format!(", from {path}:"))), "{set:?}");
        let arguments = [&arguments[..], &["--values"]].concat();
        let run = roadstead(&arguments).await;
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
        let lines: Vec<&str> = run.stdout.lines().collect();
        assert_eq!(
            lines[..2],
            ["registry harbor: 10 slots (cap 200 x share 1/20)", "registry mirror: 7 slots (cap 7 x share 1)"]
        );
        // Then each value, with where it came from.
        let line = line_of("cap = 200");
        for told in [
            format!("registries.harbor.cap = 200, from {path}:{line}"),
            "registries.harbor.queue.depth = 10000, by default".to_owned(),
            "listen.admin = 127.0.0.1:4129, by default".to_owned(),
        ] {
            assert!(lines.contains(&&*told), "{told}\n{}", run.stdout);
        }
        let origins = [", by default", &format!(", from {path}:")];
        let strays: Vec<_> = lines[2..].iter().filter(|line| !origins.iter().any(|it| line.contains(it))).collect();
        assert!(strays.is_empty(), "{strays:?}");
    }
}

/// A variable sets a key in place of the file, and `check` names it; one that sets no key is an error.
#[tokio::test]
async fn check_prints_the_settings_of_the_environment() {
    let (_folder, path) = file(GOOD);
    let check = |name: &str, text: &str| {
        let run =
            Command::new(env!("CARGO_BIN_EXE_roadstead")).args(["check", "--config", &path]).env(name, text).output();
        async { run.await.unwrap() }
    };
    let output = check("ROADSTEAD__registries__harbor__cap", "400").await;
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.starts_with("registry harbor: 20 slots (cap 400 x share 1/20)\n"), "{printed}");
    let line = "registries.harbor.cap = 400, from the environment: ROADSTEAD__registries__harbor__cap\n";
    assert!(printed.contains(line), "{printed}");
    let output = check("ROADSTEAD__registries__harbour__cap", "400").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("ROADSTEAD__registries__harbour__cap: sets no key"));
    // A text that is none is not overlooked.
    let mut no_text = Command::new(env!("CARGO_BIN_EXE_roadstead"));
    let value = std::ffi::OsStr::from_bytes(b"40\xff");
    no_text.args(["check", "--config", &path]).env("ROADSTEAD__registries__harbor__cap", value);
    let output = no_text.output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("(set by ROADSTEAD__registries__harbor__cap)"));
}

/// A setting that is allowed but probably a mistake is a warning beside the slots, and no failure.
#[tokio::test]
async fn check_warns_of_a_wait_that_outlasts_the_clients() {
    let (_folder, path) = file(&format!("{GOOD}\n[registries.mirror.queue]\ntunnel_timeout = \"55s\"\n"));
    let run = roadstead(&["check", "--config", &path]).await;
    assert_eq!(run.status, Some(0));
    assert_eq!(run.stdout.lines().filter(|line| line.starts_with("registry ")).count(), 2);
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
            (13, "lease.nodes", ""),
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
    for (arguments, name) in
        [(vec!["--config", "/no/such/file.toml"], "/no/such/file.toml"), (vec![], "/etc/roadstead/sidecar.toml")]
    {
        for command in ["check", "run"] {
            let run = roadstead(&[&arguments[..], &[command]].concat()).await;
            assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""));
            assert!(run.stderr.contains(name), "{}", run.stderr);
            assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
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
    assert!(run.stdout.starts_with("registry harbor: 10 slots (cap 200 x share 1/20)\n"), "{}", run.stdout);
    assert_eq!(run.stdout.lines().count(), 4, "and the three values of the file: {}", run.stdout);
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

/// The tar for a bug report has all pages and the settings, and no secret of the config, the environment or a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tar_for_a_bug_report_has_all_and_no_secret() {
    const SECRET: &str = "hunter2-hunter2-hunter2";
    let stub = StubRegistry::builder().start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, SECRET).unwrap();
    let registry = format!("[registries.stub]\nhosts = [\"{}\"]\ncap = 3\nshare = 1", stub.address());
    let listen = format!("[listen]\ncontrol_token_file = \"{}\"\n", token.display());
    let text = config(&registry).replace("[listen]\n", &listen);
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &text).await;
    let url = format!("http://{}/v2/library/app/manifests/1?sig={SECRET}", stub.address());
    let headers = [
        format!("Authorization: Bearer {SECRET}"),
        "Proxy-Authorization: Basic azpodW50ZXIyLWh1bnRlcjItaHVudGVyMg==".to_owned(),
    ];
    get_through(sidecar.proxy(), &url, &[&headers[0], &headers[1]]).await;
    let output = folder.path().join("report.tar");
    let (file, admin) = (sidecar.config_path(), sidecar.admin().to_string());
    let arguments =
        ["debug", "dump", "--config", file.to_str().unwrap(), "--admin", &admin, "--output", output.to_str().unwrap()];
    let run = roadstead(&arguments).await;
    assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
    let names = std::process::Command::new("tar").arg("tf").arg(&output).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    for name in
        ["README.txt", "version.txt", "status.json", "queue.json", "history.json", "metrics.txt", "settings.txt"]
    {
        assert!(names.contains(&format!("roadstead-debug/{name}\n")), "{names}");
    }
    let held = std::fs::read(&output).unwrap();
    let held = String::from_utf8_lossy(&held);
    for told in
        ["\"slots\": 3", "roadstead_slots{registry=\"stub\"} 3", "registries.stub.cap = 3, from line", "Max open files"]
    {
        assert!(held.contains(told), "no {told}");
    }
    for secret in [SECRET, "azpodW50ZXIy"] {
        assert!(!held.contains(secret), "{secret}");
    }
    // It names repositories and clients: nobody else reads it, and nothing is written over.
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&output).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(roadstead(&arguments).await.status, Some(1));
}
