//! The orders that signals give to a running sidecar.

use tokio::signal::unix::{Signal, SignalKind, signal};

pub enum Order {
    /// Read the config again; why.
    Reload(&'static str),
    /// Let another process take over.
    HandOver,
    /// Drain and end; which signal said so.
    End(&'static str),
}

const TERMINATE: &str = "SIGTERM";
const INTERRUPT: &str = "SIGINT";
pub const HANGUP: &str = "SIGHUP";

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user2: Signal,
}

impl Signals {
    pub fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    pub async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::End(TERMINATE),
            _ = self.interrupt.recv() => Order::End(INTERRUPT),
            _ = self.hangup.recv() => Order::Reload(HANGUP),
            _ = self.user2.recv() => Order::HandOver,
        }
    }

    /// The next signal that ends the process; others wait.
    pub async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => TERMINATE,
            _ = self.interrupt.recv() => INTERRUPT,
        }
    }
}
