//! Listeners that were open before this process began: held by systemd (socket activation), or handed over by the
//! process that this one takes over from.
//!
//! They come as descriptors from 3 on, counted in `LISTEN_FDS` and named in `LISTEN_FDNAMES` (`sd_listen_fds(3)`). A
//! listener is recognised by its address and its name, else by one of them.

use std::env;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;

use listenfd::ListenFd;

use super::takeover::link::LINK;

/// `AF_UNIX` and `SOCK_STREAM`, which every Unix has.
const UNIX: i32 = 1;
const STREAM: i32 = 1;

#[derive(Debug, Default)]
pub struct Inherited {
    listeners: Vec<InheritedListener>,
    predecessor: Option<UnixStream>,
}

#[derive(Debug)]
struct InheritedListener {
    name: String,
    address: SocketAddr,
    listener: TcpListener,
}

impl Inherited {
    /// Takes the descriptors that the environment names. To be called once, before other threads run.
    /// Fails when a descriptor is of another kind.
    pub fn from_env() -> io::Result<Inherited> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut descriptors = ListenFd::from_env();
        let mut inherited = Inherited::default();
        for index in 0..descriptors.len() {
            let name = names.next().unwrap_or_default().to_owned();
            if name == LINK {
                inherited.predecessor = descriptors.take_custom(index, UNIX, STREAM, "link")?;
            } else if let Some(listener) = descriptors.take_tcp_listener(index)? {
                let address = listener.local_addr()?;
                inherited.listeners.push(InheritedListener { name, address, listener });
            }
        }
        Ok(inherited)
    }

    /// The listener of this name at this address, else the one at this address, else the one of this name: several lines
    /// of one socket unit share a name.
    pub fn take(&mut self, name: &str, address: SocketAddr) -> Option<TcpListener> {
        let by = |fits: &dyn Fn(&InheritedListener) -> bool| self.listeners.iter().position(fits);
        let is_there = |listener: &InheritedListener| listener.address == address;
        let both = by(&|listener| listener.name == name && is_there(listener));
        let index = both.or_else(|| by(&is_there)).or_else(|| by(&|listener| listener.name == name))?;
        let InheritedListener { address: at, listener, .. } = self.listeners.remove(index);
        // Port 0 is wherever it is.
        if at != address && address.port() != 0 {
            tracing::warn!(name, %address, %at, "an inherited listener has another address than the config");
        }
        Some(listener)
    }

    /// The link to the process that hands over.
    pub fn take_predecessor(&mut self) -> Option<UnixStream> {
        self.predecessor.take()
    }

    pub fn left(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(names: &[&str]) -> (Inherited, Vec<SocketAddr>) {
        let listeners: Vec<InheritedListener> = names
            .iter()
            .map(|name| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                InheritedListener { name: (*name).to_owned(), address: listener.local_addr().unwrap(), listener }
            })
            .collect();
        let addresses = listeners.iter().map(|listener| listener.address).collect();
        (Inherited { listeners, predecessor: None }, addresses)
    }

    #[test]
    fn of_those_that_share_a_name_the_address_decides() {
        let (mut inherited, addresses) = inherited(&["proxy", "proxy"]);
        assert_eq!(inherited.take("proxy", addresses[1]).unwrap().local_addr().unwrap(), addresses[1]);
        assert_eq!(inherited.take("admin", addresses[0]).unwrap().local_addr().unwrap(), addresses[0]);
    }

    #[test]
    fn a_listener_is_known_by_its_name_or_its_address() {
        let anywhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let (mut inherited, addresses) = inherited(&["admin", "roadstead.socket", "other"]);
        assert_eq!(inherited.take("admin", anywhere).unwrap().local_addr().unwrap(), addresses[0]);
        assert!(inherited.take("admin", anywhere).is_none(), "each once");
        assert_eq!(inherited.take("proxy", addresses[1]).unwrap().local_addr().unwrap(), addresses[1]);
        assert_eq!(inherited.left(), [addresses[2]]);
    }
}
