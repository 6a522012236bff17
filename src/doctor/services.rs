//! Running processes, as far as `/proc` shows them: sidecars, and the proxies of pullers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Processes whose environment leads to registries.
const PULLERS: [&str; 5] = ["containerd", "dockerd", "dfdaemon", "crio", "nydusd"];

/// A sidecar that runs.
#[derive(Debug)]
pub struct RunningSidecar {
    pub pid: u32,
    pub max_descriptors: Option<usize>,
    parent: u32,
}

/// The sidecars of this network.
#[derive(Debug)]
pub enum Sidecars {
    Seen(Vec<RunningSidecar>),
    /// Why they cannot be seen.
    Unknown(&'static str),
}

/// The sidecars that run. One that hands over to its child is the same as that.
pub fn sidecars(proc: &Path) -> Sidecars {
    let processes = processes(proc);
    if processes.is_empty() {
        return Sidecars::Unknown("there is no /proc to look at");
    }
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let ours = network(Path::new("/proc/self"));
    let runs = |process: &Path| {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).skip(1).filter(|word| !word.is_empty()).collect();
        let options = |at: &usize| words[*at] == b"--config";
        let command = (0..words.len())
            .find(|at| !words[*at].starts_with(b"-") && !at.checked_sub(1).is_some_and(|at| options(&at)));
        command.is_none_or(|at| words[at] == b"run")
    };
    let mut seen = Vec::new();
    for (pid, process) in processes {
        let is_apart = ours.is_some() && network(&process).is_some_and(|network| Some(network) != ours);
        if name(&process).as_deref() != Some("roadstead") || !runs(&process) || is_apart {
            continue;
        }
        let line_of = |file: &str, key: &str| {
            let text = fs::read_to_string(process.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned)
        };
        let hard =
            line_of("limits", "Max open files").and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
        let parent = line_of("status", "PPid:").and_then(|line| line.trim().parse().ok()).unwrap_or_default();
        seen.push(RunningSidecar { pid, max_descriptors: hard, parent });
    }
    let pids: Vec<u32> = seen.iter().map(|sidecar| sidecar.pid).collect();
    seen.retain(|sidecar| !pids.contains(&sidecar.parent));
    Sidecars::Seen(seen)
}

/// A puller that runs, and the variables of its environment that name proxies.
#[derive(Debug)]
pub struct RunningPuller {
    pub name: String,
    pub pid: u32,
    /// `None` where the environment may not be read.
    pub proxies: Option<BTreeMap<String, String>>,
    /// It sees the files of the node, as one in a container does not.
    pub is_of_node: bool,
    pub started: Option<SystemTime>,
}

impl RunningPuller {
    pub fn shown(&self) -> String {
        format!("{} (pid {})", self.name, self.pid)
    }
}

/// The pullers that run.
pub fn pullers(proc: &Path) -> Vec<RunningPuller> {
    let mounts = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let node = mounts(&proc.join("1"));
    let known = |(pid, process): (u32, PathBuf)| {
        let name = name(&process).filter(|name| PULLERS.contains(&name.as_str()))?;
        let environment = fs::read(process.join("environ")).ok();
        let proxies = environment.map(|bytes| {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let variables = text.split('\0').filter_map(|variable| variable.split_once('='));
            let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
            variables.filter(|(name, _)| name.to_ascii_uppercase().ends_with("_PROXY")).collect()
        });
        let is_of_node = node.is_none() || mounts(&process).is_none_or(|mounts| Some(mounts) == node);
        Some(RunningPuller { name, pid, proxies, is_of_node, started: start_of(proc, &process) })
    };
    processes(proc).into_iter().filter_map(known).collect()
}

/// When a process started, to a second.
fn start_of(proc: &Path, process: &Path) -> Option<SystemTime> {
    /// In `/proc`, on every machine.
    const TICKS_PER_SECOND: u64 = 100;
    let booted = fs::read_to_string(proc.join("stat")).ok()?;
    let booted: u64 = booted.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The 22nd field; the second is a name in parentheses, which may hold anything.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(booted + ticks / TICKS_PER_SECOND))
}

fn processes(proc: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect()
}

fn name(process: &Path) -> Option<String> {
    Some(fs::read_to_string(process.join("comm")).ok()?.trim().to_owned())
}
