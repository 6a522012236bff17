//! The URL of a store that Redis Sentinels watch, as Harbor writes it: `redis+sentinel://host:26379,host:26379/NAME/0`, with the name of
//! the primary that they monitor, and the number of the database.

const PLAIN: &str = "redis+sentinel://";
const SECURE: &str = "rediss+sentinel://";
const PORT: u16 = 26379;

/// Sentinels, and the primary for which they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinels {
    pub hosts: Vec<(String, u16)>,
    pub primary: String,
    pub database: i64,
    pub is_secure: bool,
}

impl Sentinels {
    /// Whether this is meant to be the URL of Sentinels.
    pub fn are_meant(url: &str) -> bool {
        url.starts_with(PLAIN) || url.starts_with(SECURE)
    }

    /// `None` when it cannot be read.
    pub fn parse(url: &str) -> Option<Sentinels> {
        let is_secure = url.starts_with(SECURE);
        let rest = url.strip_prefix(if is_secure { SECURE } else { PLAIN })?;
        let mut parts = rest.split('/');
        let hosts = parts.next()?.split(',').map(host).collect::<Option<_>>()?;
        let primary = parts.next().filter(|name| !name.is_empty())?.to_owned();
        let database = parts.next().map_or(Some(0), |number| number.parse().ok().filter(|number| *number >= 0))?;
        parts.next().is_none().then_some(Sentinels { hosts, primary, database, is_secure })
    }
}

/// A name or an address, and a port.
fn host(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        // The last colon is one of an IPv6 address.
        Some((_, behind)) if behind.contains(']') => (text, PORT),
        Some((host, port)) => (host, port.parse().ok()?),
        None => (text, PORT),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let fits =
        |char: char| char.is_ascii_alphanumeric() || "._-".contains(char) || bare.len() < host.len() && char == ':';
    (!bare.is_empty() && bare.chars().all(fits)).then(|| (bare.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_the_name_and_the_database_are_read() {
        let parsed = Sentinels::parse("rediss+sentinel://a.example,b:1,[::1],[::1]:2/mymaster/3").unwrap();
        let hosts =
            [("a.example", PORT), ("b", 1), ("::1", PORT), ("::1", 2)].map(|(host, port)| (host.to_owned(), port));
        let expected = Sentinels { hosts: hosts.into(), primary: "mymaster".to_owned(), database: 3, is_secure: true };
        assert_eq!(parsed, expected);
        let short = Sentinels::parse("redis+sentinel://a/m").unwrap();
        assert_eq!((short.database, short.is_secure), (0, false));
        assert_eq!(Sentinels::parse("redis://a/0"), None);
        for wrong in
            ["", "a", "a/", "/m", "a,/m", "a:b/m", "a/m/x", "a/m/-1", "a/m/0/1", "user:secret@a/m", "a:1:2/m", "::1/m"]
        {
            assert_eq!(Sentinels::parse(&format!("redis+sentinel://{wrong}")), None, "{wrong}");
        }
    }
}
