//! The examples on the pages, run: blocks of `toml test` by the parser, blocks of `sh test` by a shell, beside a sidecar.

use std::fs;
use std::process::Stdio;

use roadstead::config::Config;
use roadstead_test_support::Sidecar;
use tokio::process::Command;

use crate::page::{pages, text_of};

/// What an example may call, so that none does harm.
const COMMANDS: [&str; 3] = ["roadstead", "curl", "grep"];

#[test]
fn every_config_on_the_pages_holds() {
    let mut configs = 0;
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.kind == "toml test") {
            let config = Config::parse(&block.text);
            let config = config.unwrap_or_else(|problems| panic!("{}: {problems}", page.place(block)));
            assert!(config.warnings.is_empty(), "{}: {:?}", page.place(block), config.warnings);
            configs += 1;
        }
    }
    assert!(configs >= 6, "found only {configs}");
}

/// Each succeeds, and prints what the block of output after it says, if there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_on_the_pages_does_what_it_says() {
    let shipped = text_of("sidecar.toml");
    let free = "[log]\nformat = \"json\"\n[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let started = shipped.replacen("[log]\n", "", 1).replacen("[listen]\n", free, 1);
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &started).await;
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("[listen]\nproxy = \"{}\"\nadmin = \"{}\"\n", sidecar.proxy(), sidecar.admin());
    fs::write(folder.path().join("sidecar.toml"), shipped.replacen("[listen]\n", &listen, 1)).unwrap();

    let mut commands = 0;
    for page in pages() {
        let blocks = page.blocks();
        for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.kind == "sh test") {
            let script = block.text.replace("127.0.0.1:4128", &sidecar.proxy().to_string());
            let script = script.replace("127.0.0.1:4129", &sidecar.admin().to_string());
            let place = page.place(block);
            for part in script.lines().flat_map(|line| line.split(" #").next().unwrap().split('|')) {
                let command = part.split_whitespace().next().unwrap_or_default();
                assert!(COMMANDS.contains(&command), "{place}: {command:?} is not for an example that is run");
            }
            let printed = run(&script, folder.path()).await.unwrap_or_else(|error| panic!("{place}: {error}"));
            if let Some(expected) = blocks.get(index + 1).filter(|block| block.kind == "text output") {
                assert_eq!(printed, expected.text, "{place}");
            }
            commands += 1;
        }
    }
    assert!(commands >= 4, "found only {commands}");
}

/// Runs a script that must succeed, with our own binary in reach; what it printed.
async fn run(script: &str, folder: &std::path::Path) -> Result<String, String> {
    let binaries = std::path::Path::new(env!("CARGO_BIN_EXE_roadstead")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap_or_default());
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", script]).current_dir(folder).env("PATH", path).env_remove("http_proxy");
    let output = bash.stdin(Stdio::null()).output().await.map_err(|error| error.to_string())?;
    let [printed, said] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() { Ok(printed) } else { Err(format!("{}: {printed}{said}", output.status)) }
}
