//! The URL of the store: one Redis server; a primary that Redis Sentinels watch, as Harbor writes it
//! (`redis+sentinel://host:26379,host:26379/NAME/0`, with the name that they know it by and the number of the database); or servers of a Redis
//! cluster (`redis+cluster://host:6379,host:6379`), of which each knows all others.

use redis::IntoConnectionInfo;

const SENTINEL_SCHEMES: Schemes = Schemes { plain: "redis+sentinel://", secure: "rediss+sentinel://", port: 26379 };
const CLUSTER_SCHEMES: Schemes = Schemes { plain: "redis+cluster://", secure: "rediss+cluster://", port: 6379 };
const EXAMPLE: &str = "write it as redis://host:6379/0, or rediss://host:6379/0 for TLS; with Sentinels as \
                       redis+sentinel://host:26379,host:26379/NAME/0; with a cluster as redis+cluster://host:6379,host:6379";

/// A name or an address without brackets, and a port.
pub type StoreHost = (String, u16);

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// One server, by a URL that the client of Redis reads.
    Server(String),
    Sentinels(Sentinels),
    Cluster(ClusterSeeds),
}

/// Sentinels, and the primary for which they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinels {
    pub hosts: Vec<StoreHost>,
    pub primary: String,
    pub database: i64,
    pub is_secure: bool,
}

/// Servers of a cluster, which are asked for the one that has the records. Its only database is the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSeeds {
    pub hosts: Vec<StoreHost>,
    pub is_secure: bool,
}

impl StoreUrl {
    /// The reason when it cannot be used. It holds no part of the URL, which may have a password.
    pub fn parse(url: &str) -> Result<StoreUrl, String> {
        let is_secret =
            || "holds a user or a password, which would be shown: set lease.user and lease.password_file".to_owned();
        let is_unreadable = || format!("cannot be read as a URL: {EXAMPLE}");
        let several = if let Some(parts) = SENTINEL_SCHEMES.parts(url) {
            Sentinels::of(parts).map(StoreUrl::Sentinels)
        } else if let Some(parts) = CLUSTER_SCHEMES.parts(url) {
            ClusterSeeds::of(parts).map(StoreUrl::Cluster)
        } else if url.starts_with("redis://") || url.starts_with("rediss://") {
            // The error of the parser may hold the password.
            let info = url.into_connection_info().map_err(|_| is_unreadable())?;
            let has_secret = info.redis_settings().password().is_some() || info.redis_settings().username().is_some();
            return if has_secret { Err(is_secret()) } else { Ok(StoreUrl::Server(url.to_owned())) };
        } else {
            return Err(format!("is not the URL of a Redis server: {EXAMPLE}"));
        };
        several.ok_or_else(|| if url.contains('@') { is_secret() } else { is_unreadable() })
    }
}

impl Sentinels {
    fn of(UrlParts { is_secure, hosts, path }: UrlParts<'_>) -> Option<Sentinels> {
        let (hosts, mut path) = (hosts?, path?.split('/'));
        let primary = path.next().filter(|name| !name.is_empty())?.to_owned();
        let database = path.next().map_or(Some(0), |number| number.parse().ok().filter(|number| *number >= 0))?;
        path.next().is_none().then_some(Sentinels { hosts, primary, database, is_secure })
    }
}

impl ClusterSeeds {
    fn of(UrlParts { is_secure, hosts, path }: UrlParts<'_>) -> Option<ClusterSeeds> {
        let hosts = hosts?;
        matches!(path, None | Some("" | "0")).then_some(ClusterSeeds { hosts, is_secure })
    }

    /// The URL of one server of it.
    pub fn url_of(&self, (host, port): &StoreHost) -> String {
        let scheme = if self.is_secure { "rediss" } else { "redis" };
        if host.contains(':') { format!("{scheme}://[{host}]:{port}/0") } else { format!("{scheme}://{host}:{port}/0") }
    }

    /// The server to which one redirects, as in `MOVED 3999 127.0.0.1:6381`. Without a host it is another port of the same host.
    pub fn redirected(&self, (host, _): &StoreHost, to: &str) -> Option<StoreHost> {
        let (other, port) = to.rsplit_once(':')?;
        let other = if other.is_empty() { host } else { other };
        Some((other.to_owned(), port.parse().ok()?))
    }
}

/// The two spellings of a URL with several hosts, and their default port.
struct Schemes {
    plain: &'static str,
    secure: &'static str,
    port: u16,
}

struct UrlParts<'a> {
    is_secure: bool,
    /// `None` if one of them cannot be read.
    hosts: Option<Vec<StoreHost>>,
    /// Behind the first slash.
    path: Option<&'a str>,
}

impl Schemes {
    /// `None` if this is no URL of this kind.
    fn parts<'a>(&self, url: &'a str) -> Option<UrlParts<'a>> {
        let is_secure = url.starts_with(self.secure);
        let rest = url.strip_prefix(if is_secure { self.secure } else { self.plain })?;
        let (hosts, path) = rest.split_once('/').map_or((rest, None), |(hosts, path)| (hosts, Some(path)));
        let hosts = hosts.split(',').map(|host| self.host(host)).collect();
        Some(UrlParts { is_secure, hosts, path })
    }

    fn host(&self, text: &str) -> Option<StoreHost> {
        let (host, port) = match text.rsplit_once(':') {
            // The last colon is one of an IPv6 address.
            Some((_, behind)) if behind.contains(']') => (text, self.port),
            Some((host, port)) => (host, port.parse().ok()?),
            None => (text, self.port),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let fits =
            |char: char| char.is_ascii_alphanumeric() || "._-".contains(char) || bare.len() < host.len() && char == ':';
        (!bare.is_empty() && bare.chars().all(fits)).then(|| (bare.to_owned(), port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(all: &[(&str, u16)]) -> Vec<StoreHost> {
        all.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect()
    }

    fn sentinels(rest: &str) -> Option<Sentinels> {
        match StoreUrl::parse(&format!("redis+sentinel://{rest}")) {
            Ok(StoreUrl::Sentinels(sentinels)) => Some(sentinels),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    fn cluster(rest: &str) -> Option<ClusterSeeds> {
        match StoreUrl::parse(&format!("redis+cluster://{rest}")) {
            Ok(StoreUrl::Cluster(seeds)) => Some(seeds),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    #[test]
    fn the_hosts_the_name_and_the_database_are_read() {
        let parsed = StoreUrl::parse("rediss+sentinel://a.example,b:1,[::1],[::1]:2/mymaster/3");
        let hosts = hosts(&[("a.example", 26379), ("b", 1), ("::1", 26379), ("::1", 2)]);
        let expected = Sentinels { hosts, primary: "mymaster".to_owned(), database: 3, is_secure: true };
        assert_eq!(parsed, Ok(StoreUrl::Sentinels(expected)));
        let short = sentinels("a/m").unwrap();
        assert_eq!((short.database, short.is_secure), (0, false));
        assert_eq!(StoreUrl::parse("redis://a/0"), Ok(StoreUrl::Server("redis://a/0".to_owned())));
        for wrong in
            ["", "a", "a/", "/m", "a,/m", "a:b/m", "a/m/x", "a/m/-1", "a/m/0/1", "user:secret@a/m", "a:1:2/m", "::1/m"]
        {
            assert_eq!(sentinels(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_servers_of_a_cluster_are_read() {
        let seeds = cluster("a.example,b:1,[::1]").unwrap();
        assert_eq!(seeds.hosts, hosts(&[("a.example", 6379), ("b", 1), ("::1", 6379)]));
        let urls = ["redis://a.example:6379/0", "redis://b:1/0", "redis://[::1]:6379/0"];
        assert_eq!(seeds.hosts.iter().map(|host| seeds.url_of(host)).collect::<Vec<_>>(), urls);
        for same in ["a", "a:6379", "a/", "a/0"] {
            assert_eq!(cluster(same).unwrap().hosts, hosts(&[("a", 6379)]), "{same}");
        }
        for wrong in ["", "a,", "a/1", "a/name", "a/0/1", "a:b", "user:secret@a", "::1"] {
            assert_eq!(cluster(wrong), None, "{wrong}");
        }
        let Ok(StoreUrl::Cluster(seeds)) = StoreUrl::parse("rediss+cluster://a") else { panic!("no cluster") };
        assert_eq!(seeds.url_of(&seeds.hosts[0]), "rediss://a:6379/0");
    }

    #[test]
    fn a_redirection_leads_to_a_host_and_a_port() {
        let seeds = cluster("a").unwrap();
        let from = ("a".to_owned(), 1);
        for (to, expected) in [
            ("127.0.0.1:6381", Some(("127.0.0.1", 6381))),
            ("b.example:2", Some(("b.example", 2))),
            ("::1:2", Some(("::1", 2))),
            (":2", Some(("a", 2))),
            ("b", None),
            ("b:", None),
            ("b:x", None),
        ] {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(seeds.redirected(&from, to), expected, "{to}");
        }
    }
}
