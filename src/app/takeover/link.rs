//! The messages between two processes while one takes over from the other.
//!
//! Each message is one line. The new process says `ready`; all others are JSON. A message that is not understood is passed
//! over, since the other process may be of another version. The end of the link is the end of the process at its other end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::net::UnixStream as StdStream;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Split};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The name under which the new process inherits its end of the link.
pub const LINK: &str = "roadstead-link";
const READY: &str = "ready";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// From the old process, first: the registries that the operator has paused.
    Paused(BTreeSet<String>),
    /// From the old process: what it needs.
    Held(Vec<Holding>),
    /// From the new process: how many slots it has granted so far, by the registry's name in the old process.
    Granted(BTreeMap<String, usize>),
}

/// The needs of another process at one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The registry's name there, or `other_hosts`.
    pub name: String,
    /// Its hosts, as in a config: the new process may have another one.
    pub hosts: Vec<String>,
    /// The slots that are not free.
    pub slots: usize,
    /// How many of the slots that were granted so far it has heard of.
    #[serde(default)]
    pub granted: usize,
    /// Those for whom slots are to be granted.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
}

/// One client's requests that wait in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The name of its class.
    pub class: String,
    pub client: String,
    pub requests: usize,
}

#[derive(Debug)]
pub struct Link {
    lines: Split<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Link {
    /// Must be called inside a tokio runtime.
    pub fn over(link: StdStream) -> io::Result<Link> {
        link.set_nonblocking(true)?;
        let (read, write) = UnixStream::from_std(link)?.into_split();
        Ok(Link { lines: BufReader::new(read).split(b'\n'), write })
    }

    /// The process at the other end.
    pub fn peer(&self) -> Option<i32> {
        self.write.as_ref().peer_cred().ok()?.pid()
    }

    /// The next message that is understood; `None` when the other process is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let line = self.lines.next_segment().await.ok()??;
            match serde_json::from_slice(&line) {
                Ok(message) => return Some(message),
                Err(error) => {
                    let line = line.escape_ascii();
                    tracing::debug!(%line, %error, "a message of the other process is not understood");
                }
            }
        }
    }

    /// Completes when the other process can take over; `false` if it never will.
    pub async fn until_ready(&mut self) -> bool {
        self.lines.next_segment().await.is_ok_and(|line| line.as_deref() == Some(READY.as_bytes()))
    }

    /// Says that this process can take over.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.write(READY.to_owned()).await
    }

    /// Tells the other process. A link holds far more messages than are ever under way, so this does not wait.
    pub async fn tell(&mut self, message: &Message) -> io::Result<()> {
        self.write(serde_json::to_string(message)?).await
    }

    async fn write(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        self.write.write_all(line.as_bytes()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of a link.
    fn pair() -> (Link, Link) {
        let (one, other) = StdStream::pair().unwrap();
        (Link::over(one).unwrap(), Link::over(other).unwrap())
    }

    impl Link {
        /// Says what a process of another version may say.
        pub async fn tell_unknown(&mut self) {
            for unknown in ["\"resting\"", "{\"lent\":[{\"to\":\"harbor\"}]}", "{\"held\":7}", "", "ready"] {
                self.write(unknown.to_owned()).await.unwrap();
            }
            self.write.write_all(b"\xff\xfe\n").await.unwrap();
        }
    }

    /// The other process may be of another version: what it says after an unknown message counts, and only its end is its
    /// end.
    #[tokio::test]
    async fn messages_that_are_not_known_are_passed_over() {
        let (mut ours, mut theirs) = pair();
        let waiting = vec![Waiting { class: "bulk".to_owned(), client: "uid:0".to_owned(), requests: 3 }];
        let holding =
            Holding { name: "harbor".to_owned(), hosts: vec!["*.a".to_owned()], slots: 7, granted: 2, waiting };
        for message in [
            Message::Held(vec![holding, Holding::default()]),
            Message::Paused(BTreeSet::from(["harbor".to_owned()])),
            Message::Granted(BTreeMap::from([("harbor".to_owned(), 2)])),
        ] {
            theirs.tell_unknown().await;
            theirs.tell(&message).await.unwrap();
            assert_eq!(ours.next().await, Some(message));
        }
        theirs.tell_unknown().await;
        drop(theirs);
        assert_eq!(ours.next().await, None);
    }

    /// The version before this one knows no waiters.
    #[tokio::test]
    async fn a_holding_without_waiters_is_understood() {
        let (mut ours, mut theirs) = pair();
        theirs.write("{\"held\":[{\"name\":\"harbor\",\"hosts\":[],\"slots\":7}]}".to_owned()).await.unwrap();
        let holding = Holding { name: "harbor".to_owned(), slots: 7, ..Holding::default() };
        assert_eq!(ours.next().await, Some(Message::Held(vec![holding])));
    }
}
