//! Random exchanges between clients of another make (Python's http.client, curl, Go's net/http) and a recording origin that
//! answers early, late, in HTTP/1.0, in chunks with trailers, with informational answers, or cut: no body is lost, doubled or
//! shortened unnoticed.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use roadstead_test_support::real::not_run;
use roadstead_test_support::{Sidecar, config};
use tempfile::TempDir;

const EXCHANGES: usize = 10_000;

/// The script is client, origin and judge; see there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_is_lost_doubled_or_shortened_unnoticed() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exchanges/exchanges.py");
    let seed = std::process::id();
    let folder = TempDir::new().unwrap();
    let go = go_client(folder.path());
    let mut judge = Command::new("python3")
        .args([script, &seed.to_string(), &EXCHANGES.to_string()])
        .args(&go)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let (mut told, mut port) = (BufReader::new(judge.stdout.take().unwrap()), String::new());
    told.read_line(&mut port).unwrap();
    let address = format!("127.0.0.1:{}", port.trim());
    let table = format!(
        "[registries.stub]\nhosts = [\"{address}\"]\ncap = 40\nshare = 1\n[registries.stub.mirror]\n\
         listen = \"127.0.0.1:0\"\nupstream = \"http://{address}\"\n[registries.stub.repair]\nenabled = false\n"
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
    writeln!(judge.stdin.take().unwrap(), "{} {}", sidecar.proxy(), sidecar.listener("mirror").unwrap()).unwrap();
    let mut verdict = String::new();
    told.read_to_string(&mut verdict).unwrap();
    assert!(judge.wait().unwrap().success(), "{verdict}");
    println!("{verdict}");
}

/// Builds the program of client.go; its first build compiles the standard library.
fn go_client(folder: &Path) -> Option<String> {
    let (source, program) = (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exchanges/client.go"), folder.join("client"));
    let built = Command::new("go")
        .arg("build")
        .arg("-o")
        .arg(&program)
        .arg(source)
        .current_dir(folder)
        .envs([("GOTOOLCHAIN", "local"), ("GOPROXY", "off"), ("GOFLAGS", ""), ("CGO_ENABLED", "0")])
        .output();
    match built {
        Ok(built) if built.status.success() => return Some(program.display().to_string()),
        Ok(built) => not_run(&format!("Go's client: {}", String::from_utf8_lossy(&built.stderr))),
        Err(error) => not_run(&format!("Go's client: go does not start: {error}")),
    }
    None
}
