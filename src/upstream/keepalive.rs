//! TCP keep-alive: a peer that is gone without a word is noticed within about a minute, and what it held comes back.
//!
//! The times are fixed. They are short enough for a slot not to be lost for long, and long enough for a peer that is
//! only slow.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// A silence after which the peer is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(30);
/// The pause between two questions.
const INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer until the connection is given up.
const PROBES: u32 = 3;
/// The milliseconds for which a registry may leave what was sent to it without acknowledgement.
const UNACKNOWLEDGED: u32 = 60_000;

/// Has a client's connection watched. What it does not acknowledge is left to the kernel's own patience: a client that
/// is busy with its disk, and takes nothing for minutes, is not gone.
pub fn watch_client(socket: impl AsFd) {
    // It fails only on a connection that is gone.
    let _ = ask_in_silence(&socket);
}

/// Has a registry's connection watched, also while it owes an acknowledgement: then no silence is asked about, and the
/// kernel alone would repeat for a quarter of an hour.
///
/// # Errors
/// When it is no TCP socket.
pub fn watch_registry(socket: impl AsFd) -> rustix::io::Result<()> {
    ask_in_silence(&socket)?;
    sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED)
}

fn ask_in_silence(socket: &impl AsFd) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(socket, IDLE)?;
    sockopt::set_tcp_keepintvl(socket, INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    sockopt::set_socket_keepalive(socket, true)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_dead_peer_is_noticed_within_about_a_minute_on_both_sides() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (client, _) = listener.accept().await.unwrap();
        watch_client(&client);
        watch_registry(&registry).unwrap();
        for socket in [&client, &registry] {
            let idle = sockopt::tcp_keepidle(socket).unwrap();
            let probing = sockopt::tcp_keepintvl(socket).unwrap() * sockopt::tcp_keepcnt(socket).unwrap();
            assert!(sockopt::socket_keepalive(socket).unwrap());
            assert_eq!((idle, probing), (Duration::from_secs(30), Duration::from_secs(30)));
        }
        let timeouts = [&client, &registry].map(|socket| sockopt::tcp_user_timeout(socket).unwrap());
        assert_eq!(timeouts, [0, 60_000]);
    }
}
