//! What leads a mirror's client past the mirror, made to lead back: the realm of a challenge, and Location.
//!
//! Only what leads to the registry itself. A redirect to another host, the storage behind the registry mostly, goes to
//! the client as it is.

use hyper::header::{HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE};

use super::mirror::Mirror;
use crate::target::Origin;

/// How the headers of one answer are rewritten.
#[derive(Debug)]
pub struct Rewrite<'a> {
    /// Scheme and authority by which the client knows the mirror.
    base: String,
    mirror: &'a Mirror,
}

impl<'a> Rewrite<'a> {
    /// Leads what leads to the registry of `mirror` to `base` instead.
    #[must_use]
    pub fn new(base: String, mirror: &'a Mirror) -> Rewrite<'a> {
        Rewrite { base, mirror }
    }

    /// Rewrites an answer.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let is_own = |origin: &Origin| self.mirror.owns(&origin.target);
        replace_all(headers, &LOCATION, |value| led_back(value, &self.base, is_own));
        replace_all(headers, &WWW_AUTHENTICATE, |value| realms_led_back(value, &self.base, is_own));
    }
}

fn replace_all(headers: &mut HeaderMap, name: &hyper::header::HeaderName, new: impl Fn(&str) -> Option<String>) {
    let hyper::header::Entry::Occupied(mut entry) = headers.entry(name) else { return };
    for value in entry.iter_mut() {
        let replaced = value.to_str().ok().and_then(&new).and_then(|text| HeaderValue::try_from(text).ok());
        if let Some(replaced) = replaced {
            *value = replaced;
        }
    }
}

/// The URL with `base` instead of its origin, if it leads to the registry. `None` for any other, relative ones too.
fn led_back(url: &str, base: &str, is_own: impl Fn(&Origin) -> bool) -> Option<String> {
    let (scheme, rest) = match url.split_once("//")? {
        ("", rest) => ("https:", rest),
        (scheme, rest) => (scheme, rest),
    };
    let secure = match scheme.to_ascii_lowercase().as_str() {
        "https:" => true,
        "http:" => false,
        _ => return None,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let origin = Origin::of(secure, authority).ok()?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    is_own(&origin).then(|| format!("{base}{slash}{path}"))
}

/// The challenges with the URL in each realm led back (RFC 9110, section 11.6.1): one line may hold several, and not every
/// registry puts a realm in quotes.
fn realms_led_back(challenges: &str, base: &str, is_own: impl Fn(&Origin) -> bool) -> Option<String> {
    let (mut done, mut rest, mut changed) = (String::new(), challenges, false);
    while let Some((before, realm, after)) = split_at_realm(rest) {
        let led_back = led_back(realm, base, &is_own);
        changed |= led_back.is_some();
        done.push_str(before);
        done.push_str(led_back.as_deref().unwrap_or(realm));
        rest = after;
    }
    done.push_str(rest);
    changed.then_some(done)
}

/// What stands before the first realm, the realm without its quotes, and what follows.
fn split_at_realm(text: &str) -> Option<(&str, &str, &str)> {
    const REALM: &str = "realm";
    let lower = text.to_ascii_lowercase();
    // Other values may hold the word, and other names end in it.
    let names = lower.match_indices(REALM).filter(|(at, _)| *at == 0 || lower[..*at].ends_with([' ', '\t', ',']));
    let mut values = names.filter_map(|(at, _)| text[at + REALM.len()..].trim_start().strip_prefix('='));
    let value = values.next()?.trim_start();
    let (value, end) = match value.strip_prefix('"') {
        Some(quoted) => (quoted, quoted.find('"')?),
        None => (value, value.find([',', ' ']).unwrap_or(value.len())),
    };
    let before = text.len() - value.len();
    Some((&text[..before], &value[..end], &value[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "http://127.0.0.1:4130";

    fn harbor(origin: &Origin) -> bool {
        origin.target.host().to_string() == "harbor.example.com" && origin.target.port() == 443
    }

    #[test]
    fn what_leads_to_the_registry_leads_back() {
        for (url, expected) in [
            ("https://harbor.example.com/v2/a/blobs/uploads/1?_state=x", "/v2/a/blobs/uploads/1?_state=x"),
            ("https://HARBOR.example.com:443/v2/", "/v2/"),
            ("//harbor.example.com/v2/", "/v2/"),
            ("https://harbor.example.com", "/"),
            ("https://harbor.example.com?x", "/?x"),
        ] {
            assert_eq!(led_back(url, BASE, harbor), Some(format!("{BASE}{expected}")), "{url}");
        }
    }

    #[test]
    fn what_leads_elsewhere_stays() {
        for url in [
            "/v2/a/blobs/uploads/1",
            "https://storage.example.com/bucket?X-Signature=harbor.example.com",
            "https://harbor.example.com:9000/bucket",
            "https://harbor.example.com@evil.example.com/",
            "ftp://harbor.example.com/",
            "",
        ] {
            assert_eq!(led_back(url, BASE, harbor), None, "{url}");
        }
    }

    #[test]
    fn only_the_realm_of_a_challenge_changes() {
        let challenge = r#"Bearer realm="https://harbor.example.com/service/token",service="harbor-registry",scope="repository:a:pull""#;
        let expected =
            r#"Bearer realm="http://127.0.0.1:4130/service/token",service="harbor-registry",scope="repository:a:pull""#;
        assert_eq!(realms_led_back(challenge, BASE, harbor).as_deref(), Some(expected));
        for other in [
            r#"Basic realm="harbor""#,
            r#"Bearer realm="https://auth.example.com/token",service="https://harbor.example.com""#,
            r#"Bearer service="x""#,
            r#"Bearer realm="https://harbor.example.com/service/token"#,
        ] {
            assert_eq!(realms_led_back(other, BASE, harbor), None, "{other}");
        }
    }
    #[test]
    fn every_realm_of_a_line_is_led_back() {
        let own = "https://harbor.example.com/service/token";
        for (challenges, expected) in [
            (
                format!("Basic realm=\"harbor\", Bearer realm=\"{own}\",service=\"s\""),
                format!("Basic realm=\"harbor\", Bearer realm=\"{BASE}/service/token\",service=\"s\""),
            ),
            (
                format!("Bearer Realm = \"{own}\", Bearer realm=\"https://other.example.com/token\""),
                format!("Bearer Realm = \"{BASE}/service/token\", Bearer realm=\"https://other.example.com/token\""),
            ),
            (format!("Bearer realm={own},service=s"), format!("Bearer realm={BASE}/service/token,service=s")),
            (format!("Bearer service=s, realm={own}"), format!("Bearer service=s, realm={BASE}/service/token")),
            // The word alone is no realm, nor is the end of another name.
            (
                format!("Bearer service=\"harbor-realm\",realm=\"{own}\""),
                format!("Bearer service=\"harbor-realm\",realm=\"{BASE}/service/token\""),
            ),
            (
                format!("Bearer service=\"the realm of harbor\", realm=\"{own}\""),
                format!("Bearer service=\"the realm of harbor\", realm=\"{BASE}/service/token\""),
            ),
            (
                format!("Bearer x-realm=\"{own}\",realm=\"{own}\""),
                format!("Bearer x-realm=\"{own}\",realm=\"{BASE}/service/token\""),
            ),
            (format!("Bearer scope=x,\trealm={own}"), format!("Bearer scope=x,\trealm={BASE}/service/token")),
        ] {
            assert_eq!(realms_led_back(&challenges, BASE, harbor), Some(expected), "{challenges}");
        }
    }
}
