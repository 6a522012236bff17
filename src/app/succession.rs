//! One process takes over from another, and both together stay within the slots.
//!
//! The old process starts the new one with its listeners and one end of a link. The new one begins without a slot, says
//! that it is ready, and is told how many slots the old one still needs; the rest is its own. From then on the old one
//! accepts nobody, serves those who came to it, and tells each time it needs fewer. Its need is what is open or waits,
//! never more than it told before. Should it take over from an even older one, what that one still holds counts, too.
//!
//! Each message is one line: `ready` from the new process, and from the old one the slots that are not free yet, as JSON:
//! `{"held":[{"name":"harbor","hosts":["harbor.example.com"],"slots":7}]}`. The hosts are there since the new process may
//! have another config. `{"paused":["harbor"]}` names the registries that the operator has paused: the old process says so
//! before its first slots, the new one when that changes. `"leaving"` says the new process when it accepts nobody any more
//! itself: then nobody has to take its place. The end of the link is the end of the process at its end.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep, timeout};

use super::elsewhere::Held;
use super::inherited::LINK;

/// How long a new process may take until it is ready.
const START: Duration = Duration::from_secs(30);
/// How long a process that has closed the link may take to be gone.
const END: Duration = Duration::from_secs(5);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(5);
/// How long it is given where that cannot be seen.
const UNSEEN_END: Duration = Duration::from_millis(100);
/// The first descriptor of those that are handed over.
const FIRST: i32 = 3;
const READY: &str = "ready";

/// Registries whose admissions the operator holds.
pub type Paused = BTreeSet<String>;

/// What a process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// The slots that are not free yet.
    Held(Held),
    /// The registries that are paused.
    Paused(Paused),
    /// It accepts nobody any more: it was told to stop, or another one has taken over from it.
    Leaving,
}

/// How this process was started, for starting its like.
#[derive(Clone, Debug)]
pub struct Origin {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// Why no other process took over.
#[derive(Debug, thiserror::Error)]
pub enum NoSuccessor {
    /// It could not be started.
    #[error("cannot start {program}: {cause}")]
    Start {
        /// The binary.
        program: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// There are no descriptors left to hand over.
    #[error("cannot copy the listeners: {cause}")]
    Descriptors {
        /// What the kernel said.
        cause: io::Error,
    },
    /// It ended before it was ready; its own words are in the log.
    #[error("the new process ended before it was ready ({0})")]
    Ended(String),
    /// It did nothing for too long, and was ended.
    #[error("the new process was not ready within {START:?}")]
    Late,
}

/// The process that takes over from this one.
#[derive(Debug)]
pub struct Successor {
    /// Its process id.
    pub pid: u32,
    link: OwnedWriteHalf,
    lines: Lines<BufReader<OwnedReadHalf>>,
    /// Whether it has said that it leaves.
    pub leaves: bool,
    process: Option<Child>,
}

/// The process from which this one takes over.
#[derive(Debug)]
pub struct Predecessor {
    lines: Lines<BufReader<OwnedReadHalf>>,
    link: OwnedWriteHalf,
    /// The process itself; `None` where the system does not give it.
    process: Option<OwnedFd>,
}

impl Origin {
    /// How this process was started. To be asked at the start: later the binary may have been replaced.
    ///
    /// # Errors
    /// When the system does not tell where the binary is.
    pub fn of_this_process() -> io::Result<Origin> {
        Ok(Origin { program: env::current_exe()?, arguments: env::args_os().skip(1).collect() })
    }

    /// Whether the binary was replaced since.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let of = |path: &std::path::Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        match (of(&self.program), of("/proc/self/exe".as_ref())) {
            (Ok(there), Ok(running)) => there != running,
            _ => false,
        }
    }

    /// Starts the like of this process on these listeners, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up; then everything is as before.
    pub async fn succeed(&self, listeners: Vec<(String, OwnedFd)>) -> Result<Successor, NoSuccessor> {
        let cannot = |cause| NoSuccessor::Start { program: self.program.clone(), cause };
        let (ours, theirs) = StdStream::pair().map_err(cannot)?;
        ours.set_nonblocking(true).map_err(cannot)?;
        let (read, write) = UnixStream::from_std(ours).map_err(cannot)?.into_split();
        let mut lines = BufReader::new(read).lines();
        // Before the link: the end of that must not let it take over.
        let mut child = Candidate(Some(self.spawn(listeners, theirs).map_err(cannot)?));
        match timeout(START, lines.next_line()).await {
            Ok(Ok(Some(line))) if line == READY => {
                let process = child.take_over();
                Ok(Successor { pid: process.id(), link: write, lines, leaves: false, process: Some(process) })
            }
            Ok(_) => Err(NoSuccessor::Ended(child.ended().await)),
            Err(_) => Err(NoSuccessor::Late),
        }
    }

    fn spawn(&self, listeners: Vec<(String, OwnedFd)>, link: StdStream) -> io::Result<Child> {
        let (mut names, mut descriptors): (Vec<String>, Vec<OwnedFd>) = listeners.into_iter().unzip();
        names.push(LINK.to_owned());
        descriptors.push(link.into());
        let mappings = descriptors.into_iter().zip(FIRST..);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            // Whoever takes over is known only when it runs, and is watched in our place.
            .env_remove("LISTEN_PID")
            .env_remove("WATCHDOG_PID");
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        command.spawn()
    }
}

/// A process that may take over. It is killed if it does not, also when nobody waits for it any more.
struct Candidate(Option<Child>);

impl Candidate {
    /// It is on its own from now on.
    fn take_over(mut self) -> Child {
        self.0.take().expect("there until it takes over")
    }

    /// How it ended: it has closed the link, and if it lives on all the same, it has no business to.
    async fn ended(&mut self) -> String {
        let child = self.0.as_mut().expect("there until it takes over");
        for _ in 0..40 {
            if let Ok(Some(status)) = child.try_wait() {
                return status.to_string();
            }
            sleep(Duration::from_millis(50)).await;
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
    /// Tells which slots are not free yet.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn tell(&mut self, held: &Held) -> io::Result<()> {
        write(&mut self.link, &Word::Held(held.clone())).await
    }

    /// Tells which registries are paused; to be called before the first word of slots.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn pause(&mut self, paused: &Paused) -> io::Result<()> {
        write(&mut self.link, &Word::Paused(paused.clone())).await
    }

    /// How it ended, once it has. It must be waited for: a process that nobody waits for stays in the kernel's list.
    pub async fn ended(&mut self) -> Option<ExitStatus> {
        let process = self.process.as_mut()?;
        loop {
            match process.try_wait() {
                Ok(None) => sleep(LOOK).await,
                Ok(ended) => return ended,
                Err(_) => return None,
            }
        }
    }

    /// What it says next; `None` when it is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Word> {
        let line = self.lines.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }
}

impl Predecessor {
    /// Talks over an inherited link. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the runtime does not take it.
    pub fn new(link: StdStream) -> io::Result<Predecessor> {
        link.set_nonblocking(true)?;
        let link = UnixStream::from_std(link)?;
        let pid = link.peer_cred().ok().and_then(|behind| Pid::from_raw(behind.pid()?));
        let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
        let (read, write) = link.into_split();
        Ok(Predecessor { lines: BufReader::new(read).lines(), link: write, process })
    }

    /// Completes when the process is gone with all that it had. The end of the link alone does not say so: the kernel
    /// closes what a killed process had one by one.
    pub async fn gone(&self) {
        let Some(process) = &self.process else { return sleep(UNSEEN_END).await };
        let deadline = Instant::now() + END;
        while lives(process) && Instant::now() < deadline {
            sleep(LOOK).await;
        }
    }

    /// Says that this process can take over.
    ///
    /// # Errors
    /// When the other one is gone.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.link.write_all(format!("{READY}\n").as_bytes()).await
    }

    /// Tells which registries are paused now, or that this process leaves.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn tell(&mut self, word: &Word) -> io::Result<()> {
        write(&mut self.link, word).await
    }

    /// What it says next; `None` when it has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Word> {
        let line = self.lines.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }
}

/// Whether the process has not ended; asks the kernel.
fn lives(process: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(process, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
}

/// One message. A link holds far more of them than are ever under way, so this does not wait.
async fn write(link: &mut OwnedWriteHalf, word: &Word) -> io::Result<()> {
    let mut message = serde_json::to_string(word)?;
    message.push('\n');
    link.write_all(message.as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::elsewhere::Holding;

    impl Successor {
        /// One at the other end of this link.
        pub(in crate::app) fn over(link: StdStream) -> Successor {
            link.set_nonblocking(true).unwrap();
            let (read, write) = UnixStream::from_std(link).unwrap().into_split();
            Successor { pid: 1, link: write, lines: BufReader::new(read).lines(), leaves: false, process: None }
        }
    }

    #[tokio::test]
    async fn both_ends_understand_each_other() {
        let (old, new) = StdStream::pair().unwrap();
        let mut successor = Successor::over(old);
        let mut predecessor = Predecessor::new(new).unwrap();
        let holding =
            |name: &str, slots| Holding { name: name.to_owned(), hosts: vec!["*.example.com".to_owned()], slots };
        let held = vec![holding("harbor", 7), holding("other", 0)];
        let paused = Paused::from(["harbor".to_owned()]);
        successor.pause(&paused).await.unwrap();
        successor.tell(&held).await.unwrap();
        assert_eq!(predecessor.next().await, Some(Word::Paused(paused.clone())));
        assert_eq!(predecessor.next().await, Some(Word::Held(held)));
        for word in [Word::Paused(paused), Word::Leaving] {
            predecessor.tell(&word).await.unwrap();
            assert_eq!(successor.next().await, Some(word));
        }
        drop(successor);
        assert_eq!(predecessor.next().await, None);
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_takes_nothing_over() {
        let origin = Origin { program: "/bin/false".into(), arguments: Vec::new() };
        assert!(matches!(origin.succeed(Vec::new()).await, Err(NoSuccessor::Ended(_))));
        let origin = Origin { program: "/nonexistent/roadstead".into(), arguments: Vec::new() };
        assert!(matches!(origin.succeed(Vec::new()).await, Err(NoSuccessor::Start { .. })));
    }
}
