//! Tells the crate which commit it is built from: what git says, else `ROADSTEAD_COMMIT`, else nothing.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ROADSTEAD_COMMIT");
    let named = || env::var("ROADSTEAD_COMMIT").ok().filter(|commit| !commit.trim().is_empty());
    let version = env!("CARGO_PKG_VERSION");
    let version = match of_git().or_else(named) {
        Some(commit) => format!("{version} ({})", commit.trim()),
        None => version.to_owned(),
    };
    println!("cargo::rustc-env=ROADSTEAD_VERSION={version}");
}

/// The commit of this very repository, not of one in whose folders it lies.
fn of_git() -> Option<String> {
    Path::new(".git").exists().then_some(())?;
    // Each grows or changes with a new commit.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !said.trim().is_empty()).then(|| said.trim().to_owned())
}
