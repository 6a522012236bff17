//! The kernel's tables of all TCP sockets, `/proc/net/tcp` and `/proc/net/tcp6`, searched for one far end.
//!
//! They are everywhere, but hold every socket of the machine, and thousands in `TIME_WAIT` during a storm.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{Sockets, States, mapped};

/// `TIME_WAIT` as the tables write it: the connection is over on both sides.
const TIME_WAIT: &str = "06";
/// `SYN_SENT`: nobody answered yet.
const SYN_SENT: &str = "02";

/// Our ends of the connections to the registry, by their ports.
pub(super) fn sockets(registry: SocketAddr, states: States) -> Sockets {
    let mut sockets = Sockets::new();
    if let IpAddr::V4(v4) = registry.ip() {
        let needle = format!("{}:{:04X}", word(v4.octets()), registry.port());
        collect(&read("/proc/net/tcp").expect("/proc/net/tcp"), &needle, states, &mut sockets);
    }
    // A kernel without IPv6 has no such table.
    if let Some(table) = read("/proc/net/tcp6") {
        let needle = format!("{}:{:04X}", words(mapped(registry.ip())), registry.port());
        collect(&table, &needle, states, &mut sockets);
    }
    sockets
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Four bytes as a number in the byte order of the machine.
fn word(bytes: [u8; 4]) -> String {
    format!("{:08X}", u32::from_ne_bytes(bytes))
}

fn words(address: Ipv6Addr) -> String {
    let bits = address.octets();
    let (words, _) = bits.as_chunks::<4>();
    words.iter().fold(String::new(), |mut text, bytes| {
        write!(text, "{}", word(*bytes)).expect("writing to a string");
        text
    })
}

/// Adds the local ports of all lines of `table` whose remote end is `needle`, in these states.
fn collect(table: &str, needle: &str, states: States, sockets: &mut Sockets) {
    for line in table.lines() {
        // sl, local, remote, state, ...
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(remote), Some(state)) = (columns.next(), columns.next(), columns.next()) else {
            continue;
        };
        let looked_for = match states {
            States::Open => state != TIME_WAIT,
            States::Dialling => state == SYN_SENT,
        };
        if remote == needle && looked_for {
            let port = local.rsplit(':').next().and_then(|port| u64::from_str_radix(port, 16).ok());
            sockets.insert(port.expect("a local end has a port"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:A001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0100007F:A002 0100007F:1F90 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   3: 0100007F:A003 0100007F:1F90 04 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   4: 0100007F:1F90 0100007F:A001 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
";

    #[test]
    fn every_state_but_time_wait_counts_and_only_our_ends() {
        let mut sockets = Sockets::new();
        collect(TABLE, "0100007F:1F90", States::Open, &mut sockets);
        assert_eq!(sockets, [0xA001, 0xA003].into());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_written_as_the_kernel_does() {
        assert_eq!(word([127, 0, 0, 1]), "0100007F");
        assert_eq!(words("::ffff:127.0.0.1".parse().unwrap()), "0000000000000000FFFF00000100007F");
    }
}
