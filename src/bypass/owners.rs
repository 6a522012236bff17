//! The owner of a socket: the user always, the command where `/proc` shows it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// The name that every process of this program has.
const OUR_COMMAND: &str = "roadstead";

/// One user and command with connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BypassOwner {
    pub uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    pub connections: usize,
}

impl fmt::Display for BypassOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BypassOwner { uid, command, connections } = self;
        write!(f, "{connections} of {} (uid {uid})", command.as_deref().unwrap_or("an unknown command"))
    }
}

/// The owners, the one with the most connections first.
pub fn by_size(owners: HashMap<(u32, Option<String>), usize>) -> Vec<BypassOwner> {
    let owner = |((uid, command), connections)| BypassOwner { uid, command, connections };
    let mut owners: Vec<BypassOwner> = owners.into_iter().map(owner).collect();
    owners.sort_by(|one, other| {
        (other.connections, one.uid, &one.command).cmp(&(one.connections, other.uid, &other.command))
    });
    owners
}

/// The inodes of the sockets that a process has; none where that is not shown.
pub fn inodes_of(process: &Path) -> HashSet<u32> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let inode = |link: std::path::PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    descriptors.filter_map(|descriptor| inode(fs::read_link(descriptor.path()).ok()?)).collect()
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketProcess {
    pub pid: u32,
    pub command: String,
}

impl SocketProcess {
    /// Another process of this program, which hands over or was asked by the operator: its sockets are not foreign.
    pub fn is_ours(&self) -> bool {
        self.command == OUR_COMMAND
    }
}

/// The processes that have these sockets, where they can be seen. It reads much of `/proc`, which takes a while.
pub fn processes_of(inodes: &HashSet<u32>) -> HashMap<u32, SocketProcess> {
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    for (pid, process) in processes {
        let its: Vec<u32> = inodes_of(&process).intersection(inodes).copied().collect();
        if its.is_empty() {
            continue;
        }
        let Ok(command) = fs::read_to_string(process.join("comm")) else { continue };
        let process = SocketProcess { pid, command: command.trim().to_owned() };
        found.extend(its.into_iter().map(|inode| (inode, process.clone())));
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}
