//! The kernel's tables of sockets, `/proc/net/tcp` and `tcp6`, for where netlink is not allowed. They take longer to read the
//! more sockets there are.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A socket in the kernel's list; its inode is 0 if no process has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedSocket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub uid: u32,
    pub inode: u32,
    /// The bytes of its send buffer as the kernel counts them, where netlink tells.
    pub send_buffer: Option<u32>,
}

/// The state of a connection that is over.
const TIME_WAIT: &str = "06";

/// One line of a table. Addresses are in their shortest form: a socket for IPv6 shows an IPv4 address as a mapped one.
#[derive(Debug)]
pub struct TableSocket {
    pub socket: ListedSocket,
    pub is_over: bool,
}

/// All sockets of this network; `None` where the kernel has no table.
pub fn sockets() -> Option<Vec<TableSocket>> {
    let text = fs::read_to_string("/proc/net/tcp").ok()?;
    // A kernel without IPv6 has no such table.
    let six = fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    Some(text.lines().chain(six.lines()).filter_map(socket_in).collect())
}

/// `None` for the title.
fn socket_in(line: &str) -> Option<TableSocket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, remote) = (address_in(fields.get(1)?)?, address_in(fields.get(2)?)?);
    let (uid, inode) = (fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?);
    let socket = ListedSocket { local, remote, uid, inode, send_buffer: None };
    Some(TableSocket { socket, is_over: *fields.get(3)? == TIME_WAIT })
}

/// An address is shown as words in the order of this machine.
fn address_in(field: &str) -> Option<SocketAddr> {
    let (address, port) = field.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let octets = (0..address.len() / 8).map(word).collect::<Option<Vec<_>>>()?.concat();
    let ip = match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets.as_slice()).ok()?)),
    };
    Some((ip.to_canonical(), u16::from_str_radix(port, 16).ok()?).into())
}
