//! Classes of IP addresses: the few that the rules of the sidecar distinguish.
//!
//! Pure. It never decides by itself what is refused (the caller knows what the operator listed), and it never trusts
//! an IPv6 spelling: an IPv4 address wrapped in one is classified as what it reaches. The upstream asks it between
//! resolving a name and dialling, so the address that was checked is the address that is dialled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// Nothing special: the public internet and the private ranges, where registries live.
    Global,
    /// This machine: `127.0.0.0/8` and `::1`.
    Loopback,
    /// This link: `169.254.0.0/16` and `fe80::/10`.
    LinkLocal,
    /// The metadata service of a cloud, which gives credentials to every client.
    Metadata,
    /// No single host: unspecified, multicast, broadcast and reserved addresses. (Linux takes `0.0.0.0` for loopback.)
    Unusable,
}

/// The addresses under which clouds offer their metadata services, or the agent that leads to them.
const METADATA: [IpAddr; 7] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), // AWS, GCE, Azure, OpenStack and most others
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),   // AWS, credentials of ECS tasks
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), // Alibaba Cloud
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),     // Oracle Cloud
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),   // Azure, the wire server
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), // AWS
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), // GCE
];

impl AddressClass {
    pub fn title(self) -> &'static str {
        match self {
            Self::Global => "an ordinary address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud metadata address",
            Self::Unusable => "no address of a single host",
        }
    }
}

/// Sorts an address; one that wraps an IPv4 address is sorted as that.
pub fn classify(ip: IpAddr) -> AddressClass {
    let [one, other] = ends(ip).map(class_of);
    warier(one, other)
}

/// Whether both addresses lead to one host, though one of them may wrap the other, as NAT64 does.
pub fn reach_the_same(one: IpAddr, other: IpAddr) -> bool {
    // The wrong reading of a translated address is mostly zeros.
    let is_host = |end: &&IpAddr| classify(**end) != AddressClass::Unusable;
    one == other || ends(one).iter().filter(is_host).any(|end| ends(other).contains(end))
}

/// The address that this one leads to. It is one of both where only the local translator knows which.
fn ends(ip: IpAddr) -> [IpAddr; 2] {
    let IpAddr::V6(v6) = ip else { return [ip; 2] };
    match Wrapped::find(v6) {
        Wrapped::Nothing => [ip; 2],
        Wrapped::One(inner) => [IpAddr::V4(inner); 2],
        Wrapped::Either(one, other) => [IpAddr::V4(one), IpAddr::V4(other)],
    }
}

fn class_of(ip: IpAddr) -> AddressClass {
    let (is_link_local, is_no_host) = match ip {
        IpAddr::V4(ip) => {
            let first = ip.octets()[0];
            (ip.is_link_local(), first == 0 || first >= 240)
        }
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.is_unspecified()),
    };
    match () {
        () if METADATA.contains(&ip) => AddressClass::Metadata,
        () if ip.is_loopback() => AddressClass::Loopback,
        () if is_link_local => AddressClass::LinkLocal,
        () if is_no_host || ip.is_multicast() => AddressClass::Unusable,
        () => AddressClass::Global,
    }
}

/// The IPv4 address inside an IPv6 address.
enum Wrapped {
    /// The address is itself.
    Nothing,
    /// It stands for this one.
    One(Ipv4Addr),
    /// It stands for one of these two; which one only the local translator knows.
    Either(Ipv4Addr, Ipv4Addr),
}

impl Wrapped {
    fn find(ip: Ipv6Addr) -> Self {
        let octet = ip.octets();
        let v4_at = |a: usize, b: usize, c: usize, d: usize| Ipv4Addr::new(octet[a], octet[b], octet[c], octet[d]);
        let last = v4_at(12, 13, 14, 15);
        match ip.segments() {
            // `::` and `::1` lie in the range of the IPv4-compatible addresses, and are none.
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Self::Nothing,
            // IPv4-compatible (RFC 4291 section 2.5.5.1), IPv4-mapped (2.5.5.2), IPv4-translated
            // (RFC 2765), and NAT64 with the well-known prefix (RFC 6052).
            [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => {
                Self::One(last)
            }
            // NAT64, the local prefix (RFC 8215): used as a /96, or with the split layout of a /48.
            [0x64, 0xff9b, 1, ..] => Self::Either(last, v4_at(6, 7, 9, 10)),
            // 6to4 (RFC 3056).
            [0x2002, ..] => Self::One(v4_at(2, 3, 4, 5)),
            _ => Self::Nothing,
        }
    }
}

/// Of two readings, the one to be feared. The wrong reading of a translated address is mostly zeros, hence unusable:
/// that says nothing unless both are.
fn warier(one: AddressClass, other: AddressClass) -> AddressClass {
    let calm = |class| match class {
        AddressClass::Metadata => 0,
        AddressClass::LinkLocal => 1,
        AddressClass::Loopback => 2,
        AddressClass::Global => 3,
        AddressClass::Unusable => 4,
    };
    std::cmp::min_by_key(one, other, |class| calm(*class))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_class(expected: AddressClass, addresses: &[&str]) {
        for text in addresses {
            assert_eq!(classify(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn registries_live_at_global_and_private_addresses() {
        let ordinary = [
            "1.1.1.1",
            "10.0.0.5",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "192.0.0.191",
            "168.63.129.17",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "fd00::1",
            "fd00:ec2::253",
            "fec0::1",
            "::2:0:0:1",
        ];
        assert_class(AddressClass::Global, &ordinary);
    }

    #[test]
    fn loopback_is_the_whole_range() {
        assert_class(AddressClass::Loopback, &["127.0.0.1", "127.0.0.0", "127.255.255.255", "::1"]);
    }

    #[test]
    fn link_local_is_told_apart_from_metadata() {
        let links = ["169.254.0.1", "169.254.169.253", "169.254.255.255", "fe80::1", "febf::1"];
        assert_class(AddressClass::LinkLocal, &links);
    }

    #[test]
    fn metadata_services_of_the_clouds_are_known() {
        let services = [
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd20:ce::254",
        ];
        assert_class(AddressClass::Metadata, &services);
    }

    #[test]
    fn what_is_no_single_host_is_unusable() {
        let nowhere =
            ["0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "ff02::1"];
        assert_class(AddressClass::Unusable, &nowhere);
    }

    #[test]
    fn wrapped_addresses_are_seen_through() {
        use AddressClass::*;
        for (class, v4, hex) in [
            (Metadata, "169.254.169.254", "a9fe:a9fe"),
            (LinkLocal, "169.254.1.1", "a9fe:101"),
            (Loopback, "127.0.0.1", "7f00:1"),
            (Unusable, "224.0.0.1", "e000:1"),
            (Global, "8.8.8.8", "808:808"),
        ] {
            let wrapped = [
                format!("::ffff:{v4}"),
                format!("::{v4}"),
                format!("::ffff:0:{v4}"),
                format!("64:ff9b::{v4}"),
                format!("64:ff9b:1::{v4}"),
                format!("2002:{hex}::1"),
            ];
            // An unusable address in the local NAT64 prefix has two unusable readings, so the table holds for it too.
            assert_class(class, &wrapped.each_ref().map(String::as_str));
        }
        assert_class(Unusable, &["::ffff:0.0.0.0", "64:ff9b::", "2002::"]);
    }

    #[test]
    fn a_wrapped_address_leads_where_the_inner_one_does() {
        let same = |one: &str, other: &str| reach_the_same(one.parse().unwrap(), other.parse().unwrap());
        for wrapped in
            ["192.0.2.1", "::ffff:192.0.2.1", "64:ff9b::192.0.2.1", "64:ff9b:1::192.0.2.1", "2002:c000:201::1"]
        {
            assert!(same(wrapped, "192.0.2.1") && same("64:ff9b::192.0.2.1", wrapped), "{wrapped}");
            assert!(!same(wrapped, "192.0.2.2"), "{wrapped}");
        }
        assert!(!same("64:ff9b:1::192.0.2.1", "64:ff9b:1::192.0.2.2"));
        assert!(same("2001:db8::1", "2001:db8::1") && !same("2001:db8::1", "2001:db8::2"));
    }

    #[test]
    fn the_local_nat64_prefix_is_read_in_both_layouts() {
        // RFC 6052 section 2.2, /48: two octets before octet 8, two behind it.
        assert_class(AddressClass::Metadata, &["64:ff9b:1:a9fe:a9:fe00::"]);
        assert_class(AddressClass::Loopback, &["64:ff9b:1:7f00:0:100::"]);
        assert_class(AddressClass::Global, &["64:ff9b:1:808:8:800::"]);
        assert_class(AddressClass::Unusable, &["64:ff9b:1::"]);
    }
}
