//! An authority in one normal form: host and port; and the patterns with which a registry claims hosts.
//!
//! Pure. Called by `target::origin`, and through `target` by the proxy and the configuration.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest host name in bytes, without the trailing dot (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;

/// Longest label between two dots, in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// A host and a port, in normal form: two spellings of one destination are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    host: Host,
    port: u16,
}

impl Target {
    /// Parses the authority-form of a CONNECT (RFC 9112 section 3.2.3): `host:port`, and nothing else.
    /// Fails when the port is missing, or for any part that is not a host or a port from 1 to 65535.
    pub fn from_connect(authority: &str) -> Result<Self, BadTarget> {
        let (host, port) = split(authority)?;
        let port = port.filter(|port| !port.is_empty());
        Ok(Self { host: Host::parse(host)?, port: parse_port(port.ok_or(BadTarget::MissingPort)?)? })
    }

    /// Parses the authority of an absolute URL: `host` or `host:port`. An absent or empty port is `default_port`
    /// (RFC 3986 section 3.2.3).
    /// Fails for any part that is not a host or a port from 1 to 65535. User names in URLs are refused: they are a way to
    /// make one host look like another.
    pub fn from_authority(authority: &str, default_port: u16) -> Result<Self, BadTarget> {
        let (host, port) = split(authority)?;
        let host = Host::parse(host)?;
        let port = match port {
            None | Some("") => default_port,
            Some(port) => parse_port(port)?,
        };
        Ok(Self { host, port })
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, 1 to 65535 (or the default port that the caller named).
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// One host in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A name to be resolved: lower-case, no trailing dot, at most 253 bytes.
    Name(String),
    /// An IPv4 address, also when it was written as an IPv4-mapped IPv6 address.
    V4(Ipv4Addr),
    /// An IPv6 address without a zone.
    V6(Ipv6Addr),
}

impl Host {
    /// The address, when the host is one; `None` for a name, which has to be resolved.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::V4(ip) => Some(IpAddr::V4(*ip)),
            Self::V6(ip) => Some(IpAddr::V6(*ip)),
        }
    }

    /// Whether it is an address, or a name that only this network can give: `localhost`, or one without a dot.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Name(name) => !name.contains('.') || name.ends_with(".localhost"),
            Self::V4(_) | Self::V6(_) => true,
        }
    }

    /// Parses a host in the form of an authority: IPv6 in brackets.
    fn parse(text: &str) -> Result<Self, BadTarget> {
        if let Some(bracketed) = text.strip_prefix('[') {
            let inner = bracketed.strip_suffix(']').ok_or(BadTarget::BadV6)?;
            return Self::parse_v6(inner);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        match name.parse() {
            Ok(ip) => Ok(Self::V4(ip)),
            Err(_) => parse_name(name).map(Self::Name),
        }
    }

    /// Parses an IPv6 address without brackets.
    fn parse_v6(text: &str) -> Result<Self, BadTarget> {
        if text.contains('%') {
            return Err(BadTarget::Zone);
        }
        let ip: Ipv6Addr = text.parse().map_err(|_| BadTarget::BadV6)?;
        // The mapped form reaches the same host, so it must meet the same registry and the same limits.
        Ok(ip.to_ipv4_mapped().map_or(Self::V6(ip), Self::V4))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::V4(ip) => write!(f, "{ip}"),
            Self::V6(ip) => write!(f, "[{ip}]"),
        }
    }
}

/// Why a text is not a target. The messages do not repeat the text, which may hold a password or control characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    #[error("a scheme, path or query does not belong here: write host:port, such as harbor.example.com:443")]
    NotAuthority,
    #[error("a user name before the host is not accepted: write host:port, such as harbor.example.com:443")]
    Userinfo,
    #[error("the host is missing: write host:port, such as harbor.example.com:443")]
    MissingHost,
    #[error("the port is missing: write host:port, such as harbor.example.com:443")]
    MissingPort,
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
    #[error("more than one colon: write an IPv6 address in brackets, such as [2001:db8::1]:443")]
    UnbracketedV6,
    #[error("not an IPv6 address in brackets: write it as [2001:db8::1]:443")]
    BadV6,
    /// An IPv6 address with a zone, which means something on one machine only.
    #[error("an IPv6 zone id is not accepted: write the address without the part behind %")]
    Zone,
    #[error("a host name has letters, digits, '-', '.' and '_' only: write other alphabets in their xn-- form")]
    BadCharacter,
    #[error("a host name has at most 253 characters, and 1 to 63 between two dots")]
    BadLength,
    /// A name that ends in a number: resolvers read many spellings of an IPv4 address, such as `127.1`.
    #[error(
        "a name that ends in a number is not accepted: write an IPv4 address as four decimal numbers, such as 10.0.0.5"
    )]
    OddNumber,
}

/// A host that a registry claims in its `hosts`. It is parsed with [`HostPattern::parse`], which keeps it in normal
/// form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One host: `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
    Exact {
        host: Host,
        /// The only port that matches; `None` for every port.
        port: Option<u16>,
    },
    /// Every name below a suffix, at any depth, but not the suffix itself: `*.suffix` or `*.suffix:port`.
    Below {
        /// The suffix, lower-case, without the leading `*.` and without a trailing dot.
        suffix: String,
        /// The only port that matches; `None` for every port.
        port: Option<u16>,
    },
}

impl HostPattern {
    /// Parses one entry of `hosts`.
    /// Fails when it is neither a host nor a `*.suffix`, or the port behind it is not a number from 1 to 65535.
    pub fn parse(pattern: &str) -> Result<Self, BadPattern> {
        let parsed = match pattern.strip_prefix("*.") {
            Some(suffix) => Self::parse_below(suffix),
            None => Self::parse_exact(pattern),
        };
        parsed.map_err(|reason| BadPattern { pattern: pattern.to_owned(), reason })
    }

    fn parse_below(text: &str) -> Result<Self, BadTarget> {
        let (suffix, port) = split(text)?;
        let Host::Name(suffix) = Host::parse(suffix)? else {
            return Err(BadTarget::OddNumber);
        };
        let port = port.map(parse_port).transpose()?;
        Ok(Self::Below { suffix, port })
    }

    fn parse_exact(text: &str) -> Result<Self, BadTarget> {
        if text.parse::<Ipv6Addr>().is_ok() {
            let host = Host::parse_v6(text)?;
            return Ok(Self::Exact { host, port: None });
        }
        let (host, port) = split(text)?;
        let host = Host::parse(host)?;
        let port = port.map(parse_port).transpose()?;
        Ok(Self::Exact { host, port })
    }

    /// Does this pattern cover the host, at some port?
    pub fn covers_host(&self, host: &Host) -> bool {
        match self {
            Self::Exact { host: exact, .. } => exact == host,
            Self::Below { suffix, .. } => is_below(host, suffix),
        }
    }

    /// Does this pattern cover the target?
    pub fn matches(&self, target: &Target) -> bool {
        self.covers_host(&target.host) && self.port().is_none_or(|port| port == target.port)
    }

    /// Is there a target that both patterns cover?
    pub fn meets(&self, other: &Self) -> bool {
        let hosts_meet = match (self, other) {
            (Self::Exact { host: one, .. }, Self::Exact { host: other, .. }) => one == other,
            (Self::Exact { host, .. }, Self::Below { suffix, .. })
            | (Self::Below { suffix, .. }, Self::Exact { host, .. }) => is_below(host, suffix),
            (Self::Below { suffix: one, .. }, Self::Below { suffix: other, .. }) => {
                one == other || is_name_below(one, other) || is_name_below(other, one)
            }
        };
        hosts_meet && self.port().zip(other.port()).is_none_or(|(one, other)| one == other)
    }

    /// How exactly the pattern names its hosts: of all patterns that match a target, the one with the greatest
    /// specificity decides. An exact host goes before a wildcard, a longer suffix before a shorter one, then a
    /// pattern with a port before one without.
    pub fn specificity(&self) -> impl Ord + Copy + use<> {
        let suffix_length = match self {
            Self::Exact { .. } => usize::MAX,
            Self::Below { suffix, .. } => suffix.len(),
        };
        (suffix_length, self.port().is_some())
    }

    /// The pattern without its port, as it would be written: `harbor.example.com`, `*.example.com`, `[::1]`.
    pub fn host(&self) -> String {
        match self {
            Self::Exact { host, .. } => host.to_string(),
            Self::Below { suffix, .. } => format!("*.{suffix}"),
        }
    }

    /// The only port that matches; `None` for every port.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Exact { port, .. } | Self::Below { port, .. } => *port,
        }
    }

    /// The one target that the pattern covers; `None` for a wildcard, and where no port is named.
    pub fn exact_target(&self) -> Option<Target> {
        match self {
            Self::Exact { host, port: Some(port) } => Some(Target { host: host.clone(), port: *port }),
            Self::Exact { .. } | Self::Below { .. } => None,
        }
    }

    /// The one host that the pattern names; `None` for a wildcard.
    pub fn exact_host(&self) -> Option<&Host> {
        match self {
            Self::Exact { host, .. } => Some(host),
            Self::Below { .. } => None,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host())?;
        match self.port() {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// An entry of `hosts` that is not a host pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a host, host:port or *.suffix: {reason}")]
pub struct BadPattern {
    pattern: String,
    reason: BadTarget,
}

/// Splits an authority into the host, brackets included, and the text behind its colon.
fn split(authority: &str) -> Result<(&str, Option<&str>), BadTarget> {
    if authority.contains(['/', '?', '#', '\\']) {
        return Err(BadTarget::NotAuthority);
    }
    if authority.contains('@') {
        return Err(BadTarget::Userinfo);
    }
    let host_end = if authority.starts_with('[') {
        authority.find(']').ok_or(BadTarget::BadV6)? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(host_end);
    match rest.strip_prefix(':') {
        _ if host.is_empty() && !rest.contains("::") => Err(BadTarget::MissingHost),
        Some(port) if port.contains(':') => Err(BadTarget::UnbracketedV6),
        Some(port) => Ok((host, Some(port))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(BadTarget::BadV6),
    }
}

fn parse_port(text: &str) -> Result<u16, BadTarget> {
    // `u16::from_str` alone would take a leading plus sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(BadTarget::BadPort),
    }
}

/// Checks a name without its trailing dot, and lowers its case.
fn parse_name(name: &str) -> Result<String, BadTarget> {
    if name.is_empty() {
        return Err(BadTarget::MissingHost);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !name.chars().all(allowed) {
        return Err(BadTarget::BadCharacter);
    }
    let bad_label = |label: &str| label.is_empty() || label.len() > MAX_LABEL;
    if name.len() > MAX_NAME || name.split('.').any(bad_label) {
        return Err(BadTarget::BadLength);
    }
    let name = name.to_ascii_lowercase();
    if ends_in_number(&name) {
        return Err(BadTarget::OddNumber);
    }
    Ok(name)
}

/// Would a resolver take this lower-case name for an IPv4 address? (`getaddrinfo` reads `127.1`, `0x7f.0.0.1`,
/// `2130706433` and `0177.0.0.1`; see "ends in a number" in <https://url.spec.whatwg.org/#ends-in-a-number-checker>.)
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// Is the host a name below the suffix, at any depth, and not the suffix itself?
fn is_below(host: &Host, suffix: &str) -> bool {
    let Host::Name(name) = host else { return false };
    is_name_below(name, suffix)
}

fn is_name_below(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|above| above.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    #[test]
    fn patterns_meet_where_both_cover_a_target() {
        for (one, other, meet) in [
            ("a.example.com", "a.example.com:443", true),
            ("a.example.com:80", "a.example.com:443", false),
            ("a.example.com", "b.example.com", false),
            ("*.example.com", "a.example.com:443", true),
            ("*.example.com", "example.com", false),
            ("*.example.com:80", "*.b.example.com", true),
            ("*.example.com", "*.example.org", false),
            ("*.example.com", "[::1]", false),
        ] {
            let (one, other) = (pattern(one), pattern(other));
            assert_eq!((one.meets(&other), other.meets(&one)), (meet, meet), "{one} and {other}");
        }
    }

    fn target(text: &str) -> Target {
        Target::from_connect(text).unwrap()
    }

    #[test]
    fn connect_targets_come_in_one_normal_form() {
        for (authority, expected) in [
            ("harbor.example.com:443", "harbor.example.com:443"),
            ("HARBOR.Example.Com.:443", "harbor.example.com:443"),
            ("my_host-1:1", "my_host-1:1"),
            ("10.0.0.5:65535", "10.0.0.5:65535"),
            ("10.0.0.5.:80", "10.0.0.5:80"),
            ("[::1]:443", "[::1]:443"),
            ("[2001:DB8:0::1]:443", "[2001:db8::1]:443"),
            ("[::ffff:10.0.0.5]:443", "10.0.0.5:443"),
            ("1.2.3.example:80", "1.2.3.example:80"),
            ("0xbeef.example:80", "0xbeef.example:80"),
            ("0xharbor:80", "0xharbor:80"),
            ("harbor:00443", "harbor:443"),
        ] {
            assert_eq!(target(authority).to_string(), expected, "{authority}");
        }
    }

    #[test]
    fn a_connect_that_is_not_host_and_port_is_refused() {
        use BadTarget::*;
        for (authority, expected) in [
            ("", MissingHost),
            (":443", MissingHost),
            (".:443", MissingHost),
            ("harbor", MissingPort),
            ("harbor:", MissingPort),
            ("[::1]", MissingPort),
            ("harbor:0", BadPort),
            ("harbor:65536", BadPort),
            ("harbor:+443", BadPort),
            ("harbor:-1", BadPort),
            ("harbor: 443", BadPort),
            ("harbor:https", BadPort),
            ("user@harbor:443", Userinfo),
            ("user:secret@harbor:443", Userinfo),
            ("http://harbor:443", NotAuthority),
            ("harbor:443/v2/", NotAuthority),
            ("harbor:443?a=b", NotAuthority),
            ("harbor:443#top", NotAuthority),
            ("harbor\\x:443", NotAuthority),
            ("::1:443", UnbracketedV6),
            ("2001:db8::1:443", UnbracketedV6),
            ("harbor:443:443", UnbracketedV6),
            ("[::1:443", BadV6),
            ("[::1]443", BadV6),
            ("[harbor]:443", BadV6),
            ("[10.0.0.5]:443", BadV6),
            ("[]:443", BadV6),
            ("[fe80::1%eth0]:443", Zone),
            ("[fe80::1%25eth0]:443", Zone),
            ("har bor:443", BadCharacter),
            ("harbor%2eexample:443", BadCharacter),
            ("harbör:443", BadCharacter),
            ("harbor\n:443", BadCharacter),
            ("*.example.com:443", BadCharacter),
            ("a..b:443", BadLength),
            (".harbor:443", BadLength),
            ("harbor..:443", BadLength),
        ] {
            assert_eq!(Target::from_connect(authority), Err(expected), "{authority:?}");
        }
    }

    #[test]
    fn odd_spellings_of_addresses_are_refused() {
        for host in [
            "127.1",
            "2130706433",
            "0177.0.0.1",
            "0x7f.0.0.1",
            "0x7f000001",
            "0X7F000001",
            "127.0.0.0x1",
            "127.0.0.0x",
            "127.0.0.1.5",
            "256.0.0.1",
            "10.0.0.08",
            "harbor.1",
            "harbor.1.",
        ] {
            let parsed = Target::from_authority(host, 80);
            assert_eq!(parsed, Err(BadTarget::OddNumber), "{host}");
        }
    }

    #[test]
    fn names_may_be_as_long_as_dns_allows() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert_eq!(longest.len(), 253);
        assert!(Target::from_authority(&longest, 80).is_ok());
        assert!(Target::from_authority(&format!("{longest}."), 80).is_ok());
        for too_long in [format!("{longest}a"), "a".repeat(64)] {
            let parsed = Target::from_authority(&too_long, 80);
            assert_eq!(parsed, Err(BadTarget::BadLength));
        }
    }

    #[test]
    fn the_authority_of_a_url_may_leave_the_port_out() {
        for (authority, expected) in [
            ("harbor", "harbor:80"),
            ("harbor:", "harbor:80"),
            ("harbor:8080", "harbor:8080"),
            ("[::1]", "[::1]:80"),
            ("[::1]:", "[::1]:80"),
            ("10.0.0.5", "10.0.0.5:80"),
        ] {
            let parsed = Target::from_authority(authority, 80).unwrap();
            assert_eq!(parsed.to_string(), expected);
        }
        for (authority, expected) in [
            ("user:secret@harbor", BadTarget::Userinfo),
            ("harbor/v2", BadTarget::NotAuthority),
            ("harbor:0", BadTarget::BadPort),
            ("", BadTarget::MissingHost),
            ("::1", BadTarget::UnbracketedV6),
        ] {
            let parsed = Target::from_authority(authority, 80);
            assert_eq!(parsed, Err(expected), "{authority:?}");
        }
    }

    #[test]
    fn patterns_match_what_they_name() {
        for (text, matching, others) in [
            (
                "Harbor.example.com.",
                vec!["harbor.example.com:443", "harbor.example.com:80"],
                vec!["x.harbor.example.com:443", "example.com:443"],
            ),
            ("harbor:8443", vec!["harbor:8443"], vec!["harbor:443"]),
            (
                "*.example.com",
                vec!["a.example.com:1", "a.b.example.com:2"],
                vec!["example.com:1", "badexample.com:1", "a.example.org:1"],
            ),
            ("*.example.com:443", vec!["a.example.com:443"], vec!["a.example.com:80"]),
            ("10.0.0.5", vec!["10.0.0.5:1", "[::ffff:10.0.0.5]:1"], vec!["10.0.0.50:1"]),
            ("[::1]", vec!["[::1]:1"], vec!["[::2]:1"]),
            ("[::1]:443", vec!["[::1]:443"], vec!["[::1]:80"]),
            ("::1", vec!["[::1]:443"], vec!["127.0.0.1:443"]),
        ] {
            let pattern = pattern(text);
            for covered in matching {
                assert!(pattern.matches(&target(covered)), "{text} {covered}");
            }
            for other in others {
                assert!(!pattern.matches(&target(other)), "{text} {other}");
            }
        }
    }

    #[test]
    fn a_pattern_is_shown_as_it_would_be_written() {
        for (text, shown, host, port) in [
            ("Harbor", "harbor", "harbor", None),
            ("harbor:443", "harbor:443", "harbor", Some(443)),
            ("*.Example.com:5000", "*.example.com:5000", "*.example.com", Some(5000)),
            ("::1", "[::1]", "[::1]", None),
        ] {
            let pattern = pattern(text);
            assert_eq!(pattern.to_string(), shown);
            assert_eq!(pattern.host(), host);
            assert_eq!(pattern.port(), port);
        }
        assert_eq!(pattern("*.example.com").exact_host(), None);
        assert_eq!(pattern("harbor:1").exact_host(), Some(&Host::Name("harbor".to_owned())));
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "the host is missing"),
            ("*", "letters, digits"),
            ("*.", "the host is missing"),
            ("*.*.com", "letters, digits"),
            ("a*.com", "letters, digits"),
            ("*.0.0.5", "ends in a number"),
            ("*.10.0.0.5", "ends in a number"),
            ("harbor:", "the port is not"),
            ("harbor:x", "the port is not"),
            ("https://harbor", "does not belong here"),
            ("127.1", "ends in a number"),
            ("fe80::1%eth0", "in brackets"),
        ] {
            let message = HostPattern::parse(text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{text:?} is not a host")), "{message}");
            assert!(message.contains(reason), "{text:?}: {message}");
        }
    }

    #[test]
    fn equal_patterns_are_one_claim() {
        for (one, other, expected) in [
            ("harbor", "harbor", true),
            ("Harbor.", "harbor", true),
            ("harbor:443", "harbor:443", true),
            ("*.example.com", "*.example.com", true),
            ("::1", "[::1]", true),
            ("harbor", "harbor:443", false),
            ("harbor:80", "harbor:443", false),
            ("a.example.com", "*.example.com", false),
            ("*.a.example.com", "*.example.com", false),
            ("*.example.com:443", "*.example.com", false),
            ("example.com", "*.example.com", false),
        ] {
            assert_eq!(pattern(one) == pattern(other), expected, "{one} {other}");
        }
    }

    #[test]
    fn the_most_specific_pattern_wins() {
        let ascending = [
            "*.com",
            "*.com:443",
            "*.example.com",
            "*.example.com:443",
            "*.a.example.com",
            "x.a.example.com",
            "x.a.example.com:443",
        ];
        let target = target("x.a.example.com:443");
        for pair in ascending.windows(2) {
            let (lesser, greater) = (pattern(pair[0]), pattern(pair[1]));
            assert!(lesser.matches(&target) && greater.matches(&target));
            assert!(lesser.specificity() < greater.specificity(), "{lesser} {greater}");
        }
    }
}
