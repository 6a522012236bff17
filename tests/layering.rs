//! The arrows between modules go one way: each file uses only modules that stand below its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use roadstead_test_support::rust_files;

/// The layers from the bottom to the top. Neighbours on one level may meet only where it says so.
const LAYERS: [&[&str]; 8] = [
    &["config", "lease", "target", "address", "metrics", "kernel", "tcp", "splice", "backoff"],
    &["adapt", "admission", "distress", "observe", "repair", "reclaim"],
    &["upstream", "setup", "fleet"],
    &["proxy", "admin", "control", "explain", "debug_dump", "plan", "bypass"],
    &["tunnel"],
    &["http"],
    &["listener"],
    &["cli", "app", "calibrate", "doctor"],
];

/// Uses on one level that are part of the plan: who uses whom.
const NEIGHBOURS: [(&str, &str); 26] = [
    ("adapt", "admission"),
    ("adapt", "distress"),
    ("config", "target"),
    ("config", "lease"),
    ("lease", "config"),
    ("upstream", "fleet"),
    ("distress", "admission"),
    ("observe", "admission"),
    ("observe", "distress"),
    ("repair", "admission"),
    ("repair", "distress"),
    ("admin", "proxy"),
    ("admin", "bypass"),
    ("bypass", "proxy"),
    ("admin", "control"),
    ("control", "proxy"),
    ("proxy", "explain"),
    ("admin", "explain"),
    ("explain", "control"),
    ("explain", "bypass"),
    ("debug_dump", "control"),
    ("cli", "app"),
    ("cli", "calibrate"),
    ("calibrate", "app"),
    ("cli", "doctor"),
    ("doctor", "app"),
];

#[test]
fn modules_use_only_what_stands_below_them() {
    let levels: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(level, modules)| modules.iter().map(move |module| (*module, level)))
        .collect();
    let mut uses = 0;
    for file in rust_files(Path::new("src")) {
        let Some(module) = module_of(&file) else { continue };
        let text = fs::read_to_string(&file).unwrap();
        for used in text.lines().flat_map(used_modules) {
            let (from, to) = (levels[module.as_str()], levels.get(used.as_str()));
            let to = *to.unwrap_or_else(|| panic!("{}: unknown module {used}", file.display()));
            let fine = to < from || used == module || NEIGHBOURS.contains(&(module.as_str(), used.as_str()));
            assert!(fine, "{}: {module} uses {used}, which does not stand below it", file.display());
            uses += 1;
        }
    }
    assert!(uses > 50, "found only {uses} uses: is this test still reading the right files?");
}

/// The decisions are made without I/O: no HTTP, no sockets, no config format, no store.
#[test]
fn admission_knows_neither_sockets_nor_formats() {
    let files: Vec<PathBuf> = rust_files(Path::new("src"))
        .into_iter()
        .filter(|file| module_of(file).as_deref() == Some("admission"))
        .collect();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for foreign in ["hyper", "tokio::net", "std::net", "rustix", "toml::", "redis", "http::"] {
            assert!(!text.contains(foreign), "{} names {foreign}", file.display());
        }
    }
}

/// And the state machine without a clock.
#[test]
fn the_core_reads_no_clock() {
    let files = [
        "core",
        "queue",
        "fair_queue",
        "tickets",
        "slot",
        "ledger",
        "request",
        "decision",
        "view",
        "pooled",
        "books",
        "reclaim",
        "fair_round",
        "client_counts",
        "quiet",
        "outages",
        "rate",
        "wait_estimate",
        "moment",
        "handover",
        "activity",
        "witness",
        "occupancy",
        "usage",
    ];
    for file in files {
        let text = fs::read_to_string(format!("src/admission/{file}.rs")).unwrap();
        for clock in ["Instant::now", "SystemTime", "tokio"] {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            assert!(!code.into_iter().any(|line| line.contains(clock)), "{file}.rs names {clock}");
        }
    }
}

/// The promises at the top of the crate and of the gate name tests; each of them is there.
#[test]
fn every_promise_names_a_test_that_exists() {
    let mut tests: Vec<String> = Vec::new();
    for file in rust_files(Path::new("src")).into_iter().chain(rust_files(Path::new("tests"))) {
        let text = fs::read_to_string(&file).unwrap();
        let file = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let functions =
            text.lines().filter_map(|line| line.trim_start().trim_start_matches("async ").strip_prefix("fn "));
        tests.extend(functions.filter_map(|rest| rest.split('(').next()).map(|name| format!("{file}::{name}")));
    }
    let mut promised = 0;
    for file in ["src/lib.rs", "src/admission.rs"] {
        let text = fs::read_to_string(file).unwrap();
        let docs: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("//!")).collect();
        for name in docs.join("\n").split('`').filter(|word| word.contains("::") && !word.contains('.')) {
            if name.chars().all(|char| char.is_lowercase() || char == '_' || char == ':' || char.is_ascii_digit()) {
                assert!(tests.iter().any(|test| test == name), "{file} names {name}, which is not there");
                promised += 1;
            }
        }
    }
    assert!(promised >= 15, "found only {promised}");
}

/// The top-level module that a file belongs to; none for the crate's roots.
fn module_of(file: &Path) -> Option<String> {
    let first = file.strip_prefix("src").unwrap().iter().next()?.to_str()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!["lib", "main"].contains(&module)).then(|| module.to_owned())
}

/// The top-level modules that a line names by `crate::`.
fn used_modules(line: &str) -> Vec<String> {
    if line.trim_start().starts_with("//") {
        return Vec::new();
    }
    let after = line.split("crate::").skip(1);
    after
        .map(|rest| rest.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect::<String>())
        .filter(|name| !name.is_empty())
        .collect()
}
