//! The mark of the sockets that `doctor` and `calibrate` open around the sidecar because the operator asked for it.
//!
//! A sidecar may be another user that sees neither their names nor their descriptors. The kernel tells everybody the size of a send
//! buffer, and no program asks for this one by chance. Nothing of it is seen on the wire, and their requests are small. It is no
//! secret: the radar finds what is set up wrong, not a program that hides.

use std::io;
use std::net::SocketAddr;

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::net::{TcpSocket, TcpStream};

use crate::kernel::ListedSocket;

/// The size to ask for: a prime, and below the bound of any machine (`net.core.wmem_max`).
pub const SEND_BUFFER: usize = 20_011;

/// A connection with the mark, which it has from its first packet.
/// Fails as any other does.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    socket.connect(address).await
}

/// The kernel counts twice what it was asked for (`socket(7)`).
pub fn has_mark(socket: &ListedSocket) -> bool {
    socket.send_buffer.and_then(|counted| usize::try_from(counted).ok()) == Some(2 * SEND_BUFFER)
}
