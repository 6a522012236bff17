//! Links in a mirror's answers: the realm of a challenge, `Location` and `Link`.
//!
//! One rule: a link to one of the registry's public URLs leads back to the mirror, at the address by which the client
//! reached it. Every other link, mostly to the storage behind the registry, stays unchanged. Header values are bytes: a
//! byte that is not ASCII changes nothing about the rule. The mirror makes a `Rewrite` for each request.

use std::net::SocketAddr;
use std::ops::Range;

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, LINK, LOCATION, WWW_AUTHENTICATE};
use hyper::http::uri::PathAndQuery;

use crate::target::{Origin, Target};

/// How the links of one answer are rewritten.
#[derive(Debug)]
pub struct Rewrite<'a> {
    /// The public URLs of the registry.
    pub public: &'a [Target],
    /// The mirror's address at which the client reached it.
    pub here: SocketAddr,
    /// The host by which the client called it.
    pub called: Option<Box<str>>,
    /// The path and query of its request.
    pub asked: Option<PathAndQuery>,
}

impl Rewrite<'_> {
    /// Rewrites the headers of an answer.
    pub fn apply(&self, status: StatusCode, headers: &mut HeaderMap) {
        self.replace(headers, &LOCATION, |value| std::iter::once(0..value.len()).collect(), status.is_redirection());
        self.replace(headers, &LINK, targets_of_links, false);
        self.replace(headers, &WWW_AUTHENTICATE, realms, false);
    }

    /// Leads the links at the places that `find` finds back to the mirror.
    fn replace(
        &self,
        headers: &mut HeaderMap,
        name: &HeaderName,
        find: impl Fn(&[u8]) -> Vec<Range<usize>>,
        is_redirect: bool,
    ) {
        let hyper::header::Entry::Occupied(mut entry) = headers.entry(name) else { return };
        for value in entry.iter_mut() {
            let (old, mut new, mut copied) = (value.as_bytes(), Vec::new(), 0);
            for place in find(old) {
                let Some(path) = self.path_at_registry(&old[place.clone()]) else { continue };
                // A registry that redirects http to https at the same path would do so again and again.
                if is_redirect && self.asked.as_ref().is_some_and(|asked| path == asked.to_string().as_bytes()) {
                    continue;
                }
                new.extend_from_slice(&old[copied..place.start]);
                new.extend_from_slice(self.base().as_bytes());
                new.extend_from_slice(&path);
                copied = place.end;
            }
            new.extend_from_slice(&old[copied..]);
            if copied > 0
                && let Ok(new) = HeaderValue::from_bytes(&new)
            {
                *value = new;
            }
        }
    }

    /// Scheme and authority by which the client reached the mirror.
    fn base(&self) -> String {
        let called = self.called.as_ref().and_then(|host| Target::from_authority(host, self.here.port()).ok());
        called.map_or_else(|| format!("http://{}", self.here), |target| Origin { secure: false, target }.to_string())
    }

    /// The path of an absolute URL, if it is one of the public URLs.
    fn path_at_registry(&self, url: &[u8]) -> Option<Vec<u8>> {
        let slashes = url.windows(2).position(|pair| pair == b"//")?;
        let (scheme, rest) = (&url[..slashes], &url[slashes + 2..]);
        let secure = match scheme.to_ascii_lowercase().as_slice() {
            b"" | b"https:" => true,
            b"http:" => false,
            _ => return None,
        };
        let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let target = Origin::of(secure, std::str::from_utf8(authority).ok()?).ok()?.target;
        let slash: &[u8] = if path.starts_with(b"/") { b"" } else { b"/" };
        self.public.contains(&target).then(|| [slash, path].concat())
    }
}

/// The places of the URLs in a Link header: each is in angle brackets, before its parameters (RFC 8288, section 3).
fn targets_of_links(value: &[u8]) -> Vec<Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(byte) = value.get(at) {
        match byte {
            b'"' => at = end_of_quoted(value, at + 1) + 1,
            b'<' => {
                let Some(length) = value[at + 1..].iter().position(|byte| *byte == b'>') else { break };
                found.push(at + 1..at + 1 + length);
                at += length + 2;
            }
            _ => at += 1,
        }
    }
    found
}

/// The places of the realms in challenges (RFC 9110, section 11.6.1): one line may hold several, and not every registry
/// puts a realm in quotes.
pub fn realms(value: &[u8]) -> Vec<Range<usize>> {
    const NAME: &[u8] = b"realm";
    let skip_blanks = |from: usize| from + value[from..].iter().take_while(|byte| b" \t".contains(byte)).count();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < value.len() {
        let begins_word = at == 0 || b" \t,".contains(&value[at - 1]);
        let names_realm = value.get(at..at + NAME.len()).is_some_and(|word| word.eq_ignore_ascii_case(NAME));
        let equals = skip_blanks((at + NAME.len()).min(value.len()));
        if begins_word && names_realm && value.get(equals) == Some(&b'=') {
            let start = skip_blanks(equals + 1);
            let quoted = value.get(start) == Some(&b'"');
            let start = start + usize::from(quoted);
            let bare_end = || start + value[start..].iter().take_while(|byte| !b", ".contains(byte)).count();
            let end = if quoted { end_of_quoted(value, start) } else { bare_end() };
            if !quoted || end < value.len() {
                found.push(start..end);
            }
            at = end + 1;
        } else if value[at] == b'"' {
            at = end_of_quoted(value, at + 1) + 1;
        } else {
            at += 1;
        }
    }
    found
}

/// Where the quoted text that begins at `from` ends: at its closing quote, or at the end of the value.
fn end_of_quoted(value: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < value.len() && value[at] != b'"' {
        at += if value[at] == b'\\' { 2 } else { 1 };
    }
    at.min(value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "http://127.0.0.1:4130";

    /// One header after the rewrite of an answer to `GET /v2/`.
    fn rewritten(status: u16, name: &HeaderName, value: &[u8]) -> Vec<u8> {
        let public = [Target::from_connect("harbor.example.com:443").unwrap()];
        let rewrite = Rewrite {
            public: &public,
            here: BASE.trim_start_matches("http://").parse().unwrap(),
            called: None,
            asked: Some(PathAndQuery::from_static("/v2/")),
        };
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_bytes(value).unwrap());
        rewrite.apply(StatusCode::from_u16(status).unwrap(), &mut headers);
        headers[name].as_bytes().to_vec()
    }

    fn assert_rewritten(name: &HeaderName, value: &[u8], expected: &[u8]) {
        let found = rewritten(307, name, value);
        assert_eq!(found, expected, "{name}: {} became {}", value.escape_ascii(), found.escape_ascii());
    }

    #[test]
    fn a_location_at_a_public_url_leads_back() {
        for (url, path) in [
            ("https://harbor.example.com/v2/a/blobs/uploads/1?_state=x", "/v2/a/blobs/uploads/1?_state=x"),
            ("https://HARBOR.example.com:443/v2/a", "/v2/a"),
            ("//harbor.example.com/v2/a", "/v2/a"),
            ("https://harbor.example.com", "/"),
            ("https://harbor.example.com?x", "/?x"),
        ] {
            assert_rewritten(&LOCATION, url.as_bytes(), format!("{BASE}{path}").as_bytes());
        }
        assert_rewritten(&LOCATION, b"https://harbor.example.com/v2/\xe4/x", b"http://127.0.0.1:4130/v2/\xe4/x");
    }

    #[test]
    fn every_other_location_stays() {
        for url in [
            "/v2/a/blobs/uploads/1",
            "https://storage.example.com/bucket?X-Signature=harbor.example.com",
            "https://harbor.example.com:9000/bucket",
            "http://harbor.example.com/bucket",
            "https://harbor.example.com@evil.example.com/",
            "https://auth.docker.io/token",
            "ftp://harbor.example.com/",
            "",
        ] {
            assert_rewritten(&LOCATION, url.as_bytes(), url.as_bytes());
        }
        assert_rewritten(&LOCATION, b"https://\xe4.example.com/", b"https://\xe4.example.com/");
    }

    /// Led back, the client would ask the same again, for ever. An answer that is no redirect may name its own URL.
    #[test]
    fn a_redirect_to_what_was_asked_for_is_not_led_back() {
        let itself = b"https://harbor.example.com/v2/";
        for (status, expected) in [(301, &itself[..]), (308, &itself[..]), (202, b"http://127.0.0.1:4130/v2/")] {
            assert_eq!(rewritten(status, &LOCATION, itself), expected, "{status}");
        }
    }

    #[test]
    fn each_target_of_a_link_leads_back_and_its_parameters_stay() {
        for (link, expected) in [
            (
                "<https://harbor.example.com/v2/_catalog?last=a&n=1>; rel=\"next\"",
                "<http://127.0.0.1:4130/v2/_catalog?last=a&n=1>; rel=\"next\"",
            ),
            (
                "<https://storage.example.com/>; rel=a, <https://harbor.example.com/v2/x>; title=\"<https://harbor.example.com/>\"",
                "<https://storage.example.com/>; rel=a, <http://127.0.0.1:4130/v2/x>; title=\"<https://harbor.example.com/>\"",
            ),
            ("</v2/_catalog?last=a>; rel=\"next\"", "</v2/_catalog?last=a>; rel=\"next\""),
            ("<https://harbor.example.com/v2/", "<https://harbor.example.com/v2/"),
            ("https://harbor.example.com/v2/", "https://harbor.example.com/v2/"),
        ] {
            assert_rewritten(&LINK, link.as_bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn only_the_realm_of_a_challenge_changes() {
        let challenge = |base: &str| {
            format!("Bearer realm=\"{base}/service/token\",service=\"harbor-registry\",scope=\"repository:a:pull\"")
        };
        let own = challenge("https://harbor.example.com");
        assert_rewritten(&WWW_AUTHENTICATE, own.as_bytes(), challenge(BASE).as_bytes());
        for other in [
            "Basic realm=\"harbor\"",
            "Bearer realm=\"https://auth.example.com/token\",service=\"https://harbor.example.com\"",
            "Bearer service=\"x realm=https://harbor.example.com/\"",
            "Bearer service=\"x\\\" realm=https://harbor.example.com/\"",
            "Bearer service=\"x\"",
            "Bearer realm=\"https://harbor.example.com/service/token",
            "realm",
            "realm=",
        ] {
            assert_rewritten(&WWW_AUTHENTICATE, other.as_bytes(), other.as_bytes());
        }
    }

    #[test]
    fn every_realm_of_a_line_is_led_back() {
        for challenges in [
            "Basic realm=\"harbor\", Bearer realm=\"OWN\",service=\"s\"",
            "Bearer Realm = \"OWN\", Bearer realm=\"https://other.example.com/token\"",
            "Bearer realm=OWN,service=s",
            "Bearer service=s, realm=OWN",
            "Bearer realm=\"OWN\", Bearer realm=OWN",
            // The word alone is no realm, nor is the end of another name.
            "Bearer service=\"harbor-realm\",realm=\"OWN\"",
            "Bearer service=\"the realm of harbor\", realm=\"OWN\"",
            "Bearer x-realm=\"elsewhere\",realm=\"OWN\"",
            "Bearer scope=x,\trealm=OWN",
        ] {
            let with = |url: &str| [b"X y=\"\xfc\", ", challenges.replace("OWN", url).as_bytes()].concat();
            let expected = with(&format!("{BASE}/service/token"));
            assert_rewritten(&WWW_AUTHENTICATE, &with("https://harbor.example.com/service/token"), &expected);
        }
    }
}
