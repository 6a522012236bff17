//! The kernel's knowledge: of TCP sockets, by netlink (`NETLINK_SOCK_DIAG`), the user behind one, the bytes that its peer has not
//! acknowledged, and sockets that no process has any more; and the number of descriptors that this process may open.
//!
//! The layout of question and answer is that of `linux/inet_diag.h`. Where the kernel does not answer (an old one, or a
//! container that forbids it), nothing is known, and callers do without.

pub mod table;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

pub use self::table::ListedSocket;

const HEADER: usize = 16;
const QUESTION: usize = HEADER + 56;
const PROTOCOL_TCP: u8 = 6;
/// `SOCK_DIAG_BY_FAMILY`, the type of question and answer.
const SOCKET: u16 = 20;
/// `NLMSG_DONE`: the end of a listing.
const DONE: u16 = 3;
/// `NLM_F_REQUEST`: exactly this one.
const REQUEST_ONE: u16 = 1;
/// `NLM_F_REQUEST` and `NLM_F_DUMP`: all of them.
const REQUEST_ALL: u16 = 1 | 0x300;
/// Every state but `TIME_WAIT`, `CLOSE`, `LISTEN` and the half-open ones of listeners.
pub const STANDING: u32 = !(1 << 6 | 1 << 7 | LISTENING | 1 << 12);
pub const LISTENING: u32 = 1 << 10;
/// Where a message has port and address of our end and of the other one, and the inode: 0 for a socket that no process has.
const LOCAL_END: (usize, usize) = (HEADER + 4, HEADER + 8);
const REMOTE_END: (usize, usize) = (HEADER + 6, HEADER + 24);
const INODE: usize = HEADER + 68;
/// Where the answer has the bytes to read, those that are not acknowledged, and the user; and where its attributes begin.
const READABLE: usize = HEADER + 56;
const UNACKNOWLEDGED: usize = HEADER + 60;
const UID: usize = HEADER + 64;
const ATTRIBUTES: usize = HEADER + 72;
/// An attribute, and where it has the word that is wanted: none; of `INET_DIAG_MEMINFO` the memory that received bytes take; of
/// `INET_DIAG_SKMEMINFO` the size of the send buffer.
const NO_MORE: (u8, usize) = (0, 0);
const RECEIVED: (u8, usize) = (1, 4);
const SEND_BUFFER: (u8, usize) = (7, 16);

/// Whether this process may not ask by netlink, as in some sandboxes. Told once.
static IS_FORBIDDEN: LazyLock<bool> = LazyLock::new(|| {
    let error = open().err().filter(|error| ![Errno::MFILE, Errno::NFILE].contains(error));
    if let Some(error) = error {
        tracing::warn!(%error, "netlink is not allowed here: the users of local clients are read from /proc/net/tcp");
    }
    error.is_some()
});

/// The other end of a connection within this machine, with its user.
pub fn socket_behind(ours: SocketAddr, theirs: SocketAddr) -> Option<ListedSocket> {
    match ask(theirs, ours, NO_MORE) {
        Some(answer) => socket_in(&answer, ours.is_ipv4()),
        None if *IS_FORBIDDEN => socket_in_proc(theirs, ours),
        None => None,
    }
}

/// The same from the kernel's tables.
fn socket_in_proc(local: SocketAddr, remote: SocketAddr) -> Option<ListedSocket> {
    let canonical = |address: SocketAddr| SocketAddr::from((address.ip().to_canonical(), address.port()));
    let ends = [local, remote].map(canonical);
    table::sockets()?
        .into_iter()
        .find(|listed| [listed.socket.local, listed.socket.remote] == ends)
        .map(|listed| listed.socket)
}

fn open() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))
}

/// Whether no process has the other end of a connection any more: it is closed, not only half of it. Known for connections
/// within this machine; any other is taken for open.
pub fn is_other_end_closed(stream: &TcpStream) -> bool {
    let (Ok(ours), Ok(theirs)) = (stream.local_addr(), stream.peer_addr()) else { return true };
    match ask(theirs, ours, NO_MORE) {
        Some(answer) => word_of(&answer, INODE) == Some(0),
        // Where the kernel knows our end, it answers, and the other one is gone.
        None => theirs.ip().to_canonical().is_loopback() && ask(ours, theirs, NO_MORE).is_some(),
    }
}

/// Bytes that were written to this connection and that the other end has not acknowledged.
pub fn unacknowledged(stream: &TcpStream) -> Option<u32> {
    let (ours, theirs) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    word_of(&ask(ours, theirs, NO_MORE)?, UNACKNOWLEDGED)
}

/// Whether the process at the other end has read all that came there, and all that it sent has come here. `None` where it is not of
/// this machine, or of another network namespace.
pub fn is_other_end_at_rest(stream: &TcpStream) -> Option<bool> {
    let (ours, theirs) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let answer = ask(theirs, ours, NO_MORE)?;
    Some(word_of(&answer, READABLE)? == 0 && word_of(&answer, UNACKNOWLEDGED)? == 0)
}

/// Whether bytes came behind some that are missing: the kernel holds them in memory, and there is nothing to read yet.
pub fn holds_out_of_order(stream: &TcpStream) -> bool {
    let held = || {
        let answer = ask(stream.local_addr().ok()?, stream.peer_addr().ok()?, RECEIVED)?;
        let readable = word_of(&answer, READABLE)?;
        Some(readable == 0 && word_of_attribute(&answer, RECEIVED)? > 0)
    };
    held().unwrap_or(false)
}

/// A word of an attribute of an answer.
fn word_of_attribute(answer: &[u8], (wanted, at): (u8, usize)) -> Option<u32> {
    let mut attributes = answer.get(ATTRIBUTES..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        if kind == u16::from(wanted) {
            return word_of(attributes, at);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// An address, and the only port that is meant; `None`: every port.
pub type Remote = (IpAddr, Option<u16>);

/// Sockets toward these addresses that stand, though no process has them: the kernel is still ending the connections
/// of a process that is gone.
pub fn orphans(remotes: &[Remote]) -> usize {
    let families: BTreeSet<bool> = remotes.iter().map(|(ip, _)| ip.is_ipv4()).collect();
    let standing = families.into_iter().filter_map(|ipv4| sockets_of_family(ipv4, STANDING)).flatten();
    let has = |there: SocketAddr, port| remotes.contains(&(there.ip(), port));
    let is_there = |there: SocketAddr| has(there, None) || has(there, Some(there.port()));
    standing.filter(|socket| socket.inode == 0 && is_there(socket.remote)).count()
}

/// The descriptors that this process may have open, once it has raised its limit.
pub fn max_descriptors() -> usize {
    getrlimit(Resource::Nofile).maximum.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX)
}

/// Raises the limit on open descriptors as far as this process may.
/// Fails when the kernel forbids it.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// Whether this process, or the machine, has no descriptor left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The sockets of IPv4, or of IPv6, in these states; `None` where the kernel does not answer.
pub fn sockets_of_family(ipv4: bool, states: u32) -> Option<Vec<ListedSocket>> {
    let kernel = open().ok()?;
    send(&kernel, &question_about(REQUEST_ALL, ipv4, states, SEND_BUFFER), SendFlags::empty()).ok()?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, _) = recv(&kernel, &mut buffer[..], RecvFlags::empty()).ok()?;
        if !take_sockets(&buffer[..length], ipv4, &mut found)? {
            return Some(found);
        }
    }
}

/// Adds the sockets of one part of a listing, and says whether more follows; `None` if the kernel ends it with an error.
fn take_sockets(part: &[u8], ipv4: bool, found: &mut Vec<ListedSocket>) -> Option<bool> {
    let mut rest = part;
    while rest.len() >= HEADER {
        let size = usize::try_from(word_of(rest, 0)?).ok()?.clamp(HEADER, rest.len());
        let (message, behind) = rest.split_at(size);
        match u16::from_ne_bytes(message[4..6].try_into().ok()?) {
            SOCKET => found.push(socket_in(message, ipv4)?),
            // It carries the result. A kernel without a list of this kind says so here.
            DONE if word_of(message, HEADER).unwrap_or(0) == 0 => return Some(false),
            _ => return None,
        }
        rest = behind.get(size.next_multiple_of(4) - size..).unwrap_or_default();
    }
    Some(true)
}

/// The socket that a message is about.
fn socket_in(message: &[u8], ipv4: bool) -> Option<ListedSocket> {
    let (local, remote) = (end_in(message, LOCAL_END, ipv4)?, end_in(message, REMOTE_END, ipv4)?);
    let (uid, inode) = (word_of(message, UID)?, word_of(message, INODE)?);
    let send_buffer = word_of_attribute(message, SEND_BUFFER);
    Some(ListedSocket { local, remote, uid, inode, send_buffer })
}

fn end_in(message: &[u8], (port, address): (usize, usize), ipv4: bool) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(message.get(port..port + 2)?.try_into().ok()?);
    let address: [u8; 16] = message.get(address..address + 16)?.try_into().ok()?;
    let ip = if ipv4 { IpAddr::from([address[0], address[1], address[2], address[3]]) } else { IpAddr::from(address) };
    Some(SocketAddr::new(ip, port))
}

/// A question about sockets in these states, with one attribute of them.
fn question_about(request: u16, ipv4: bool, states: u32, more: (u8, usize)) -> [u8; QUESTION] {
    let mut question = [0; QUESTION];
    question[..4].copy_from_slice(&(u32::try_from(QUESTION).expect("a short message")).to_ne_bytes());
    question[4..6].copy_from_slice(&SOCKET.to_ne_bytes());
    question[6..8].copy_from_slice(&request.to_ne_bytes());
    question[HEADER] = if ipv4 { 2 } else { 10 };
    question[HEADER + 1] = PROTOCOL_TCP;
    question[HEADER + 2] = if more == NO_MORE { 0 } else { 1 << (more.0 - 1) };
    question[HEADER + 4..HEADER + 8].copy_from_slice(&states.to_ne_bytes());
    question
}

thread_local! {
    /// Where this thread asks, and the number of its last question.
    static ASKED: Cell<Option<(OwnedFd, u32)>> = const { Cell::new(None) };
}

/// An answer counts only under the number of its question; where one stays out, a later one is not to be taken for it.
fn ask(local: SocketAddr, remote: SocketAddr, more: (u8, usize)) -> Option<Vec<u8>> {
    let (kernel, last) = ASKED.take().map_or_else(|| open().map(|kernel| (kernel, 0)), Ok).ok()?;
    let (number, mut question) = (last.wrapping_add(1), question(local, remote, more));
    question[8..12].copy_from_slice(&number.to_ne_bytes());
    send(&kernel, &question, SendFlags::empty()).ok()?;
    let mut answer = vec![0; 1024];
    let (length, _) = recv(&kernel, &mut answer[..], RecvFlags::DONTWAIT).ok()?;
    answer.truncate(length);
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let is_of_it = word_of(&answer, 8) == Some(number);
    ASKED.set(is_of_it.then_some((kernel, number)));
    (is_of_it && kind == SOCKET).then_some(answer)
}

fn question(local: SocketAddr, remote: SocketAddr, more: (u8, usize)) -> [u8; QUESTION] {
    let mut question = question_about(REQUEST_ONE, local.is_ipv4(), u32::MAX, more);
    let body = &mut question[HEADER..];
    body[8..10].copy_from_slice(&local.port().to_be_bytes());
    body[10..12].copy_from_slice(&remote.port().to_be_bytes());
    write_address(&mut body[12..28], local.ip());
    write_address(&mut body[28..44], remote.ip());
    // INET_DIAG_NOCOOKIE: the addresses alone tell which one.
    body[48..56].fill(0xff);
    question
}

fn write_address(place: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => place[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => place.copy_from_slice(&ip.octets()),
    }
}

fn word_of(answer: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// The client is closed and the server is not: the client's socket stands, and nobody has it.
    #[tokio::test]
    async fn sockets_that_nobody_has_any_more_are_counted_until_they_are_gone() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let remote = listener.local_addr().unwrap();
            let client = TcpStream::connect(remote).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            let here = [(remote.ip(), Some(remote.port()))];
            assert_eq!(orphans(&here), 0, "a process has it");
            drop(client);
            assert_eq!(orphans(&here), 1);
            assert_eq!(orphans(&[(remote.ip(), Some(1)), ("127.0.0.2".parse().unwrap(), None)]), 0);
            drop(server);
            assert_eq!(orphans(&here), 0, "only TIME_WAIT is left");
        }
    }

    /// A kernel that has no such list is not one without sockets.
    #[test]
    fn a_listing_that_ends_in_an_error_tells_nothing() {
        let ended = |kind: u16, result: i32| {
            let mut message = vec![0; HEADER + 4];
            message[..4].copy_from_slice(&20_u32.to_ne_bytes());
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message[HEADER..].copy_from_slice(&result.to_ne_bytes());
            take_sockets(&message, true, &mut Vec::new())
        };
        assert_eq!(ended(DONE, 0), Some(false));
        for errno in [Errno::NOENT, Errno::OPNOTSUPP] {
            assert_eq!(ended(DONE, -errno.raw_os_error()), None);
            assert_eq!(ended(2, -errno.raw_os_error()), None, "NLMSG_ERROR");
        }
    }

    /// An answer that nobody took is not taken for the one to the next question.
    #[tokio::test]
    async fn an_answer_to_an_earlier_question_tells_nothing_of_another_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let clients = [TcpStream::connect(here).await.unwrap(), TcpStream::connect(here).await.unwrap()];
        let [first, second] = clients.each_ref().map(|client| client.local_addr().unwrap());
        let kernel = open().unwrap();
        send(&kernel, &question(first, here, NO_MORE), SendFlags::empty()).unwrap();
        ASKED.set(Some((kernel, 7)));
        assert_eq!(socket_behind(here, second), None);
        let [first, second] = [socket_behind(here, first).unwrap(), socket_behind(here, second).unwrap()];
        assert_ne!(first.inode, second.inode);
    }

    #[tokio::test]
    async fn the_kernel_tells_who_is_behind_a_local_connection_and_what_it_has_not_acknowledged() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            let uid = rustix::process::geteuid().as_raw();
            let (ours, theirs) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
            let behind = socket_behind(ours, theirs).unwrap();
            assert!(behind.uid == uid && behind.inode > 0, "{behind:?}");
            assert_eq!((socket_in_proc(theirs, ours), socket_in_proc(theirs, theirs)), (Some(behind), None));
            assert_eq!(unacknowledged(&client), Some(0));
            assert_eq!(is_other_end_at_rest(&server), Some(true));
            server.writable().await.unwrap();
            server.try_write(b"answer").unwrap();
            assert_eq!(is_other_end_at_rest(&server), Some(false), "it has not read that");
            client.read_exact(&mut [0; 6]).await.unwrap();
            assert_eq!(is_other_end_at_rest(&server), Some(true));
            assert!(!holds_out_of_order(&server));
            // More than the other end can take: what does not fit stays with us.
            let flood = vec![0; 16 * 1024 * 1024];
            let stuck = tokio::time::timeout(std::time::Duration::from_millis(300), client.write_all(&flood)).await;
            assert!(stuck.is_err());
            assert!(unacknowledged(&client).unwrap() > 0);
            assert_eq!(is_other_end_at_rest(&server), Some(false), "it has sent more");
        }
    }
}
