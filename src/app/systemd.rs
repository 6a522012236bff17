//! Messages to systemd (`sd_notify(3)`). Without systemd, there are none.
//!
//! A separate task sends them, so no other task waits for a systemd that does not read, and no work of the process delays the
//! watchdog. The messages stay in order.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long an ending process waits until systemd has its last messages.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Systemd {
    words: UnboundedSender<Notice>,
    speaker: JoinHandle<()>,
}

/// A message to systemd.
#[derive(Clone, Copy, Debug)]
pub enum Notice {
    /// Everything is bound and accepts. From now on the watchdog hears that this process lives: its runtime runs tasks.
    Ready,
    Stopping,
    /// Another process is the service from now on: this one says nothing more.
    ReplacedBy(u32),
}

impl Systemd {
    /// Must be called inside a tokio runtime.
    pub fn new() -> Systemd {
        let (words, heard) = unbounded_channel();
        Systemd { words, speaker: tokio::spawn(speak(heard)) }
    }

    /// Completes when all was said, or systemd does not listen.
    pub async fn end(self) {
        let Systemd { words, speaker } = self;
        drop(words);
        let _ = timeout(LAST_WORDS, speaker).await;
    }

    pub fn say(&self, word: Notice) {
        // A process that was replaced sends nothing.
        let _ = self.words.send(word);
    }
}

async fn speak(mut words: UnboundedReceiver<Notice>) {
    let mut is_ready = false;
    loop {
        let word = tokio::select! {
            biased;
            word = words.recv() => word,
            () = watchdog(), if is_ready => {
                tell(&[NotifyState::Watchdog]).await;
                continue;
            }
        };
        match word {
            Some(Notice::Ready) => {
                is_ready = true;
                tell(&[NotifyState::Ready, NotifyState::Watchdog]).await;
            }
            Some(Notice::Stopping) => tell(&[NotifyState::Stopping]).await,
            Some(Notice::ReplacedBy(pid)) => {
                // The other one says that it lives from its start on, and half a time may have passed since this one did.
                return tell(&[NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Watchdog]).await;
            }
            None => return,
        }
    }
}

/// Completes when systemd should hear that this process lives; never, if systemd does not ask for it.
async fn watchdog() {
    match sd_notify::watchdog_enabled() {
        Some(longest) => sleep(longest / 2).await,
        None => std::future::pending().await,
    }
}

async fn tell(state: &[NotifyState<'_>]) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let lines: Vec<String> = state.iter().map(|line| format!("{line}\n")).collect();
    let told = async { connect(&address)?.send(lines.concat().as_bytes()).await };
    if let Err(error) = told.await {
        tracing::debug!(%error, "systemd cannot be told");
    }
}

/// A socket that leads to systemd; `@` begins a name without a file.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = StdDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}
