//! Orders: who may pause, resume and reload, on the control socket and on TCP.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use roadstead_test_support::{Sidecar, Wire, config, eventually, order};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BINARY: &str = env!("CARGO_BIN_EXE_roadstead");
const REGISTRY: &str = "[registries.stub]\nhosts = [\"harbor.example.com\"]\ncap = 1\nshare = 1\n";
const PAUSE: &str = "/registries/stub/pause";
const SOON: Duration = Duration::from_secs(30);
/// Users that nobody has.
const OWN: u32 = 61_234;
const OTHER: u32 = 61_235;

async fn paused(sidecar: &Sidecar) -> bool {
    sidecar.status().await["registries"]["stub"]["paused"] == true
}

async fn start(listen: &str) -> Sidecar {
    Sidecar::start(BINARY, &config(REGISTRY).replace("[listen]\n", &format!("[listen]\n{listen}\n"))).await
}

/// A process that ends with its test, also with one that failed.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that every user may enter.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// A command as this user, who has no group and no capability.
fn as_user(uid: u32, program: &str) -> Command {
    let (user, group) = (format!("--reuid={uid}"), format!("--regid={uid}"));
    let mut command = Command::new("setpriv");
    command.args([&user, &group, "--clear-groups", program]).env_remove("RUNTIME_DIRECTORY").env_remove("RUST_LOG");
    command.stdin(Stdio::null());
    command
}

fn told(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned())
}

/// A sidecar of an unprivileged user obeys that user and root. The kernel names the user; the mode of the file lets all in.
/// It runs as root, as the tests do in CI: only root can be somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_root_and_the_own_user_may_order_on_the_socket() {
    assert!(rustix::process::geteuid().is_root(), "this test takes the part of other users: run it as root");
    let folder = open_folder();
    let (socket, file) = (folder.path().join("control.sock"), folder.path().join("sidecar.toml"));
    let [proxy, admin] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let listen = format!("[listen]\nproxy = \"{proxy}\"\nadmin = \"{admin}\"\ncontrol = \"{}\"\n", socket.display());
    fs::write(&file, listen + REGISTRY).unwrap();
    let file = file.to_str().unwrap();
    let mut sidecar = as_user(OWN, BINARY);
    let _sidecar = Ended(sidecar.args(["--config", file]).stderr(Stdio::null()).spawn().unwrap());
    let status = async || -> serde_json::Value {
        let answer = Wire::open(admin).await.unwrap().get("/status", &[]).await.unwrap();
        answer.json()["registries"]["stub"]["paused"].take()
    };
    eventually("the socket", SOON, async || tokio::net::UnixStream::connect(&socket).await.map(drop)).await;

    let as_other = |args: &[&str]| told(&as_user(OTHER, BINARY).args(args).output().unwrap());
    for what in [["pause", "stub"].as_slice(), &["resume", "stub"], &["reload"]] {
        let (code, told) = as_other(&[what, &["--config", file]].concat());
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains(&format!("403: uid {OTHER} may not")), "{told}");
    }
    // It would hold its slots meanwhile.
    let (code, calibrated) = as_other(&["calibrate", "stub", "--repository", "a/b", "--yes", "--config", file]);
    assert_eq!(code, Some(1), "{calibrated}");
    assert!(calibrated.contains("the sidecar that runs here cannot be paused: ") && calibrated.contains("403: uid"));
    // Nor may it read there, whatever it asks.
    let read =
        as_user(OTHER, "curl").args(["-s", "--unix-socket", socket.to_str().unwrap(), "http://x/queue"]).output();
    assert!(told(&read.unwrap()).1.contains("may not use this socket"));
    assert_eq!(status().await, false);

    let own = told(&as_user(OWN, BINARY).args(["pause", "stub", "--config", file]).output().unwrap());
    assert_eq!(own, (Some(0), "registry stub: paused\n".to_owned()));
    assert_eq!(status().await, true);
    let root = told(&Command::new(BINARY).args(["resume", "stub", "--config", file]).output().unwrap());
    assert_eq!(root, (Some(0), "registry stub: resumed\n".to_owned()));
    assert_eq!(status().await, false);
}

/// On TCP, also on loopback and for root, nothing changes without the token, and everything with it.
#[tokio::test]
async fn on_tcp_only_the_token_orders() {
    const TOKEN: &str = "a-token-of-the-operator";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let guarded = start(&format!("control_token_file = \"{}\"", file.display())).await;
    let ask = async |sidecar: &Sidecar, path: &str, header: &str| {
        let mut wire = Wire::open(sidecar.admin()).await.unwrap();
        wire.ask("POST", path, &[header, "Content-Length: 0"]).await.unwrap()
    };
    let origin = format!("Origin: http://{}", guarded.admin());
    let token = format!("Authorization: Bearer {TOKEN}");
    for header in ["X: y", &origin, "Authorization: Bearer a-token-of-the-operatos", "Authorization: Bearer"] {
        for path in [PAUSE, "/registries/stub/resume", "/registries/nobody/pause", "/reload"] {
            let answer = ask(&guarded, path, header).await;
            assert_eq!(answer.status(), 403, "{path} {header}");
            assert!(answer.text().contains("control socket"), "{}", answer.text());
        }
    }
    assert!(!paused(&guarded).await);
    let without = start("").await;
    assert_eq!(ask(&without, PAUSE, &token).await.status(), 403);
    assert!(!paused(&without).await);

    assert_eq!(ask(&guarded, PAUSE, &token).await.status(), 200);
    assert!(paused(&guarded).await);
    // Another secret under the same name holds from the next order on.
    fs::write(&file, "another-token-of-the-operator").unwrap();
    assert_eq!(ask(&guarded, "/registries/stub/resume", &token).await.status(), 403);
    assert!(paused(&guarded).await);
    // The command takes the token from the file that the config names.
    let (config, admin) = (guarded.config_path().display().to_string(), guarded.admin().to_string());
    let run = Command::new(BINARY).args(["resume", "stub", "--config", &config, "--admin", &admin]).output().unwrap();
    assert_eq!(told(&run), (Some(0), "registry stub: resumed\n".to_owned()));
    assert!(!paused(&guarded).await);
    for word in [TOKEN, "another-token"] {
        assert!(!guarded.log_text().contains(word), "the log has the token");
        assert!(!guarded.ask_admin("GET", "/status").await.text().contains(word), "the status has the token");
    }
}

/// An order is a POST: a link that somebody follows, or a check that asks for it, pauses nothing, whoever asks.
#[tokio::test]
async fn only_a_post_is_an_order() {
    let sidecar = start("").await;
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        for path in [PAUSE, "/reload"] {
            let mut socket = UnixStream::connect(sidecar.control()).await.unwrap();
            let head = format!("{method} {path} HTTP/1.1\r\nHost: roadstead\r\nConnection: close\r\n\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
        }
    }
    assert!(!paused(&sidecar).await);
    assert!(!sidecar.log_text().contains("ordered"), "{}", sidecar.log_text());
}

/// A reload that is ordered answers with its result, and a refused one with the problem.
#[tokio::test]
async fn a_reload_is_ordered_and_answered() {
    let sidecar = start("").await;
    let file = sidecar.config_path();
    let text = fs::read_to_string(&file).unwrap();
    let reload = || {
        let socket = sidecar.control().parent().unwrap().to_owned();
        let mut command = Command::new(BINARY);
        command.args(["reload", "--config", file.to_str().unwrap()]).env("RUNTIME_DIRECTORY", socket);
        told(&command.output().unwrap())
    };
    assert_eq!(reload(), (Some(0), "the config was read again: 0 changes\n".to_owned()));
    fs::write(&file, text.replace("cap = 1", "cap = 7")).unwrap();
    assert_eq!(reload(), (Some(0), "the config was read again: 2 changes\n".to_owned()));
    assert_eq!(sidecar.status().await["registries"]["stub"]["slots"], 7);
    fs::write(&file, text.replace("cap = 1", "cap = 7\nconnect_timeout = \"4s\"")).unwrap();
    assert_eq!(reload(), (Some(0), "the config was read again: 1 change\n".to_owned()));
    fs::write(&file, text.replace("cap = 1", "cap = 0")).unwrap();
    let (code, told) = reload();
    assert!(code == Some(1) && told.contains("registries.stub.cap") && told.contains("409"), "{told}");
    assert_eq!(sidecar.status().await["registries"]["stub"]["slots"], 7);
}

/// Whatever is wrong with the file, the commands find the running sidecar by its addresses, and it goes on with the config before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_works_while_a_reload_is_refused() {
    let sidecar = start("").await;
    let file = sidecar.config_path();
    let good = fs::read_to_string(&file).unwrap();
    let listen = format!(
        "[listen]\nproxy = \"PROXY\"\nadmin = \"{}\"\ncontrol = \"{}\"\n",
        sidecar.admin(),
        sidecar.control().display()
    );
    let run = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        told(
            &command
                .args(arguments)
                .args(["--config", file.to_str().unwrap()])
                .env_remove("RUNTIME_DIRECTORY")
                .output()
                .unwrap(),
        )
    };
    for (broken, key) in [
        (format!("{listen}{}", REGISTRY.replace("cap = 1", "cap = 0")), "registries.stub.cap"),
        (format!("{listen}{}", REGISTRY.replace("cap", "kap")), "registries.stub.kap"),
        (format!("{listen}{REGISTRY}hosts = []\n"), "hosts"),
        (format!("{listen}{REGISTRY}\n[classes.\"x\n"), "classes"),
        (format!("{REGISTRY}{listen}drain = 1\n[[[\n"), "drain"),
    ] {
        let broken = broken.replace("PROXY", "nonsense");
        fs::write(&file, &broken).unwrap();
        let (code, check) = run(&["check"]);
        assert!(code == Some(2) && check.contains(key) && check.contains("listen.proxy"), "{broken}\n{check}");
        let (code, refused) = run(&["reload"]);
        assert!(code == Some(1) && refused.contains("409"), "{broken}\n{refused}");
        let (code, status) = run(&["status"]);
        assert!(code == Some(0) && status.contains("the config before it stays in force"), "{broken}\n{status}");
        assert_eq!(run(&["pause", "stub"]), (Some(0), "registry stub: paused\n".to_owned()), "{broken}");
        assert!(paused(&sidecar).await);
        assert_eq!(run(&["resume", "stub"]), (Some(0), "registry stub: resumed\n".to_owned()), "{broken}");
        for command in [&["queue"][..], &["why", "library/nginx"]] {
            let (code, told) = run(command);
            assert!(code == Some(0) && told.contains("stub"), "{broken}\n{told}");
        }
    }
    fs::write(&file, good).unwrap();
    let mut reload = Command::new(BINARY);
    reload
        .args(["reload", "--config", file.to_str().unwrap()])
        .env("RUNTIME_DIRECTORY", sidecar.control().parent().unwrap());
    assert_eq!(told(&reload.output().unwrap()), (Some(0), "the config was read again: 0 changes\n".to_owned()));
}

/// Without a place for a socket there is none, and one line says so; a place that cannot be had is an error if it was named.
#[tokio::test]
async fn a_socket_without_a_place_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    let run = |config: &str, runtime: Option<&Path>| {
        fs::write(&file, config).unwrap();
        let mut command = Command::new("timeout");
        command.args([
            "--foreground",
            "--signal=TERM",
            "--preserve-status",
            "2",
            BINARY,
            "--config",
            file.to_str().unwrap(),
        ]);
        command.env_remove("RUST_LOG").env_remove("RUNTIME_DIRECTORY");
        if let Some(runtime) = runtime {
            command.env("RUNTIME_DIRECTORY", runtime);
        }
        told(&command.output().unwrap())
    };
    let (code, log) = run(&config(REGISTRY), None);
    assert_eq!((code, log.matches("no control socket").count()), (Some(0), 1), "{log}");
    let (code, log) = run(&config(REGISTRY), Some(&folder.path().join("absent")));
    assert_eq!((code, log.matches("no control socket").count()), (Some(0), 1), "{log}");
    let named = config(REGISTRY).replace("[listen]\n", "[listen]\ncontrol = \"/absent/control.sock\"\n");
    let (code, log) = run(&named, None);
    assert!(code == Some(2) && log.contains("listen.control: cannot listen on /absent/control.sock"), "{log}");
    for (value, told) in [("\"relative\"", "begins with /"), (&*format!("\"/{}\"", "x".repeat(103)), "103 bytes")] {
        let wrong = config(REGISTRY).replace("[listen]\n", &format!("[listen]\ncontrol = {value}\n"));
        let (code, log) = run(&wrong, None);
        assert!(code == Some(2) && log.contains("listen.control") && log.contains(told), "{log}");
    }
    // A list of folders: the first one counts. It leaves nothing behind.
    let runtime = format!("{}:/absent", folder.path().display());
    let (code, log) = run(&config(REGISTRY), Some(Path::new(&runtime)));
    assert_eq!((code, log.matches("no control socket").count()), (Some(0), 0), "{log}");
    assert!(order(&folder.path().join("control.sock"), PAUSE).await.is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the config alone");
}

/// In the folder of a config, `run`, `check`, `status`, `pause` and `reload` find it without being told, and a variable counts for
/// all of them, also over a reload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_finds_the_config_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (file, socket) = (folder.path().join("sidecar.toml"), folder.path().join("control.sock"));
    let [proxy, admin] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let listen =
        format!("[listen]\nproxy = \"{proxy}\"\nadmin = \"127.0.0.1:1\"\ncontrol = \"{}\"\n", socket.display());
    fs::write(&file, format!("{listen}{REGISTRY}")).unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(arguments).current_dir(&folder).stdin(Stdio::null()).env_remove("RUST_LOG");
        command.env("ROADSTEAD__listen__admin", admin.to_string()).env("ROADSTEAD__registries__stub__cap", "5");
        command
    };
    let run = |arguments: &[&str]| told(&command(arguments).output().unwrap());
    let _sidecar = Ended(command(&[]).stderr(Stdio::null()).spawn().unwrap());
    eventually("the socket", SOON, async || tokio::net::UnixStream::connect(&socket).await.map(drop)).await;

    let (code, check) = run(&["check", "--values"]);
    assert!(code == Some(0) && check.starts_with("registry stub: 5 slots (cap 5 x share 1)"), "{check}");
    assert!(check.contains("registries.stub.share = 1, from sidecar.toml:8\n"), "{check}");
    assert!(
        check.contains(&format!("listen.admin = {admin}, from the environment: ROADSTEAD__listen__admin\n")),
        "{check}"
    );
    assert!(check.contains("registries.stub.linger = 1s, by default\n"), "{check}");
    let slots = || {
        let (code, status) = run(&["status", "--json"]);
        assert_eq!(code, Some(0), "{status}");
        serde_json::from_str::<serde_json::Value>(&status).unwrap()["registries"]["stub"].take()
    };
    assert_eq!(slots()["slots"], 5);
    assert_eq!(run(&["pause", "stub"]), (Some(0), "registry stub: paused\n".to_owned()));
    assert_eq!(slots()["paused"], true);
    // The cap of the file still gives way to the variable; the share does not.
    fs::write(
        &file,
        format!("{listen}{}", REGISTRY.replace("cap = 1", "cap = 9").replace("share = 1", "share = \"2/5\"")),
    )
    .unwrap();
    assert!(run(&["reload"]).1.starts_with("the config was read again: "));
    assert_eq!((&slots()["slots"], &slots()["paused"]), (&2.into(), &true.into()));
    assert!(run(&["queue"]).1.starts_with("stub: no request waits, 0 of 2 slots open"));
    assert!(run(&["why", "library/nginx"]).1.starts_with("No request for library/nginx waits here."));
    let (code, told) = run(&["queue", "harbor"]);
    assert!(code == Some(1) && told.contains("there is stub"), "{told}");
}
