//! Starts the process that takes over, and tells when a process has ended.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::link::{LINK, Link};
use crate::fleet::tasks::SHARES;

/// How long a new process may take until it is ready.
const MAX_START: Duration = Duration::from_secs(30);
/// How long a process that has closed its link may take to end by itself.
const MAX_END: Duration = Duration::from_secs(2);
/// The first descriptor of those that are handed over.
const FIRST_DESCRIPTOR: i32 = 3;

/// How this process was started, for starting its like.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

#[derive(Debug, thiserror::Error)]
pub enum NoSuccessor {
    #[error("cannot start {program}: {cause}")]
    Start { program: PathBuf, cause: io::Error },
    #[error("cannot copy the listeners: {cause}")]
    Descriptors { cause: io::Error },
    /// It ended before it was ready; its own messages are in the log.
    #[error("the new process ended before it was ready ({0})")]
    Ended(String),
    /// It did nothing for too long, and was ended.
    #[error("the new process was not ready within {MAX_START:?}")]
    Late,
}

#[derive(Debug)]
pub struct Successor {
    pub pid: u32,
    pub(super) link: Link,
    child: Option<Child>,
}

/// The process from which this one takes over.
#[derive(Debug)]
pub struct Predecessor {
    pub(super) link: Link,
    process: Watched,
}

impl Program {
    /// How this process was started. To be asked at the start: later the binary may have been replaced.
    /// Fails when the system does not tell where the binary is.
    pub fn of_this_process() -> io::Result<Program> {
        Ok(Program { path: env::current_exe()?, arguments: env::args_os().skip(1).collect() })
    }

    /// Whether the binary was replaced since.
    pub fn is_replaced(&self) -> bool {
        let file = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        matches!((file(&self.path), file("/proc/self/exe".as_ref())), (Ok(now), Ok(running)) if now != running)
    }

    /// Starts the like of this process on these listeners, and waits until it is ready.
    /// Fails when it does not come up; then everything is as before.
    /// `leased` is for its check of shares.
    pub async fn start(&self, listeners: Vec<(String, OwnedFd)>, leased: &str) -> Result<Successor, NoSuccessor> {
        let cannot = |cause| NoSuccessor::Start { program: self.path.clone(), cause };
        let (ours, theirs) = StdStream::pair().map_err(cannot)?;
        let mut link = Link::over(ours).map_err(cannot)?;
        // Declared behind the link: dropped, it is killed before the end of the link could let it take over.
        let mut candidate = Candidate(Some(self.spawn(listeners, theirs, leased).map_err(cannot)?));
        match timeout(MAX_START, link.until_ready()).await {
            Ok(true) => {
                let child = candidate.take_over();
                Ok(Successor { pid: child.id(), link, child: Some(child) })
            }
            Ok(false) => Err(NoSuccessor::Ended(candidate.ended().await)),
            Err(_) => Err(NoSuccessor::Late),
        }
    }

    fn spawn(&self, listeners: Vec<(String, OwnedFd)>, link: StdStream, leased: &str) -> io::Result<Child> {
        let (mut names, mut descriptors): (Vec<String>, Vec<OwnedFd>) = listeners.into_iter().unzip();
        names.push(LINK.to_owned());
        descriptors.push(link.into());
        let mappings = descriptors.into_iter().zip(FIRST_DESCRIPTOR..);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        let mut command = Command::new(&self.path);
        command
            .args(&self.arguments)
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env(SHARES, leased)
            // They name this process; systemd watches the other one in its place.
            .env_remove("LISTEN_PID")
            .env_remove("WATCHDOG_PID");
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        command.spawn()
    }
}

/// A process that may take over. It is killed if it does not, also when the wait for it is given up.
struct Candidate(Option<Child>);

impl Candidate {
    /// It is on its own from now on.
    fn take_over(mut self) -> Child {
        self.0.take().expect("there until it takes over")
    }

    /// How it ended. It has closed the link: if it lives on all the same, it is killed.
    async fn ended(&mut self) -> String {
        let child = self.0.as_mut().expect("there until it takes over");
        if let Ok(process) = Watched::new(child.id().try_into().ok()) {
            let _ = timeout(MAX_END, process.ended()).await;
        }
        let _ = child.kill();
        child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Successor {
    /// How it ended, once it has. The kernel lists a process until it is waited for.
    pub(super) async fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        Watched::new(child.id().try_into().ok()).ok()?.ended().await;
        child.wait().ok()
    }
}

impl Predecessor {
    /// Talks over an inherited link. Must be called inside a tokio runtime.
    /// Fails when it cannot be told when that process ends.
    pub fn new(link: StdStream) -> io::Result<Predecessor> {
        let link = Link::over(link)?;
        // It has the other end of the link: as long as that is open, the number is its own.
        let process = Watched::new(link.peer())?;
        Ok(Predecessor { link, process })
    }

    /// Completes when the process is gone with all that it had. The end of the link alone does not say so: the kernel closes
    /// what a killed process had one by one.
    pub async fn gone(&self) {
        self.process.ended().await;
    }
}

/// A process, by the kernel's descriptor of it.
#[derive(Debug)]
struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types that close the descriptor early; an OwnedFd does not"
    )]
    fn new(pid: Option<i32>) -> io::Result<Watched> {
        let pid = pid.and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Watched(AsyncFd::with_interest(process, Interest::READABLE)?))
    }

    async fn ended(&self) {
        let _ = self.0.readable().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Successor {
        /// One at the other end of this link.
        pub(in crate::app) fn over(link: Link) -> Successor {
            Successor { pid: 1, link, child: None }
        }
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_takes_nothing_over() {
        let program = |path: &str| Program { path: path.into(), arguments: Vec::new() };
        assert!(matches!(program("/bin/false").start(Vec::new(), "").await, Err(NoSuccessor::Ended(_))));
        assert!(matches!(
            program("/nonexistent/roadstead").start(Vec::new(), "").await,
            Err(NoSuccessor::Start { .. })
        ));
    }
}
