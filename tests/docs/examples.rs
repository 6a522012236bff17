//! The examples on the pages, run: blocks of `toml test` (a whole config) and `toml part` (some tables of one) by `roadstead
//! check`, blocks of `sh test` by a shell, beside a sidecar. Files of other programs are parsed.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use roadstead_test_support::Sidecar;
use roadstead_test_support::real::find_program;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::page::{pages, repository, text_of};

/// The commands that an example may call, so that none does harm.
const COMMANDS: [&str; 4] = ["roadstead", "curl", "grep", "echo"];

/// The rest of a config, for a block that is only a part.
const LEAST: &str = "[registries.harbor]\nhosts = [\"harbor.example.com\"]\ncap = 10\nshare = 1\n";
/// The file that configs on the pages name.
const AUTHORITY: &str = "/etc/ssl/harbor-ca.pem";

#[tokio::test]
async fn every_config_on_the_pages_holds() {
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.pem");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(&authority, made.cert.pem()).unwrap();
    let mut configs = BTreeMap::new();
    for page in pages() {
        for block in page.blocks() {
            let place = page.place(&block);
            let before = match block.kind.as_str() {
                "toml test" => "",
                "toml part" => LEAST,
                "toml" => {
                    let ours = ["[registries.", "[listen]", "[classes."].iter().any(|table| block.text.contains(table));
                    assert!(!ours, "{place}: a config of ours: toml test, or toml part");
                    continue;
                }
                _ => continue,
            };
            let text = format!("{before}{}", block.text).replace(AUTHORITY, authority.to_str().unwrap());
            fs::write(folder.path().join("sidecar.toml"), text).unwrap();
            let said =
                run("roadstead check 2>&1", folder.path()).await.unwrap_or_else(|error| panic!("{place}: {error}"));
            assert!(!said.contains("warning") && said.contains(" slots "), "{place}: {said}");
            *configs.entry(block.kind).or_insert(0) += 1;
        }
    }
    assert!(configs["toml test"] >= 11 && configs["toml part"] >= 1, "found only {configs:?}");
}

/// `hosts.toml`, `registries.conf`, `daemon.json`, the configs of dfdaemon and nydusd: they have the form that they should.
#[tokio::test]
async fn every_file_of_others_on_the_pages_parses() {
    let mut files = BTreeMap::new();
    for page in pages() {
        for block in page.blocks() {
            let parsed = match block.kind.as_str() {
                "toml" => block.text.parse::<toml::Table>().map(drop).map_err(|error| error.to_string()),
                "json" => {
                    serde_json::from_str::<serde_json::Value>(&block.text).map(drop).map_err(|error| error.to_string())
                }
                "yaml" => yaml(&block.text).await,
                _ => continue,
            };
            parsed.unwrap_or_else(|error| panic!("{}: {error}", page.place(&block)));
            *files.entry(block.kind).or_insert(0) += 1;
        }
    }
    let found = ["toml", "json", "yaml"].map(|kind| files.get(kind).copied().unwrap_or(0));
    assert!(found.iter().zip([4, 2, 3]).all(|(found, least)| *found >= least), "found only {files:?}");
}

/// Whether this is one document of YAML, by the parser that `tests/deploy/requirements.txt` pins.
async fn yaml(text: &str) -> Result<(), String> {
    let python = find_program("kubernetes-validate").with_file_name("python3");
    let mut python = Command::new(python)
        .arg(repository("tests/deploy/yaml_to_json.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut pipe = python.stdin.take().expect("standard input is piped");
    pipe.write_all(text.as_bytes()).await.map_err(|error| error.to_string())?;
    drop(pipe);
    let output = python.wait_with_output().await.map_err(|error| error.to_string())?;
    let documents: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    match &documents[..] {
        [document] if document.is_object() => Ok(()),
        other => Err(format!("not one mapping: {other:?}")),
    }
}

/// Each succeeds, and prints what the block of output after it says, if there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_on_the_pages_does_what_it_says() {
    let shipped = text_of("sidecar.toml");
    let free = "[log]\nformat = \"json\"\n[listen]\nproxy = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    let started = shipped.replacen("[log]\n", "", 1).replacen("[listen]\n", free, 1);
    let sidecar = Sidecar::start(env!("CARGO_BIN_EXE_roadstead"), &started).await;
    let folder = tempfile::tempdir().unwrap();
    let (proxy, admin, control) = (sidecar.proxy(), sidecar.admin(), sidecar.control());
    let control = control.display();
    let listen = format!("[listen]\nproxy = \"{proxy}\"\nadmin = \"{admin}\"\ncontrol = \"{control}\"\n");
    // At the end: the lines before are those of the shipped file.
    let shipped = shipped.replacen("[listen]\n", "\n", 1);
    fs::write(folder.path().join("sidecar.toml"), format!("{shipped}\n{listen}")).unwrap();

    let mut commands = 0;
    for page in pages() {
        let blocks = page.blocks();
        for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.kind == "sh test") {
            let script = block.text.replace("127.0.0.1:4128", &sidecar.proxy().to_string());
            let script = script.replace("127.0.0.1:4129", &sidecar.admin().to_string());
            let place = page.place(block);
            let parts = script.lines().flat_map(|line| line.split(" #").next().unwrap().split('|'));
            // Between the bars of `||` is nothing.
            for part in parts.filter(|part| !part.is_empty()) {
                let command = part.split_whitespace().next().unwrap_or_default();
                assert!(COMMANDS.contains(&command), "{place}: {command:?} is not for an example that is run");
            }
            let printed = run(&script, folder.path()).await.unwrap_or_else(|error| panic!("{place}: {error}"));
            if let Some(expected) = blocks.get(index + 1).filter(|block| block.kind == "text output") {
                // The addresses of this sidecar are not those of the page.
                let printed: Vec<&str> = printed.lines().filter(|line| !line.starts_with("listen.")).collect();
                assert_eq!(printed, expected.text.lines().collect::<Vec<_>>(), "{place}");
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
