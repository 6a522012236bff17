//! One reading of the kernel's list: which sockets toward a registry are ours, and which are not.
//!
//! A list takes a while to read, and our descriptors are read after it. A socket that is not among them is foreign, or was ours and
//! is closed by then: it is looked for once more in a second list. Where nothing goes around, one list is enough.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::mark::has_mark;
use super::owners::{inodes_of, processes_of};
use crate::kernel::{LISTENING, ListedSocket, STANDING, sockets_of_family, table};

/// An address of a registry.
pub type RegistryAddress = (IpAddr, u16);

/// The result of one reading.
#[derive(Debug, Default)]
pub struct Sightings {
    /// Where each socket of ours leads.
    pub ours: Vec<RegistryAddress>,
    /// Where each other one leads, with user and command.
    pub others: Vec<(RegistryAddress, (u32, Option<String>))>,
}

/// Looks at the sockets toward these places.
/// Fails with the reason why nothing can be seen.
pub fn look(places: &BTreeSet<RegistryAddress>) -> Result<Sightings, &'static str> {
    let list = || by_netlink().or_else(in_proc).ok_or("the kernel does not show the sockets");
    let sockets = list()?;
    let own = inodes_of(Path::new("/proc/self"));
    let is_foreign = |socket: &ListedSocket| socket.inode != 0 && !own.contains(&socket.inode);
    if !sockets.iter().any(is_foreign) {
        return Err("no other process uses this network (a pod without hostNetwork sees only itself)");
    }
    let place = |socket: &ListedSocket| (socket.remote.ip(), socket.remote.port());
    let toward = sockets.iter().filter(|socket| socket.inode != 0 && places.contains(&place(socket)));
    let (mut others, ours): (Vec<&ListedSocket>, Vec<&ListedSocket>) = toward.partition(|socket| is_foreign(socket));
    others.retain(|socket| !has_mark(socket));
    if !others.is_empty() {
        let still: HashSet<u32> = list()?.iter().map(|socket| socket.inode).collect();
        others.retain(|socket| still.contains(&socket.inode));
    }
    let inodes: HashSet<u32> = others.iter().map(|socket| socket.inode).collect();
    let processes = if inodes.is_empty() { HashMap::new() } else { processes_of(&inodes) };
    let foreign = others.into_iter().filter_map(|socket| match processes.get(&socket.inode) {
        Some(process) if process.is_ours() => None,
        process => Some((place(socket), (socket.uid, process.map(|process| process.command.clone())))),
    });
    Ok(Sightings { ours: ours.into_iter().map(place).collect(), others: foreign.collect() })
}

/// Every socket of this network that stands or listens; `None` where the kernel does not answer.
fn by_netlink() -> Option<Vec<ListedSocket>> {
    let mut sockets = sockets_of_family(true, STANDING | LISTENING)?;
    // A kernel without IPv6 does not answer for it. A socket for IPv6 shows an IPv4 address as a mapped one.
    let six = sockets_of_family(false, STANDING | LISTENING).unwrap_or_default();
    let canonical = |end: SocketAddr| (end.ip().to_canonical(), end.port()).into();
    let short = |socket: ListedSocket| {
        let (local, remote) = (canonical(socket.local), canonical(socket.remote));
        ListedSocket { local, remote, ..socket }
    };
    sockets.extend(six.into_iter().map(short));
    Some(sockets)
}

/// The same list from the kernel's tables.
fn in_proc() -> Option<Vec<ListedSocket>> {
    Some(table::sockets()?.into_iter().filter(|listed| !listed.is_over).map(|listed| listed.socket).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both lists have the same socket, with user and inode; it is ours.
    #[test]
    fn the_tables_show_what_the_kernel_answers() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let remote = listener.local_addr().unwrap();
            let client = TcpStream::connect(remote).unwrap();
            let find = |sockets: Vec<ListedSocket>| sockets.into_iter().find(|socket| socket.remote == remote).unwrap();
            let asked = find(by_netlink().unwrap());
            assert_eq!(ListedSocket { send_buffer: None, ..asked }, find(in_proc().unwrap()));
            assert_eq!(asked.uid, rustix::process::geteuid().as_raw());
            assert!(inodes_of(Path::new("/proc/self")).contains(&asked.inode));
            let place = (remote.ip(), remote.port());
            let seen = look(&BTreeSet::from([place]));
            // On a machine with this process alone, it says that it sees nobody.
            assert!(seen.is_err() || seen.unwrap().ours == [place]);
            drop(client);
        }
    }
}
