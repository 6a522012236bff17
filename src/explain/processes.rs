//! The processes behind the clients that wait, by their sockets. `/proc` is read only when somebody asks for `/queue`, and only for
//! sockets that were not looked for before.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use crate::bypass::owners::{SocketProcess, processes_of};

/// Those of the last answer, by their sockets; `None` where nothing could be seen.
#[derive(Debug, Default)]
pub struct Processes(Mutex<HashMap<u32, Option<SocketProcess>>>);

impl Processes {
    /// The processes of the sockets with these inodes, as far as they can be seen.
    pub async fn of(&self, inodes: HashSet<u32>) -> HashMap<u32, SocketProcess> {
        let mut known = self.0.lock().clone();
        known.retain(|inode, _| inodes.contains(inode));
        let new: HashSet<u32> = inodes.into_iter().filter(|inode| !known.contains_key(inode)).collect();
        if !new.is_empty() {
            let look = move || {
                let mut found = processes_of(&new);
                new.into_iter().map(|inode| (inode, found.remove(&inode))).collect::<Vec<_>>()
            };
            known.extend(tokio::task::spawn_blocking(look).await.unwrap_or_default());
        }
        self.0.lock().clone_from(&known);
        known.into_iter().filter_map(|(inode, process)| Some((inode, process?))).collect()
    }
}
