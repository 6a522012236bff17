//! Random exchanges between clients of another make (Python's http.client, curl) and a recording origin that answers early,
//! in HTTP/1.0, in chunks with trailers, with informational answers, or cut: no body is lost, doubled or shortened unnoticed.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use roadstead_test_support::{Sidecar, config};

const EXCHANGES: usize = 10_000;

/// The script is client, origin and judge; see there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_is_lost_doubled_or_shortened_unnoticed() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exchanges/exchanges.py");
    let seed = std::process::id();
    let mut judge = Command::new("python3")
        .args([script, &seed.to_string(), &EXCHANGES.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let (mut told, mut port) = (BufReader::new(judge.stdout.take().unwrap()), String::new());
    told.read_line(&mut port).unwrap();
    let address = format!("127.0.0.1:{}", port.trim());
    let table = format!(
        "[registries.stub]\nhosts = [\"{address}\"]\ncap = 8\nshare = 1\n[registries.stub.mirror]\n\
         listen = \"127.0.0.1:0\"\nupstream = \"http://{address}\"\n[registries.stub.repair]\nenabled = false\n"
    );
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &config(&table)).await;
    writeln!(judge.stdin.take().unwrap(), "{} {}", sidecar.proxy(), sidecar.listener("mirror").unwrap()).unwrap();
    let mut verdict = String::new();
    told.read_to_string(&mut verdict).unwrap();
    assert!(judge.wait().unwrap().success(), "{verdict}");
    println!("{verdict}");
}
