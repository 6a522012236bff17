//! TCP connections as the kernel knows them: whether the other side has ended, closing in order or by a reset, reading
//! to the end, and keep-alive.
//!
//! The rules here hold for clients and registries alike. Nothing here knows what the bytes mean or whose slot a
//! connection lives in. Called by the owner of a stream: `upstream` for registries, the surfaces for clients.

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BufMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep, timeout_at};

/// How often a connection is looked at where the kernel sends no event.
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A silence after which keep-alive asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Probes without an answer until the kernel gives the connection up.
const KEEPALIVE_PROBES: u32 = 3;
/// How long a registry may leave bytes unacknowledged, or its window closed. Without this bound the kernel repeats them for a quarter
/// of an hour and sends no keep-alive probe meanwhile.
pub const REGISTRY_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads in a row before a task lets others run.
const READS_AT_ONCE: usize = 64;

/// Bounds on a lingering close.
#[derive(Clone, Copy, Debug)]
pub struct Linger {
    pub most_bytes: usize,
    /// The time in all.
    pub longest: Duration,
    /// The time without a byte.
    pub longest_silence: Duration,
}

/// Whether the other side has ended its half of the connection, or all of it. The kernel knows of a FIN also behind unread
/// data.
pub fn has_ended(stream: &TcpStream) -> bool {
    kernel_says(stream, PollFlags::RDHUP)
}

/// Whether the connection is reset, or ended on both sides.
pub fn is_broken(stream: &TcpStream) -> bool {
    kernel_says(stream, PollFlags::empty())
}

/// Whether bytes have come that were not read. An end of the other side is no byte.
pub fn has_unread(stream: &TcpStream) -> bool {
    ioctl_fionread(stream).map_or(true, |bytes| bytes > 0)
}

fn kernel_says(stream: &TcpStream, asked: PollFlags) -> bool {
    let mut fds = [PollFd::new(stream, asked)];
    let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && fds[0].revents().intersects(asked | PollFlags::HUP | PollFlags::ERR)
}

/// Completes when the other side has ended its half, or the connection is broken. It reads no bytes.
pub async fn ended(stream: &TcpStream) {
    // Tokio registers for the end of the stream anyhow; this interest reports it, and does not report data.
    while let Ok(ready) = stream.ready(Interest::PRIORITY).await {
        if ready.is_read_closed() || ready.is_write_closed() || ready.is_error() {
            return;
        }
        let _ = stream.try_io(Interest::PRIORITY, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
    }
}

/// Lets the connection end with a reset instead of a FIN when the socket closes. On a connection that has ended already it
/// does nothing.
pub fn reset_on_close(stream: &TcpStream) {
    // It fails only for a socket that is not TCP.
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

/// Sends our FIN.
/// Fails when the kernel refuses. A connection that the other side has closed already is no error: the reading side sees that.
pub fn finish(stream: &TcpStream) -> io::Result<()> {
    match shutdown(stream, Shutdown::Write) {
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes all of it.
/// Fails when the connection is broken.
pub async fn write_all(stream: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match stream.try_write(data) {
            Ok(written) => data = &data[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends our FIN, then reads, shows and drops what still comes until the other side ends, within these bounds. Closing with
/// unread bytes would reset the connection, and the reset would take our last bytes with it (RFC 9112, section 9.6).
/// Whether the other side ended.
pub async fn lingering_close(stream: &TcpStream, linger: Linger, mut show: impl FnMut(&[u8])) -> bool {
    if finish(stream).is_err() {
        return true;
    }
    let deadline = Instant::now() + linger.longest;
    let mut left = linger.most_bytes;
    while left > 0 {
        if drain(stream, &mut left, &mut show) {
            return true;
        }
        consume_budget().await;
        let silent_at = deadline.min(Instant::now() + linger.longest_silence);
        if !matches!(timeout_at(silent_at, stream.readable()).await, Ok(Ok(()))) {
            return false;
        }
    }
    false
}

/// Reads and shows what is there, though not for ever. Whether the other side has ended; an error is an end as well.
fn drain(stream: &TcpStream, left: &mut usize, show: &mut impl FnMut(&[u8])) -> bool {
    let mut scratch = [0; 4096];
    for _ in 0..READS_AT_ONCE {
        match stream.try_read(&mut scratch) {
            Ok(0) => return true,
            Ok(length) => {
                show(&scratch[..length]);
                *left = left.saturating_sub(length);
            }
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
        if *left == 0 {
            break;
        }
    }
    false
}

/// Completes when the other side has acknowledged our FIN and sent its own. From then on the kernel knows no peer any more
/// (`getpeername` fails): the connection is in `TIME_WAIT` or gone. There is no event for it.
pub async fn fin_acknowledged(stream: &TcpStream) {
    until(|| stream.peer_addr().is_err()).await;
}

/// Completes when that is so, which no event tells: looks at growing pauses, of half a second at most.
pub async fn until(is_so: impl Fn() -> bool) {
    let mut pause = Duration::from_millis(1);
    while !is_so() {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Whether the failure of a write is a reset of a connection that the other side had not ended: one behind an end is told as a
/// broken pipe. The kernel tells it once.
pub fn is_reset(error: io::ErrorKind) -> bool {
    !matches!(error, io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected)
}

/// Whether this is the kernel's own end of a connection whose other side it has not heard of: that may not know. The error is the last
/// word of any host between, and can be almost all that there are.
pub fn has_given_up(error: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, Interrupted, NotConnected, WouldBlock};
    !matches!(error, ConnectionReset | BrokenPipe | NotConnected | WouldBlock | Interrupted)
}

/// Reads what is there. A read that leaves room has emptied the socket: the next one waits for the kernel's word.
pub fn try_read_buf(stream: &TcpStream, buffer: &mut impl BufMut) -> io::Result<usize> {
    let (room, mut read) = (buffer.chunk_mut().len(), None);
    let tried = stream.try_io(Interest::READABLE, || {
        let length = stream.try_read_buf(buffer)?;
        if length == 0 || length == room {
            return Ok(length);
        }
        read = Some(length);
        Err(io::ErrorKind::WouldBlock.into())
    });
    read.map_or(tried, Ok)
}

/// [`tokio::io::AsyncRead::poll_read`] on a shared stream; how many bytes were read.
pub fn poll_read(stream: &TcpStream, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        match try_read_buf(stream, buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

/// [`tokio::io::AsyncWrite::poll_write_vectored`] on a shared stream.
pub fn poll_write_vectored(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    slices: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match stream.try_write_vectored(slices) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

/// Lets the sockets that are accepted there, which inherit it, send few bytes at once, and find out within about a minute that
/// a client is gone without a word. Bytes that it does not acknowledge are left to the kernel's own timeouts: a client
/// that is busy with its disk takes nothing for minutes and is not gone.
/// Fails when it is no TCP socket.
pub fn prepare_listener(socket: impl AsFd) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
    sockopt::set_socket_keepalive(&socket, true)
}

/// The same for a socket toward a registry, also while that owes an acknowledgement of a request.
pub fn prepare_dial(socket: impl AsFd) -> rustix::io::Result<()> {
    prepare_listener(&socket)?;
    wait_for(socket, REGISTRY_USER_TIMEOUT)
}

/// The kernel gives this connection up only after nothing was acknowledged for so long, or by its own timeouts where that is zero.
/// Fails only for a socket that is not TCP.
pub fn wait_for(socket: impl AsFd, span: Duration) -> rustix::io::Result<()> {
    let millis = i32::try_from(span.as_millis()).unwrap_or(i32::MAX);
    sockopt::set_tcp_user_timeout(&socket, millis.cast_unsigned())
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends of a connection.
    pub async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    #[test]
    fn the_end_of_a_connection_that_the_kernel_gave_up_has_many_names() {
        for error in [Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL, Errno::HOSTDOWN, Errno::PROTO] {
            assert!(has_given_up(io::Error::from(error).kind()), "{error}");
        }
        for error in [Errno::CONNRESET, Errno::PIPE, Errno::NOTCONN] {
            assert!(!has_given_up(io::Error::from(error).kind()), "{error}");
        }
    }

    #[tokio::test]
    async fn a_dead_peer_is_noticed_within_about_a_minute_on_both_sides() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        prepare_listener(&listener).unwrap();
        let registry = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let client = listener.accept().await.unwrap().0;
        prepare_dial(&registry).unwrap();
        for socket in [&client, &registry] {
            let idle = sockopt::tcp_keepidle(socket).unwrap();
            let probing = sockopt::tcp_keepintvl(socket).unwrap() * sockopt::tcp_keepcnt(socket).unwrap();
            assert!(sockopt::socket_keepalive(socket).unwrap() && sockopt::tcp_nodelay(socket).unwrap());
            assert_eq!((idle, probing), (Duration::from_secs(30), Duration::from_secs(30)));
        }
        let timeouts = [&client, &registry].map(|socket| sockopt::tcp_user_timeout(socket).unwrap());
        assert_eq!(timeouts, [0, 60_000]);
    }

    #[tokio::test]
    async fn the_wait_for_an_acknowledgement_is_bounded() {
        let (ours, _theirs) = pair().await;
        for (span, millis) in [(Duration::from_millis(1500), 1500), (Duration::MAX, i32::MAX.cast_unsigned())] {
            wait_for(&ours, span).unwrap();
            assert_eq!(sockopt::tcp_user_timeout(&ours).unwrap(), millis);
        }
    }

    /// Our last bytes arrive although the other side was still sending, and its own bytes are seen.
    #[tokio::test]
    async fn a_lingering_close_delivers_the_last_bytes_to_a_peer_that_still_sends() {
        let (ours, theirs) = pair().await;
        let linger =
            Linger { most_bytes: 1 << 20, longest: Duration::from_secs(10), longest_silence: Duration::from_secs(10) };
        let mut shown = 0;
        write_all(&theirs, &vec![1; 100_000]).await.unwrap();
        write_all(&ours, b"answer").await.unwrap();
        let (ended, heard) = tokio::join!(lingering_close(&ours, linger, |bytes| shown += bytes.len()), async {
            let mut heard = Vec::new();
            assert!(!lingering_close(&theirs, Linger { most_bytes: 6, ..linger }, |bytes| heard.extend(bytes)).await);
            heard
        });
        assert_eq!((ended, shown, heard), (true, 100_000, b"answer".to_vec()));
    }

    /// A peer that sends and never ends is waited for within the bounds, whichever comes first.
    #[tokio::test]
    async fn a_lingering_close_ends_at_its_bounds() {
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(50));
        for (most_bytes, longest, longest_silence) in [(10, long, long), (1000, short, long), (1000, long, short)] {
            let (ours, theirs) = pair().await;
            write_all(&theirs, &[1; 20]).await.unwrap();
            let linger = Linger { most_bytes, longest, longest_silence };
            assert!(!lingering_close(&ours, linger, |_| ()).await, "{linger:?}");
        }
    }
}
