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
    /// An IPv4 address, also when it was written as an IPv4-mapped IPv6 address, or an IPv6 address without a zone.
    Ip(IpAddr),
}

impl Host {
    /// The address, when the host is one; `None` for a name, which has to be resolved.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::Ip(ip) => Some(*ip),
        }
    }

    /// Whether it is an address, or a name that only this network can give: `localhost`, or one without a dot.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Name(name) => !name.contains('.') || name.ends_with(".localhost"),
            Self::Ip(_) => true,
        }
    }

    /// Parses a host in the form of an authority: IPv6 in brackets.
    fn parse(text: &str) -> Result<Self, BadTarget> {
        if let Some(bracketed) = text.strip_prefix('[') {
            let inner = bracketed.strip_suffix(']').ok_or(BadTarget::BadV6)?;
            return Self::parse_v6(inner);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        match name.parse::<Ipv4Addr>() {
            Ok(ip) => Ok(Self::Ip(ip.into())),
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
        Ok(Self::Ip(ip.to_canonical()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
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

/// A host that a registry claims in its `hosts`. It is parsed with [`HostPattern::parse`], which keeps it in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// The host, or the suffix of a wildcard.
    host: Host,
    /// Whether it covers every name below the suffix, at any depth, and not the suffix itself: `*.suffix`.
    is_wildcard: bool,
    /// The only port that matches; `None` for every port.
    port: Option<u16>,
}

impl HostPattern {
    /// Parses one entry of `hosts`.
    /// Fails when it is neither a host nor a `*.suffix`, or the port behind it is not a number from 1 to 65535.
    pub fn parse(pattern: &str) -> Result<Self, BadPattern> {
        let parsed = match pattern.strip_prefix("*.") {
            None if pattern.parse::<Ipv6Addr>().is_ok() => Host::parse_v6(pattern).map(|host| (host, None)),
            None => Self::parse_host(pattern),
            Some(suffix) => Self::parse_host(suffix).and_then(|suffix| match suffix {
                (Host::Name(_), _) => Ok(suffix),
                (Host::Ip(_), _) => Err(BadTarget::OddNumber),
            }),
        };
        let (host, port) = parsed.map_err(|reason| BadPattern { pattern: pattern.to_owned(), reason })?;
        Ok(Self { host, is_wildcard: pattern.starts_with('*'), port })
    }

    fn parse_host(text: &str) -> Result<(Host, Option<u16>), BadTarget> {
        let (host, port) = split(text)?;
        Ok((Host::parse(host)?, port.map(parse_port).transpose()?))
    }

    /// Does this pattern cover the host, at some port?
    pub fn covers_host(&self, host: &Host) -> bool {
        if self.is_wildcard { is_below(host, &self.host) } else { *host == self.host }
    }

    /// Does this pattern cover the target?
    pub fn matches(&self, target: &Target) -> bool {
        self.covers_host(&target.host) && self.port.is_none_or(|port| port == target.port)
    }

    /// Is there a target that both patterns cover?
    pub fn meets(&self, other: &Self) -> bool {
        let hosts_meet = (&self.host, self.is_wildcard) == (&other.host, other.is_wildcard)
            || self.is_wildcard && is_below(&other.host, &self.host)
            || other.is_wildcard && is_below(&self.host, &other.host);
        hosts_meet && self.port.zip(other.port).is_none_or(|(one, other)| one == other)
    }

    /// How exactly the pattern names its hosts: of all patterns that match a target, the one with the greatest
    /// specificity decides. An exact host goes before a wildcard, a longer suffix before a shorter one, then a
    /// pattern with a port before one without.
    pub fn specificity(&self) -> impl Ord + Copy + use<> {
        let suffix_length = if self.is_wildcard { self.host.to_string().len() } else { usize::MAX };
        (suffix_length, self.port.is_some())
    }

    /// The only port that matches; `None` for every port.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The one target that the pattern covers; `None` for a wildcard, and where no port is named.
    pub fn exact_target(&self) -> Option<Target> {
        self.exact_host().cloned().zip(self.port).map(|(host, port)| Target { host, port })
    }

    /// The one host that the pattern names; `None` for a wildcard.
    pub fn exact_host(&self) -> Option<&Host> {
        (!self.is_wildcard).then_some(&self.host)
    }
}

/// The pattern of this one target.
impl From<&Target> for HostPattern {
    fn from(target: &Target) -> HostPattern {
        HostPattern { host: target.host.clone(), is_wildcard: false, port: Some(target.port) }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wildcard = if self.is_wildcard { "*." } else { "" };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "{wildcard}{}{port}", self.host)
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
fn is_below(host: &Host, suffix: &Host) -> bool {
    match (host, suffix) {
        (Host::Name(name), Host::Name(suffix)) => {
            name.strip_suffix(suffix.as_str()).is_some_and(|above| above.ends_with('.'))
        }
        _ => false,
    }
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
        for (text, shown, port) in [
            ("Harbor", "harbor", None),
            ("harbor:443", "harbor:443", Some(443)),
            ("*.Example.com:5000", "*.example.com:5000", Some(5000)),
            ("::1", "[::1]", None),
        ] {
            let pattern = pattern(text);
            assert_eq!(pattern.to_string(), shown);
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
