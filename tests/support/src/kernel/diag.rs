//! The kernel's list of sockets by question (netlink, `NETLINK_SOCK_DIAG`): it looks for one far port itself.
//!
//! The layout of question and answer is that of `linux/inet_diag.h`: a message header of 16 bytes, then a request or a
//! socket. Both name the two ends of a socket in the same 48 bytes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use super::{Sockets, States, mapped};

/// `AF_INET` and `AF_INET6`, as the question has them.
const FAMILIES: [u8; 2] = [2, 10];
const PROTOCOL_TCP: u8 = 6;
/// One bit for each state; without the sixth, `TIME_WAIT`.
const OPEN: u32 = !(1 << 6);
/// `SYN_SENT` alone.
const DIALLING: u32 = 1 << 2;
/// `SOCK_DIAG_BY_FAMILY`: the question, and each socket of the answer.
const SOCKET: u16 = 20;
/// `NLMSG_DONE`: the end of an answer.
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`: all that match.
const REQUEST_ALL: u16 = 0x301;
const HEADER: usize = 16;
/// Where in a message of a socket the remote address is, and the number that no other socket has.
const REMOTE: usize = HEADER + 24;
const COOKIE: usize = HEADER + 44;

/// An open conversation with the kernel about one registry.
pub(super) struct Diag {
    conversation: OwnedFd,
    registry: SocketAddr,
    states: u32,
    buffer: Vec<u8>,
}

impl Diag {
    /// Opens it, and asks once: not every kernel and container knows these questions.
    pub(super) fn open(registry: SocketAddr, states: States) -> io::Result<Self> {
        let states = match states {
            States::Open => OPEN,
            States::Dialling => DIALLING,
        };
        let protocol = Some(netlink::SOCK_DIAG);
        let conversation = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
        let mut diag = Self { conversation, registry, states, buffer: vec![0; 64 * 1024] };
        diag.sockets()?;
        Ok(diag)
    }

    /// Our ends of the connections to the registry, by the kernel's own numbers.
    pub(super) fn sockets(&mut self) -> io::Result<Sockets> {
        let mut sockets = Sockets::new();
        for family in FAMILIES {
            send(&self.conversation, &question(family, self.registry.port(), self.states), SendFlags::empty())?;
            while !self.read_answer(&mut sockets)? {}
        }
        Ok(sockets)
    }

    /// Reads one part of an answer; whether it was the last.
    fn read_answer(&mut self, sockets: &mut Sockets) -> io::Result<bool> {
        let (length, _) = recv(&self.conversation, &mut self.buffer[..], RecvFlags::empty())?;
        let mut rest = &self.buffer[..length];
        while let Some((kind, message, next)) = first_message(rest) {
            match kind {
                SOCKET => sockets.extend(cookie_if_toward(self.registry.ip(), message)),
                DONE => return Ok(true),
                other => {
                    return Err(io::Error::other(format!("the kernel answers with message {other}")));
                }
            }
            rest = next;
        }
        Ok(false)
    }
}

/// All TCP sockets of a family whose far end has this port, in these states.
fn question(family: u8, port: u16, states: u32) -> [u8; HEADER + 56] {
    let mut question = [0; HEADER + 56];
    let length = u32::try_from(question.len()).expect("a short message");
    question[..4].copy_from_slice(&length.to_ne_bytes());
    question[4..6].copy_from_slice(&SOCKET.to_ne_bytes());
    question[6..8].copy_from_slice(&REQUEST_ALL.to_ne_bytes());
    question[HEADER] = family;
    question[HEADER + 1] = PROTOCOL_TCP;
    question[HEADER + 4..HEADER + 8].copy_from_slice(&states.to_ne_bytes());
    question[HEADER + 10..HEADER + 12].copy_from_slice(&port.to_be_bytes());
    question
}

/// The kind of the first message, the message, and what follows it.
fn first_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let message = bytes.get(..usize::try_from(length).ok()?)?;
    let next = bytes.get(message.len().next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message, next))
}

/// The number of a socket whose far end is at this address.
fn cookie_if_toward(registry: IpAddr, message: &[u8]) -> Option<u64> {
    let remote: [u8; 16] = message.get(REMOTE..REMOTE + 16)?.try_into().ok()?;
    let of_ipv6 = message.get(HEADER) == Some(&FAMILIES[1]);
    let toward = match registry {
        IpAddr::V4(v4) if !of_ipv6 => remote[..4] == v4.octets(),
        other => of_ipv6 && remote == mapped(other).octets(),
    };
    let cookie = message.get(COOKIE..COOKIE + 8)?.try_into().ok()?;
    toward.then(|| u64::from_ne_bytes(cookie))
}
