//! The origin of a URL: its scheme, host and port (RFC 6454, section 4).

use std::fmt;

use super::authority::{BadTarget, HostPattern, Target};

/// Where a server is, and whether TLS is spoken there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Whether the scheme is `https`.
    pub secure: bool,
    pub target: Target,
}

/// Why a text is not an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOrigin {
    #[error("a URL begins with https:// or http://, such as https://harbor.example.com")]
    Scheme,
    #[error("a path does not belong here: write the URL of the host alone, such as https://harbor.example.com")]
    Path,
    #[error(transparent)]
    Authority(#[from] BadTarget),
}

impl Origin {
    /// Parses `https://host[:port]`, with or without a slash at its end.
    /// Fails when it has another scheme, a path, or no host.
    pub fn parse(url: &str) -> Result<Origin, BadOrigin> {
        let (scheme, rest) = url.split_once("://").ok_or(BadOrigin::Scheme)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(BadOrigin::Scheme),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(BadOrigin::Path);
        }
        Origin::of(secure, authority).map_err(BadOrigin::Authority)
    }

    /// The origin with this scheme and authority.
    /// Fails when the authority is not a host with or without a port.
    pub fn of(secure: bool, authority: &str) -> Result<Origin, BadTarget> {
        Ok(Origin { secure, target: Target::from_authority(authority, default_port(secure))? })
    }

    /// Host and port as a Host header has them: without the port that the scheme implies.
    pub fn authority(&self) -> String {
        if self.target.port() == default_port(self.secure) {
            self.target.host().to_string()
        } else {
            self.target.to_string()
        }
    }

    /// The pattern that claims just this host and port.
    pub fn pattern(&self) -> HostPattern {
        HostPattern::from(&self.target)
    }
}

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_hosts_are_origins() {
        for (url, shown, port) in [
            ("https://harbor.example.com", "https://harbor.example.com", 443),
            ("HTTPS://Harbor.Example.com:443/", "https://harbor.example.com", 443),
            ("http://harbor.example.com:8080", "http://harbor.example.com:8080", 8080),
            ("http://[2001:db8::1]/", "http://[2001:db8::1]", 80),
            ("https://10.0.0.5:8443", "https://10.0.0.5:8443", 8443),
        ] {
            let origin = Origin::parse(url).unwrap();
            assert_eq!((origin.to_string().as_str(), origin.target.port()), (shown, port));
        }
    }

    #[test]
    fn everything_else_is_not() {
        for (url, expected) in [
            ("harbor.example.com", BadOrigin::Scheme),
            ("ftp://harbor", BadOrigin::Scheme),
            ("https://harbor/v2/", BadOrigin::Path),
            ("https://harbor?x", BadOrigin::Path),
            ("https://", BadOrigin::Authority(BadTarget::MissingHost)),
            ("https://u:p@harbor", BadOrigin::Authority(BadTarget::Userinfo)),
        ] {
            assert_eq!(Origin::parse(url), Err(expected), "{url}");
        }
    }
}
