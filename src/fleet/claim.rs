//! The lock of a node, which one process at a time has. Its file says which ones had it before: those are gone, and what was lent to them is
//! free once the kernel has no socket of theirs any more. A process that holds a slot because the registry may count what is gone here is
//! not among them for that time, and a file beside the lock says when the last such slot is free.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::watch;

use super::lent::boot_time;
use crate::kernel;

/// Set by systemd, where a service cannot read it.
const BOOT_ID: &str = "ROADSTEAD_BOOT_ID";
/// As many processes are remembered: each takes over from all of them.
const MOST_REMEMBERED: usize = 16;
/// The file beside the control socket of slots that are held for connections which are gone.
const GHOSTS_FILE: &str = "ghosts";
/// How often a lock that another process has is tried.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// The kernel frees the lock of a process that was killed before the last of its sockets, but not by so much.
const CLOSES_ALL: Duration = Duration::from_millis(500);
/// The pauses between looks at its sockets.
const LOOK: Duration = Duration::from_millis(100);

static GHOSTS: LazyLock<watch::Sender<Ghosts>> = LazyLock::new(|| watch::Sender::new(Ghosts::default()));

#[derive(Clone, Copy, Debug, Default)]
struct Ghosts {
    number: usize,
    /// When no registry counts any of them any more, since the start of the machine.
    until: Duration,
}

/// A connection of this process that is gone here, while its registry may count it.
#[derive(Debug)]
pub struct Ghost(());

impl Ghost {
    /// One that may count for so long from now on.
    pub fn new(counts: Duration) -> Ghost {
        let until = boot_time() + counts;
        GHOSTS.send_modify(|ghosts| *ghosts = Ghosts { number: ghosts.number + 1, until: ghosts.until.max(until) });
        Ghost(())
    }
}

impl Drop for Ghost {
    fn drop(&mut self) {
        GHOSTS.send_modify(|ghosts| {
            ghosts.number -= 1;
            if ghosts.number == 0 {
                ghosts.until = Duration::ZERO;
            }
        });
    }
}

/// When no registry counts connections any more that were gone before the processes of this node ended, since the start of the machine.
pub fn ghosts_until(control: &Path) -> Duration {
    let text = fs::read_to_string(control.with_extension(GHOSTS_FILE)).unwrap_or_default();
    let of_this_boot = text.split_once(' ').filter(|(_, life)| Some(*life) == boot().as_deref());
    of_this_boot.and_then(|(until, _)| until.parse().ok()).map_or(Duration::ZERO, Duration::from_millis)
}

/// The place of the lock, and who asks for it.
#[derive(Clone, Debug)]
pub struct NodeLock {
    path: PathBuf,
    instance: String,
}

/// The lock, which is kept until this is dropped.
#[derive(Debug)]
pub struct HeldLock {
    file: File,
    path: PathBuf,
    own: String,
    /// The processes of this network that had it before.
    pub earlier: Vec<String>,
}

impl NodeLock {
    /// The lock lies beside the control socket, which no other node has.
    pub fn beside(control: &Path, instance: &str) -> NodeLock {
        NodeLock { path: control.with_extension("lock"), instance: instance.to_owned() }
    }

    /// Waits for the lock, and enters this process into its file.
    /// Fails when there is no such file, and none can be made.
    pub async fn get(&self) -> io::Result<HeldLock> {
        let mut is_told = false;
        loop {
            if let Some(held) = self.try_get()? {
                return Ok(held);
            }
            if !is_told {
                tracing::warn!(
                    path = %self.path.display(),
                    "another process has the lock of this node: an old one that still drains, or a second sidecar with the same lease.node_id"
                );
                is_told = true;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    fn try_get(&self) -> io::Result<Option<HeldLock>> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let network = network();
        // Without a sign that this machine was not started anew, nothing is known of those before.
        let earlier = text.lines().filter_map(|line| {
            let (instance, of) = line.split_once(' ')?;
            (Some(of) == network.as_deref() && instance != self.instance).then(|| instance.to_owned())
        });
        let mut earlier: Vec<String> = earlier.collect();
        earlier.drain(..earlier.len().saturating_sub(MOST_REMEMBERED));
        let mut held = HeldLock { file, path: self.path.clone(), own: self.instance.clone(), earlier };
        held.enter(true)?;
        Ok(Some(held))
    }
}

impl HeldLock {
    /// Keeps the lock for as long as this is polled. While a registry may count what is gone here, nobody takes this process over, should
    /// it end meanwhile: the store keeps its lease for long enough.
    pub async fn keep(mut self) {
        let of_before = ghosts_until(&self.path);
        let (mut ghosts, mut is_entered, mut told) = (GHOSTS.subscribe(), true, of_before);
        loop {
            let Ghosts { number, until } = *ghosts.borrow_and_update();
            let may_follow = number == 0;
            let mut written = Ok(());
            let until = until.max(of_before);
            if until != told {
                written = self.tell(until);
                told = if written.is_ok() { until } else { told };
            }
            if may_follow != is_entered {
                is_entered = may_follow;
                written = written.and(self.enter(may_follow));
            }
            if let Err(error) = written {
                tracing::warn!(%error, "the lock of this node cannot be written");
            }
            // The sender lives as long as the process.
            let _ = ghosts.changed().await;
        }
    }

    /// Writes until when connections may count that are gone. Others read it without the lock, and never a half of it.
    fn tell(&self, until: Duration) -> io::Result<()> {
        let place = self.path.with_extension(GHOSTS_FILE);
        let draft = place.with_extension("ghosts.new");
        fs::write(&draft, format!("{} {}", until.as_millis(), boot().unwrap_or_default()))?;
        fs::rename(draft, place)
    }

    /// Writes the processes before this one, and this one if another may take over from it.
    fn enter(&mut self, may_follow: bool) -> io::Result<()> {
        let own = Some(&self.own).filter(|_| may_follow);
        let network = network();
        let line = |instance: &String| network.as_ref().map(|network| format!("{instance} {network}\n"));
        let entries: Vec<String> = self.earlier.iter().chain(own).filter_map(line).collect();
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(entries.concat().as_bytes())
    }
}

/// This life of the machine.
fn boot() -> Option<String> {
    let boot = std::env::var(BOOT_ID).ok().or_else(|| fs::read_to_string("/proc/sys/kernel/random/boot_id").ok())?;
    Some(boot.trim().to_owned())
}

/// This network, in this life of the machine: what a process of another one left behind is not seen here.
fn network() -> Option<String> {
    let network = fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{} {}", boot()?, network.display()))
}

/// Completes when the kernel has closed all sockets of processes that are gone; never where it does not tell.
pub async fn sockets_closed() {
    tokio::time::sleep(CLOSES_ALL).await;
    let Some(mut left) = ownerless() else { return std::future::pending().await };
    while !left.is_empty() {
        tokio::time::sleep(LOOK).await;
        if let Some(now) = ownerless() {
            left.retain(|ends| now.contains(ends));
        }
    }
}

/// `ESTABLISHED` and `CLOSE_WAIT`: a connection that no process has waits in one of these for the accept of a listener. The kernel ends a
/// connection before it takes it from its process.
const UNACCEPTED: u32 = 1 << 1 | 1 << 8;

/// Both ends of each socket that stands, though no process has it any more. On a busy node there is always one toward the registry.
fn ownerless() -> Option<BTreeSet<[SocketAddr; 2]>> {
    let families = [true, false].map(|ipv4| kernel::sockets_of_family(ipv4, kernel::STANDING & !UNACCEPTED));
    let [Some(four), Some(six)] = families else { return None };
    let all = four.into_iter().chain(six);
    Some(all.filter(|socket| socket.inode == 0).map(|socket| [socket.local, socket.remote]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_the_lock_and_knows_those_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let lock = |instance: &str| NodeLock::beside(&folder.path().join("control.sock"), instance);
        let first = lock("a").try_get().unwrap().unwrap();
        assert_eq!(first.earlier, Vec::<String>::new());
        assert!(lock("b").try_get().unwrap().is_none());
        drop(first);
        let second = lock("b").try_get().unwrap().unwrap();
        assert_eq!(second.earlier, ["a"]);
        drop(second);
        for process in 0..20 {
            lock(&process.to_string()).try_get().unwrap().unwrap();
        }
        let mut last = lock("last").try_get().unwrap().unwrap();
        assert_eq!((last.earlier.len(), &*last.earlier[15]), (MOST_REMEMBERED, "19"));
        for (may_follow, listed) in [(false, 16), (true, 17), (false, 16)] {
            last.enter(may_follow).unwrap();
            assert_eq!(fs::read_to_string(folder.path().join("control.lock")).unwrap().lines().count(), listed);
        }
        last.tell(Duration::from_secs(7)).unwrap();
        drop(last);
        assert!(!lock("after").try_get().unwrap().unwrap().earlier.contains(&"last".to_owned()));
        let control = folder.path().join("control.sock");
        assert_eq!(ghosts_until(&control), Duration::from_secs(7));
        assert_eq!(ghosts_until(&folder.path().join("other.sock")), Duration::ZERO);
        fs::write(folder.path().join("control.ghosts"), "7000 other").unwrap();
        assert_eq!(ghosts_until(&control), Duration::ZERO);
        // Another start of the machine, another network, and half a line.
        let own = network().unwrap();
        let (boot, network) = own.split_once(' ').unwrap();
        let others = format!("b {boot} net:[1]\nc other {network}\nd");
        fs::write(folder.path().join("control.lock"), others).unwrap();
        assert_eq!(lock("e").try_get().unwrap().unwrap().earlier, Vec::<String>::new());
    }

    #[tokio::test]
    async fn sockets_without_an_owner_are_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        drop(client);
        let waits = sockets_closed();
        assert!(tokio::time::timeout(Duration::from_secs(2), waits).await.is_err(), "its end has not been answered");
        drop(server);
        sockets_closed().await;
    }

    #[tokio::test]
    async fn sockets_that_come_to_stand_without_an_owner_later_are_not_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = async || {
            let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (client, listener.accept().await.unwrap().0)
        };
        let (client, server) = open().await;
        drop(client);
        let mut waits = std::pin::pin!(sockets_closed());
        assert!(tokio::time::timeout(Duration::from_secs(2), waits.as_mut()).await.is_err());
        let (client, _server) = open().await;
        drop(client);
        drop(server);
        // Sockets of other tests are waited for, too.
        tokio::time::timeout(Duration::from_secs(20), waits).await.expect("only the first one");
    }
}
