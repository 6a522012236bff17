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
        replace_all(headers, &WWW_AUTHENTICATE, |value| realm_led_back(value, &self.base, is_own));
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

/// The challenge with the URL in its realm led back (RFC 9110, section 11.5).
fn realm_led_back(challenge: &str, base: &str, is_own: impl Fn(&Origin) -> bool) -> Option<String> {
    const REALM: &str = "realm=\"";
    let at = challenge.to_ascii_lowercase().find(REALM)? + REALM.len();
    let (before, rest) = challenge.split_at(at);
    let (realm, after) = rest.split_once('"')?;
    let led_back = led_back(realm, base, is_own)?;
    Some(format!("{before}{led_back}\"{after}"))
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
        assert_eq!(realm_led_back(challenge, BASE, harbor).as_deref(), Some(expected));
        for other in [
            r#"Basic realm="harbor""#,
            r#"Bearer realm="https://auth.example.com/token",service="https://harbor.example.com""#,
            r#"Bearer service="x""#,
            r#"Bearer realm="https://harbor.example.com/service/token"#,
        ] {
            assert_eq!(realm_led_back(other, BASE, harbor), None, "{other}");
        }
    }
}
