//! A broken link, for one socket and without rights: the kernel drops what comes before it is acknowledged.

use socket2::{SockFilter, SockRef};
use tokio::net::TcpStream;

/// Loses all that comes to this socket from now on.
///
/// # Panics
/// If the kernel takes no filter.
pub fn deafen(socket: &TcpStream) {
    const DROP_ALL: SockFilter = SockFilter::new(6, 0, 0, 0);
    SockRef::from(socket).attach_filter(&[DROP_ALL]).expect("a filter of one step");
}

/// Mends the link.
///
/// # Panics
/// If nothing is lost.
pub fn undeafen(socket: &TcpStream) {
    SockRef::from(socket).detach_filter().expect("a filter");
}
