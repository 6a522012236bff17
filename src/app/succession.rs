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
//! itself: then nobody has to take its place. A word that is not known is passed over, since the other one may be of another
//! version. The end of the link is the end of the process at its end.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Split};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use super::elsewhere::Held;
use super::inherited::LINK;

/// How long a new process may take until it is ready.
const START: Duration = Duration::from_secs(30);
/// How long a process that has closed the link may take to be gone until that is worth a warning.
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

/// What two processes talk over.
#[derive(Debug)]
pub struct Link {
    lines: Split<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

/// The process that takes over from this one.
#[derive(Debug)]
pub struct Successor {
    /// Its process id.
    pub pid: u32,
    /// For talking with it.
    pub link: Link,
    /// Whether it has said that it leaves.
    pub leaves: bool,
    process: Option<Child>,
}

/// The process from which this one takes over.
#[derive(Debug)]
pub struct Predecessor {
    /// For talking with it.
    pub link: Link,
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
        let mut link = Link::over(ours).map_err(cannot)?;
        // Before the link: the end of that must not let it take over.
        let mut child = Candidate(Some(self.spawn(listeners, theirs).map_err(cannot)?));
        match timeout(START, link.lines.next_segment()).await {
            Ok(Ok(Some(said))) if said == READY.as_bytes() => {
                let process = child.take_over();
                Ok(Successor { pid: process.id(), link, leaves: false, process: Some(process) })
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

impl Link {
    fn over(link: StdStream) -> io::Result<Link> {
        link.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(link)?.into_split();
        Ok(Link { lines: BufReader::new(read).split(b'\n'), write })
    }

    /// What the other one says next that is understood; `None` when it is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Word> {
        loop {
            let line = self.lines.next_segment().await.ok()??;
            match serde_json::from_slice(&line) {
                Ok(word) => return Some(word),
                Err(error) => {
                    let line = line.escape_ascii();
                    tracing::debug!(%line, %error, "the other process says what is not known here");
                }
            }
        }
    }

    /// Tells the other one.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn tell(&mut self, word: &Word) -> io::Result<()> {
        self.write(serde_json::to_string(word)?).await
    }

    /// One message. A link holds far more of them than are ever under way, so this does not wait.
    async fn write(&mut self, mut message: String) -> io::Result<()> {
        message.push('\n');
        self.write.write_all(message.as_bytes()).await
    }
}

impl Successor {
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
}

impl Predecessor {
    /// Talks over an inherited link. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the runtime does not take it.
    pub fn new(link: StdStream) -> io::Result<Predecessor> {
        let link = Link::over(link)?;
        // It has the other end of the link: as long as that is open, the number is its own.
        let pid = link.write.as_ref().peer_cred().ok().and_then(|behind| Pid::from_raw(behind.pid()?));
        let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
        Ok(Predecessor { link, process })
    }

    /// Completes when the process is gone with all that it had, however long that takes. The end of the link alone does
    /// not say so: the kernel closes what a killed process had one by one.
    pub async fn gone(&self) {
        let Some(process) = &self.process else { return sleep(UNSEEN_END).await };
        let mut gone = pin!(async {
            while lives(process) {
                sleep(LOOK).await;
            }
        });
        if timeout(END, &mut gone).await.is_err() {
            tracing::warn!("the process before this one says nothing more, but lives: its slots are left alone");
            gone.await;
        }
    }

    /// Says that this process can take over.
    ///
    /// # Errors
    /// When the other one is gone.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.link.write(READY.to_owned()).await
    }
}

/// Whether the process has not ended; asks the kernel. No answer, as when a signal came between, is no end.
fn lives(process: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(process, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::elsewhere::Holding;

    impl Origin {
        /// Of a process that takes nothing over.
        pub(in crate::app) fn that_fails() -> Origin {
            Origin { program: "/bin/false".into(), arguments: Vec::new() }
        }
    }

    impl Link {
        /// Says what a process of another version may say.
        pub(in crate::app) async fn tell_unknown(&mut self) {
            for unknown in ["\"resting\"", "{\"lent\":[{\"to\":\"harbor\"}]}", "{\"held\":7}", "", "ready"] {
                self.write(unknown.to_owned()).await.unwrap();
            }
            self.write.write_all(b"\xff\xfe\n").await.unwrap();
        }
    }

    impl Successor {
        /// One at the other end of this link.
        pub(in crate::app) fn over(link: StdStream) -> Successor {
            Successor { pid: 1, link: Link::over(link).unwrap(), leaves: false, process: None }
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
        successor.link.tell(&Word::Paused(paused.clone())).await.unwrap();
        successor.link.tell(&Word::Held(held.clone())).await.unwrap();
        assert_eq!(predecessor.link.next().await, Some(Word::Paused(paused.clone())));
        assert_eq!(predecessor.link.next().await, Some(Word::Held(held)));
        for word in [Word::Paused(paused), Word::Leaving] {
            predecessor.link.tell(&word).await.unwrap();
            assert_eq!(successor.link.next().await, Some(word));
        }
        drop(successor);
        assert_eq!(predecessor.link.next().await, None);
    }

    /// It may be of another version. What it says after that counts, and only its end is its end.
    #[tokio::test]
    async fn words_that_are_not_known_are_passed_over() {
        let (ours, theirs) = StdStream::pair().unwrap();
        let (mut ours, mut theirs) = (Link::over(ours).unwrap(), Link::over(theirs).unwrap());
        for word in [Word::Held(Held::new()), Word::Leaving] {
            theirs.tell_unknown().await;
            theirs.tell(&word).await.unwrap();
            assert_eq!(ours.next().await, Some(word));
        }
        theirs.tell_unknown().await;
        drop(theirs);
        assert_eq!(ours.next().await, None);
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_takes_nothing_over() {
        let origin = Origin::that_fails();
        assert!(matches!(origin.succeed(Vec::new()).await, Err(NoSuccessor::Ended(_))));
        let origin = Origin { program: "/nonexistent/roadstead".into(), arguments: Vec::new() };
        assert!(matches!(origin.succeed(Vec::new()).await, Err(NoSuccessor::Start { .. })));
    }
}
