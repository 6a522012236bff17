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

/// The commands that have these sockets, where they can be seen. Another process of this program, which hands over or was asked by
/// the operator, has `None`: its sockets are not foreign.
pub fn commands_of(inodes: &HashSet<u32>) -> HashMap<u32, Option<String>> {
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
    {
        let process = process.path();
        let its: Vec<u32> = inodes_of(&process).intersection(inodes).copied().collect();
        if its.is_empty() {
            continue;
        }
        let Ok(command) = fs::read_to_string(process.join("comm")) else { continue };
        let command = command.trim().to_owned();
        let command = (command != OUR_COMMAND).then_some(command);
        found.extend(its.into_iter().map(|inode| (inode, command.clone())));
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}
